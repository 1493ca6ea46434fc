"""What the replay of a log needs of memory, known before it starts."""

from __future__ import annotations

from stages.contracts.memory import require_memory
from stages.contracts.snapshot import Snapshot
from stages.features.config import FeatureConfig, TrendsConfig
from stages.features.state_files import USER_COLUMNS, array_shapes

_EVENT_BYTES = 42
"""Of an event in memory: the columns of ``EventTable``."""
_LINK_BYTES = 16
_ROOM = 2
"""Growing arrays double, and are copied while they do."""
_SETTINGS = "dataset.history_days, features.covisitation_neighbours or features.covisitation_window"


def replay_bytes(snapshot: Snapshot, config: FeatureConfig, trending: TrendsConfig | None = None) -> int:
    """Return an upper estimate of the bytes of a snapshot's events and the state after them.

    Every event counts as the first touch of a pair with a whole window of links; a log of repeated touches or exposures
    needs less.

    Args:
        snapshot: only counts and items are read.
        config: of the state.
        trending: windows that the state counts; None without any.
    """
    items, users, events = snapshot.items(), snapshot.n_users(), snapshot.n_events()
    shapes = array_shapes(items, config, snapshot.meta.tasks, snapshot.meta.context, trending)
    counters = 0
    for shape, dtype in shapes.values():
        size = dtype.itemsize
        for length in shape:
            size *= length
        counters += size
    entry = sum(dtype.itemsize for dtype in USER_COLUMNS.values())
    touched = events * entry * _ROOM + users * 32
    longest = 2 * (2 * config.covisitation_neighbours + config.covisitation_window)
    links = min(len(items) * longest, 4 * events * config.covisitation_window) * _LINK_BYTES
    return events * _EVENT_BYTES + counters + touched + links + _tallies(snapshot, len(items), trending)


def _tallies(snapshot: Snapshot, n_items: int, trending: TrendsConfig | None) -> int:
    """Return the bytes of the counts of recent touches: of all users, and of each value of the segment's column."""
    if trending is None:
        return 0
    values = [len(column.values) for column in snapshot.meta.context if column.name == trending.segment]
    return 4 * len(trending.windows_minutes) * n_items * (1 + sum(values))


def require_replay_memory(
    step: str, snapshot: Snapshot, config: FeatureConfig, trending: TrendsConfig | None = None, more: int = 0
) -> None:
    """Refuse a step whose replay will not fit the memory that is available.

    Args:
        step: for the message.
        snapshot: whose events are replayed.
        config: of the state.
        trending: windows that the state counts; None without any.
        more: bytes that the step needs besides.

    Raises:
        ConfigError: with the bytes that are needed and available, and the settings that make them fewer.
    """
    require_memory(step, replay_bytes(snapshot, config, trending) + more, _SETTINGS)

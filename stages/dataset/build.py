"""The dataset step: from the warehouse to a snapshot.

Items are de-duplicated first, from the catalogue alone. Then the time borders are laid, events are
exported with their part, indices are given out in time order, and first touches become requests.
Nothing of a later part reaches an earlier one: see the property test beside the oracle tests.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from stages.contracts.errors import DataError, EmptyDatasetError
from stages.contracts.files import canonical_json, sha256_text
from stages.contracts.snapshot import TimeBorders
from stages.contracts.steps import Outcome, Step
from stages.contracts.tables import PART_CANDIDATE, PART_EVALUATION, PART_RANKER, EventTable
from stages.dataset.borders import lay_borders
from stages.dataset.config import DatasetStepConfig
from stages.dataset.duplicates import find_duplicates
from stages.dataset.ids import Catalogue, check_time_order, encode_ids, index_items, index_users, split_categories
from stages.dataset.requests import build_requests
from stages.dataset.source import EventSource, WarehouseSource
from stages.dataset.write import Contents, write_snapshot

if TYPE_CHECKING:
    import pyarrow as pa

    from stages.warehouse.engine import Warehouse

PART_NAMES = {PART_CANDIDATE: "candidate", PART_RANKER: "ranker", PART_EVALUATION: "evaluation"}


def snapshot_body(warehouse: Warehouse) -> Step[DatasetStepConfig]:
    """Return the dataset step's body for an open warehouse, as ``run_step`` takes it."""

    def body(config: DatasetStepConfig, inputs: Mapping[str, Path], directory: Path) -> Outcome:
        return build_snapshot(config, WarehouseSource(warehouse), directory)

    return body


def build_snapshot(config: DatasetStepConfig, source: EventSource, directory: Path) -> Outcome:
    """Build one snapshot.

    Args:
        config: what to select; the as-of time is part of it.
        source: the warehouse.
        directory: empty, gets the files of ``stages.contracts.snapshot``.

    Returns:
        Counts as metrics; fingerprint, borders and sizes as info.

    Raises:
        EmptyDatasetError: if a threshold removed every event or every user; it names the threshold.
        DataError: if a part has no events or no requests, or there are too few items.
    """
    items = source.items(config)
    aliases = _duplicates(items) if config.deduplicate_items else {}
    key = sha256_text(canonical_json(config.model_dump(mode="json")))[:16]
    source.write_aliases(key, aliases)
    borders, counts = lay_borders(config, source, key)
    batches = list(source.events(config, borders, key))
    events, catalogue, user_ids = _index(config, batches, items, aliases, counts)
    del batches
    _check_parts(events, borders)
    _count_events(events, counts)
    _check_active(config, events, source, borders)
    if len(catalogue) < config.min_items:
        raise DataError(f"min_items = {config.min_items}: found {len(catalogue)} items; allowed is a smaller min_items")
    requests, targets, made = build_requests(
        events, len(catalogue), config.requests, config.tasks, config.signals, config.seed
    )
    counts |= made
    _check_requests(config, counts)
    index_of = {item_id: index for index, item_id in enumerate(catalogue.item_id.to_pylist())}
    contents = Contents(
        signals=config.signals,
        tasks=config.tasks,
        borders=borders,
        events=events,
        requests=requests,
        targets=targets,
        items=catalogue,
        user_ids=user_ids,
        aliases={alias: index_of[target] for alias, target in aliases.items() if target in index_of},
    )
    meta = write_snapshot(contents, counts, directory)
    info = {"fingerprint": meta.fingerprint, "borders": borders.model_dump(), "aliases_key": key}
    return {name: float(value) for name, value in counts.items()}, info


def _duplicates(items: pa.Table) -> dict[str, str]:
    return find_duplicates(
        items["item_id"].to_pylist(),
        [title or "" for title in items["title"].to_pylist()],
        [split_categories(text) for text in items["categories"].to_pylist()],
        items["created_at_ms"].to_pylist(),
    )


def _index(
    config: DatasetStepConfig,
    batches: list[pa.RecordBatch],
    items: pa.Table,
    aliases: Mapping[str, str],
    counts: dict[str, int],
) -> tuple[EventTable, Catalogue, pa.Array]:
    """Turn exported rows into an event table, the catalogue and the user ids."""

    def column(name: str, kind: type) -> np.ndarray:
        parts = [batch.column(name).to_numpy(zero_copy_only=False).astype(kind, copy=False) for batch in batches]
        return np.concatenate(parts)

    times = column("event_time_ms", np.int64)
    check_time_order(times)
    users = encode_ids((batch.column("user_id") for batch in batches), times)
    user_index, user_ids = index_users(users)
    coded_items = encode_ids((batch.column("item_id") for batch in batches), times)
    item_index, catalogue = index_items(coded_items, items, aliases, config.as_of_ms, counts)
    kinds = encode_ids((batch.column("signal") for batch in batches), times)
    code_of = np.array([config.signals.index(name) for name in kinds.ids.to_pylist()], dtype=np.int16)
    events = EventTable(
        user_index=user_index,
        item_index=item_index,
        event_time_ms=times,
        signal=code_of[kinds.codes],
        value=column("value", np.float32),
        part=column("part", np.int8),
        active=column("active", np.bool_),
    )
    counts["users"] = len(user_ids)
    return events, catalogue, user_ids


def _count_events(events: EventTable, counts: dict[str, int]) -> None:
    counts["events"] = len(events)
    for part, name in PART_NAMES.items():
        rows = events.part == part
        counts[f"{name}_events"] = int(rows.sum())
        counts[f"{name}_events_of_inactive_users"] = int((rows & ~events.active).sum())
        counts[f"{name}_users"] = len(np.unique(events.user_index[rows]))
        counts[f"{name}_active_users"] = len(np.unique(events.user_index[rows & events.active]))


def _check_parts(events: EventTable, borders: TimeBorders) -> None:
    limits = [borders.start_ms, borders.candidate_end_ms, borders.ranker_end_ms, borders.as_of_ms]
    for part, name in PART_NAMES.items():
        if not np.any(events.part == part):
            raise DataError(
                f"the {name} part [{limits[part]}, {limits[part + 1]}) ms has no events; move the borders by "
                "dataset.split, or choose another as-of time"
            )


def _check_active(config: DatasetStepConfig, events: EventTable, source: EventSource, borders: TimeBorders) -> None:
    """Refuse a training part without a single active user, and say which threshold left none."""
    policy = config.activity
    for part, end_ms in ((PART_CANDIDATE, borders.candidate_end_ms), (PART_RANKER, borders.ranker_end_ms)):
        if np.any(events.active & (events.part == part)):
            continue
        n_users, highest = source.activity(config, end_ms)
        most = "" if policy.max_events is None else f" and at most max_events = {policy.max_events}"
        raise EmptyDatasetError(
            f"dataset.activity removed every user of the {PART_NAMES[part]} part: active means at least min_events = "
            f"{policy.min_events}{most} events within window_days = {policy.window_days:g} before {end_ms} ms; found "
            f"{n_users} users in that window, the most active one with {highest} events"
        )


def _check_requests(config: DatasetStepConfig, counts: Mapping[str, int]) -> None:
    for part in (PART_RANKER, PART_EVALUATION):
        name = PART_NAMES[part]
        if counts[f"{name}_requests"] == 0:
            graded = [task.name for task in config.tasks if task.relevance > 0]
            raise DataError(
                f"the {name} part gives no request: {counts[f'{name}_first_touches']} first touches of "
                f"{'active ' if part == PART_RANKER else ''}users, none of which satisfied a task with relevance "
                f"({graded}) within window_days = {config.requests.window_days:g}"
            )

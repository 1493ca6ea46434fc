"""A step that no job has: what adding one takes. Tests run it from here, and in a copy of the tree from there."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from stages.contracts.config import Config
from stages.contracts.files import write_json
from stages.contracts.snapshot import Snapshot
from stages.contracts.steps import Outcome

COUNTS_FILE = "signals.json"


class CountConfig(Config):
    """Configuration of ``count_signals``.

    Attributes:
        at_least: kinds of events with fewer are left out.
    """

    at_least: int = 1


def count_signals(config: Config, inputs: Mapping[str, Path], directory: Path) -> Outcome:
    """Count a snapshot's events by kind."""
    snapshot = Snapshot(inputs["snapshot"])
    codes = snapshot.events().signal.tolist()
    counts = {name: codes.count(code) for code, name in enumerate(snapshot.meta.signals)}
    kept = {name: count for name, count in counts.items() if count >= getattr(config, "at_least", 1)}
    write_json(directory / COUNTS_FILE, kept)
    return {"signals": float(len(kept))}, {"names": sorted(kept)}

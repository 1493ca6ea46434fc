"""Turn rows with a list of items, such as the candidates of an impression, into one event an item.

Shapes: R rows of a chunk, E events made of them.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from stages.contracts.files import canonical_json
from stages.contracts.ragged import ranges, row_offsets
from stages.warehouse.ingest.parse import LONGEST_ID
from stages.warehouse.mapping import InteractionColumns
from stages.warehouse.readers.chunk import Reject


def expand_items(rows: Any, numbers: np.ndarray, mapping: InteractionColumns) -> tuple[Any, list[Reject]]:
    """Turn each listed item into an event, or into several where ``outcomes`` says so.

    Args:
        rows: ``pa.Table [R]`` of valid events whose ``item_id`` holds a list.
        numbers: int64 ``[R]`` row numbers.
        mapping: a mapping with ``item_separator``.

    Returns:
        ``pa.Table [E]`` with the columns of ``rows``, and the listed items that were quarantined:
        ``missing_item_id``, ``item_id_too_long`` or ``unknown_outcome``. The other items of their rows are kept.
    """
    entries = pc.split_pattern(pc.utf8_trim_whitespace(rows["item_id"].combine_chunks()), mapping.item_separator)
    origin = np.repeat(np.arange(len(rows)), pc.list_value_length(entries).to_numpy(zero_copy_only=False))
    flat = entries.flatten()
    encoded = flat.dictionary_encode()
    codes = encoded.indices.to_numpy(zero_copy_only=False)
    found = [_entry(text, mapping) for text in encoded.dictionary.to_pylist()]

    faults = np.array([entry if isinstance(entry, str) else "" for entry in found], dtype=object)[codes]
    rejects = [
        Reject(
            int(numbers[origin[place]]), str(faults[place]), _raw(rows, int(origin[place]), flat[int(place)].as_py())
        )
        for place in np.flatnonzero(faults != "")
    ]
    events = [() if isinstance(entry, str) else entry for entry in found]
    counts = np.array([len(entry) for entry in events], dtype=np.int64)
    repeats = counts[codes]
    picked = pa.array(ranges(row_offsets(counts)[codes], repeats))
    made = rows.take(pa.array(np.repeat(origin, repeats)))
    for place, name in enumerate(("item_id", "signal")):
        values = pa.array([event[place] for entry in events for event in entry], pa.large_string()).take(picked)
        if name == "item_id" or mapping.outcomes:
            made = made.set_column(made.schema.get_field_index(name), name, values)
    return made, rejects


def _entry(text: str, mapping: InteractionColumns) -> tuple[tuple[str, str], ...] | str:
    """Return the (item, signal) pairs of one listed item, or the reason to quarantine it."""
    item = text.strip()
    signals: tuple[str, ...] = (mapping.signal,)
    if mapping.outcomes:
        item, _, outcome = item.rpartition(mapping.outcome_separator)
        if outcome not in mapping.outcomes:
            return "unknown_outcome"
        signals = mapping.outcomes[outcome]
    if not item.strip():
        return "missing_item_id"
    if len(item.encode("utf-8")) > LONGEST_ID:
        return "item_id_too_long"
    return tuple((item, signal) for signal in signals)


def _raw(rows: Any, row: int, entry: str) -> str:
    whole = rows.slice(row, 1).to_pylist()[0]
    return canonical_json({name: whole[name] for name in ("user_id", "event_time_ms")} | {"item": entry})

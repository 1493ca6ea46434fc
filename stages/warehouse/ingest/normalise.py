"""Turn chunks of a file into rows of the warehouse's tables, by a declared mapping.

Shapes: R rows of a chunk, G category flags.
"""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from stages.contracts.files import canonical_json
from stages.warehouse.ingest.explode import expand_items
from stages.warehouse.ingest.parse import Faults, each, parse_id, parse_list, parse_number, parse_text, parse_time
from stages.warehouse.ingest.row_ids import combine, hash_numbers, hash_strings
from stages.warehouse.ingest.times import Times
from stages.warehouse.mapping import ColumnMapping, InteractionColumns, ItemColumns, UserColumns
from stages.warehouse.readers.chunk import Chunk, Reject
from stages.warehouse.readers.exact import exact_text, id_columns

IN_FUTURE = "in_future"
"""The only reason that time cures: a file with such rows is read again."""

_SEPARATOR = "|"
_FLAGS = {"1": True, "1.0": True, "true": True, "0": False, "0.0": False, "false": False, "": False}


def normalise(
    chunk: Chunk, mapping: ColumnMapping, now_ms: int | None, times: Times | None = None
) -> tuple[Any, list[Reject]]:
    """Turn a chunk into a ``pa.Table`` of the warehouse's columns and the quarantined rows.

    Args:
        chunk: rows as they were read.
        mapping: which column means what.
        now_ms: events after it are quarantined; None accepts any time.
        times: collects the times of events, or None.

    Returns:
        The table, and the quarantined rows. For interactions the columns are user_id, item_id, signal,
        value, event_time_ms, context, and event_key if the events have an id; for items and users the
        table's columns, with ``row_hash``. Each row of the chunk is in exactly one of the two; if a row
        lists items, each listed item is.

    Raises:
        DataError: if an id is a number that is not exact.
    """
    faults = Faults(len(chunk))
    if isinstance(mapping, InteractionColumns):
        table = _interactions(chunk, mapping, now_ms, faults, times)
    elif isinstance(mapping, ItemColumns):
        table = _items(chunk, mapping, faults)
    else:
        table = _users(chunk, mapping, faults)
    rejects = sorted([*chunk.rejects, *faults.rejects(chunk)], key=lambda reject: reject.row_number)
    good = faults.good
    rows = table if good.all() else table.filter(pa.array(good))
    if isinstance(mapping, InteractionColumns) and mapping.item_separator is not None:
        rows, more = expand_items(rows, chunk.row_numbers[good], mapping)
        rejects = sorted([*rejects, *more], key=lambda reject: reject.row_number)
    return rows, rejects


def _interactions(
    chunk: Chunk, mapping: InteractionColumns, now_ms: int | None, faults: Faults, times: Times | None
) -> Any:
    size = len(chunk)
    user_id = parse_id(chunk.columns[mapping.user_id], "user_id", faults, mapping.user_id)
    listed = mapping.item_separator is not None
    if listed:
        item_id = parse_list(chunk.columns[mapping.item_id], "item_id", faults)
    else:
        item_id = parse_id(chunk.columns[mapping.item_id], "item_id", faults, mapping.item_id)
    if mapping.signal_column is None:
        signal = pa.repeat(pa.scalar(mapping.signal, pa.large_string()), size)
    else:
        signal = parse_id(chunk.columns[mapping.signal_column], "signal", faults, mapping.signal_column)
    if mapping.value_column is None:
        value = pa.repeat(pa.scalar(mapping.value, pa.float64()), size)
    else:
        value = parse_number(chunk.columns[mapping.value_column], "value", faults, required=True)
        if mapping.non_negative:
            faults.mark(_true(pc.less(value, 0)), "negative_value")
    given = chunk.columns[mapping.event_time]
    event_time = parse_time(given, mapping.time_unit, "event_time", faults, required=True)
    if times is not None:
        times.add(given, mapping.time_unit, event_time)
    faults.mark(_true(pc.less(event_time, 0)), "before_1970")
    if now_ms is not None:
        faults.mark(_true(pc.greater(event_time, now_ms + round(1000 * mapping.max_skew_s))), IN_FUTURE)
    columns = {"user_id": user_id, "item_id": item_id, "signal": signal, "value": value, "event_time_ms": event_time}
    columns["context"] = _context(chunk, mapping, faults)
    if mapping.event_id is not None:
        columns["event_key"] = _event_key(chunk, mapping, faults)
    return pa.table(columns)


def _event_key(chunk: Chunk, mapping: InteractionColumns, faults: Faults) -> Any:
    """Return large_string ``[R]``: the event's own id, or the joined columns that form it."""
    names = [name for field, name in mapping.named if field == "event_id"]
    exact = id_columns(mapping)
    parts = [
        parse_id(column if name in exact else exact_text(column), "event_id", faults, name)
        for name, column in ((name, chunk.columns[name]) for name in names)
    ]
    # No column holds a NUL character, so different ids stay different when they are joined by it.
    return pc.binary_join_element_wise(*parts, pa.scalar("\0", pa.large_string()))


def _context(chunk: Chunk, mapping: InteractionColumns, faults: Faults) -> Any:
    """Return large_string ``[R]``: a JSON object of the columns that are not blank, or empty."""
    if not mapping.context:
        return pa.repeat(pa.scalar("", pa.large_string()), len(chunk))
    names, columns = zip(*sorted(zip(mapping.kept_context(), mapping.context, strict=True)), strict=True)
    coded = [parse_text(chunk.columns[name], name, faults).dictionary_encode() for name in columns]
    # One JSON text for each distinct combination of values; there are few. A combination is coded as a
    # number in a mixed radix: each column's code is a digit.
    mixed = np.zeros(len(chunk), dtype=np.int64)
    for column in coded:
        codes = column.indices.fill_null(-1).to_numpy(zero_copy_only=False).astype(np.int64)
        _, mixed = np.unique(mixed * (len(column.dictionary) + 1) + codes + 1, return_inverse=True)
    _, first, inverse = np.unique(mixed, return_index=True, return_inverse=True)
    distinct = np.stack(
        [column.indices.fill_null(-1).to_numpy(zero_copy_only=False)[first] for column in coded], axis=1
    )
    words = [column.dictionary.to_pylist() for column in coded]
    texts = []
    for row in distinct.tolist():
        held = {
            name: words[place][code].strip()
            for place, (name, code) in enumerate(zip(names, row, strict=True))
            if code >= 0
        }
        kept = {name: word for name, word in held.items() if word}
        texts.append(canonical_json(kept) if kept else "")
    return pa.array(texts, pa.large_string()).take(pa.array(inverse.ravel()))


def _items(chunk: Chunk, mapping: ItemColumns, faults: Faults) -> Any:
    size = len(chunk)
    item_id = parse_id(chunk.columns[mapping.item_id], "item_id", faults, mapping.item_id)
    title = item_id
    if mapping.title is not None:
        given = parse_text(chunk.columns[mapping.title], "title", faults)
        title = pc.if_else(_true_array(pc.not_equal(pc.utf8_trim_whitespace(given), "")), given, item_id)
    created = pa.nulls(size, pa.int64())
    if mapping.created_at is not None:
        times = chunk.columns[mapping.created_at]
        created = parse_time(times, mapping.time_unit, "created_at", faults, required=False)
    duration = pa.nulls(size, pa.float64())
    if mapping.duration is not None:
        duration = parse_number(chunk.columns[mapping.duration], "duration", faults, required=False)
        faults.mark(_true(pc.less(duration, 0)), "negative_duration")
    categories = _categories(chunk, mapping, faults)
    text, state = (
        _optional(chunk, name, field, faults) for name, field in ((mapping.text, "text"), (mapping.state, "state"))
    )
    parts = [hash_strings(column) for column in (item_id, title, categories, text, state)]
    hashes = combine([*parts, hash_numbers(created), hash_numbers(duration)], size)
    columns = {
        "item_id": item_id,
        "title": title,
        "categories": categories,
        "created_at_ms": created,
        "duration_s": duration,
        "row_hash": hashes.view(np.int64),
        "text": text,
        "state": state,
    }
    return pa.table(columns)


def _optional(chunk: Chunk, name: str | None, field: str, faults: Faults) -> Any:
    """Return large_string ``[R]``, null where the column is not mapped or blank."""
    if name is None:
        return pa.nulls(len(chunk), pa.large_string())
    given = parse_text(chunk.columns[name], field, faults)
    return pc.if_else(_true_array(pc.not_equal(pc.utf8_trim_whitespace(given), "")), given, None)


def _users(chunk: Chunk, mapping: UserColumns, faults: Faults) -> Any:
    user_id = parse_id(chunk.columns[mapping.user_id], "user_id", faults, mapping.user_id)
    attributes = pa.repeat(pa.scalar("{}", pa.large_string()), len(chunk))
    if mapping.attributes:
        names = sorted(mapping.attributes)
        texts = [parse_text(chunk.columns[name], name, faults).to_pylist() for name in names]
        rows = [
            canonical_json({name: value for name, value in zip(names, row, strict=True) if value not in (None, "")})
            for row in zip(*texts, strict=True)
        ]
        attributes = pa.array(rows, pa.large_string())
    if mapping.attributes_json is not None:
        given = parse_text(chunk.columns[mapping.attributes_json], "attributes", faults)
        read = each(given, _json_object, pa.large_string())
        faults.mark(_true(pc.and_(read.is_null(), given.is_valid())), "invalid_attributes")
        own = [json.loads(text) for text in attributes.to_pylist()]
        extra = [json.loads(text or "{}") for text in read.to_pylist()]
        attributes = pa.array([canonical_json(a | b) for a, b in zip(extra, own, strict=True)], pa.large_string())
    hashes = combine([hash_strings(user_id), hash_strings(attributes)], len(chunk))
    return pa.table({"user_id": user_id, "attributes": attributes, "row_hash": hashes.view(np.int64)})


def _categories(chunk: Chunk, mapping: ItemColumns, faults: Faults) -> Any:
    names = pa.repeat(pa.scalar("", pa.large_string()), len(chunk))
    columns = [chunk.columns[column] for name, column in mapping.named if name == "categories"]
    if columns:
        texts = [pc.fill_null(parse_text(column, "categories", faults), "") for column in columns]
        separator, ignored = mapping.category_separator, set(mapping.ignored_categories)
        listed = pc.binary_join_element_wise(*texts, pa.scalar(separator, pa.large_string()))
        names = each(
            listed,
            lambda text: _join([name for name in text.split(separator) if name.strip() not in ignored]),
            pa.large_string(),
        )
    if not mapping.category_flags:
        return names
    flags = np.stack([_flag(chunk.columns[name], name, faults) for name in mapping.category_flags])
    labels = np.array(mapping.category_flags, dtype=object)
    joined = [
        _join([*text.split(_SEPARATOR), *labels[row]]) for text, row in zip(names.to_pylist(), flags.T, strict=True)
    ]
    return pa.array(joined, pa.large_string())


def _join(names: list[str]) -> str:
    # A separator inside a name would split it when it is read back.
    cleaned = (name.strip().replace(_SEPARATOR, "/") for name in names)
    return _SEPARATOR.join(dict.fromkeys(name for name in cleaned if name))


def _flag(column: Any, name: str, faults: Faults) -> np.ndarray:
    text = exact_text(column)
    read = each(text, lambda value: _FLAGS.get(value.strip().lower()), pa.bool_())
    faults.mark(_true(pc.and_(read.is_null(), text.is_valid())), f"invalid_flag_{name}")
    return _true(read)


def _json_object(text: str) -> str | None:
    if not text.strip():
        return "{}"
    try:
        value = json.loads(text)
        canonical = canonical_json(value)
        canonical.encode("utf-8")
    except (ValueError, RecursionError):
        return None
    return canonical if isinstance(value, dict) else None


def _true_array(condition: Any) -> Any:
    return pc.fill_null(condition, False)


def _true(condition: Any) -> np.ndarray:
    return np.asarray(_true_array(condition).to_numpy(zero_copy_only=False))

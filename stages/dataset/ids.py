"""Dense indices for users and items, append-only.

Rows of a base keep their indices. New users follow by (first event, id), new items by (birth, id). So
later events never change the index of an earlier user or item, with or without a base, and an index
reveals nothing about the future.

Shapes: R events, N items.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from stages.contracts.errors import DataError
from stages.contracts.id_map import IdMap
from stages.contracts.snapshot import ALL_PARTS
from stages.dataset.base import Base

_UNKNOWN = np.iinfo(np.int64).max


@dataclass(frozen=True)
class Catalogue:
    """The items of a snapshot, row = item index.

    Attributes:
        item_id, title: Arrow strings ``[N]``.
        categories: N lists of positions in ``category_names``.
        category_names: in the order of their first item.
        created_at_ms: int64 ``[N]``.
        duration_s: float32 ``[N]``, NaN where unknown.
        eligible: int8 ``[N]`` as ``ItemTable.eligible``.
        retired: bool ``[N]``: rows of a base whose item is now a duplicate or blocked. The rows are kept,
            but never trained on, indexed or recommended.
    """

    item_id: pa.Array
    title: pa.Array
    categories: list[list[int]]
    category_names: list[str]
    created_at_ms: np.ndarray
    duration_s: np.ndarray
    eligible: np.ndarray
    retired: np.ndarray

    def __len__(self) -> int:
        return len(self.item_id)


def index_users(first: pa.Table, base: IdMap) -> IdMap:
    """Return the map of users: the users of the base, then the others in time order.

    Args:
        first: distinct ``id`` with ``first_ms``, the time of its first event.
        base: the map to extend.
    """
    ids = _flat(first["id"])
    order = _time_order(first["first_ms"].to_numpy(), ids)
    ordered = ids.take(pa.array(order))
    return base.extend(ordered.filter(pc.invert(pc.is_in(ordered, base.ids))))


def index_items(
    first: pa.Table,
    items: pa.Table,
    aliases: Mapping[str, str],
    as_of_ms: int,
    counts: dict[str, int],
    base: Base | None = None,
) -> tuple[pa.Table, Catalogue]:
    """Assign the items' indices and return the catalogue.

    An item is born at its creation time or at its first event, whichever is earlier. An item with neither
    counts as born at the as-of time: it can be recommended from then on.

    Args:
        first: distinct ``id`` with ``first_ms`` of the items in events.
        items: the warehouse's items.
        aliases: canonical id by the id of a duplicate; duplicates get no index of their own.
        as_of_ms: items born from then on do not exist yet.
        counts: gets the number of items by outcome.
        base: the base to extend.

    Returns:
        ``item_id``, ``item_index``, ``canonical`` of every id of an item; the catalogue.
    """
    duplicates = pa.array(list(aliases), pa.string())
    touched = _canonical(_flat(first["id"]), duplicates, aliases)
    canonical = items.filter(pc.invert(pc.is_in(items["item_id"], duplicates))).combine_chunks()
    ids = _flat(canonical["item_id"])
    distinct = touched.unique()
    unlisted = distinct.filter(pc.invert(pc.is_in(distinct, ids)))
    n_listed, n_unlisted = len(ids), len(unlisted)
    ids = pa.concat_arrays([ids, unlisted])
    first_ms = np.full(len(ids), _UNKNOWN)
    np.minimum.at(first_ms, _place(touched, ids), first["first_ms"].to_numpy())
    created = canonical["created_at_ms"].fill_null(_UNKNOWN).to_numpy().astype(np.int64)
    created = np.concatenate([created, np.full(n_unlisted, _UNKNOWN)])
    future = (created >= as_of_ms) & (created != _UNKNOWN) & (first_ms == _UNKNOWN)
    born = np.minimum(np.minimum(created, first_ms), as_of_ms)
    order = _time_order(born, ids)
    order = order[~future[order]]
    base = base or Base.nothing()
    # Rows of the base first; -1 if the id has no item any more.
    place_of_base = _place_or_none(base.items.ids, ids)
    place_of_base[(place_of_base >= 0) & future[place_of_base]] = -1
    order = np.concatenate([place_of_base, order[~np.isin(order, place_of_base)]])
    counts |= {
        "items_in_warehouse": len(items),
        "items_duplicate": len(items) - n_listed,
        "items_created_after_as_of": int(future.sum()),
        "items_missing_from_catalogue": n_unlisted,
        "items_without_events": int((first_ms[order[order >= 0]] == _UNKNOWN).sum()),
        "items_retired": int((order < 0).sum()),
        "items": len(order),
    }
    place = np.flatnonzero((order >= 0) & (order < n_listed))
    known = canonical.take(pa.array(order[place]))
    item_id = pa.concat_arrays([base.items.ids, ids.take(pa.array(order[len(base.items.ids) :]))])
    item_map = _item_map(item_id, order >= 0, duplicates, aliases)
    times = np.where(order >= 0, born[order], as_of_ms)
    return item_map, _catalogue(item_id, order < 0, times, known, place, base.categories)


def with_canonical(item_ids: pa.ChunkedArray, aliases: Mapping[str, str]) -> pa.Table:
    """Return the table of ``item_id`` and ``canonical_id``.

    Args:
        item_ids: strings ``[N]``.
        aliases: canonical id by the id of a duplicate.
    """
    ids = _flat(item_ids)
    return pa.table({"item_id": ids, "canonical_id": _canonical(ids, pa.array(list(aliases), pa.string()), aliases)})


def _canonical(ids: pa.Array, duplicates: pa.Array, aliases: Mapping[str, str]) -> pa.Array:
    """Return the canonical id of each id."""
    targets = pa.array(list(aliases.values()), pa.string())
    return pc.coalesce(targets.take(pc.index_in(ids, duplicates)), ids)


def _item_map(ids: pa.Array, stands: np.ndarray, duplicates: pa.Array, aliases: Mapping[str, str]) -> pa.Table:
    """Return the rows of the current items, and of their duplicates."""
    rows = np.flatnonzero(stands)
    own = ids.take(pa.array(rows))
    place = pc.index_in(pa.array(list(aliases.values()), pa.string()), own)
    standing = pc.is_valid(place)
    of_duplicates = rows[place.filter(standing).to_numpy().astype(np.int64)]
    return pa.table(
        {
            "item_id": pa.concat_arrays([own, duplicates.filter(standing)]),
            "item_index": np.concatenate([rows, of_duplicates]).astype(np.int64),
            "canonical": np.arange(len(rows) + len(of_duplicates)) < len(rows),
        }
    )


def _place(values: pa.Array, among: pa.Array) -> np.ndarray:
    return np.asarray(pc.index_in(values, among).to_numpy(zero_copy_only=False).astype(np.int64))


def _place_or_none(values: pa.Array, among: pa.Array) -> np.ndarray:
    return np.asarray(pc.fill_null(pc.index_in(values, among), -1).to_numpy(zero_copy_only=False).astype(np.int64))


def _catalogue(
    item_id: pa.Array,
    retired: np.ndarray,
    born: np.ndarray,
    known: pa.Table,
    place: np.ndarray,
    category_names: Sequence[str],
) -> Catalogue:
    """Put the columns of the ``known`` items at their ``place``; other items get their id as title."""
    titles, joined = item_id.to_pylist(), [""] * len(item_id)
    for row, title, names in zip(
        place.tolist(), known["title"].to_pylist(), known["categories"].to_pylist(), strict=True
    ):
        titles[row], joined[row] = title or "", names or ""
    duration = np.full(len(item_id), np.nan, dtype=np.float32)
    duration[place] = known["duration_s"].cast(pa.float64()).fill_null(np.nan).to_numpy()
    codes = {name: code for code, name in enumerate(category_names)}
    categories = [[codes.setdefault(name, len(codes)) for name in sorted(split_categories(text))] for text in joined]
    return Catalogue(
        item_id=item_id,
        title=pa.array(titles, pa.string()),
        categories=categories,
        category_names=list(codes),
        created_at_ms=born,
        duration_s=duration,
        eligible=np.where(retired, 0, ALL_PARTS).astype(np.int8),
        retired=retired,
    )


def split_categories(joined: str | None) -> frozenset[str]:
    """Return the names in a ``|``-joined list."""
    return frozenset(name.strip() for name in (joined or "").split("|") if name.strip())


def check_time_order(times_ms: np.ndarray) -> None:
    """Raise DataError unless times ``[R]`` are non-decreasing."""
    wrong = np.flatnonzero(np.diff(times_ms) < 0)
    if len(wrong):
        row = int(wrong[0])
        found = f"{times_ms[row]} before {times_ms[row + 1]}"
        raise DataError(f"event_time_ms must not decrease, found {found} in rows {row} and {row + 1}")


def _time_order(times_ms: np.ndarray, ids: pa.Array) -> np.ndarray:
    table = pa.table({"time": times_ms, "id": ids})
    order: np.ndarray = pc.sort_indices(table, sort_keys=[("time", "ascending"), ("id", "ascending")]).to_numpy()
    return order.astype(np.int64)


def _flat(column: pa.ChunkedArray) -> pa.Array:
    return pa.concat_arrays(column.chunks) if column.num_chunks else pa.array([], column.type)

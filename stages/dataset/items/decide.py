"""Decide which items of the catalogue are duplicates, and which are blocked."""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from stages.contracts.errors import ConfigError
from stages.dataset.config import DatasetStepConfig
from stages.dataset.ids import split_categories
from stages.dataset.items.duplicates import Found, Items, Known, find_duplicates
from stages.dataset.side_files import read_columns, read_ids, read_verdicts

DUPLICATE_OF_BLOCKED = "duplicate_of_blocked"
REVIEW_SCHEMA = pa.schema(
    [
        ("item_a", pa.string()),
        ("item_b", pa.string()),
        ("title_a", pa.string()),
        ("title_b", pa.string()),
        ("similarity", pa.float64()),
        ("decided", pa.string()),
    ]
)


@dataclass(frozen=True)
class CatalogueDecision:
    """The decision about duplicates and blocked items.

    Attributes:
        aliases: canonical id by duplicate id, never chained.
        blocked: reason by item id; every member of a blocked item's group is blocked.
        review: pairs near the threshold, the closest first, with ``REVIEW_SCHEMA``.
        counts: number of items by outcome.
    """

    aliases: dict[str, str]
    blocked: dict[str, str]
    review: pa.Table
    counts: dict[str, int]


def decide_catalogue(
    items: pa.Table, config: DatasetStepConfig, sql_blocked: Mapping[str, Sequence[str]]
) -> CatalogueDecision:
    """Find duplicates and blocked items; the result depends on the catalogue only, never on events.

    Args:
        items: columns of ``stages.warehouse.selection.items.ITEMS_SCHEMA``.
        config: ``duplicates`` and ``content``.
        sql_blocked: ids that a SQL predicate of the content policy matched, by reason.

    Raises:
        ConfigError: if a file, a classifier or a verdict is wrong; the message has the field.
    """
    ids: list[str] = items["item_id"].to_pylist()
    row_of = {item_id: row for row, item_id in enumerate(ids)}
    own = config.duplicates
    found, verdicts = Found({}, 0, [], list(range(len(ids)))), 0
    if own.method != "none" or own.pairs or own.verdicts:
        known, verdicts = _known(config, row_of)
        found = find_duplicates(_comparable(items), own, known)
    blocked = _blocked(items, config, sql_blocked)
    _spread(blocked, ids, found.head)
    aliases = {item: head for item, head in found.aliases.items() if item not in blocked}
    counts = {f"items_blocked_{reason}": 0 for reason in sorted({*_reasons(config), *blocked.values()})}
    for reason in blocked.values():
        counts[f"items_blocked_{reason}"] += 1
    review = _review(items, found, config)
    counts |= {
        "items_duplicate_exact": found.exact,
        "items_duplicate_near": len(found.aliases) - found.exact,
        "items_blocked": len(blocked),
        "pairs_to_review": len(review),
        "verdicts_used": verdicts,
    }
    return CatalogueDecision(aliases, blocked, review, counts)


def _comparable(items: pa.Table) -> Items:
    return Items(
        item_ids=items["item_id"].to_pylist(),
        titles=[title or "" for title in items["title"].to_pylist()],
        categories=[split_categories(text) for text in items["categories"].to_pylist()],
        created_at_ms=items["created_at_ms"].to_pylist(),
        texts=[text or "" for text in items["text"].to_pylist()],
    )


def _known(config: DatasetStepConfig, row_of: Mapping[str, int]) -> tuple[Known, int]:
    """Read verdicts and pairs; those with an item that is not in the catalogue are left out."""
    own = config.duplicates
    said = read_verdicts(own.verdicts) if own.verdicts else []
    rows = [(row_of[a], row_of[b], same) for a, b, same in said if a in row_of and b in row_of and a != b]
    similarity: dict[tuple[int, int], float] = {}
    if own.pairs:
        types = {"item_a": pa.string(), "item_b": pa.string(), "similarity": pa.float64()}
        columns = read_columns("duplicates.pairs", own.pairs, types)
        for a, b, value in zip(*(columns[name].to_pylist() for name in types), strict=True):
            if a in row_of and b in row_of and a != b:
                pair = (min(row_of[a], row_of[b]), max(row_of[a], row_of[b]))
                similarity[pair] = max(value, similarity.get(pair, 0.0))
    known = Known(
        same=[(a, b) for a, b, same in rows if same],
        different=[(a, b) for a, b, same in rows if not same],
        similarity=similarity,
    )
    return known, len(rows)


def _reasons(config: DatasetStepConfig) -> list[str]:
    content = config.content
    return [*content.predicates, *content.lists, *content.classifiers]


def _blocked(items: pa.Table, config: DatasetStepConfig, sql_blocked: Mapping[str, Sequence[str]]) -> dict[str, str]:
    """Return the first reason of each blocked id: predicates, then lists, then classifiers."""
    blocked: dict[str, str] = {}
    found = {
        **sql_blocked,
        **{reason: read_ids(f"content.lists.{reason}", path) for reason, path in config.content.lists.items()},
        **{reason: _classify(items, reason, name) for reason, name in config.content.classifiers.items()},
    }
    for reason, ids in found.items():
        for item_id in ids:
            blocked.setdefault(item_id, reason)
    return blocked


def _classify(items: pa.Table, reason: str, name: str) -> list[str]:
    """Return the ids of the items that a classifier blocks."""
    field = f"dataset.content.classifiers.{reason} = {name!r}"
    module, _, function = name.partition(":")
    try:
        classify = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError) as error:
        raise ConfigError(f"{field}: {error}; allowed is package.module:function") from None
    flags = np.asarray(classify(items))
    if flags.dtype != np.bool_ or flags.shape != (len(items),):
        raise ConfigError(f"{field} returned {flags.dtype} {flags.shape}; allowed is bool ({len(items)},), one an item")
    chosen: list[str] = items["item_id"].filter(pa.array(flags)).to_pylist()
    return chosen


def _spread(blocked: dict[str, str], ids: Sequence[str], head: Sequence[int]) -> None:
    """Block the other items of a blocked item's group."""
    touched = {head[row] for row, item_id in enumerate(ids) if item_id in blocked}
    added = [ids[row] for row, own in enumerate(head) if own in touched and ids[row] not in blocked]
    blocked.update(dict.fromkeys(added, DUPLICATE_OF_BLOCKED))


def _review(items: pa.Table, found: Found, config: DatasetStepConfig) -> pa.Table:
    """Return the pairs within the band around the threshold, with the decision about each."""
    own = config.duplicates
    near = [pair for pair in found.near_pairs if abs(pair[2] - own.threshold) <= own.review_band + 1e-12]
    near.sort(key=lambda pair: (abs(pair[2] - own.threshold), pair[:2]))
    ids, titles = items["item_id"].to_pylist(), items["title"].to_pylist()
    rows = [
        (ids[a], ids[b], titles[a], titles[b], value, "same" if found.head[a] == found.head[b] else "different")
        for a, b, value in near[: own.max_review]
    ]
    columns = zip(*rows, strict=True) if rows else [[]] * len(REVIEW_SCHEMA)
    return pa.table(
        [pa.array(list(column), field.type) for column, field in zip(columns, REVIEW_SCHEMA, strict=True)],
        schema=REVIEW_SCHEMA,
    )

"""The dataset step: from the warehouse to a snapshot.

Items are de-duplicated first, from the catalogue alone. Then ids get their indices in time order, the
time borders are set, the warehouse streams the selected events, and first touches become requests. No
data of a later period reaches an earlier one: see the property test beside the oracle tests. Memory
grows with users, items and the later periods, not with all events.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pv

from stages.contracts.errors import DataError, EmptyDatasetError
from stages.contracts.files import canonical_json, sha256_text
from stages.contracts.id_map import IdMap, IdMapVersion
from stages.contracts.snapshot import ALL_PARTS, TimeBorders
from stages.contracts.steps import Body, Outcome
from stages.contracts.tables import PART_CANDIDATE, PART_EVALUATION, PART_RANKER
from stages.contracts.value_ranges import SeenValues, ValueRange, learn_ranges
from stages.contracts.value_rules import FittedValueRule
from stages.dataset.base import Base, read_base
from stages.dataset.borders import lay_borders, selection_start
from stages.dataset.config import DatasetStepConfig
from stages.dataset.contexts import Contexts, index_contexts, no_contexts
from stages.dataset.events import PART_NAMES, Tally, label_events, read_for_requests, write_events
from stages.dataset.ids import Catalogue, index_items, index_users, with_canonical
from stages.dataset.items.decide import decide_catalogue
from stages.dataset.requests import build_requests
from stages.dataset.snapshot_files import Contents, write_snapshot
from stages.dataset.splits import check_disjoint, deal_users, pair_split
from stages.dataset.values import correct_values
from stages.dataset.warehouse_source import EventSource, Selection, WarehouseSource, activity_policy

if TYPE_CHECKING:
    from stages.warehouse.database.engine import Warehouse

EVENTS_FILE, REVIEW_FILE = "events.parquet", "review_pairs.csv"


def snapshot_body(warehouse: Warehouse) -> Body[DatasetStepConfig]:
    """Return the dataset step's body for an open warehouse, as ``run_step`` takes it."""

    def body(config: DatasetStepConfig, inputs: Mapping[str, Path], directory: Path) -> Outcome:
        return build_snapshot(config, WarehouseSource(warehouse), directory)

    return body


def build_snapshot(config: DatasetStepConfig, source: EventSource, directory: Path) -> Outcome:
    """Build one snapshot.

    Args:
        config: what to select; the as-of time is part of it.
        source: the warehouse.
        directory: an empty directory for the files of ``stages.contracts.snapshot``.

    Returns:
        Counts as metrics; fingerprint, borders and sizes as info.

    Raises:
        EmptyDatasetError: if a threshold removed every event or every user; it names the threshold.
        DataError: if a period has no events or no requests, or there are too few items.
    """
    selected = select_events(config, source, directory / EVENTS_FILE)
    counts, catalogue = dict(selected.counts), selected.catalogue
    events = read_for_requests(directory / EVENTS_FILE, len(catalogue))
    requests, targets, made = build_requests(
        events, len(catalogue), config.requests, config.tasks, config.signals, config.exposure_signals, config.seed
    )
    counts |= made
    _check_requests(config, counts)
    contents = Contents(
        signals=config.signals,
        exposure_signals=config.exposure_signals,
        tasks=config.tasks,
        borders=selected.borders,
        events=directory / EVENTS_FILE,
        requests=requests,
        targets=targets,
        items=catalogue,
        user_ids=selected.user_ids,
        aliases=selected.aliases,
        blocked=selected.blocked,
        context=selected.contexts.columns,
        split=config.split.method,
        values=selected.values,
        value_ranges=selected.value_ranges,
        ids=selected.ids,
        contexts=selected.contexts.codes,
    )
    check_disjoint(events, contents)
    pv.write_csv(selected.review, directory / REVIEW_FILE)
    meta = write_snapshot(contents, counts, directory)
    info = {"fingerprint": meta.fingerprint, "borders": selected.borders.model_dump(), "aliases_key": selected.key}
    return {name: float(value) for name, value in counts.items()}, info


@dataclass(frozen=True)
class Selected:
    """The result of ``select_events``.

    Attributes:
        catalogue: the items.
        user_ids: Arrow strings ``[U]``.
        aliases: item index by the id of a duplicate.
        borders: time borders of the periods.
        tally: counts of the written events.
        counts: rows by kind, and rows that were left out by reason.
        key: key of the decision about duplicates in the warehouse.
        blocked: reason by the id of a blocked item.
        review: pairs of items for people to review.
        contexts: contexts of the events.
        values: value rules that were fitted and applied.
        value_ranges: ranges of the values before the rules.
        ids: versions of the id maps.
    """

    catalogue: Catalogue
    user_ids: pa.Array
    aliases: dict[str, int]
    borders: TimeBorders
    tally: Tally
    counts: dict[str, int]
    key: str
    blocked: dict[str, str]
    review: pa.Table
    contexts: Contexts
    values: tuple[FittedValueRule, ...]
    value_ranges: tuple[ValueRange, ...]
    ids: dict[str, tuple[IdMapVersion, ...]]


def select_events(config: DatasetStepConfig, source: EventSource, path: Path) -> Selected:
    """Select, de-duplicate and write the events.

    Args:
        config: what to select.
        source: the warehouse.
        path: of ``events.parquet``, to be written.

    Raises:
        EmptyDatasetError: if a threshold removed every event or every user; it names the threshold.
        DataError: if a period has no events, or there are too few items.
    """
    base = Base.nothing() if config.base is None else _read_same_base(config)
    every_item = source.items(config)
    matched = {reason: source.matching(reason, sql) for reason, sql in config.content.predicates.items()}
    decision = decide_catalogue(every_item, config, matched)
    aliases = decision.aliases
    blocked = pa.array(list(decision.blocked), pa.string())
    items = every_item.filter(pc.invert(pc.is_in(every_item["item_id"], blocked)))
    key = sha256_text(canonical_json(config.model_dump(mode="json")))[:16]
    source.write_aliases(key, aliases)
    start_ms, counts = selection_start(config, source)
    with source.selection(config, start_ms) as selection:
        contexts = no_contexts()
        if config.context.columns:
            contexts = index_contexts(config.context, selection.contexts(), base.context)
        selection.code(with_canonical(items["item_id"], aliases), blocked, contexts.rows)
        item_map, catalogue = index_items(selection.items(), items, aliases, config.as_of_ms, counts, base)
        counts |= {"items_in_warehouse": len(every_item), **decision.counts}
        if len(catalogue) < config.min_items:
            raise DataError(
                f"min_items = {config.min_items}: found {len(catalogue)} items; allowed is a smaller min_items"
            )
        users, items_map = index_users(selection.users(), base.users), _extended(base.items, catalogue)
        selection.place(catalogue.item_id, users.ids)
        n_users = len(users.ids)
        borders = lay_borders(config, selection, start_ms)
        if config.split.method == "time":
            tally = write_selection(config, selection, borders, n_users, catalogue, path)
        else:
            tally = write_split(config, selection, users.ids.to_pylist(), catalogue, path, counts)
    _check_parts(config, tally, borders)
    _check_active(config, tally, source, borders)
    values = correct_values(config, path, catalogue.duration_s)
    counts |= {"context_values_beyond_the_limit": contexts.n_other} if config.context.columns else {}
    standing = item_map.filter(pc.invert(item_map["canonical"]))
    return Selected(
        catalogue=catalogue,
        user_ids=users.ids,
        ids={"users": users.versions, "items": items_map.versions},
        aliases=dict(zip(*(standing[name].to_pylist() for name in ("item_id", "item_index")), strict=True)),
        borders=borders,
        tally=tally,
        counts=counts | {"users": n_users, **tally.counts()},
        key=key,
        blocked=decision.blocked,
        review=decision.review,
        contexts=contexts,
        values=values,
        value_ranges=_ranges(config, tally, base),
    )


def _ranges(config: DatasetStepConfig, tally: Tally, base: Base) -> tuple[ValueRange, ...]:
    """Return the allowed ranges of posted values, learnt from the events and the base."""
    seen = {signal: tally.values.get(code, SeenValues()) for code, signal in enumerate(config.signals)}
    amounts = {*config.values, *(signal for signal, policy in config.repeats.items() if policy == "sum")}
    return learn_ranges(seen, amounts, base.value_ranges, config.value_ranges)


def _read_same_base(config: DatasetStepConfig) -> Base:
    """Read the base; its hash must still be the one in the step's configuration."""
    base = read_base(str(config.base))
    if config.base_sha256 and base.sha256 != config.base_sha256:
        raise DataError(f"dataset.base = {config.base!r}: changed since the run began; run again")
    return base


def _extended(base: IdMap, catalogue: Catalogue) -> IdMap:
    return base.extend(catalogue.item_id.slice(len(base.ids)))


def write_selection(
    config: DatasetStepConfig,
    selection: Selection,
    borders: TimeBorders,
    n_users: int,
    catalogue: Catalogue,
    path: Path,
) -> Tally:
    """Determine active users and eligible items at the end of every period, and stream the events to the file.

    Args:
        config: policies.
        selection: coded events.
        borders: time borders.
        n_users: U.
        catalogue: gets its ``eligible`` column.
        path: ``events.parquet``.

    Returns:
        What was written.
    """
    ends = (borders.candidate_end_ms, borders.ranker_end_ms, borders.as_of_ms)
    user_bits = selection.user_activity(ends, activity_policy(config), n_users)
    item_bits = np.full(len(catalogue), ALL_PARTS, dtype=np.int8)
    if config.items.restricts:
        item_bits = selection.item_eligibility(ends, config.items, len(catalogue))
    catalogue.eligible[:] = np.where(catalogue.retired, 0, item_bits)
    tally = Tally.empty(n_users, len(catalogue))
    batches = selection.events(ends, config.repeats)
    write_events(label_events(batches, ends, user_bits, item_bits), path, tally)
    return tally


def write_split(
    config: DatasetStepConfig,
    selection: Selection,
    user_ids: Sequence[str],
    catalogue: Catalogue,
    path: Path,
    counts: dict[str, int],
) -> Tally:
    """Assign pairs to periods, and write the events; activity and eligibility are determined at the as-of time.

    Args:
        config: policies and split, whose method is not ``time``.
        selection: coded events.
        user_ids: U ids by user index.
        catalogue: gets its ``eligible`` column.
        path: ``events.parquet``.
        counts: gets the number of pairs that have both held-out signals and others.

    Returns:
        What was written.
    """
    split, n_users = pair_split(config), len(user_ids)
    assert split is not None  # noqa: S101 - only called if the method is not "time"
    ends, every_part = (config.as_of_ms,), (config.as_of_ms,) * len(PART_NAMES)
    user_bits = selection.user_activity(ends, activity_policy(config), n_users) * ALL_PARTS
    if config.items.restricts:
        eligible = selection.item_eligibility(ends, config.items, len(catalogue)) * ALL_PARTS
        catalogue.eligible[:] = np.where(catalogue.retired, 0, eligible)
    user_parts = np.zeros(n_users, dtype=np.int8)
    if split.method == "users":
        user_parts = deal_users(user_ids, config.split.user_shares, config.seed)
        user_bits = np.where(user_parts > 0, user_bits & ~np.int8(1), user_bits).astype(np.int8)  # history only
    if split.method == "given":
        counts["pairs_in_both_given_parts"] = selection.marked_twice(split)
    tally = Tally.empty(n_users, len(catalogue))
    batches = selection.split_events(split, config.repeats, user_parts)
    write_events(label_events(batches, every_part, user_bits, catalogue.eligible), path, tally)
    return tally


def _check_parts(config: DatasetStepConfig, tally: Tally, borders: TimeBorders) -> None:
    if config.split.method != "time":
        for part, name in PART_NAMES.items():
            if not tally.events[part]:
                found = ", ".join(f"{tally.events[other]} {PART_NAMES[other]}" for other in PART_NAMES)
                raise DataError(f"dataset.split ({config.split}) leaves the {name} part without events; found {found}")
        return
    limits = [borders.start_ms, borders.candidate_end_ms, borders.ranker_end_ms, borders.as_of_ms]
    for part, name in PART_NAMES.items():
        if not tally.events[part]:
            raise DataError(
                f"the {name} part [{limits[part]}, {limits[part + 1]}) ms has no events; move the borders by "
                "dataset.split, or choose another as-of time"
            )


def _check_active(config: DatasetStepConfig, tally: Tally, source: EventSource, borders: TimeBorders) -> None:
    """Refuse a training period without an active user; the message has the threshold."""
    policy = config.activity
    for part, end_ms in ((PART_CANDIDATE, borders.candidate_end_ms), (PART_RANKER, borders.ranker_end_ms)):
        if tally.active_users[part].any():
            continue
        n_users, highest = source.activity(config, end_ms)
        found = f"{n_users} users in that window, the most active one with {highest:g} events"
        if config.items.restricts:
            found += f"; and dataset.items ({config.items}) may have removed their items"
        most = "" if policy.max_events is None else f" and at most max_events = {policy.max_events}"
        raise EmptyDatasetError(
            f"dataset.activity removed every user of the {PART_NAMES[part]} part: active means at least min_events = "
            f"{policy.min_events}{most} events within window_days = {policy.window_days:g} before {end_ms} ms; found "
            f"{found}"
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

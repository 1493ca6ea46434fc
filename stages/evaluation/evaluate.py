"""The evaluation step: every stage on the same held-out requests, in one stage ledger.

``ledger.json`` holds the data, ``ledger.md`` the same as a readable page. Each row is compared, request by
request, with the row before it. A ranking stage that does not gain is bypassed: the ledger's entry
``served`` names the row that a release answers with, and ``held_out.parquet`` holds its results request by
request, so that releases can be compared.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import Field, field_validator

from stages.contracts.candidate_blocks import CANDIDATES_FILE
from stages.contracts.config import Config
from stages.contracts.errors import EmptyDatasetError
from stages.contracts.files import read_json, write_json
from stages.contracts.ledger import HELD_OUT_FILE, LEDGER_FILE, ledger_metrics
from stages.contracts.progress import progress_of
from stages.contracts.ragged import run_offsets
from stages.contracts.ranking import BASELINES_FILE
from stages.contracts.ranking_stages import RANKING_STAGES, ranking_file, stages_before
from stages.contracts.snapshot import Snapshot
from stages.contracts.steps import Outcome
from stages.contracts.tables import DAY_MS, PART_EVALUATION, CandidateTable, RankedTable, RequestTable
from stages.evaluation.baselines import FirstTouches, popularity_rankings
from stages.evaluation.bootstrap import paired_bootstrap
from stages.evaluation.item_ages import by_item_age
from stages.evaluation.measure import RowMeasures, measure
from stages.evaluation.metrics import HeldOut, popular_head
from stages.evaluation.pieces import ranking_pieces
from stages.evaluation.report import render_markdown
from stages.evaluation.served import RETRIEVAL, choose_served, judged_requests, untrained_stages

POPULARITY = "popularity"
"""The row that every other one is compared with, directly or through the rows between."""

HISTORY_SLICES = ((0, 0), (1, 1), (2, 5), (6, 20), (21, None))


class EvaluationConfig(Config):
    """How the ledger is made.

    Attributes:
        ks: cut-offs, increasing; the headline metric uses the first one.
        candidate_k: deeper cut-off at which recall alone is measured.
        bootstrap_samples: of each interval.
        seed: of the bootstrap.
        half_life_days: of a touch's weight in the ``trending`` baseline.
        bypass: ``not_gaining`` bypasses a ranking stage whose interval is not above zero or that chose 0 epochs,
            ``never`` serves whatever ``funnel.stages`` asks for.
        stages: the requested ranking stages; a recipe sets them in ``funnel.stages``.
    """

    ks: tuple[int, ...] = (10, 20)
    candidate_k: int = Field(default=1000, ge=1)
    bootstrap_samples: int = Field(default=1000, ge=100)
    seed: int = Field(default=42, ge=0)
    half_life_days: float = Field(default=7.0, gt=0)
    bypass: Literal["not_gaining", "never"] = "not_gaining"
    stages: tuple[str, ...] = tuple(RANKING_STAGES)

    @field_validator("ks")
    @classmethod
    def _increasing(cls, ks: tuple[int, ...]) -> tuple[int, ...]:
        if not ks or ks[0] < 1 or any(after <= before for before, after in pairwise(ks)):
            raise ValueError("allowed are one or more increasing numbers from 1")
        return ks


@dataclass(frozen=True)
class _Requests:
    """The held-out requests with what the slices need; arrays ``[Q]``."""

    table: RequestTable
    held: HeldOut
    history_length: np.ndarray
    warm: np.ndarray
    without_targets: int


def evaluate(config: EvaluationConfig, inputs: Mapping[str, Path], directory: Path) -> Outcome:
    """Write ``ledger.json``, ``ledger.md`` and ``held_out.parquet``.

    Rankings are read a row group at a time. In memory are the events, a row group, about 8 bytes a held-out
    request, row of the ledger and metric, and 4 bytes a target and row of the ledger.

    Args:
        config: cut-offs, bootstrap and baseline.
        inputs: ``snapshot`` and ``retrieve``; ``baselines`` where that step ran; the ranking stages that were
            trained, with ``held_out``, which holds their rankings.
        directory: where the ledger goes.

    Returns:
        Metrics by ``<row>/<metric>``, those of the served row by ``served/<metric>`` too; each row's verdict, and
        under ``served`` the row that a release answers with.

    Raises:
        EmptyDatasetError: if no held-out request has a target.
        DataError: if a stage's ranking is malformed.
    """
    snapshot = Snapshot(inputs["snapshot"])
    events = snapshot.events()
    touches = FirstTouches(events, snapshot.meta.touching)
    # What training knew: chosen by ``part`` and not by time, since the parts of some splits overlap in time.
    known = FirstTouches(events.take(events.part != PART_EVALUATION), snapshot.meta.touching)
    items = snapshot.items()
    requests = _held_out(snapshot, touches, known, len(items))
    head = popular_head(np.bincount(known.item_index, minlength=len(items)))
    rows = {
        name: measure(_shown(name, tables, requests.held), requests.held, config.ks, config.candidate_k, head)
        for name, tables in _rankings(config, inputs, touches, requests, items.available_from_ms(PART_EVALUATION))
    }
    left_out: dict[str, str] = _baselines(inputs)["left_out"]
    ledger_rows = [_ledger_row(name, rows, requests, config) for name in rows]
    served = choose_served(ledger_rows, config.stages, untrained_stages(inputs), config.bypass != "never")
    headline = f"ndcg@{config.ks[0]}"
    ledger: dict[str, Any] = {
        "format_version": 1,
        "headline": headline,
        "config": config.model_dump(mode="json"),
        "counts": _counts(requests, head),
        "target_head_share": float(head[requests.held.item_index].mean()),
        "target_withheld_share": float(items.withheld(PART_EVALUATION)[requests.held.item_index].mean()),
        "rows": ledger_rows,
        "served": served,
        "slices": _slices(rows, requests),
        "item_ages": by_item_age(
            rows,
            requests.held,
            requests.table.request_time_ms,
            items.created_at_ms,
            config.ks,
            config.candidate_k,
        ),
        "left_out": left_out,
        "data_fingerprint": snapshot.meta.fingerprint,
    }
    write_json(directory / LEDGER_FILE, ledger)
    (directory / "ledger.md").write_text(render_markdown(ledger), encoding="utf-8")
    value = rows[served["row"]].per_request[headline]
    judged = judged_requests(snapshot, items.item_id, requests.table, requests.held, headline, value)
    judged.write(directory / HELD_OUT_FILE)
    verdicts = {row["name"]: row["verdict"] for row in ledger_rows if row["verdict"]}
    return ledger_metrics(ledger), {**verdicts, "served": served["row"]}


def _held_out(snapshot: Snapshot, touches: FirstTouches, known: FirstTouches, n_items: int) -> _Requests:
    targets = snapshot.targets()
    requests = snapshot.requests()
    requests = requests.take(requests.part == PART_EVALUATION)
    answerable = np.isin(requests.request_id, targets.request_id)
    table = requests.take(answerable)
    if not len(table):
        raise EmptyDatasetError(
            f"requests.parquet: {len(requests)} requests of the evaluation part, none of them with a target; "
            "at least one is needed"
        )
    return _Requests(
        table=table,
        held=HeldOut.make(table.request_id, targets, n_items),
        history_length=touches.history_lengths(table),
        warm=np.isin(table.user_index, known.user_index),
        without_targets=int((~answerable).sum()),
    )


def _shown(
    name: str, tables: Iterable[RankedTable | CandidateTable], held: HeldOut
) -> Iterator[RankedTable | CandidateTable]:
    """Yield the pieces of a ranking, and show how many requests are measured."""
    with progress_of(f"evaluate {name}", len(held), "request") as advance:
        for table in tables:
            yield table
            advance(len(run_offsets(table.request_id)) - 1)


def _rankings(
    config: EvaluationConfig,
    inputs: Mapping[str, Path],
    touches: FirstTouches,
    requests: _Requests,
    available_from_ms: np.ndarray,
) -> Iterator[tuple[str, Iterable[RankedTable | CandidateTable]]]:
    depth = max(config.candidate_k, config.ks[-1])
    half_life_ms = config.half_life_days * DAY_MS
    yield POPULARITY, popularity_rankings(touches, requests.table, available_from_ms, depth)
    yield "trending", popularity_rankings(touches, requests.table, available_from_ms, depth, half_life_ms)
    for name in _baselines(inputs)["rows"]:
        yield name, ranking_pieces(RankedTable, inputs["baselines"] / f"{name}.parquet", requests.held)
    yield RETRIEVAL, ranking_pieces(CandidateTable, inputs["retrieve"] / CANDIDATES_FILE, requests.held)
    for name in RANKING_STAGES:
        if name in inputs:
            yield name, ranking_pieces(RankedTable, inputs["held_out"] / ranking_file(name), requests.held)


def _baselines(inputs: Mapping[str, Path]) -> dict[str, Any]:
    """Return the output of ``rank_baselines``: names of its rankings in ``rows``, and reasons in ``left_out``."""
    if "baselines" not in inputs:
        return {"rows": [], "left_out": {}}
    found: dict[str, Any] = read_json(inputs["baselines"] / BASELINES_FILE)
    return found


def _ledger_row(
    name: str, rows: Mapping[str, RowMeasures], requests: _Requests, config: EvaluationConfig
) -> dict[str, Any]:
    against = _against(name, rows, config.stages)
    row: dict[str, Any] = {
        "name": name,
        "metrics": rows[name].means() | rows[name].overall,
        "answered": rows[name].answered,
        "against": against,
        "gain": None,
        "gain_over_popularity": None,
        "verdict": "",
    }
    if against is not None:
        gain = _gain(name, against, rows, requests, config)
        row["gain"] = gain
        row["verdict"] = gain["verdict"]
        row["gain_over_popularity"] = gain if against == POPULARITY else _gain(name, POPULARITY, rows, requests, config)
    return row


def _against(name: str, rows: Mapping[str, RowMeasures], stages: tuple[str, ...]) -> str | None:
    """Return the row to compare with, None for the first.

    A ranking stage is compared with the nearest earlier row that exists and would be served, every other row with the
    most popular items.
    """
    if name not in RANKING_STAGES:
        return None if name == POPULARITY else POPULARITY
    before = (stage for stage in stages_before(name) if stage in rows and (stage in stages or name not in stages))
    return next(before, RETRIEVAL)


def _gain(
    name: str, against: str, rows: Mapping[str, RowMeasures], requests: _Requests, config: EvaluationConfig
) -> dict[str, Any]:
    headline = f"ndcg@{config.ks[0]}"
    gain = paired_bootstrap(
        before=rows[against].per_request[headline],
        after=rows[name].per_request[headline],
        user_index=requests.table.user_index,
        samples=config.bootstrap_samples,
        seed=config.seed,
    )
    return {"metric": headline, "against": against, "verdict": gain.verdict, **asdict(gain)}


def _counts(requests: _Requests, head: np.ndarray) -> dict[str, int]:
    return {
        "requests": len(requests.held),
        "requests_without_targets": requests.without_targets,
        "users": len(np.unique(requests.table.user_index)),
        "targets": len(requests.held.item_index),
        "items": requests.held.n_items,
        "head_items": int(head.sum()),
    }


def history_slices(history_length: np.ndarray) -> dict[str, np.ndarray]:
    """Return a mask of requests, bool ``[Q]``, for each slice of history lengths, by the ledger's slice names.

    Args:
        history_length: int64 ``[Q]``, items that each request's user touched before it.
    """
    slices = {}
    for low, high in HISTORY_SLICES:
        label = f"history {low}" if low == high else f"history {low}-{high}" if high else f"history >{low - 1}"
        upper = np.iinfo(np.int64).max if high is None else high
        slices[label] = (history_length >= low) & (history_length <= upper)
    return slices


def _slices(rows: Mapping[str, RowMeasures], requests: _Requests) -> list[dict[str, Any]]:
    chosen = {"warm users": requests.warm, "new users": ~requests.warm, **history_slices(requests.history_length)}
    return [
        {
            "name": label,
            "requests": int(mask.sum()),
            "users": len(np.unique(requests.table.user_index[mask])),
            "rows": {name: measures.means(mask) for name, measures in rows.items()} if mask.any() else {},
        }
        for label, mask in chosen.items()
    ]

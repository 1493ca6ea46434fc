"""Which row of the ledger a release answers with, and why other stages are bypassed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from stages.contracts.errors import DataError
from stages.contracts.ledger import JudgedRequests, request_key
from stages.contracts.ragged import row_offsets
from stages.contracts.ranking_stages import RANKING_STAGES, stages_before
from stages.contracts.snapshot import Snapshot
from stages.contracts.summaries import read_summary
from stages.contracts.tables import RequestTable
from stages.evaluation.metrics import HeldOut
from stages.evaluation.report import interval_text, verdict_text

RETRIEVAL = "candidates"
"""The row that is served where no ranking stage is in use."""


def choose_served(
    rows: Sequence[Mapping[str, Any]], stages: Sequence[str], untrained: Mapping[str, str], bypass: bool
) -> dict[str, Any]:
    """Return the ledger's entry ``served``: its row, the stages in use and the reasons of those bypassed.

    A stage is kept if its interval lies above zero. A stage that reads the scores of an earlier stage re-ranks the
    items that the earlier stage passes on. Where the earlier stage is bypassed for its results, the later one is
    bypassed too, so that the served row is always one that was measured. A recipe may still request the later stage
    alone: then only the order and the cut of the earlier stage are left out.

    Args:
        rows: of the ledger.
        stages: that the recipe asks for.
        untrained: reasons of stages whose training found nothing better than the stage before, by name.
        bypass: whether stages are bypassed for their results.
    """
    by_name = {row["name"]: row for row in rows}
    kept: list[str] = []
    bypassed: dict[str, str] = {}
    for stage in RANKING_STAGES:
        if stage not in stages:
            bypassed[stage] = f"left out by the recipe: funnel.stages is {list(stages)}"
        elif stage not in by_name:
            bypassed[stage] = "has no row in the ledger: its step did not run"
        elif reason := _reason(stage, by_name[stage], stages, bypassed, untrained) if bypass else None:
            bypassed[stage] = reason
        else:
            kept.append(stage)
    row = kept[-1] if kept else RETRIEVAL
    return {"row": row, "stages": kept, "bypassed": bypassed, "metrics": dict(by_name[row]["metrics"])}


def _reason(
    stage: str,
    row: Mapping[str, Any],
    stages: Sequence[str],
    bypassed: Mapping[str, str],
    untrained: Mapping[str, str],
) -> str | None:
    """Return why a stage is bypassed, None if it is kept."""
    for earlier in RANKING_STAGES[stage].reads:
        if earlier in stages and earlier in bypassed:
            return f"reads the scores of the {earlier} ranker, which is bypassed"
    if stage in untrained:
        return untrained[stage]
    if row["verdict"] == "gains":
        return None
    return f"{verdict_text(row)}: {interval_text(row['gain'])} in {row['gain']['metric']}"


def untrained_stages(inputs: Mapping[str, Path]) -> dict[str, str]:
    """Return the reason by name of each stage whose training chose 0 epochs.

    Raises:
        ReleaseError: if a stage's summary is not readable.
    """
    reasons: dict[str, str] = {}
    for name, stage in RANKING_STAGES.items():
        path = inputs[name] / stage.summary_file if name in inputs else None
        if path is None or not path.is_file():
            continue
        metrics = read_summary(path, stage.summary).metrics
        if metrics.get("epochs") != 0:
            continue
        before = next(iter(stages_before(name)), RETRIEVAL)
        ndcg = metrics.get(f"validation_{before}_ndcg@10")
        found = "" if ndcg is None else f" ({ndcg:.4f} NDCG@10 on the latest ranker requests)"
        order = f"{before} ranker's order" if before in RANKING_STAGES else "order of the candidates"
        reasons[name] = f"chose 0 epochs: no epoch of training did better than the {order}{found}"
    return reasons


def judged_requests(
    snapshot: Snapshot, item_id: np.ndarray, table: RequestTable, held: HeldOut, metric: str, value: np.ndarray
) -> JudgedRequests:
    """Return the served row's results, with request keys that are the same in every release.

    Args:
        snapshot: where the user ids are.
        item_id: object ``[N]``.
        table: the held-out requests, Q of them.
        held: their targets.
        metric: name of ``value``.
        value: float64 ``[Q]``.

    Raises:
        DataError: if there is not one value per request.
    """
    if not len(value) == len(table) == len(held):
        raise DataError(f"judged requests: {len(value)} values for {len(table)} requests")
    user_id = snapshot.user_ids()
    offsets = row_offsets(held.counts)
    keys = np.empty(len(table), dtype=np.int64)
    for request in range(len(table)):
        targets = slice(offsets[request], offsets[request + 1])
        keys[request] = request_key(
            str(user_id[table.user_index[request]]),
            int(table.request_time_ms[request]),
            zip(item_id[held.item_index[targets]].tolist(), held.relevance[targets].tolist(), strict=True),
        )
    return JudgedRequests.make(metric, keys, value)

"""How a job runs its steps: the main one (``stages.pipeline``) and the refresh (``stages.refresh``) alike.

Importing this module is cheap, as with those two.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stages.contracts.disk import names_full_disk
from stages.contracts.errors import ConfigError
from stages.contracts.files import canonical_json, sha256_text
from stages.contracts.results import StageResult
from stages.settings import Settings

if TYPE_CHECKING:
    from stages.release.gate import GateConfig

log = logging.getLogger("sluice")

Upstream = Mapping[str, StageResult]
StepFunction = Callable[[Settings, Upstream], StageResult]


def run_declared(
    step: str,
    declared: Mapping[str, tuple[str, ...]],
    functions: Mapping[str, StepFunction],
    settings: Settings,
    upstream: Mapping[str, Any],
) -> dict[str, Any]:
    """Run one step of a job that declares which results each of its steps takes.

    Args:
        step: a key of ``declared``.
        declared: upstream steps by step.
        functions: what each step does.
        settings: as for ``run_pipeline_step``.
        upstream: results by step, as ``StageResult`` or as its JSON.

    Raises:
        ConfigError: if the step is unknown or an upstream result is missing.
        OutOfSpaceError: if a disk is full.
    """
    if step not in declared:
        raise ConfigError(f"step = {step!r}: unknown, allowed are {', '.join(declared)}")
    missing = [name for name in declared[step] if name not in upstream]
    if missing:
        raise ConfigError(f"step {step} needs the results of {missing}, found {sorted(upstream)}")
    results = {name: StageResult.model_validate(upstream[name]) for name in declared[step]}
    log.info("[sluice] %s: started", step)
    started = time.perf_counter()
    with names_full_disk(step, Path(settings.home)):
        result = functions[step](settings, results)
    if not result.seconds:
        result = result.model_copy(update={"seconds": round(time.perf_counter() - started, 3)})
    how = "re-used" if result.reused else f"done in {result.seconds:.1f} s"
    log.info("[sluice] %s: %s%s", step, how, headline(result))
    return result.model_dump(mode="json")


def headline(result: StageResult) -> str:
    """Return the few numbers of a result that a log line has room for."""
    wanted = [name for name in result.metrics if name.endswith("/ndcg@10")] or list(result.metrics)[:6]
    words = [f"{name} {_short(result.metrics[name])}" for name in wanted]
    words += [f"{name} {result.info[name]}" for name in ("release_id", "version") if name in result.info]
    if "reason" in result.info:
        words.append(f"{'champion' if result.info['promoted'] else 'stays challenger'}: {result.info['reason']}")
    return f" ({', '.join(words)})" if words else ""


def _short(value: float) -> str:
    """Return a count in full, anything else to four digits."""
    return f"{value:,.0f}" if value.is_integer() else f"{value:,.4g}"


def outcome(step: str, path: Path, results: Upstream, info: dict[str, Any]) -> StageResult:
    """Return the result of a step that acts on the registry and leaves no directory of its own."""
    upstream = {name: result.fingerprint for name, result in results.items()}
    fingerprint = sha256_text(canonical_json({"step": step, "inputs": upstream}))
    return StageResult(step=step, path=str(path), fingerprint=fingerprint, info=info)


def promotion(settings: Settings, version: int, gate: GateConfig) -> dict[str, Any]:
    """Let a registered release challenge the champion, and return what a step's ``info`` says of it.

    A release that does no better than the champion stays challenger, and the run goes on: it did its work.

    Returns:
        ``version``, ``promoted``; ``reason`` in words where it challenged; ``compared``, the means of both releases,
        where there were enough common requests.

    Raises:
        GateError: if the release does not pass the gate against the baseline.
    """
    from stages.release.registry import ReleaseRegistry

    if not settings.promote:
        return {"version": version, "promoted": False}
    made = ReleaseRegistry(settings.registry).challenge(version, gate)
    found = made.comparison
    info: dict[str, Any] = {"version": version, "promoted": made.promoted, "reason": found.reason}
    if found.metric is not None:
        numbers = {"metric": found.metric, "requests": found.requests}
        info["compared"] = {**numbers, "challenger": found.value, "champion": found.champion}
    return info

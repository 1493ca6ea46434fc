"""The steps that act on the registry: pull the champion, register a release, compare it with the champion.

They leave no directory that is re-used: they run every time, and a second run changes nothing.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from stages.contracts.config import Config
from stages.contracts.files import sha256_file
from stages.contracts.results import StageResult
from stages.job import StepRun

if TYPE_CHECKING:
    from stages.release.gate import GateConfig


def champion(config: Config, run: StepRun) -> StageResult:
    """Pull the release that serves now; the result's fingerprint is the hash of the release's content.

    Raises:
        ReleaseError: if there is no champion, or its features were computed by other code.
    """
    from stages.contracts.manifest import MANIFEST_FILE
    from stages.contracts.release_code import check_code
    from stages.release.registry import CHAMPION, ReleaseRegistry

    registry = ReleaseRegistry(run.settings.registry)
    directory = registry.pull(CHAMPION, Path(run.settings.home) / "serving" / "releases")
    check_code(directory)
    fingerprint = sha256_file(directory / MANIFEST_FILE)
    return StageResult(
        step="champion", path=str(directory), fingerprint=fingerprint, info={"release_id": directory.name}
    )


class RegisterConfig(Config):
    """The parameters, metrics and reports that are logged with a release.

    Attributes:
        params: nested parameters.
        unlogged: steps whose metrics are not logged.
        reports_of: step whose report is logged with the release, or None.
    """

    params: dict[str, Any]
    unlogged: tuple[str, ...] = ()
    reports_of: str | None = None


def register(config: RegisterConfig, run: StepRun) -> StageResult:
    """Register the assembled release in MLflow under the alias ``challenger``.

    Every earlier step's metrics are logged with it, and the bytes that the step keeps on disk as ``disk_bytes``.
    """
    from stages.release.registry import ReleaseRegistry

    release, results = _release(run), run.results
    logged = {
        name: result
        for name, result in results.items()
        if (result.metrics or result.disk_bytes) and name not in config.unlogged
    }
    reports = [] if config.reports_of is None else results[config.reports_of].directory.glob(f"{config.reports_of}.*")
    registered = ReleaseRegistry(run.settings.registry).register(
        release,
        params=config.params,
        stage_metrics={name: _logged(result) for name, result in logged.items()},
        reports=sorted(reports),
    )
    info = {"version": registered.version, "run_id": registered.run_id, "release_id": registered.release_id}
    return run.outcome(release, info)


def _logged(result: StageResult) -> dict[str, float]:
    size = {"disk_bytes": float(result.disk_bytes)} if result.disk_bytes else {}
    return {**result.metrics, **size}


def promote(config: GateConfig, run: StepRun) -> StageResult:
    """Make the registered release the champion if it passes the gate and is no worse than the champion.

    A release that does not pass the comparison stays challenger, and the run still succeeds.

    Returns:
        A result whose info holds ``version`` and ``promoted``; ``reason`` in words unless the settings say not to
        promote; ``compared``, the means of both releases, if there were enough common requests.

    Raises:
        GateError: if the release does not pass the gate against the baseline.
    """
    from stages.release.registry import ReleaseRegistry

    version = int(run.results["register"].info["version"])
    if not run.settings.promote:
        return run.outcome(_release(run), {"version": version, "promoted": False})
    made = ReleaseRegistry(run.settings.registry).challenge(version, config)
    found = made.comparison
    info: dict[str, Any] = {"version": version, "promoted": made.promoted, "reason": found.reason}
    if found.metric is not None:
        numbers = {"metric": found.metric, "requests": found.requests}
        info["compared"] = {**numbers, "challenger": found.value, "champion": found.champion}
    return run.outcome(_release(run), info)


def _release(run: StepRun) -> Path:
    return run.results["assemble"].directory / "release"

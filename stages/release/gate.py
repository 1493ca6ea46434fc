"""The promotion gate: a release becomes champion only if its last stage beats the baseline."""

from __future__ import annotations

from stages.contracts.config import Config
from stages.contracts.errors import GateError
from stages.contracts.manifest import ReleaseManifest


class GateConfig(Config):
    """What a release has to show.

    Attributes:
        metric: held-out metric, as the stage ledger names it.
        last_row: ledger row of what users are answered with; None takes the last stage in use.
        baseline: ledger row to beat.
        min_gain: the gain must be larger than this.
    """

    metric: str = "ndcg@10"
    last_row: str | None = None
    baseline: str = "popularity"
    min_gain: float = 0.0


def check_gate(manifest: ReleaseManifest, config: GateConfig) -> float:
    """Compare the release with the baseline on its own held-out metrics.

    Returns:
        The gain, larger than ``config.min_gain``.

    Raises:
        GateError: with the numbers, if the gain is too small or a metric is not in the manifest.
    """
    row = config.last_row or (manifest.funnel.stages[-1] if manifest.funnel.stages else "candidates")
    names = f"{row}/{config.metric}", f"{config.baseline}/{config.metric}"
    missing = [name for name in names if name not in manifest.metrics]
    if missing:
        found = sorted(manifest.metrics)
        raise GateError(f"release {manifest.release_id}: metrics {missing} are not in the manifest, found {found}")
    value, baseline = (manifest.metrics[name] for name in names)
    gain = value - baseline
    if not gain > config.min_gain:
        raise GateError(
            f"release {manifest.release_id}: {names[0]} = {value:.4f}, {names[1]} = {baseline:.4f}, "
            f"gain {gain:+.4f}; it must be larger than {config.min_gain:+.4f}"
        )
    return gain

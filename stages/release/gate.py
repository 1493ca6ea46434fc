"""The promotion gate: a release becomes champion only if it beats the baseline and is no worse than the champion."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
from pydantic import Field

from stages.contracts.config import Config
from stages.contracts.errors import GateError, ReleaseError
from stages.contracts.files import sha256_file
from stages.contracts.ledger import HELD_OUT_FILE, SERVED, JudgedRequests
from stages.contracts.manifest import ReleaseManifest, read_manifest

BY_HAND = "`sluice release promote VERSION --force` promotes it by hand"


class GateConfig(Config):
    """What a release has to show.

    Attributes:
        metric: held-out metric, as the stage ledger names it.
        last_row: ledger row to judge; None takes the served row.
        baseline: ledger row to beat.
        min_gain: the gain must be larger than this.
        champion_tolerance: by how much the ledger's headline metric may lie below the champion's on the requests
            that both were judged on.
        min_common_requests: with fewer such requests the two are not comparable.
    """

    metric: str = "ndcg@10"
    last_row: str | None = None
    baseline: str = "popularity"
    min_gain: float = 0.0
    champion_tolerance: float = Field(default=0.0, ge=0.0)
    min_common_requests: int = Field(default=20, ge=1)


@dataclass(frozen=True)
class Contender:
    """What the comparison needs of a release.

    Attributes:
        manifest: of the release.
        judged: its results on the held-out requests, None for a release of an older version.
    """

    manifest: ReleaseManifest
    judged: JudgedRequests | None


@dataclass(frozen=True)
class Comparison:
    """A release against the champion.

    Attributes:
        passes: whether it may take the champion's place.
        reason: in words, with the numbers.
        requests: how many requests both were judged on.
        metric: the metric that was compared on them, None where none was.
        value, champion: its mean and the champion's over those requests.
    """

    passes: bool
    reason: str
    requests: int = 0
    metric: str | None = None
    value: float | None = None
    champion: float | None = None


def read_contender(directory: Path, release_id: str) -> Contender:
    """Read what a comparison needs from a release's directory; no other files need be there.

    Raises:
        ReleaseError: if it is another release, or its held-out requests are missing or changed.
    """
    manifest = read_manifest(directory)
    if manifest.release_id != release_id:
        raise ReleaseError(f"release {release_id}: its manifest in {directory} says {manifest.release_id}")
    wanted = manifest.parts.get(HELD_OUT_FILE)
    if wanted is None:
        return Contender(manifest, None)
    path = directory / HELD_OUT_FILE
    if not path.is_file() or sha256_file(path) != wanted:
        raise ReleaseError(f"release {release_id}: {HELD_OUT_FILE} is missing or changed")
    return Contender(manifest, JudgedRequests.read(path))


def check_gate(manifest: ReleaseManifest, config: GateConfig) -> float:
    """Compare the release with the baseline on its own held-out metrics.

    Returns:
        The gain, larger than ``config.min_gain``.

    Raises:
        GateError: with the numbers, if the gain is too small or a metric is not in the manifest.
    """
    row = config.last_row or _served_row(manifest, config.metric)
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


def compare(challenger: Contender, champion: Contender, config: GateConfig) -> Comparison:
    """Compare a release with the champion, request by request.

    Older data never replaces newer data. The training data count first: a refresh may have brought the champion's state
    up to date while its successor was training. On the requests that both were judged on, with the same targets, the
    mean of the challenger must not lie more than ``config.champion_tolerance`` below the champion's. With too few
    common requests, newer data passes and equally old data does not.
    """
    mine, theirs = challenger.manifest.age, champion.manifest.age
    name = f"the champion {champion.manifest.release_id}"
    if mine < theirs:
        which = "training data end" if mine[0] < theirs[0] else "data end"
        older, newer = next(pair for pair in zip(mine, theirs, strict=True) if pair[0] != pair[1])
        ends = f"its {which} at {_time(older)}, those of {name} at {_time(newer)}"
        return Comparison(False, f"{ends}: older data never replaces newer")
    obstacle, values = _common(challenger, champion, config)
    if values is None:
        reason = f"not comparable: {obstacle} ({name})"
        if mine > theirs:
            return Comparison(True, f"{reason}; its data are newer")
        return Comparison(False, f"{reason}, and its data are no newer; compare the two ledgers; {BY_HAND}")
    return _judge(values, config, name, challenger.judged.metric if challenger.judged else "")


def _judge(values: tuple[np.ndarray, np.ndarray], config: GateConfig, name: str, metric: str) -> Comparison:
    value, champion = float(values[0].mean()), float(values[1].mean())
    difference = float((values[0] - values[1]).mean())
    passes = difference >= -config.champion_tolerance
    reason = f"{metric} {value:.4f} against {champion:.4f} of {name} on {len(values[0]):,} common requests"
    if not passes:
        reason += f", difference {difference:+.4f}; allowed is {-config.champion_tolerance or 0.0:+.4f} or more"
    return Comparison(passes, reason, len(values[0]), metric, value, champion)


def _served_row(manifest: ReleaseManifest, metric: str) -> str:
    if f"{SERVED}/{metric}" in manifest.metrics:
        return SERVED
    return manifest.funnel.stages[-1] if manifest.funnel.stages else "candidates"  # as older versions named it


def _common(
    challenger: Contender, champion: Contender, config: GateConfig
) -> tuple[str, tuple[np.ndarray, np.ndarray] | None]:
    """Return why the two cannot be compared, or their values on the common requests."""
    if challenger.judged is None or champion.judged is None:
        without = champion if champion.judged is None else challenger
        return f"{without.manifest.release_id} was made by an older version and has no {HELD_OUT_FILE}", None
    if challenger.judged.metric != champion.judged.metric:
        return f"it was judged by {challenger.judged.metric}, the champion by {champion.judged.metric}", None
    values = challenger.judged.common(champion.judged)
    found = len(values[0])
    if found < config.min_common_requests:
        counted = f"{found} common requests, gate.min_common_requests is {config.min_common_requests}"
        return counted if found else "no common request", None
    return "", values


def _time(time_ms: int) -> str:
    return datetime.fromtimestamp(time_ms / 1000, UTC).isoformat(timespec="seconds")

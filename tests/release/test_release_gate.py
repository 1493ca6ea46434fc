import pytest

from stages.contracts.errors import GateError, ReleaseError
from stages.contracts.manifest import FunnelSpec, ReleaseManifest
from stages.release.gate import GateConfig, check_gate


def manifest_of(stages=("light", "heavy"), **metrics):
    return ReleaseManifest(
        release_id="20240101-0123456789ab",
        as_of_ms=0,
        parts={},
        feature_schema_hash="h",
        tower_version="t",
        data_fingerprint="d",
        funnel=FunnelSpec(stages=stages),
        metrics={f"{row}/ndcg@10": value for row, value in metrics.items()},
    )


def test_the_last_stage_in_use_is_judged():
    metrics = {"popularity": 0.2, "candidates": 0.1, "light": 0.3, "heavy": 0.25}
    assert check_gate(manifest_of(**metrics), GateConfig()) == pytest.approx(0.05)
    assert check_gate(manifest_of(stages=("light",), **metrics), GateConfig()) == pytest.approx(0.1)
    with pytest.raises(GateError, match=r"candidates/ndcg@10 = 0\.1000"):
        check_gate(manifest_of(stages=(), **metrics), GateConfig())
    assert check_gate(manifest_of(**metrics), GateConfig(last_row="light", baseline="heavy")) == pytest.approx(0.05)


def test_a_gain_that_only_equals_the_least_is_too_small():
    manifest = manifest_of(popularity=0.25, heavy=0.5)
    assert check_gate(manifest, GateConfig(min_gain=0.2)) == 0.25
    with pytest.raises(GateError) as caught:
        check_gate(manifest, GateConfig(min_gain=0.25))
    for part in ("20240101-0123456789ab", "0.5000", "0.2500", "+0.2500"):
        assert part in str(caught.value)


def test_a_metric_that_is_not_there_is_named():
    with pytest.raises(
        ReleaseError, match=r"\['heavy/ndcg@10'\] are not in the manifest, found \['popularity/ndcg@10'\]"
    ):
        check_gate(manifest_of(popularity=0.2), GateConfig())

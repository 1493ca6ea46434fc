import numpy as np
import pytest

from stages.contracts.errors import GateError, ReleaseError
from stages.contracts.ledger import JudgedRequests
from stages.contracts.manifest import FunnelSpec, ReleaseManifest
from stages.release.gate import Contender, GateConfig, check_gate, compare


def manifest_of(stages=("light", "heavy"), as_of_ms=0, trained_as_of_ms=None, **metrics):
    return ReleaseManifest(
        release_id="20240101-0123456789ab",
        as_of_ms=as_of_ms,
        trained_as_of_ms=trained_as_of_ms,
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


def test_the_served_row_is_judged_where_the_ledger_names_one():
    metrics = {"popularity": 0.2, "candidates": 0.1, "light": 0.3, "heavy": 0.25, "served": 0.3}
    assert check_gate(manifest_of(**metrics), GateConfig()) == pytest.approx(0.1)
    with pytest.raises(GateError, match=r"served/ndcg@10 = 0\.1000"):
        check_gate(manifest_of(**{**metrics, "served": 0.1}), GateConfig())
    assert check_gate(manifest_of(**metrics), GateConfig(last_row="heavy")) == pytest.approx(0.05)


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


def contender(value, keys=range(40), as_of_ms=0, metric="ndcg@10", trained_as_of_ms=None, **more):
    values = {key: value for key in keys} | more.get("also", {})
    judged = JudgedRequests.make(metric, np.array(list(values), dtype=np.int64), np.array(list(values.values())))
    return Contender(manifest_of(as_of_ms=as_of_ms, trained_as_of_ms=trained_as_of_ms), judged)


@pytest.mark.parametrize(
    ("value", "tolerance", "passes"),
    [(0.157, 0.0, True), (0.156, 0.0, True), (0.1559, 0.0, False), (0.152, 0.005, True), (0.146, 0.005, False)],
)
def test_a_release_may_not_be_worse_than_the_champion_by_more_than_the_tolerance(value, tolerance, passes):
    found = compare(contender(value), contender(0.156), GateConfig(champion_tolerance=tolerance))
    assert (found.passes, found.requests, found.metric) == (passes, 40, "ndcg@10")
    assert (found.value, found.champion) == (pytest.approx(value), pytest.approx(0.156))
    assert f"ndcg@10 {value:.4f} against 0.1560 of the champion 2024" in found.reason
    assert "on 40 common requests" in found.reason
    assert ("allowed is" in found.reason) == (not passes)


def test_only_the_requests_that_both_were_judged_on_count():
    champion = contender(0.2, also={key: 0.9 for key in range(100, 140)})
    better_on_those = contender(0.3, also={key: 0.0 for key in range(200, 240)})
    found = compare(better_on_those, champion, GateConfig())
    assert (found.passes, found.requests, found.value, found.champion) == (True, 40, pytest.approx(0.3), 0.2)


@pytest.mark.parametrize(
    ("challenger", "reason"),
    [
        ({"keys": range(100, 140)}, "not comparable: no common request (the champion 2024"),
        ({"keys": range(30, 70)}, "not comparable: 10 common requests, gate.min_common_requests is 20"),
        ({"metric": "ndcg@20"}, "not comparable: it was judged by ndcg@20, the champion by ndcg@10"),
    ],
)
def test_without_common_requests_newer_data_pass_and_equally_old_do_not(challenger, reason):
    same = compare(contender(0.9, **challenger), contender(0.1), GateConfig())
    assert (same.passes, same.metric, reason in same.reason) == (False, None, True)
    assert "sluice release promote VERSION --force" in same.reason
    newer = compare(contender(0.9, as_of_ms=1, **challenger), contender(0.1), GateConfig())
    assert (newer.passes, reason in newer.reason) == (True, True)
    older = compare(contender(0.9, as_of_ms=-1, **challenger), contender(0.1), GateConfig())
    assert (older.passes, "older data never replaces newer" in older.reason) == (False, True)


def test_a_refresh_of_the_champion_does_not_stop_a_newer_training_and_one_of_an_older_does_not_replace_it():
    refreshed = contender(0.1, as_of_ms=30, trained_as_of_ms=10)
    trained = contender(0.1, as_of_ms=20)
    assert compare(trained, refreshed, GateConfig()).passes
    late = compare(refreshed, trained, GateConfig())
    assert (late.passes, "its training data end at" in late.reason) == (False, True)
    assert compare(contender(0.1, as_of_ms=40, trained_as_of_ms=10), refreshed, GateConfig()).passes
    stale = compare(contender(0.1, as_of_ms=25, trained_as_of_ms=10), refreshed, GateConfig())
    assert (stale.passes, "its data end at" in stale.reason) == (False, True)

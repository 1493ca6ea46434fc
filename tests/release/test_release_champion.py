"""A release takes the champion's place only if it is no worse, on requests that both were judged on."""

from __future__ import annotations

import shutil
from itertools import count
from pathlib import Path

import pytest

from stages.contracts.errors import GateError, ReleaseError
from stages.contracts.tables import DAY_MS
from stages.release import registry as module
from stages.release.config import RegistryConfig
from stages.release.gate import GateConfig
from stages.release.mlflow_client import local_path
from stages.release.registry import ReleaseRegistry

GATE = GateConfig()
AS_OF_MS = 1_700_000_000_000  # of the releases that are made
REQUESTS = range(40)
_NUMBERS = count()


def judged(value: float, first: int = 0) -> dict[int, float]:
    return {first + request: value for request in REQUESTS}


@pytest.fixture
def registry(store) -> ReleaseRegistry:
    name = f"champion-{next(_NUMBERS)}"
    return ReleaseRegistry(RegistryConfig(**store, model_name=name, experiment=name))


@pytest.fixture
def challenge(registry, make_judged, tmp_path):
    """Return a function that registers a release and lets it challenge the champion."""

    def run(values: dict[int, float], gate: GateConfig = GATE, **made):
        root = tmp_path / f"release-{next(_NUMBERS)}"
        registered = registry.register(make_judged(root, values, **made))
        return registry.challenge(registered.version, gate)

    return run


def test_the_first_release_has_nobody_to_beat(challenge):
    first = challenge(judged(0.1))
    assert first.promoted
    assert first.comparison.reason == "there was no champion before"


def test_a_worse_release_stays_challenger_and_a_better_one_does_not(registry, challenge):
    champion = challenge(judged(0.156)).release
    worse = challenge(judged(0.152))
    assert not worse.promoted
    assert worse.release.aliases == ("challenger",)
    for words in ("ndcg@10 0.1520 against 0.1560", champion.release_id, "40 common requests", "difference -0.0040"):
        assert words in worse.comparison.reason
    assert (worse.comparison.requests, worse.comparison.value) == (40, pytest.approx(0.152))
    assert registry.resolve("champion").version == champion.version
    with pytest.raises(GateError, match=r"\(version 2\) stays challenger: ndcg@10 0\.1520 against 0\.1560"):
        registry.promote(2, GATE)
    better = challenge(judged(0.157))
    assert better.promoted
    assert registry.resolve("previous").version == champion.version


def test_older_data_never_replaces_newer_however_good(registry, challenge):
    champion = challenge(judged(0.1)).release
    older = challenge(judged(0.9), as_of_ms=AS_OF_MS - DAY_MS)
    assert not older.promoted
    for words in ("2023-11-13T22:13:20+00:00", "2023-11-14T22:13:20+00:00", "older data never replaces newer"):
        assert words in older.comparison.reason
    assert registry.resolve("champion").version == champion.version


def test_a_champion_of_an_older_version_is_not_comparable(registry, challenge, make_release, tmp_path):
    registry.register(make_release(tmp_path / "old"))
    old = registry.promote(1, GATE)
    reason = f"not comparable: {old.release_id} was made by an older version and has no held_out.parquet"
    same = challenge(judged(0.9))
    assert (same.promoted, reason in same.comparison.reason) == (False, True)
    newer = challenge(judged(0.9), as_of_ms=AS_OF_MS + DAY_MS)
    assert (newer.promoted, reason in newer.comparison.reason) == (True, True)


def test_the_champion_itself_has_nothing_to_do(registry, challenge):
    champion = challenge(judged(0.2)).release
    again = registry.challenge(champion.version, GateConfig(min_gain=0.9))
    assert (again.promoted, again.comparison.reason) == (True, "it is the champion already")
    assert "previous" not in {alias for release in registry.list() for alias in release.aliases}


def test_force_overrides_and_is_recorded(registry, challenge):
    challenge(judged(0.2))
    worse = challenge(judged(0.1)).release
    assert registry.promote(worse.version, GATE, force=True).aliases == ("challenger", "champion")
    tags = registry._client.get_model_version(registry.config.model_name, str(worse.version)).tags
    assert tags["forced"] == "over version 1"
    assert "forced" not in registry._client.get_model_version(registry.config.model_name, "1").tags
    assert registry.rollback().version == 1, "rolling back stays free"


def test_the_baseline_is_asked_first(registry, challenge):
    challenge(judged(0.1))
    with pytest.raises(GateError, match=r"it must be larger than \+0\.9000"):
        challenge(judged(0.9), GateConfig(min_gain=0.9))
    assert registry.resolve("champion").version == 1


def test_of_a_distant_store_only_what_is_compared_is_copied(registry, challenge, monkeypatch):
    copied = []

    def download(source: str, into: Path, _uri: str) -> Path:
        copied.append(source.rsplit("/", 1)[1])
        found = local_path(source)
        target = into / found.name
        (shutil.copytree if found.is_dir() else shutil.copyfile)(found, target)
        return target

    champion = challenge(judged(0.156)).release
    monkeypatch.setattr(module, "download", download)
    monkeypatch.setattr(module, "local_path", lambda _source: None)
    worse = challenge(judged(0.152))
    assert not worse.promoted
    assert "ndcg@10 0.1520 against 0.1560" in worse.comparison.reason
    assert copied == ["release", *["manifest.json", "held_out.parquet"] * 2]
    assert registry.resolve("champion").version == champion.version


def test_a_damaged_champion_is_named_and_can_be_replaced_by_force(registry, challenge):
    champion = challenge(judged(0.2)).release
    (local_path(champion.source) / "held_out.parquet").write_bytes(b"rotten")
    with pytest.raises(ReleaseError, match=r"cannot compare with the champion: .*held_out.parquet is missing or"):
        challenge(judged(0.9))
    assert registry.promote(2, GATE, force=True).version == 2

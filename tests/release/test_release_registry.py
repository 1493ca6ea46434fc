import shutil
from itertools import count

import pytest

from stages.contracts.errors import ConfigError, GateError, ReleaseError
from stages.contracts.manifest import read_manifest, verify_release
from stages.release.config import RegistryConfig
from stages.release.gate import GateConfig
from stages.release.mlflow_client import flatten, legal_name, local_path
from stages.release.registry import ReleaseRegistry
from tests.counted_hashes import count_hashes, times_hashed

_NUMBERS = count()


@pytest.fixture
def registry(store):
    """A registry of its own in the tests' one store."""
    name = f"funnel-{next(_NUMBERS)}"
    return ReleaseRegistry(RegistryConfig(**store, model_name=name, experiment=name))


@pytest.fixture(scope="module")
def releases(make_release, tmp_path_factory):
    """Three releases that differ in the light ranker."""
    return [make_release(tmp_path_factory.mktemp("release"), salt=str(i)) for i in range(3)]


def id_of(release):
    return read_manifest(release).release_id


def test_registering_twice_makes_one_version(registry, releases):
    first = registry.register(
        releases[0], {"seconds": 2.0}, {"seed": 1, "light": {"rounds": 9}}, {"light": {"auc": 0.5}}
    )
    assert registry.register(releases[0]) == first
    assert (first.version, first.release_id, first.aliases) == (1, id_of(releases[0]), ("challenger",))
    second = registry.register(releases[1])
    assert second.version == 2
    assert [(one.version, one.aliases) for one in registry.list()] == [(1, ()), (2, ("challenger",))]


def test_the_run_holds_parameters_metrics_tags_and_the_whole_release(registry, releases):
    registered = registry.register(
        releases[0], {"seconds": 2.0}, {"seed": 1, "light": {"rounds": 9}}, {"light": {"auc": 0.5}}
    )
    run = registry._client.get_run(registered.run_id)
    assert run.info.status == "FINISHED"
    assert run.data.params == {"seed": "1", "light.rounds": "9"}
    assert run.data.metrics["heavy/ndcg_at_10"] == 0.25
    assert (run.data.metrics["light/auc"], run.data.metrics["seconds"]) == (0.5, 2.0)
    assert run.data.tags["release_id"] == registered.release_id
    assert run.data.tags["data_fingerprint"] == "f" * 64
    assert verify_release(local_path(registered.source)).release_id == registered.release_id


def test_each_stage_has_a_model_tagged_with_the_release(registry, releases):
    registered = registry.register(releases[0])
    for suffix in ("candidate", "light-ranker", "heavy-ranker"):
        (version,) = registry._client.search_model_versions(f"name = '{registry.config.model_name}-{suffix}'")
        assert version.tags["release_id"] == registered.release_id
        assert version.source == registered.source


@pytest.mark.parametrize(
    "broken", ["log_artifacts", "set_terminated", "create_model_version", "set_registered_model_alias"]
)
def test_a_registration_that_broke_off_is_finished_by_the_next_one(registry, releases, monkeypatch, broken):
    class Killed(BaseException):
        pass

    def stop(*_args, **_kwargs):
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(registry._client, broken, stop)
        with pytest.raises(Killed):
            registry.register(releases[0], params={"seed": 1})
    registered = registry.register(releases[0], params={"seed": 1})
    assert [one.version for one in registry.list()] == [1]
    assert registered.aliases == ("challenger",)
    experiment = registry._client.get_experiment_by_name(registry.config.experiment)
    (run,) = registry._client.search_runs([experiment.experiment_id])
    assert (run.info.run_id, run.info.status) == (registered.run_id, "FINISHED")
    verify_release(local_path(registered.source))


def test_promotion_keeps_the_champion_before_and_rollback_returns_to_it(registry, releases):
    for release in releases[:2]:
        registry.register(release)
    assert registry.promote(1).aliases == ("champion",)
    with pytest.raises(ReleaseError, match="no earlier champion to roll back to"):
        registry.rollback()
    assert registry.promote(id_of(releases[1])).aliases == ("challenger", "champion")
    assert registry.resolve("previous").version == 1
    assert registry.promote(2) == registry.resolve("champion")  # a retry changes nothing
    assert registry.resolve("previous").version == 1
    assert registry.rollback().release_id == id_of(releases[0])
    assert registry.resolve("champion").version == 1
    with pytest.raises(ReleaseError, match="no earlier champion"):
        registry.rollback()


def test_the_gate_keeps_the_champion_in_place(registry, releases):
    registry.register(releases[0])
    registry.promote(gate=GateConfig(min_gain=0.1))
    registry.register(releases[1])
    with pytest.raises(GateError, match=r"gain \+0\.1500; it must be larger than \+0\.2000"):
        registry.promote(gate=GateConfig(min_gain=0.2))
    assert registry.resolve("champion").version == 1


def test_a_corrupt_artifact_is_neither_promoted_nor_pulled(registry, releases, tmp_path):
    registered = registry.register(releases[0])
    (local_path(registered.source) / "light_ranker.txt").write_text("changed")
    with pytest.raises(ReleaseError, match=r"light_ranker\.txt: sha256"):
        registry.promote()
    with pytest.raises(ReleaseError, match=r"light_ranker\.txt: sha256"):
        registry.pull("challenger", tmp_path / "cache")
    assert [path.name for path in (tmp_path / "cache").iterdir()] == [".lock"]
    shutil.rmtree(local_path(registered.source))
    with pytest.raises(ReleaseError, match="could not download"):
        registry.pull("challenger", tmp_path / "cache")
    assert [path.name for path in (tmp_path / "cache").iterdir()] == [".lock"]


def test_a_release_of_other_code_becomes_champion_neither_forward_nor_back(registry, releases, tmp_path, monkeypatch):
    registry.register(releases[0])
    registry.promote()
    with monkeypatch.context() as patch:
        patch.setattr("stages.contracts.release_code.shared_code", lambda: "0" * 64)
        with pytest.raises(ReleaseError, match=r"its features were computed by other code .* \(0{12}…\) may compute"):
            registry.promote(1)
    registry.register(releases[1])
    registry.promote()
    with monkeypatch.context() as patch:
        patch.setattr("stages.contracts.release_code.shared_code", lambda: "0" * 64)
        with pytest.raises(ReleaseError, match="its features were computed by other code"):
            registry.rollback()
    assert registry.resolve("champion").version == 2
    assert registry.pull(1, tmp_path / "cache").is_dir(), "it can still be looked at"


def test_an_artifact_of_another_release_is_refused(registry, releases, tmp_path):
    registered = registry.register(releases[0])
    shutil.rmtree(local_path(registered.source))
    shutil.copytree(releases[1], local_path(registered.source))
    with pytest.raises(ReleaseError, match=f"registered as {id_of(releases[0])}.* says {id_of(releases[1])}"):
        registry.pull(1, tmp_path / "cache")


def test_pull_verifies_keeps_and_mends_its_cache(registry, releases, tmp_path):
    registry.register(releases[0])
    cache = tmp_path / "cache"
    pulled = registry.pull("challenger", cache)
    assert pulled == cache / id_of(releases[0])
    assert verify_release(pulled) == read_manifest(releases[0])
    kept = (pulled / "manifest.json").stat().st_ino
    (cache / ".pull-of-a-killed-process").mkdir()
    assert (registry.pull(1, cache) / "manifest.json").stat().st_ino == kept
    assert {path.stat().st_mode & 0o777 for path in pulled.rglob("*") if path.is_file()} == {0o444}
    (pulled / "index.faiss").chmod(0o644)
    (pulled / "index.faiss").write_bytes(b"rotten")
    verify_release(registry.pull(id_of(releases[0]), cache))
    assert sorted(path.name for path in cache.iterdir()) == [".lock", id_of(releases[0]), "alias-challenger.json"]


def test_an_unknown_reference_says_what_there_is(registry, releases, tmp_path):
    with pytest.raises(ReleaseError, match=r"alias 'champion' .* registered are none"):
        registry.pull("champion", tmp_path)
    registry.register(releases[0])
    with pytest.raises(ReleaseError, match=f"id or alias '7' .*{{1: \\('{id_of(releases[0])}', 'challenger'\\)}}"):
        registry.resolve(7)


def test_an_incomplete_release_is_not_registered(registry, releases, tmp_path):
    copy = shutil.copytree(releases[0], tmp_path / "copy")
    (copy / "manifest.json").unlink()
    with pytest.raises(ReleaseError, match=r"manifest\.json: missing"):
        registry.register(copy)
    assert registry.list() == ()


def test_an_unknown_kind_of_store_is_a_configuration_error():
    with pytest.raises(ConfigError, match="tracking_uri = 'nosuch://place'"):
        ReleaseRegistry(RegistryConfig(tracking_uri="nosuch://place"))


def test_names_and_parameters_fit_mlflow():
    assert legal_name("heavy/ndcg@10") == "heavy/ndcg_at_10"
    assert legal_name("a[0]=%") == "a_0___"
    assert flatten({"a": {"b": [1, 2], "c": {}}, "d": None}) == {"a.b": "[1, 2]", "a.c": "{}", "d": "None"}
    assert len(flatten({"long": "x" * 9000})["long"]) == 6000


def test_a_pulled_release_was_hashed_once_and_hands_its_hashes_on(registry, releases, tmp_path, monkeypatch):
    registry.register(releases[0])
    parts = read_manifest(releases[0]).parts
    for _ in ("downloaded", "found in the cache"):
        with monkeypatch.context() as patch:
            counted = count_hashes(patch)
            pulled = registry.pull_verified("challenger", tmp_path / "cache")
        assert times_hashed(counted, parts) == dict.fromkeys(parts, 1)
        assert {name: pulled.files.hashes[name] for name in parts} == parts
        assert pulled.directory == tmp_path / "cache" / id_of(releases[0])
        assert pulled.files.changed() == [], "what was looked at is what lies there"

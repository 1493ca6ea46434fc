"""Learning a mixture: planted worlds where it must gain, and where it must not be used; its export; its seed."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from stages.candidate.config import RetrieveConfig
from stages.candidate.generators.blend import Blend
from stages.candidate.generators.config import NewcomersConfig, SourcesConfig, TrainSourcesConfig
from stages.candidate.generators.files import MIXTURE_FILE, SourcesSummary, read_summary
from stages.candidate.generators.generator import CandidateRequest
from stages.candidate.generators.quotas import ListedBlock
from stages.candidate.retrieval import fit_mixture as fitting
from stages.candidate.retrieval import train_mixture as training
from stages.candidate.retrieval.earlier_learning import learned_version
from stages.candidate.retrieval.fit_generators import train_sources
from stages.candidate.retrieval.fit_mixture import fit_mixture
from stages.candidate.retrieval.listed_requests import ListedRequests
from stages.candidate.retrieval.mixture_choice import Measured, choose
from stages.candidate.retrieval.retriever import empty_state
from stages.candidate.retrieval.step import retrieve
from stages.candidate.retrieval.train_mixture import train_mixture, write_mixture
from stages.candidate.scorer import CandidateScorer
from stages.contracts import memory
from stages.contracts.errors import ConfigError, DataError, EmptyDatasetError
from stages.contracts.item_lists import ItemLists
from stages.contracts.ragged import row_offsets
from stages.contracts.snapshot import Snapshot
from stages.contracts.tables import CandidateTable, ScoredItems
from stages.features.config import FeatureConfig
from stages.features.history import Moment, tower_inputs
from tests.features.plain.replay import replay

NAMES = ("tower", "ease", "content")
N_ITEMS, K, POOL = 200, 3, 12
FEATURES = FeatureConfig(history_length=8, history_decay=4.0)
LEARNED = {"kind": "learned", "pool": POOL, "hidden": 8, "batch_requests": 16, "epochs": 8, "learning_rate": 0.02}


def config_of(**mixture: Any) -> TrainSourcesConfig:
    sources = SourcesConfig(names=NAMES, quotas="learned", mixture={**LEARNED, **mixture})
    return TrainSourcesConfig(sources=sources, candidate_k=K)


def summary_of(config: TrainSourcesConfig) -> SourcesSummary:
    return SourcesSummary(
        names=NAMES,
        quotas=dict.fromkeys(NAMES, 0),
        learned=True,
        candidate_k=config.candidate_k,
        n_items=N_ITEMS,
        tower_version="t",
        data_fingerprint="f",
        config=config.sources,
    )


def planted(n: int, agreeing: bool = True) -> ListedRequests:
    """Requests with one target each; lists of twelve items by chance, that of content is empty.

    Args:
        n: requests.
        agreeing: the target is the one item that the lists of tower and EASE share, at any rank in either. Otherwise
            it is the first item of the tower.
    """
    rng = np.random.default_rng(7)
    lists: dict[str, list[ScoredItems]] = {name: [] for name in NAMES}
    targets = []
    for _ in range(n):
        items = rng.permutation(N_ITEMS)
        tower, ease = items[:POOL], items[POOL : 2 * POOL].copy()
        target = tower[rng.integers(POOL)] if agreeing else tower[0]
        if agreeing:
            ease[rng.integers(POOL)] = target
        for name, own in (("tower", tower), ("ease", ease), ("content", items[:0])):
            scores = -np.sort(-rng.random(len(own)).astype(np.float32))
            lists[name].append(ScoredItems(own, scores))
        targets.append(target)
    joined = {name: ItemLists.join(each) for name, each in lists.items()}
    block = ListedBlock(joined, row_offsets(np.ones(n)), np.array(targets))
    return ListedRequests(N_ITEMS, block, rng.integers(1, 9, n))


def fitted(requests: ListedRequests, directory: Path, **mixture: Any):
    config = config_of(**mixture)
    return fit_mixture(config, summary_of(config), requests, directory)


def test_agreement_that_no_quota_can_use_is_learned(tmp_path: Path) -> None:
    """Each list has a fourth of the targets among its first three items; what both lists hold is the target."""
    changes, metrics, info = fitted(planted(240), tmp_path)
    others = [metrics[f"validation_recall_{name}"] for name in (*NAMES, "quotas")]
    assert metrics["validation_recall_mixture"] > 0.95 > max(others) + 0.4
    assert metrics["validation_ndcg_mixture"] > max(metrics[f"validation_ndcg_{name}"] for name in NAMES) + 0.4
    assert metrics["validation_recall_content"] == 0, "its lists are empty"
    assert metrics["mixture_used"] == 1 and info["used"] and "it gains recall" in info["reason"]
    assert changes["files"].keys() == {MIXTURE_FILE} and (tmp_path / MIXTURE_FILE).is_file()
    assert changes["mixture"].pool == POOL and changes["mixture"].deviation <= 1e-5


def test_a_mixture_that_gains_nothing_is_not_used(tmp_path: Path) -> None:
    changes, metrics, info = fitted(planted(60, agreeing=False), tmp_path)
    assert metrics["validation_recall_tower"] == metrics["validation_ndcg_tower"] == 1
    assert (changes, metrics["mixture_used"], list(tmp_path.iterdir())) == ({}, 0, [])
    assert not info["used"] and "it gains nothing beyond chance: recall@3" in info["reason"]


@pytest.mark.parametrize("n", [1, 2])
def test_a_request_or_two_teach_no_mixture(tmp_path: Path, n: int) -> None:
    """Of one request none is earlier; of two the later one is the only one that decides, and both lists miss it."""
    requests = planted(n)
    listed = np.concatenate([each.ids for each in requests.listed.lists.values()])
    requests.listed.targets[:] = np.setdiff1d(np.arange(N_ITEMS), listed)[0]
    changes, metrics, info = fitted(requests, tmp_path)
    assert changes == {} and metrics["mixture_used"] == 0 and metrics["mixture_validation_requests"] == 1
    assert info["reason"] == f"{n - 1} earlier and 1 later requests have no target in a list"


def test_the_mixture_is_used_if_it_gains_and_loses_no_recall() -> None:
    def measured(recall: float, ndcg: float, spread: float = 0.1) -> Measured:
        noise = spread * np.array([1.0, -1.0] * 50)
        return Measured(recall + noise, ndcg - noise)

    assert choose(measured(0.6, 0.3), {"tower": measured(0.5, 0.4), "quotas": measured(0.55, 0.2)}, 9).is_used
    assert choose(measured(0.55, 0.3), {"tower": measured(0.5, 0.4), "quotas": measured(0.55, 0.2)}, 9).is_used
    lost = choose(measured(0.54, 0.9), {"tower": measured(0.5, 0.1), "quotas": measured(0.55, 0.2)}, 9)
    assert (lost.is_used, lost.reason[:15]) == (False, "it loses recall")
    chance = {"tower": measured(0.5, 0.5, spread=-0.4)}
    assert not choose(measured(0.51, 0.51), chance, 9).is_used, "the standard error is 0.05"
    assert choose(measured(0.6, 0.5), chance, 9).is_used


def test_the_exported_network_scores_as_in_training(tmp_path: Path, monkeypatch) -> None:
    requests = planted(20)
    trained = train_mixture(requests, requests, config_of().sources.mixture)
    assert trained is not None
    mixture, deviation = write_mixture(trained, requests, tmp_path / MIXTURE_FILE, POOL)
    pools = requests.pools()
    for row in range(len(pools)):
        features = pools.features[pools.offsets[row] : pools.offsets[row + 1]]
        with torch.inference_mode():
            wanted = trained.network(torch.from_numpy(features)).numpy()
        np.testing.assert_allclose(mixture.scores(features), wanted, rtol=1e-5, atol=1e-5)
        assert np.exp(wanted.astype(np.float64)).sum() == pytest.approx(1, abs=1e-5)
    assert 0 <= deviation <= 1e-5
    monkeypatch.setattr(training, "PARITY", -1.0)
    with pytest.raises(DataError, match=r"mixture\.onnx: differs by .* allowed is -1"):
        write_mixture(trained, requests, tmp_path / MIXTURE_FILE, POOL)


def test_the_same_seed_gives_the_same_network() -> None:
    requests = planted(40)

    def weights(seed: int) -> np.ndarray:
        trained = train_mixture(requests, requests, config_of(seed=seed, epochs=2).sources.mixture)
        assert trained is not None
        return np.concatenate([each.detach().numpy().ravel() for each in trained.network.parameters()])

    first = weights(3)
    torch.manual_seed(1)
    np.testing.assert_array_equal(first, weights(3))
    assert not np.array_equal(first, weights(4))


def test_the_loss_is_the_cross_entropy_with_each_target_weighed_alike() -> None:
    """Against numpy, request by request; a target outside of the pool has no term."""
    requests = planted(3)
    lists = [each.row(0) for each in requests.listed.lists.values()]
    block = ListedBlock(
        {name: ItemLists.join([items]) for name, items in zip(NAMES, lists, strict=True)},
        np.array([0, 3]),
        np.array([lists[0].ids[2], lists[1].ids[5], next(i for i in range(N_ITEMS) if i not in lists[0].ids)]),
    )
    request = ListedRequests(N_ITEMS, block, np.array([4]))
    network = training.MixtureNetwork(3, 8)
    pools = request.pools()
    logits = network.logits(torch.from_numpy(pools.features)).detach().numpy().astype(np.float64)
    log_p = logits - np.log(np.exp(logits).sum())
    wanted = -sum(log_p[pools.ids == item].sum() / 3 for item in block.targets)
    assert training._loss(network, request).item() == pytest.approx(wanted, rel=1e-5)


def test_diverging_training_is_an_error() -> None:
    requests = planted(20)
    with pytest.raises(DataError, match=r"loss is (nan|inf); lower sources\.mixture\.learning_rate"):
        train_mixture(requests, requests, config_of(learning_rate=1e30).sources.mixture)


def test_a_batch_beyond_the_memory_is_refused(monkeypatch) -> None:
    monkeypatch.setattr(memory, "available_bytes", lambda root: 1000)
    requests = planted(20)
    with pytest.raises(ConfigError, match=r"a batch of the mixture\) needs about .* lower sources\.mixture\.batch_req"):
        train_mixture(requests, requests, config_of().sources.mixture)


@pytest.fixture(scope="module")
def inputs(planted_inputs, tmp_path_factory) -> dict[str, Path]:
    """The planted world after ``train_sources`` with a mixture that is used, whatever it gains."""
    directory = tmp_path_factory.mktemp("mixture")
    with pytest.MonkeyPatch.context() as patch:
        choice = fitting.Choice(True, "asked for")
        patch.setattr(fitting, "choose", lambda *_: choice)
        metrics, info = train_sources(step_config(), planted_inputs, directory)
    assert metrics["mixture_used"] == 1 and info["mixture"] == {"used": True, "reason": "asked for"}
    assert metrics["mixture_train_requests"] > metrics["mixture_validation_requests"] > 20
    return {**planted_inputs, "sources": directory}


@pytest.fixture(scope="module")
def planted_inputs(request: pytest.FixtureRequest) -> dict[str, Path]:
    names = {"snapshot": "planted", "candidate": "trained", "index": "indexed"}
    return {name: request.getfixturevalue(fixture) for name, fixture in names.items()}


def step_config(**mixture: Any) -> TrainSourcesConfig:
    settings = {"kind": "learned", "pool": 12, "epochs": 2, **mixture}
    sources = SourcesConfig(names=("tower", "covisitation", "ease"), quotas="learned", mixture=settings)
    return TrainSourcesConfig(sources=sources, candidate_k=8, features=FEATURES)


def test_a_run_answers_in_blocks_as_the_server_answers_each_request(inputs: dict[str, Path], tmp_path: Path) -> None:
    """The tower multiplies a block in another order: scores differ by rounding, and items where they almost tie."""
    snapshot, scorer = Snapshot(inputs["snapshot"]), CandidateScorer.load(inputs["candidate"], inputs["index"])
    blend = Blend.load(inputs["sources"] / "sources", scorer.n_items)
    assert blend is not None and blend.mixture is not None and blend.list_length(8) == 12
    metrics, _ = retrieve(RetrieveConfig(candidate_k=8, block=37, features=FEATURES), inputs, tmp_path)
    assert metrics["ranker_recall"] >= metrics["ranker_recall_tower"] - 0.05
    table = CandidateTable.read(tmp_path / "candidates.parquet")
    requests, state = snapshot.requests(), empty_state(snapshot, FEATURES, blend)
    compared = 0
    for row in replay(snapshot.events(), requests, state):
        user, time_ms = int(requests.user_index[row]), int(requests.request_time_ms[row])
        history, seen = state.history(user), state.touched(user)
        available_ms = state.items.available_from_ms(int(requests.part[row]))
        if not len(history.items):
            continue
        asked = CandidateRequest(history.items, time_ms, (), seen, available_ms)
        query = scorer.embed(tower_inputs([history], [Moment(time_ms, user, ())], FEATURES, scorer.n_items))
        unborn = np.flatnonzero(available_ms > time_ms)
        tower = scorer.search(query, 12, [np.concatenate([seen, unborn])])[0]
        lists = blend.complete(blend.read(asked, state, 12), asked, state, tower, 12)
        mixed = blend.mix(lists, 8, len(history.items))
        own = table.request_id == row
        np.testing.assert_allclose(table.score[own], mixed.items.scores, atol=1e-3)
        assert len(set(table.item_index[own]) & set(mixed.items.ids)) >= 7
        compared += 1
    assert compared > 200


def test_the_description_names_the_network(inputs: dict[str, Path]) -> None:
    summary = read_summary(inputs["sources"] / "sources", 60)
    assert summary.mixture is not None and summary.mixture.pool == 12
    assert len(summary.mixture.features) == 5 * 3 + 1 and MIXTURE_FILE in summary.files
    assert sum(summary.quotas.values()) == 8, "the quotas that it was compared with"
    values = json.loads((inputs["sources"] / "sources" / "sources.json").read_text())
    assert SourcesSummary.model_validate(values) == summary


def test_a_step_whose_mixture_gains_nothing_says_so_and_goes_on_with_quotas(
    planted_inputs: dict[str, Path], tmp_path: Path, monkeypatch
) -> None:
    monkeypatch.setattr(fitting, "choose", lambda *_: fitting.Choice(False, "it gains nothing"))
    metrics, info = train_sources(step_config(), planted_inputs, tmp_path)
    assert metrics["mixture_used"] == 0 and info["mixture"] == {"used": False, "reason": "it gains nothing"}
    assert info["quotas"] == read_summary(tmp_path / "sources", 60).quotas and sum(info["quotas"].values()) == 8
    blend = Blend.load(tmp_path / "sources", 60)
    assert blend is not None and blend.mixture is None and blend.list_length(8) == 8


def test_requests_without_a_history_teach_nothing(planted_inputs: dict[str, Path], tmp_path: Path) -> None:
    snapshot = tmp_path / "snapshot"
    snapshot.mkdir()
    for path in planted_inputs["snapshot"].iterdir():
        (snapshot / path.name).write_bytes(path.read_bytes())
    requests = Snapshot(snapshot).requests()
    new = (requests.part == 1) & (requests.user_index >= 156)  # these users come new in the ranker period
    targets = pq.read_table(snapshot / "targets.parquet")
    pq.write_table(targets.filter(new[targets["request_id"].to_numpy()]), snapshot / "targets.parquet")
    given = {**planted_inputs, "snapshot": snapshot}
    with pytest.raises(EmptyDatasetError, match=r"sources\.mixture\.kind = 'learned': none of 4 requests"):
        train_sources(step_config(), given, tmp_path)


def test_lists_beyond_the_memory_are_refused(planted_inputs: dict[str, Path], tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(memory, "available_bytes", lambda root: 1000)
    message = r"train_sources \(\d+ requests x 3 lists of 12 items\) needs about .* sources\.mixture\.pool"
    config = step_config()
    named = config.sources.model_copy(update={"newcomers": NewcomersConfig(list="all_time")})  # which replays nothing
    with pytest.raises(ConfigError, match=message):
        train_sources(config.model_copy(update={"sources": named}), planted_inputs, tmp_path)


def later(earlier: Path, **changes: Any) -> TrainSourcesConfig:
    """The configuration of a run that takes over what an earlier one learned."""
    sources = step_config().sources.changed(learned_from=str(earlier), **changes)
    return TrainSourcesConfig(
        sources=sources, candidate_k=8, features=FEATURES, learned_version=learned_version(sources)
    )


def test_a_later_run_takes_over_what_was_learned_and_fits_the_generators_anew(
    inputs: dict[str, Path], planted_inputs: dict[str, Path], tmp_path: Path, monkeypatch
) -> None:
    """Every event is in the candidate period of the later run, so that it has no request to learn from."""
    monkeypatch.setattr(fitting, "choose", lambda *_: pytest.fail("learned once more"))
    snapshot, directory = tmp_path / "snapshot", tmp_path / "later"
    shutil.copytree(planted_inputs["snapshot"], snapshot)
    events = Snapshot(snapshot).events()
    dataclasses.replace(events, part=np.zeros_like(events.part)).write(snapshot / "events.parquet")
    directory.mkdir()
    metrics, info = train_sources(later(inputs["sources"]), {**planted_inputs, "snapshot": snapshot}, directory)
    assert metrics["mixture_used"] == 1 and info["learned_from"] == str(inputs["sources"])
    first, second = (read_summary(each / "sources", 60) for each in (inputs["sources"], directory))
    assert (first.quotas, first.mixture) == (second.quotas, second.mixture)
    assert first.files["mixture.onnx"] == second.files["mixture.onnx"]
    assert first.files["ease_weights.npy"] != second.files["ease_weights.npy"], "fitted to more events"
    blend = Blend.load(directory / "sources", 60)
    assert blend is not None and blend.mixture is not None and blend.quotas == first.quotas


def test_quotas_alone_and_a_mixture_that_was_refused_are_taken_over_too(
    planted_inputs: dict[str, Path], tmp_path: Path, monkeypatch
) -> None:
    monkeypatch.setattr(fitting, "choose", lambda *_: fitting.Choice(False, "it gains nothing"))
    for number, kind in enumerate(("learned", "quotas")):
        earlier, directory = tmp_path / f"earlier{number}", tmp_path / f"later{number}"
        earlier.mkdir(), directory.mkdir()
        train_sources(step_config(kind=kind), planted_inputs, earlier)
        metrics, info = train_sources(later(earlier, mixture={"kind": kind}), planted_inputs, directory)
        found = read_summary(directory / "sources", 60)
        assert found.mixture is None and found.learned and found.quotas == info["quotas"]
        assert found.quotas == read_summary(earlier / "sources", 60).quotas
        assert metrics.get("mixture_used", 0) == 0


def test_only_what_was_learned_for_the_same_run_is_taken_over(
    inputs: dict[str, Path], planted_inputs: dict[str, Path], tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=r"learned_from = '.*nowhere': no sources/sources\.json is there; allowed is"):
        later(tmp_path / "nowhere")
    with pytest.raises(ValueError, match=r"learned_from = 'x': allowed with quotas = 'learned' or mixture\.kind"):
        SourcesConfig(names=("tower", "ease"), learned_from="x")
    for changes, message in (
        (
            {"names": ("tower", "ease")},
            r"names = \['tower', 'covisitation', 'ease'\], this run has \['tower', 'ease'\]",
        ),
        ({"mixture": {"kind": "quotas"}}, "mixture.kind = 'learned', this run has 'quotas'"),
        ({"mixture": {"pool": 20}}, "mixture.pool = 12, this run has 20"),
        ({"quotas": {}}, "learned quotas = True, this run has False"),
    ):
        directory = tmp_path / str(len(list(tmp_path.iterdir())))
        directory.mkdir()
        with pytest.raises(ConfigError, match=message):
            train_sources(later(inputs["sources"], **changes), planted_inputs, directory)
    (tmp_path / "changed").mkdir()
    config = later(inputs["sources"]).model_copy(update={"learned_version": "0" * 64})
    with pytest.raises(ConfigError, match="version = "):
        train_sources(config, planted_inputs, tmp_path / "changed")

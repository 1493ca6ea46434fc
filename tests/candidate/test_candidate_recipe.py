"""Rates, averages, the full softmax and windows by length: what the attention encoder's recipe is made of."""

import dataclasses
import warnings

import numpy as np
import pytest
import torch
from fbgemm_gpu.split_table_batched_embeddings_ops_training import SplitTableBatchedEmbeddingBagsCodegen

from stages.candidate.config import AverageConfig, CandidateConfig, ScheduleConfig, TrainCandidateConfig
from stages.candidate.data.examples import first_touches
from stages.candidate.export.user_tower import exported_weights
from stages.candidate.towers.encoders import distance_start
from stages.candidate.towers.fused_softmax import TargetFinder, fused_sampled_softmax
from stages.candidate.towers.losses import full_softmax
from stages.candidate.training import negatives, worker
from stages.candidate.training.batches import make_batches
from stages.candidate.training.ema import Average, decay_at
from stages.candidate.training.negatives import SharedNegatives
from stages.candidate.training.schedule import rate_factor
from stages.candidate.training.step import prepare
from stages.contracts.config import merged
from stages.contracts.errors import ConfigError
from stages.contracts.snapshot import Snapshot
from stages.features.config import FeatureConfig
from tests.candidate.towers import build, plain_catalogue

FEATURES = FeatureConfig(history_length=4, history_decay=2.0)
RECIPE = {
    "model": {
        "encoder": "attention",
        "normalisation": "dot",
        "distance_bias": "logarithm",
        "input_scale": 4.0,
        "initial_deviation": 0.05,
        "dimension": 16,
        "category_dimension": 4,
        "hidden": (),
    },
    "loss": {"kind": "full_softmax", "temperature": 1.0},
    "training": {
        "mode": "sequences",
        "windows_by_length": True,
        "batch_size": 100,
        "epochs": 2,
        "history_dropout": 0.0,
    },
    "optimizer": {"clip_norm": 1.0},
    "schedule": {"kind": "cosine", "warmup_steps": 3, "final_rate": 0.1},
    "average": {"weights": "all", "decay": 0.8},
    "distributed": {"device": "cpu", "timeout_s": 60},
}


def recipe(**changes):
    return CandidateConfig(**merged(RECIPE, changes))


def test_rates_rise_and_fall():
    cosine = ScheduleConfig(kind="cosine", warmup_steps=4, final_rate=0.1)
    found = [rate_factor(step, 12, cosine) for step in range(13)]
    np.testing.assert_allclose(found[:5], [0.25, 0.5, 0.75, 1.0, 1.0])
    np.testing.assert_allclose(found[8], (1 + 0.1) / 2)  # half of the eight steps
    np.testing.assert_allclose(found[10], 0.1 + 0.9 * (1 - 0.5**0.5) / 2)  # three quarters
    np.testing.assert_allclose(found[12], 0.1)
    assert np.all(np.diff(found[4:]) < 0)
    constant = ScheduleConfig(warmup_steps=2)
    assert [rate_factor(step, 5, constant) for step in range(4)] == [0.5, 1.0, 1.0, 1.0]
    assert rate_factor(0, 5, ScheduleConfig()) == 1.0


def test_an_average_is_that_of_numpy():
    rng = np.random.default_rng(0)
    steps = [{"a": rng.normal(size=(3, 2)), "t": rng.normal(size=4)} for _ in range(30)]
    weights = {
        "weights/a": torch.from_numpy(steps[0]["a"].copy()),
        "weights/embeddings.t": torch.from_numpy(steps[0]["t"].copy()),
        "optimizer/a/step": torch.tensor(3.0),
    }
    every = Average(weights, AverageConfig(weights="all", decay=0.6))
    dense = Average(weights, AverageConfig(weights="dense", decay=0.6))
    wanted = {name: value.copy() for name, value in steps[0].items()}
    for step, values in enumerate(steps):
        weights["weights/a"].copy_(torch.from_numpy(values["a"]))
        weights["weights/embeddings.t"].copy_(torch.from_numpy(values["t"]))
        decay = min(0.6, (1 + step) / (10 + step))
        wanted = {name: decay * wanted[name] + (1 - decay) * values[name] for name in wanted}
        every.update(step)
        dense.update(step)
    assert decay_at(5, 0.6) == 0.4
    assert decay_at(29, 0.6) == 0.6
    assert sorted(every.state) == ["average/a", "average/embeddings.t"]
    assert list(dense.state) == ["average/a"]
    np.testing.assert_allclose(every.state["average/a"], wanted["a"], rtol=1e-12)
    np.testing.assert_allclose(every.state["average/embeddings.t"], wanted["t"], rtol=1e-12)
    dense.publish()
    np.testing.assert_allclose(weights["weights/a"], wanted["a"], rtol=1e-12)
    np.testing.assert_array_equal(weights["weights/embeddings.t"], steps[-1]["t"])
    every.restart()
    np.testing.assert_array_equal(every.state["average/embeddings.t"], steps[-1]["t"])


@pytest.mark.parametrize("elements", [1, 1 << 20])
@pytest.mark.parametrize("masks", [True, False])
def test_the_full_softmax_is_a_cross_entropy_over_the_catalogue(monkeypatch, elements, masks):
    monkeypatch.setitem(fused_sampled_softmax.__globals__["_ELEMENTS"], "cpu", elements)
    generator = torch.Generator().manual_seed(0)
    items_C, place_B = 3 * torch.arange(11), torch.randint(0, 11, (23,), generator=generator)
    query, vectors = torch.randn(23, 5, generator=generator), torch.randn(11, 5, generator=generator)
    history_BL = torch.randint(0, 40, (23, 4), generator=generator) if masks else None
    logits = (query @ vectors.T / 0.3).numpy().astype(np.float64)
    for row in range(23):
        for column in range(11):
            seen = masks and 3 * column in history_BL[row].tolist()
            if seen and column != place_B[row]:
                logits[row, column] = -np.inf
    kept = torch.from_numpy(logits)
    wanted = torch.nn.functional.cross_entropy(kept, place_B)
    found = []
    for loss_of in (full_softmax, fused_sampled_softmax):
        own = [value.clone().requires_grad_() for value in (query, vectors)]
        if loss_of is full_softmax:
            loss = full_softmax(*own, place_B, 0.3, items_C, history_BL)
        else:
            targets = TargetFinder(40, torch.device("cpu"))(items_C, place_B, history_BL)
            loss = fused_sampled_softmax(*own, targets, 0.3)
        loss.backward()
        assert loss.item() == pytest.approx(wanted.item(), rel=1e-5)
        found.append([value.grad for value in own])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, atol=2e-6, rtol=2e-5)


@pytest.mark.parametrize("training", ["examples", "sequences"])
def test_a_batch_of_the_full_softmax_scores_every_eligible_item(small_world, training):
    """Its loss is the cross-entropy of the model's own vectors of the whole catalogue."""
    examples, catalogue = small_world
    catalogue = dataclasses.replace(catalogue, eligible=np.r_[0:11])  # the twelfth is none of its business
    config = recipe(
        model={"dropout": 0.0},
        negatives={"mask_history": False},
        training={"mode": training, "windows_by_length": training == "sequences"},
    )
    config = config.changed(training={"item_id_dropout": 0.0, "batch_size": 40})
    _, batches, loss_of = build(examples, catalogue, config, FEATURES)
    for batch in batches.epoch(0):
        assert batch.items.tolist() == batch.candidates.tolist() == list(range(11))
        with torch.no_grad():
            query, vectors, _ = loss_of.forward(batch)
            wanted = torch.nn.functional.cross_entropy(query @ vectors.T, torch.from_numpy(batch.positive_place))
            assert loss_of(batch).item() == pytest.approx(wanted.item(), rel=1e-5)


def test_tastes_take_the_full_softmax_too(small_world):
    config = recipe(
        model={"encoder": "tastes"},
        negatives={"mask_history": False},
        training={"mode": "examples", "windows_by_length": False, "item_id_dropout": 0.0},
    )
    _, batches, loss_of = build(*small_world, config, FEATURES)
    batch = next(batches.epoch(0))
    with torch.no_grad():
        query, vectors, _ = loss_of.forward(batch)
        scores = (query @ vectors.T).amax(dim=1)
        wanted = torch.nn.functional.cross_entropy(scores, torch.from_numpy(batch.positive_place))
        assert loss_of(batch).item() == pytest.approx(wanted.item(), rel=1e-5)


def test_the_full_softmax_has_a_largest_catalogue(small_world, monkeypatch):
    monkeypatch.setattr(negatives, "FULL_SOFTMAX_ITEMS", 11)
    with pytest.raises(
        ConfigError, match=r"loss\.kind = 'full_softmax' with 12 items: allowed are up to 11; take 'softmax'"
    ):
        SharedNegatives(small_world[1], recipe())


@pytest.fixture(scope="module")
def uneven(event_table):
    """Sequences of 2 to 30 touches."""
    rng = np.random.default_rng(5)
    rows = [(u, i, s) for u in range(60) for s, i in enumerate(rng.permutation(40)[: rng.integers(2, 31)])]
    user, item, step = np.array(sorted(rows, key=lambda row: row[2])).T
    examples = first_touches(event_table(user, item, 1000 * step, np.zeros(len(user))))
    return examples, plain_catalogue(examples, 40)


def test_windows_by_length_hold_every_example_once(uneven):
    features = FeatureConfig(history_length=8, history_decay=2.0)
    batches = make_batches(*uneven, recipe(training={"batch_size": 64}), features)
    usable = uneven[0].usable(False)
    wanted = sorted(zip(uneven[0].users[usable].tolist(), uneven[0].items[usable].tolist(), strict=True))
    orders = []
    for epoch in (0, 1):
        drawn, widths, sizes = [], [], []
        for batch in batches.epoch(epoch):
            targets = batch.candidates[batch.positive_place]
            drawn += zip(batch.users.tolist(), targets.tolist(), strict=True)
            widths.append(batch.history.shape[1])
            sizes.append(batch.n_queries)
            assert batch.kept[:, -1].any(), "cut to the longest window"
        assert sorted(drawn) == wanted
        assert len(sizes) == batches.steps == round(len(usable) / 64)
        assert max(sizes) <= 64 + 8
        assert min(sizes) >= 64 - 2 * 8
        assert min(widths) < max(widths) == 8
        orders.append(widths)
    assert orders[0] != sorted(orders[0])
    assert orders[0] != orders[1]


@pytest.mark.parametrize("size", [2, 64, 10_000])
def test_windows_by_length_are_shared_out_among_ranks(uneven, size):
    features = FeatureConfig(history_length=8, history_decay=2.0)
    config = recipe(training={"batch_size": max(6, size)})
    parts = [list(make_batches(*uneven, config, features, rank, 3).epoch(1)) for rank in range(3)]
    whole = list(make_batches(*uneven, config, features).epoch(1))
    if len(whole) == len(parts[0]):  # where batches are too small for three ranks there are fewer steps
        for step, batch in enumerate(whole):
            for name in ("history", "signals", "ages", "kept", "named", "users"):
                joined = np.concatenate([getattr(own[step], name) for own in parts])
                np.testing.assert_array_equal(joined, getattr(batch, name))
            places = np.concatenate([own[step].positive_place for own in parts])
            np.testing.assert_array_equal(places, batch.positive_place)
    assert all(len(part) == len(parts[0]) for part in parts)
    assert min(batch.n_queries for part in parts for batch in part) >= 1
    assert sum(batch.n_queries for part in parts for batch in part) == len(uneven[0].usable(False))


def test_bias_by_distance_starts_as_it_is_told():
    np.testing.assert_allclose(distance_start("decay", 3, 2, 4.0), [[0, 0], [-0.25, -0.25], [-0.5, -0.5]])
    found = distance_start("logarithm", 3, 2, 4.0)
    wanted = -np.log1p(np.arange(3))[:, None] * [2.0, 0.5]
    np.testing.assert_allclose(found, wanted, rtol=1e-6)
    assert distance_start("logarithm", 5, 1, 4.0).shape == (5, 1)


def test_windows_by_length_need_sequences():
    with pytest.raises(ValueError, match="windows_by_length with mode = 'examples': it needs"):
        recipe(training={"mode": "examples"})


def job(planted, directory, **changes):
    settings = TrainCandidateConfig(
        candidate=recipe(**changes), features=FeatureConfig(history_length=8, history_decay=4.0)
    )
    directory.mkdir(parents=True)
    return settings, prepare(settings, Snapshot(planted), directory)


def kernels(module):
    """Yield the fused kernels below a module; a sharded one keeps its lookups out of ``children``."""
    for child in (*module.children(), *getattr(module, "_lookups", ())):
        if isinstance(child, SplitTableBatchedEmbeddingBagsCodegen):
            yield child
        yield from kernels(child)


def test_what_is_exported_is_the_average_of_the_steps(planted, tmp_path, one_rank, monkeypatch):
    """The weights after each step, averaged by numpy, and the kernels' learning rates on the way."""
    models, first, steps, rates = [], [], [], []
    build_rank, update = worker.build, Average.update

    def building(*arguments):
        made = build_rank(*arguments)
        models.append(made[1].model)
        return made

    def watching(self, step):
        if step == 0:
            first.extend(part.clone().numpy() for part in self._averages)
        steps.append([part.detach().clone().numpy() for part in self._weights])
        rates.append([kernel.get_learning_rate() for kernel in kernels(models[0])])
        update(self, step)

    monkeypatch.setattr(worker, "build", building)
    monkeypatch.setattr(Average, "update", watching)
    settings, _ = job(planted, tmp_path / "job", model={"item_parts": 1})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TorchRec's own deprecations
        worker.train(tmp_path / "job", progress=False)
    config = settings.candidate
    wanted = [
        config.optimizer.sparse_learning_rate * rate_factor(step, len(steps), config.schedule)
        for step in range(len(steps))
    ]
    for found in zip(*rates, strict=True):
        np.testing.assert_allclose(found, wanted, rtol=1e-6)
    item = "embeddings.embedding_bags.item.weight"
    exported, last = exported_weights(tmp_path / "job/state"), np.load(tmp_path / f"job/state/weights/{item}.npy")
    (at,) = [place for place, part in enumerate(first) if part.shape == last.shape]
    np.testing.assert_array_equal(last, steps[-1][at])
    averaged = first[at].astype(np.float64)
    for step, parts in enumerate(steps):
        decay = min(0.8, (1 + step) / (10 + step))
        averaged = decay * averaged + (1 - decay) * parts[at]
    np.testing.assert_allclose(exported[item], averaged, atol=1e-6)
    assert np.abs(exported[item] - last).max() > 1e-2
    names = [sorted(path.stem for path in (tmp_path / "job/state" / kind).glob("*")) for kind in ("weights", "average")]
    assert names[0] == names[1]

"""What can be known without a GPU: device, backend and plan as on a machine with two of them, and what is moved.

See ``elsewhere`` for the device that stands in for one.
"""

import contextlib
import copy

import numpy as np
import pytest
import torch
import torch.distributed as dist

from stages.candidate.config import CandidateConfig
from stages.candidate.distributed import sharding as plan
from stages.candidate.towers.encoders import Sizes
from stages.candidate.towers.two_tower import TwoTower
from stages.candidate.training import objective, worker
from stages.candidate.training.objective import LossOfBatch, mixed_precision
from stages.contracts.config import merged
from stages.contracts.errors import ConfigError
from stages.features.config import FeatureConfig
from tests.candidate.elsewhere import device_elsewhere
from tests.candidate.towers import build

SIZES = Sizes(100_000, 50, 0, 0, 0, signals=2, history_length=8, history_decay=4.0)


@pytest.fixture
def two_devices(monkeypatch):
    chosen = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    return chosen


@pytest.mark.parametrize("device", ["auto", "cuda"])
def test_each_rank_takes_its_own_gpu_and_they_talk_through_nccl(two_devices, monkeypatch, device):
    joined = []
    monkeypatch.setattr(dist, "init_process_group", lambda backend, timeout: joined.append((backend, timeout)))
    config = CandidateConfig(distributed={"device": device, "timeout_s": 77})
    worker.initialise(config)
    assert [(backend, timeout.total_seconds()) for backend, timeout in joined] == [("nccl", 77)]
    assert two_devices == [torch.device("cuda", 1)]


def test_more_ranks_than_gpus_fall_back_or_are_refused(two_devices, monkeypatch):
    joined = []
    monkeypatch.setattr(dist, "init_process_group", lambda backend, timeout: joined.append((backend, timeout)))
    monkeypatch.setenv("WORLD_SIZE", "3")
    worker.initialise(CandidateConfig(distributed={"device": "auto", "timeout_s": 77}))
    assert [(backend, timeout.total_seconds()) for backend, timeout in joined] == [("gloo", 77)]
    with pytest.raises(ConfigError, match=r"distributed.n_processes = 3 needs 3 CUDA devices, found 2"):
        worker.initialise(CandidateConfig(distributed={"device": "cuda"}))


@pytest.mark.parametrize("sharding", ["auto", "table_wise", "column_wise", "row_wise"])
def test_the_planner_places_fused_tables_on_two_gpus(sharding):
    optimizer = "adagrad" if sharding == "column_wise" else "rowwise_adagrad"
    config = CandidateConfig(optimizer={"sparse": optimizer}, distributed={"sharding": sharding})
    model = TwoTower(SIZES, config.model, torch.device("meta"))
    planned = plan.planner(model, config, torch.device("cuda", 0), 2).plan(model, [plan.Sharder()])
    (tables,) = planned.plan.values()
    assert {table.name for table in model.embeddings.embedding_bag_configs()} == set(tables)
    for table in tables.values():
        assert table.compute_kernel == "fused"
        assert sharding in ("auto", table.sharding_type)
        places = {str(shard.placement) for shard in table.sharding_spec.shards}
        assert places <= {"rank:0/cuda:0", "rank:1/cuda:1"}
        assert sharding in ("auto", "table_wise") or len(places) == 2


def test_mixed_precision_is_for_cuda_only():
    config = CandidateConfig(training={"precision": "bfloat16"})
    assert not mixed_precision(torch.device("cpu"), config.training)._enabled
    with mixed_precision(torch.device("cpu"), config.training):
        assert torch.ones(2, 2).mm(torch.ones(2, 2)).dtype == torch.float32
    assert not mixed_precision(torch.device("cpu"), CandidateConfig().training)._enabled


FEATURES = FeatureConfig(history_length=6)
SMALL = {
    "model": {"dimension": 8, "category_dimension": 4, "hidden": (8,)},
    "negatives": {"shared": 4},
    "training": {"batch_size": 16},
}
VARIANTS = {
    "mean": {},
    "everything known": {"model": {"user_id": True, "context": True, "item_age": True, "word_buckets": 20}},
    "two tables": {"model": {"shared_item_table": False}},
    "tastes": {"model": {"encoder": "tastes", "tastes": 3}},
    "attention": {"model": {"encoder": "attention"}},
    "sequences": {"model": {"encoder": "attention"}, "training": {"mode": "sequences"}},
    "sequences, full softmax": {
        "model": {"encoder": "attention"},
        "loss": {"kind": "full_softmax"},
        "training": {"mode": "sequences"},
    },
    "bpr": {"loss": {"kind": "bpr"}},
    "gbce": {"loss": {"kind": "gbce"}},
    "full softmax": {"loss": {"kind": "full_softmax"}},
    "full softmax of tastes": {"model": {"encoder": "tastes"}, "loss": {"kind": "full_softmax"}},
    "by popularity": {"negatives": {"sampling": "popularity", "in_batch": False}},
}


@pytest.fixture
def elsewhere(monkeypatch):
    """Modules get new parameters where they are moved, and autocast, which does not know the device, is left out."""
    monkeypatch.setattr(objective, "mixed_precision", lambda device, config: contextlib.nullcontext())
    torch.__future__.set_overwrite_module_params_on_conversion(True)
    with device_elsewhere() as device:
        yield device
    torch.__future__.set_overwrite_module_params_on_conversion(False)


def one_step(model, loss_of, batch):
    """Return the loss and the parameters after one step as the loop takes it."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    loss = loss_of(batch)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 0.5)
    optimizer.step()
    return loss.detach().cpu().numpy(), [value.detach().cpu().numpy() for value in model.parameters()]


@pytest.mark.parametrize("changes", VARIANTS.values(), ids=VARIANTS)
def test_a_step_moves_all_that_it_needs_to_the_device(rich_world, elsewhere, changes):
    config = CandidateConfig(**merged(SMALL, changes))
    model, batches, loss_of = build(*rich_world, config, FEATURES)
    remote = copy.deepcopy(model).to(elsewhere)
    assert {value.device for value in remote.parameters()} == {elsewhere}
    batch = next(batches.epoch(0))
    torch.manual_seed(1)
    loss, values = one_step(remote, LossOfBatch(remote, rich_world[1], config, batches, elsewhere), batch)
    torch.manual_seed(1)
    expected_loss, expected = one_step(model, loss_of, batch)
    np.testing.assert_allclose(loss, expected_loss, rtol=1e-6)
    for value, wanted in zip(values, expected, strict=True):
        np.testing.assert_allclose(value, wanted, atol=1e-5)


def test_what_is_not_moved_is_found(rich_world, elsewhere, monkeypatch):
    config = CandidateConfig(**SMALL)
    model, batches, _ = build(*rich_world, config, FEATURES)
    loss_of = LossOfBatch(model.to(elsewhere), rich_world[1], config, batches, elsewhere)
    monkeypatch.setattr(LossOfBatch, "_tensor", lambda self, array: torch.from_numpy(array))
    with pytest.raises(RuntimeError, match="tensors on cpu and meta"):
        loss_of(next(batches.epoch(0)))


@pytest.mark.parametrize("encoder", ["mean", "tastes", "attention"])
def test_towers_in_half_precision_learn_what_whole_ones_do(rich_world, monkeypatch, encoder):
    """Autocast's rules for CUDA, tried with those for the CPU: layers in bfloat16, the loss in float32."""
    found = []
    for enabled in (False, True):
        half = torch.autocast("cpu", torch.bfloat16, enabled=enabled)
        monkeypatch.setattr(objective, "mixed_precision", lambda device, config, half=half: half)
        config = CandidateConfig(**merged(SMALL, {"model": {"encoder": encoder}}))
        model, batches, loss_of = build(*rich_world, config, FEATURES)
        batch = next(batches.epoch(0))
        kinds = []
        for layer in (each for each in model.modules() if isinstance(each, torch.nn.Linear)):
            layer.register_forward_hook(lambda layer, given, out, kinds=kinds: kinds.append(out.dtype))
        loss = loss_of(batch)
        loss.backward()
        assert set(kinds) == {torch.bfloat16 if enabled else torch.float32}
        assert loss.dtype == torch.float32
        found.append([value.grad.numpy().ravel() for value in model.parameters() if value.grad is not None])
    whole, halved = (np.concatenate(each) for each in found)
    assert np.corrcoef(whole, halved)[0, 1] > 0.99
    assert not np.array_equal(whole, halved)

"""What is decided before a GPU is touched: device, backend and plan, as on a machine with two of them."""

import pytest
import torch
import torch.distributed as dist

from stages.candidate import plan, worker
from stages.candidate.config import CandidateConfig
from stages.candidate.encoders import Sizes
from stages.candidate.model import TwoTower
from stages.candidate.objective import mixed_precision
from stages.contracts.errors import ConfigError

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
    config = CandidateConfig(device=device, timeout_s=77)
    worker.initialise(config)
    assert [(backend, timeout.total_seconds()) for backend, timeout in joined] == [("nccl", 77)]
    assert two_devices == [torch.device("cuda", 1)]


def test_more_ranks_than_gpus_fall_back_or_are_refused(two_devices, monkeypatch):
    joined = []
    monkeypatch.setattr(dist, "init_process_group", lambda backend, timeout: joined.append((backend, timeout)))
    monkeypatch.setenv("WORLD_SIZE", "3")
    worker.initialise(CandidateConfig(device="auto", timeout_s=77))
    assert [(backend, timeout.total_seconds()) for backend, timeout in joined] == [("gloo", 77)]
    with pytest.raises(ConfigError, match="n_processes = 3 needs 3 CUDA devices, found 2"):
        worker.initialise(CandidateConfig(device="cuda"))


@pytest.mark.parametrize("sharding", ["auto", "table_wise", "column_wise", "row_wise"])
def test_the_planner_places_fused_tables_on_two_gpus(sharding):
    optimizer = "adagrad" if sharding == "column_wise" else "rowwise_adagrad"
    config = CandidateConfig(sharding=sharding, sparse_optimizer=optimizer)
    model = TwoTower(SIZES, config, torch.device("meta"))
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
    config = CandidateConfig(precision="bfloat16")
    assert not mixed_precision(torch.device("cpu"), config)._enabled
    with mixed_precision(torch.device("cpu"), config):
        assert torch.ones(2, 2).mm(torch.ones(2, 2)).dtype == torch.float32
    assert not mixed_precision(torch.device("cpu"), CandidateConfig())._enabled

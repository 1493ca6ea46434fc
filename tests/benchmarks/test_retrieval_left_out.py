"""Models that do not fit the memory, or fail, are left out with a reason; the others have their rows."""

from __future__ import annotations

import json
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.retrieval import memory
from benchmarks.retrieval.__main__ import main
from benchmarks.retrieval.data import Interactions
from benchmarks.retrieval.replay import protocols as replay_protocols
from benchmarks.retrieval.static import run as static
from benchmarks.retrieval.static.models import Ials, ItemKnn, Popularity
from benchmarks.retrieval.static.stage import Quotas, TwoTower
from stages.contracts.errors import DataError


@pytest.fixture
def beauty(tmp_path: Path) -> list[str]:
    rng = np.random.default_rng(0)
    lines = [" ".join(map(str, [user, *rng.choice(20, 8, replace=False)])) for user in range(25)]
    (tmp_path / "Beauty.txt").write_text("\n".join(lines) + "\n")
    return ["--protocol", "beauty", "--data", str(tmp_path), "--seeds", "1,2", "--models"]


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Candidate stages that count how often they are trained, and score at random."""
    towers: list[str] = []

    def fit(self: TwoTower | Quotas, train: Interactions, seed: int) -> Any:
        towers.append("tower" if isinstance(self, TwoTower) else self.kind)
        table = np.random.default_rng(seed).normal(size=(train.users, train.items)).astype(np.float32)
        return lambda users: table[users]

    for model in (TwoTower, Quotas):
        monkeypatch.setattr(model, "fit", fit)
    return towers


def result(capsys: pytest.CaptureFixture[str]) -> tuple[dict[str, Any], str, str]:
    said = capsys.readouterr()
    return json.loads(said.out.splitlines()[-1]), said.out, said.err


def test_a_closed_form_that_is_too_large_leaves_the_others(beauty, trained, capsys) -> None:
    command = [*beauty, "ease,popularity,quotas", "--set", "ease.memory_gb=1e-4"]
    assert main([*command, "--set", "quotas.sources.directed_ridge.memory_gb=1e-4"]) == 0
    found, table, _ = result(capsys)
    assert list(found["models"]) == ["popularity", "two_tower"]
    assert found["left_out"]["ease"].startswith("needs 0.03")
    assert ", memory_gb = 0.0001, " in found["left_out"]["ease"]
    assert "directed_ridge needs 0.0" in found["left_out"]["quotas"], "beauty's recipe names the ridge"
    assert "sources.directed_ridge.memory_gb = 0.0001: allow more" in found["left_out"]["quotas"]
    assert found["failed"] == []
    assert "ease           left out: needs 0.03" in table
    assert trained == ["tower", "tower"], "the two-tower's own row, and nothing for the mixture"


def test_what_is_free_counts(beauty, trained, capsys, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(static, "free_gigabytes", lambda: 0.02)
    assert main([*beauty, "popularity,ials,quotas"]) == 0
    found, *_ = result(capsys)
    assert list(found["models"]) == ["popularity"]
    assert found["left_out"]["two_tower"].endswith(" GB, 0.02 GB are free")
    assert found["left_out"]["quotas"].endswith(" GB, 0.02 GB are free")
    assert trained == []
    assert main([*beauty, "ease,ials"]) == 2
    found, _, error = result(capsys)
    assert found["models"] == {}
    assert error.splitlines()[-1].startswith("error: every model is left out: ease: needs 0.03")


def test_an_option_allows_all_models(beauty, trained, capsys, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(static, "free_gigabytes", lambda: 0.0)
    assert main([*beauty, "ease,quotas", "--memory-gb", "9"]) == 0
    found, *_ = result(capsys)
    assert list(found["models"]) == ["ease", "two_tower", "quotas"]
    assert found["models"]["ease"]["settings"]["memory_gb"] == 9
    assert found["models"]["quotas"]["settings"]["sources"]["directed_ridge"]["memory_gb"] == 9
    assert main([*beauty, "ease", "--memory-gb", "9", "--set", "ease.memory_gb=1e-3"]) == 2


@pytest.mark.parametrize("error", [MemoryError("Unable to allocate 9 TiB"), DataError("two\nlines")])
def test_a_model_that_fails_leaves_the_others(beauty, capsys, monkeypatch: pytest.MonkeyPatch, error) -> None:
    def fit(self: Ials, train: Interactions, seed: int) -> Any:
        if seed == 2:
            raise error
        return Popularity().fit(train, seed)

    monkeypatch.setattr(Ials, "fit", fit)
    assert main([*beauty, "ials,ease"]) == 1
    found, table, said = result(capsys)
    assert list(found["models"]) == ["ease"]
    assert found["failed"] == ["ials"]
    assert found["left_out"]["ials"].startswith("failed, seed 2: ")
    assert "ials           left out: failed, seed 2: " in table
    assert said.splitlines()[-1].startswith("error: not complete: ials: failed, seed 2: ")


def test_a_mixture_with_a_tower_that_failed_trains_no_other(beauty, trained, capsys, monkeypatch) -> None:
    def fit(self: TwoTower, train: Interactions, seed: int) -> Any:
        trained.append("tower")
        raise DataError("the training diverged")

    monkeypatch.setattr(TwoTower, "fit", fit)
    assert main([*beauty, "quotas,popularity"]) == 1
    found, *_ = result(capsys)
    assert trained == ["tower"]
    assert found["left_out"]["quotas"] == "its two_tower failed, seed 1: the training diverged"
    assert list(found["models"]) == ["popularity"]


def test_a_replay_leaves_out_as_well(tmp_path: Path, capsys, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    pairs = {(int(user), int(item)) for user, item in zip(*rng.integers(0, 25, (2, 400)), strict=True)}
    rows = [f"{user}\t{item}\t3\t{time}" for time, (user, item) in enumerate(sorted(pairs, key=lambda _: rng.random()))]
    (tmp_path / "u.data").write_text("\n".join(rows))
    command = ["--protocol", "ml-100k-replay", "--data", str(tmp_path), "--samples", "5", "--models"]
    assert main([*command, "ease,popularity", "--set", "ease.sources.ease.memory_gb=1e-4"]) == 0
    found, table, _ = result(capsys)
    assert list(found["models"]) == ["popularity"]
    assert "ease needs 0.0" in found["left_out"]["ease"]
    assert "ease             left out: cannot run on these data: sources.names: with 25 items" in table
    monkeypatch.setattr(replay_protocols, "free_gigabytes", lambda: 0.02)
    assert main([*command, "ease,two_tower"]) == 2
    assert "two_tower: needs 1." in result(capsys)[2].splitlines()[-1]


def test_neighbours_take_no_more_than_they_say() -> None:
    rng = np.random.default_rng(0)
    user, item = np.nonzero(rng.random((400, 1500)) < 0.05)
    train = Interactions(user, item, None, 400, 1500)
    history = train.matrix  # of the rows, not of the model
    tracemalloc.start()
    ItemKnn().fit(train, 1)
    taken = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert history.nnz
    assert taken <= ItemKnn().gigabytes(train) * 1e9 <= 4 * taken


def test_what_is_free(tmp_path: Path) -> None:
    """The machine, and the control groups that the process is in, of either version."""

    def write(name: str, text: str) -> None:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)

    write("proc/meminfo", "MemTotal: 9000000 kB\nMemAvailable: 8000000 kB\n")
    assert memory.free_gigabytes(tmp_path) == pytest.approx(8.192)
    write("proc/self/cgroup", "3:cpu,memory:/one/two\n1:cpuset:/\n0::/here\n")
    write("sys/fs/cgroup/memory/one/memory.limit_in_bytes", "7000000000\n")
    write("sys/fs/cgroup/memory/one/memory.usage_in_bytes", "2000000000\n")
    write("sys/fs/cgroup/memory/one/memory.stat", "inactive_file 1\ntotal_inactive_file 500000000\n")
    assert memory.free_gigabytes(tmp_path) == pytest.approx(5.5)
    write("sys/fs/cgroup/here/memory.max", "max\n")
    write("sys/fs/cgroup/here/memory.current", "1\n")
    write("sys/fs/cgroup/memory.max", "3000000000\n")
    write("sys/fs/cgroup/memory.current", "2000000000\n")
    assert memory.free_gigabytes(tmp_path) == pytest.approx(1.0)
    assert memory.free_gigabytes(tmp_path / "elsewhere") is None

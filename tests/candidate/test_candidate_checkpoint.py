"""A run that was killed ends where the unbroken one does, on as many ranks as there are then."""

import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from stages.candidate.config import CandidateConfig, TrainCandidateConfig
from stages.candidate.training import step as train
from stages.candidate.training import warm_start as resume
from stages.candidate.training.checkpoint import Checkpoints, Progress, check_identity
from stages.candidate.training.step import train_candidate
from stages.contracts.config import merged
from stages.contracts.errors import ConfigError, DataError, TransientError
from stages.features.config import FeatureConfig
from tests.candidate.one_rank import in_this_process
from tests.time_limits import wait_for

RANKS = (str(Path(__file__).with_name("ranks.py")),)
FEATURES = FeatureConfig(history_length=8, history_decay=4.0)
BASE = {
    "model": {"dimension": 16, "category_dimension": 4, "hidden": (16,)},
    "loss": {"temperature": 0.2},
    "negatives": {"shared": 32},
    "training": {"epochs": 3, "batch_size": 128},
    "distributed": {"device": "cpu", "timeout_s": 20},
    "checkpoints": {"every_steps": 3},
}


def settings(**changes):
    return TrainCandidateConfig(candidate=CandidateConfig(**merged(BASE, changes)), features=FEATURES)


def attempt(planted, out, config):
    out.mkdir(parents=True)
    return train_candidate(config, {"snapshot": planted}, out)


@pytest.fixture
def killed_ranks(monkeypatch):
    """Make ranks die when they are about to write a checkpoint: ``killed_ranks("1:2")`` is rank 1, the second."""
    monkeypatch.setattr(train, "WORKER", RANKS)

    def kill(at):
        monkeypatch.setenv("KILL_AT", at)

    return kill


@pytest.fixture(scope="module")
def unbroken(planted, one_rank, tmp_path_factory):
    out = tmp_path_factory.mktemp("unbroken") / "out"
    with in_this_process():
        _, info = attempt(planted, out, settings(checkpoints={"every_steps": 0}))
    return out, info["losses"]


def state_of(out):
    return {str(path.relative_to(out)): np.load(path) for path in sorted((out / "state").rglob("*.npy"))}


@pytest.fixture(scope="module")
def killed(planted, tmp_path_factory):
    """What one rank leaves that is killed when it is about to write its fourth checkpoint."""
    root = tmp_path_factory.mktemp("killed")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train, "WORKER", RANKS)
        patch.setenv("KILL_AT", "0:4")
        with pytest.raises(TransientError, match=r"no message of a rank; it was killed"):
            attempt(planted, root / "first", settings())
    return root


def test_a_killed_rank_is_resumed_to_the_same_bytes(planted, unbroken, killed, tmp_path):
    shutil.copytree(killed, tmp_path, dirs_exist_ok=True)
    (left,) = tmp_path.glob(".*.checkpoints")
    steps = sorted(path.name for path in left.glob("step-*"))
    assert len(steps) == CandidateConfig().checkpoints.keep
    with in_this_process():
        metrics, info = attempt(planted, tmp_path / "second", settings())
    assert metrics["resumed_at_step"] == int(steps[-1].removeprefix("step-")) > 0
    assert not left.exists()
    np.testing.assert_allclose(info["losses"], unbroken[1], rtol=1e-12)
    again = state_of(tmp_path / "second")
    for name, value in state_of(unbroken[0]).items():
        np.testing.assert_array_equal(again[name], value, err_msg=name)
    vectors = [(place / "item_vectors.npy").read_bytes() for place in (unbroken[0], tmp_path / "second")]
    assert vectors[0] == vectors[1]


def check_same_within_rounding(unbroken, out, metrics, info):
    assert metrics["resumed_at_step"] > 0
    np.testing.assert_allclose(info["losses"], unbroken[1], atol=1e-4)
    vectors = [np.load(place / "item_vectors.npy") for place in (unbroken[0], out)]
    np.testing.assert_allclose(vectors[1], vectors[0], atol=2e-3)


def test_other_code_does_not_go_on_where_this_code_was_killed(planted, killed, tmp_path, monkeypatch, here):
    root = tmp_path / "again"
    shutil.copytree(killed, root)
    monkeypatch.setattr(resume, "code_digest", lambda *modules: "0" * 64)
    metrics, _ = attempt(planted, root / "second", settings())
    assert metrics["resumed_at_step"] == 0


def test_two_ranks_go_on_where_one_was_killed(planted, unbroken, killed, tmp_path):
    shutil.copytree(killed, tmp_path, dirs_exist_ok=True)
    out = tmp_path / "second"
    check_same_within_rounding(
        unbroken, out, *attempt(planted, out, settings(distributed={"n_processes": 2, "sharding": "row_wise"}))
    )


def test_one_rank_goes_on_where_one_of_two_was_killed(planted, unbroken, tmp_path, killed_ranks):
    """The other one does not wait for it: the attempt ends long before the time-out."""
    killed_ranks("1:3")
    started = time.monotonic()
    with pytest.raises(TransientError):
        attempt(
            planted,
            tmp_path / "first",
            settings(distributed={"n_processes": 2, "sharding": "row_wise", "timeout_s": 250}),
        )
    assert time.monotonic() - started < 200  # the time-out is 250 s
    out = tmp_path / "second"
    with in_this_process():
        check_same_within_rounding(unbroken, out, *attempt(planted, out, settings()))


@pytest.mark.parametrize(
    ("where", "how"),
    [("0", "SLEEP"), ("1", "SIGSTOP"), ("-1", "SLEEP")],
    ids=["joining", "at a checkpoint", "saving"],
)
def test_a_rank_that_stops_answering_is_waited_for_so_long_only(
    planted, tmp_path, killed_ranks, monkeypatch, where, how
):
    killed_ranks(f"1:{where}")
    monkeypatch.setenv("KILL_WITH", how)
    started = time.monotonic()
    with pytest.raises(TransientError, match=r"rank 0 failed: .*[Tt]imed? ?out"):
        attempt(
            planted, tmp_path / "out", settings(training={"epochs": 1}, distributed={"n_processes": 2, "timeout_s": 5})
        )
    assert time.monotonic() - started < 200  # it would sleep for 600 s, and torch's own time-out is 30 minutes


def test_permanent_errors_leave_no_checkpoints(tmp_path):
    with pytest.raises(DataError), resume.kept_checkpoints(tmp_path / "out", {}) as place:
        raise DataError("diverged")
    assert not place.exists()
    with pytest.raises(TransientError, match="killed"), resume.kept_checkpoints(tmp_path / "out", {}) as place:
        raise TransientError("killed")
    assert place.is_dir()


def test_two_processes_never_share_checkpoints(tmp_path):
    with resume.kept_checkpoints(tmp_path / "out", {"a": 1}):
        other = resume.kept_checkpoints(tmp_path / "out", {"a": 1})
        with pytest.raises(TransientError, match="another process trains the same into"):
            other.__enter__()
        with resume.kept_checkpoints(tmp_path / "out", {"a": 2}):
            pass  # another run is none of its business


def test_a_checkpoint_of_another_run_or_shape_is_refused(one_rank, tmp_path):
    state = {"weights/a": torch.arange(6.0).reshape(2, 3)}
    Checkpoints(tmp_path, 2, {"candidate.model.dimension": 16}).save(3, Progress(step=3, total=1.5), state)
    blank = {"weights/a": torch.zeros(2, 3)}
    assert Checkpoints(tmp_path, 2, {"candidate.model.dimension": 16}).resume(blank) == Progress(step=3, total=1.5)
    torch.testing.assert_close(blank["weights/a"], state["weights/a"])
    with pytest.raises(
        ConfigError, match=r"step-0+3 is of another run: candidate.model.dimension is 16 there, expected 8"
    ):
        Checkpoints(tmp_path, 2, {"candidate.model.dimension": 8}).resume(blank)
    with pytest.raises(ConfigError, match=r"weights/a has shape \[2, 3\], expected \[4, 3\]"):
        Checkpoints(tmp_path, 2, {"candidate.model.dimension": 16}).resume({"weights/a": torch.zeros(4, 3)})
    with pytest.raises(ConfigError, match=r"weights/b has shape None, expected \[1\]"):
        Checkpoints(tmp_path, 2, {"candidate.model.dimension": 16}).resume({"weights/b": torch.zeros(1)})


def test_the_newest_checkpoints_are_kept_and_half_written_ones_ignored(one_rank, tmp_path):
    checkpoints = Checkpoints(tmp_path, 2, {})
    (tmp_path / ".step-000000000009.tmp").mkdir()
    for number in (1, 2, 3):
        checkpoints.save(number, Progress(step=number), {"weights/a": torch.full((2,), float(number))})
    assert [path.name for path in checkpoints.found()] == ["step-000000000002", "step-000000000003"]
    state = {"weights/a": torch.zeros(2)}
    assert checkpoints.resume(state).step == 3
    assert state["weights/a"].tolist() == [3.0, 3.0]


def test_a_damaged_checkpoint_says_so(one_rank, tmp_path):
    checkpoints = Checkpoints(tmp_path, 2, {})
    checkpoints.save(1, Progress(step=1), {"weights/a": torch.zeros(2)})
    for path in checkpoints.found()[0].glob("*.distcp"):
        path.write_bytes(b"")
    with pytest.raises(DataError, match=r"cannot be read \(rank 0: EOFError\); without it, the next run starts anew"):
        checkpoints.resume({"weights/a": torch.zeros(2)})


def test_fields_that_differ_are_all_named():
    with pytest.raises(ConfigError, match="x is 1 there, expected 2; y is None there, expected 3; z is 4 there"):
        check_identity("it", {"x": 2, "y": 3}, {"x": 1, "z": 4})


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc to look for the ranks")
@pytest.mark.parametrize("ranks", [1, 2])
def test_ranks_do_not_outlive_the_process_that_launched_them(planted, tmp_path, ranks):
    """The step's process is killed: its ranks notice, so that the next attempt is alone."""
    config = settings(training={"epochs": 2000}, checkpoints={"every_steps": 0}, distributed={"n_processes": ranks})
    (tmp_path / "out").mkdir()
    code = (
        "import sys, json; from pathlib import Path; from stages.candidate.training.step import train_candidate\n"
        "from stages.candidate.config import TrainCandidateConfig\n"
        "train_candidate(TrainCandidateConfig.model_validate_json(sys.argv[1]), {'snapshot': Path(sys.argv[2])}, "
        "Path(sys.argv[3]))"
    )
    command = [sys.executable, "-c", code, json.dumps(config.model_dump(mode="json")), planted, tmp_path / "out"]
    with subprocess.Popen([str(word) for word in command], stderr=subprocess.DEVNULL) as step:
        wait_for("a checkpoint", lambda: list(tmp_path.glob(".*.checkpoints/step-*")))
        started = _descendants(step.pid)
        assert len(started) == (1 if ranks == 1 else 3)  # several have a launcher
        step.send_signal(signal.SIGKILL)
    wait_for("the end of all that it started", lambda: all(_parent(pid) is None for pid in started))


def _parent(pid):
    """Return the parent of a running process, None for one that has ended."""
    try:
        state, parent = (Path("/proc") / str(pid) / "stat").read_text().rpartition(")")[2].split()[:2]
    except OSError:
        return None
    return None if state == "Z" else int(parent)


def _descendants(pid):
    every = [int(path.name) for path in Path("/proc").glob("[0-9]*")]
    children = [child for child in every if _parent(child) == pid]
    return children + [found for child in children for found in _descendants(child)]

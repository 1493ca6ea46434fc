import signal
import subprocess
import sys
import warnings

import numpy as np
import pytest

from stages.candidate.config import TrainCandidateConfig
from stages.candidate.export.user_tower import export
from stages.candidate.onnx_towers import UserTower
from stages.candidate.training import progress as progress_module
from stages.candidate.training import step as train
from stages.candidate.training.progress import relay
from stages.candidate.training.step import prepare, rank_failure, train_candidate
from stages.candidate.training.worker import train as train_rank
from stages.contracts.config import merged
from stages.contracts.errors import ConfigError, DataError, OutOfSpaceError, SluiceError, TransientError
from stages.contracts.files import read_json, sha256_file, write_json
from stages.contracts.snapshot import Snapshot
from stages.features.config import FeatureConfig

FEATURES = FeatureConfig(history_length=8, history_decay=4.0)


def tiny(trained, **changes):
    """The fixture's configuration, with some values changed."""
    config = TrainCandidateConfig.model_validate(read_json(trained / "tower.json")["config"])
    return TrainCandidateConfig(candidate=config.candidate.changed(**changes), features=FEATURES)


def block_purity(directory, single_items):
    """Share of the 12 nearest items of each block's popular items that lie in the same block."""
    queries = UserTower(directory / "user_tower.onnx").embed(single_items(np.arange(60)))
    nearest = np.argsort(-(queries @ np.load(directory / "item_vectors.npy").T), axis=1)[:, :12]
    return (nearest // 15 == np.arange(60)[:, None] // 15).mean()


def test_one_rank_learns_the_blocks(trained, single_items):
    summary = read_json(trained / "tower.json")
    assert summary["tower_version"] == sha256_file(trained / "user_tower.onnx")
    assert summary["item_vectors_sha256"] == sha256_file(trained / "item_vectors.npy")
    assert summary["losses"][-1] < summary["losses"][0] - 0.3
    assert summary["export_deviation"] < 1e-5
    assert block_purity(trained, single_items) > 0.85


def test_two_ranks_with_split_tables_learn_them_too(planted, trained, tmp_path, single_items):
    config, out = tiny(trained, distributed={"n_processes": 2, "sharding": "row_wise"}), tmp_path / "out"
    out.mkdir()
    metrics, info = train_candidate(config, {"snapshot": planted}, out)
    assert sorted(path.name for path in out.iterdir()) == [
        "item_tower.onnx",
        "item_vectors.npy",
        "state",
        "tower.json",
        "user_tower.onnx",
    ]
    assert [path.name for path in tmp_path.iterdir()] == ["out"]  # nothing of the checkpoints is left
    assert info["device"] == "cpu"
    assert metrics["loss_last"] < metrics["loss_first"]
    assert metrics["examples_per_s"] > 0
    assert 0 <= metrics["input_wait_share"] <= 1
    # The exported towers equal the forward pass over rows that lay on two ranks.
    assert metrics["export_deviation"] < 1e-5
    assert metrics["item_tower_deviation"] < 1e-5
    assert block_purity(out, single_items) > 0.85
    # The same batches and negatives as on one rank: the same losses, see test_candidate_sharding.
    np.testing.assert_allclose(info["losses"], read_json(trained / "tower.json")["losses"], atol=2e-3)


def test_a_failed_rank_gives_one_clear_error(planted, trained, tmp_path, capfd):
    config = tiny(trained, distributed={"device": "cuda"})
    with pytest.raises(
        ConfigError,
        match=r"rank 0: distributed.device = 'cuda' with distributed.n_processes = 1 needs 1 CUDA devices, found 0",
    ):
        train_candidate(config, {"snapshot": planted}, tmp_path / "out")
    assert not list(tmp_path.iterdir())
    assert "Traceback" not in capfd.readouterr().err


def run_here(config, planted, work):
    work.mkdir()
    catalogue = prepare(config, Snapshot(planted), work)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TorchRec's own deprecations
        return catalogue, train_rank(work, progress=False)


def test_equal_seeds_give_equal_bytes(planted, trained, one_rank, tmp_path):
    """Training and export are reproducible, so that a retried step gives the same tower version."""
    config, versions = tiny(trained, training={"epochs": 1}), []
    for name in ("first", "second"):
        catalogue, _ = run_here(config, planted, tmp_path / name)
        (tmp_path / f"{name}-out").mkdir()
        versions.append(export(tmp_path / f"{name}-out", tmp_path / name, config, catalogue).tower_version)
    assert versions[0] == versions[1]


def test_two_tables_and_adagrad_train_and_export(planted, trained, one_rank, tmp_path):
    config = tiny(
        trained,
        model={"shared_item_table": False, "hidden": ()},
        optimizer={"sparse": "adagrad", "sparse_learning_rate": 0.1},
    )
    catalogue, losses = run_here(config, planted, tmp_path / "work")
    assert losses[-1] < losses[0] - 0.3
    (tmp_path / "out").mkdir()
    assert export(tmp_path / "out", tmp_path / "work", config, catalogue).export_deviation < 1e-5


@pytest.mark.parametrize(
    "changes",
    [
        {"model": {"encoder": "attention"}, "training": {"mode": "sequences"}},
        {
            "model": {"encoder": "attention", "word_buckets": 64, "normalisation": "dot"},
            "loss": {"kind": "gbce", "temperature": 1.0},
        },
        {
            "model": {"encoder": "tastes", "user_id": True, "item_age": True},
            "loss": {"kind": "bpr"},
            "negatives": {"sampling": "popularity"},
        },
        {"loss": {"kind": "gbce"}, "negatives": {"in_batch": False}},
    ],
)
def test_every_kind_of_tower_trains_sharded_and_exports(planted, trained, one_rank, tmp_path, changes):
    config = tiny(trained, **merged({"training": {"epochs": 3}}, changes))
    catalogue, losses = run_here(config, planted, tmp_path / "work")
    assert losses[-1] < losses[0]
    (tmp_path / "out").mkdir()
    summary = export(tmp_path / "out", tmp_path / "work", config, catalogue)
    assert summary.export_deviation < 1e-5
    assert summary.inputs[3:] == (("user",) if config.candidate.model.user_id else ())
    assert summary.tastes == (4 if config.candidate.model.encoder == "tastes" else 1)


def test_a_tower_that_does_not_match_is_never_published(planted, trained, one_rank, tmp_path):
    config = tiny(trained, training={"epochs": 1})
    catalogue, _ = run_here(config, planted, tmp_path / "work")
    probe = np.load(tmp_path / "work" / "probe_query.npy")
    np.save(tmp_path / "work" / "probe_query.npy", probe + 0.1)
    (tmp_path / "out").mkdir()
    with pytest.raises(DataError, match=r"user_tower.onnx: differs by 0.1 from the sharded model"):
        export(tmp_path / "out", tmp_path / "work", config, catalogue)


def test_a_diverging_training_says_so(planted, trained, one_rank, tmp_path):
    config = tiny(trained, training={"epochs": 2}, optimizer={"dense_learning_rate": 1e30})
    with pytest.raises(DataError, match=r"the loss of epoch [12] is nan; lower the learning rates"):
        run_here(config, planted, tmp_path / "work")


@pytest.mark.parametrize(
    ("kind", "message", "wanted"),
    [
        ("DataError", "loss is nan", DataError),
        ("ConfigError", "no such device", ConfigError),
        ("OutOfSpaceError", "item.npy needs 8 bytes, 4 bytes are free", OutOfSpaceError),
        ("TransientError", "checkpoint x: cannot be written", TransientError),
        ("RuntimeError", "Connection closed by peer", TransientError),
        ("DistBackendError", "Timed out waiting 300s", TransientError),
        ("RuntimeError", "writev [127.0.0.1]:4242: Broken pipe", TransientError),
        ("DistNetworkError", "Connection refused", TransientError),
        ("ValueError", "a bug", SluiceError),
    ],
)
def test_the_earliest_rank_is_the_cause(tmp_path, kind, message, wanted):
    write_json(tmp_path / "error-0.json", {"rank": 0, "type": "RuntimeError", "message": "late", "time": 2.0})
    write_json(tmp_path / "error-1.json", {"rank": 1, "type": kind, "message": message, "time": 1.0})
    error = rank_failure(tmp_path, 1, [])
    assert type(error) is wanted
    assert message in str(error)
    assert "rank 1" in str(error)


def test_a_killed_rank_may_be_tried_again(tmp_path):
    error = rank_failure(tmp_path, 1, ["one", "two", "Signal 9 (SIGKILL) received"])
    assert isinstance(error, TransientError)
    assert "exit code 1" in str(error)
    assert "one | two | Signal 9 (SIGKILL) received" in str(error)


@pytest.mark.parametrize("on_terminal", [True, False])
def test_progress_passes_and_the_rest_is_kept(capfd, caplog, monkeypatch, on_terminal):
    """On a terminal every line overwrites the one before; elsewhere lines are logged, at most one in a while."""
    monkeypatch.setattr(sys.stderr, "isatty", lambda: on_terminal)
    monkeypatch.setattr(progress_module, "EVERY_SECONDS", 0.0)
    caplog.set_level("INFO", "sluice")
    code = "import sys; sys.stderr.write('noise\\n\\rtwo-tower: 1/2\\rtwo-tower: 2/2\\nlast words')"
    with subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE) as process:
        kept = relay(process.stderr.fileno())
    assert kept == ["noise", "last words"]
    assert capfd.readouterr().err == ("\rtwo-tower: 1/2\rtwo-tower: 2/2\n" if on_terminal else "")
    assert caplog.messages == ([] if on_terminal else ["[sluice] two-tower: 1/2", "[sluice] two-tower: 2/2"])


def test_an_interrupt_stops_the_launcher(planted, trained, tmp_path, monkeypatch):
    """The launcher gets a signal that it passes on, so that no rank is left behind."""
    started = []

    class Recorded(subprocess.Popen):
        def __init__(self, command, **options):
            super().__init__([sys.executable, "-c", "import time; time.sleep(60)"], **options)
            started.append(self)

    def interrupted(stream):
        raise KeyboardInterrupt

    monkeypatch.setattr(train.subprocess, "Popen", Recorded)
    monkeypatch.setattr(train, "relay", interrupted)
    with pytest.raises(KeyboardInterrupt):
        train.launch(tiny(trained), tmp_path)
    assert started[0].returncode == -signal.SIGTERM

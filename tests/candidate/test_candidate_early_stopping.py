"""The number of epochs is chosen on held-out rows, on any number of ranks, and in a run that was killed as well."""

import dataclasses
import logging
import os

import numpy as np
import pytest

from stages.candidate.config import CandidateConfig, EarlyStoppingConfig, TrainCandidateConfig
from stages.candidate.data.examples import first_touches, training_examples
from stages.candidate.onnx_towers import UserTower
from stages.candidate.training import progress as progress_lines
from stages.candidate.training import step
from stages.candidate.training.checkpoint import Checkpoints, Progress
from stages.candidate.training.held_out import HeldOut, hold_out
from stages.candidate.training.judge import Judge, figures
from stages.candidate.training.step import train_candidate
from stages.candidate.training.stopping import Stopping
from stages.contracts.config import merged
from stages.contracts.errors import EmptyDatasetError
from stages.contracts.files import read_json
from stages.contracts.snapshot import Snapshot
from stages.contracts.tables import PART_CANDIDATE
from stages.features.config import FeatureConfig
from tests.builders import snapshots
from tests.candidate.one_rank import in_this_process, train

FEATURES = FeatureConfig(history_length=8, history_decay=4.0)
BASE = {
    "model": {"dimension": 16, "category_dimension": 4, "hidden": (16,)},
    "loss": {"temperature": 0.2},
    "negatives": {"shared": 32},
    "training": {
        "epochs": 30,
        "batch_size": 64,
        "early_stopping": {"hold_out": "random", "share": 0.2, "k": 5, "patience": 2},
    },
    "optimizer": {"sparse_learning_rate": 0.2, "dense_learning_rate": 5e-3},
    "distributed": {"device": "cpu", "timeout_s": 60},
}


def settings(early_stopping=None, epochs=30, **changes):
    changes = merged({"training": {"epochs": epochs, "early_stopping": early_stopping or {}}}, changes)
    return TrainCandidateConfig(candidate=CandidateConfig(**merged(BASE, changes)), features=FEATURES)


def attempt(planted, out, config):
    out.mkdir(parents=True)
    return train_candidate(config, {"snapshot": planted}, out)


def events_of(rows):
    """Return an event table of (user, item, time) in time order."""
    user, item, time = np.array(sorted(rows, key=lambda row: row[2])).T
    return snapshots.event_table(user, item, time, np.full(len(rows), PART_CANDIDATE))


ROWS = [(user, (user + 3 * place) % 11, 10 * place + user) for user in range(6) for place in range(1 + 2 * user)]


def pairs(events):
    return set(zip(events.user_index.tolist(), events.item_index.tolist(), strict=True))


def test_a_share_of_each_sampled_users_rows_is_held_out_at_random():
    events = events_of(ROWS)
    touches = first_touches(events)
    config = EarlyStoppingConfig(hold_out="random", share=0.3, users=3)
    kept, held = hold_out(events, touches, config, seed=4)
    assert len(held) == 3 and (np.diff(held.users) > 0).all() and 0 not in held.users  # user 0 has one row
    gone = {
        (user, item)
        for user, start, stop in zip(held.users, held.offsets[:-1], held.offsets[1:], strict=True)
        for item in held.items[start:stop].tolist()
    }
    assert pairs(events) - pairs(kept) == gone and not gone & pairs(kept)
    sizes = np.bincount(touches.users)[held.users]
    np.testing.assert_array_equal(np.diff(held.offsets), np.minimum(np.round(0.3 * sizes), sizes - 1))
    last = [max(time for user, _, time in ROWS if user == own) for own in held.users]
    assert held.asked_ms.tolist() == [time + 1000 for time in last]
    again, other = (hold_out(events, touches, config, seed=seed)[1] for seed in (4, 5))
    np.testing.assert_array_equal(again.items, held.items)
    assert held.items.tolist() != other.items.tolist()


def test_all_later_rows_are_held_out_and_users_with_earlier_ones_are_judged():
    events = events_of([*ROWS, (7, 3, 95), (7, 4, 96)])
    touches = first_touches(events)
    kept, held = hold_out(events, touches, EarlyStoppingConfig(share=0.4), seed=4)
    (start_ms,) = set(held.asked_ms.tolist())
    assert kept.event_time_ms.max() < start_ms <= np.quantile(touches.times_ms, 0.6) + 10
    assert len(kept) == (events.event_time_ms < start_ms).sum()
    wanted = {user: {item for own, item, time in ROWS if own == user and time >= start_ms} for user in range(6)}
    wanted = {user: items for user, items in wanted.items() if items}  # user 7 has no earlier row
    bounds = zip(held.users.tolist(), held.offsets[:-1], held.offsets[1:], strict=True)
    assert {user: set(held.items[start:stop].tolist()) for user, start, stop in bounds} == wanted


def test_nothing_to_hold_out_is_an_error_that_names_the_setting():
    events = events_of([(0, 1, 5), (1, 2, 6)])
    for kind in ("later", "random"):
        with pytest.raises(EmptyDatasetError, match=r"early_stopping.share = 0.1 of 2 rows, hold_out = '" + kind):
            hold_out(events, first_touches(events), EarlyStoppingConfig(hold_out=kind), 1)


def test_figures_are_those_of_a_plain_loop():
    rng = np.random.default_rng(2)
    best = np.array([rng.permutation(9)[:4] for _ in range(5)])
    best[1, 2:] = -1
    wanted = [rng.permutation(9)[:n] for n in (1, 2, 6, 3, 1)]
    offsets = np.cumsum([0, *map(len, wanted)])
    held = HeldOut(np.arange(5), np.zeros(5, int), np.zeros(5, int), offsets, np.concatenate(wanted))
    recall, ndcg = [], []
    for answers, items in zip(best.tolist(), wanted, strict=True):
        gains = [1 / np.log2(place + 2) if item in items else 0.0 for place, item in enumerate(answers)]
        recall.append(sum(gain > 0 for gain in gains) / len(items))
        ndcg.append(sum(gains) / sum(1 / np.log2(place + 2) for place in range(min(4, len(items)))))
    assert figures(best, held) == pytest.approx({"recall": np.mean(recall), "ndcg": np.mean(ndcg)})


def test_a_training_is_over_after_epochs_that_were_not_better():
    stopping = Stopping(None, EarlyStoppingConfig(patience=2, metric="recall"), None, None)
    curve = [0.1, 0.3, 0.3, 0.2, 0.4]
    over = [
        stopping.is_over(Progress(validation=tuple({"recall": value, "ndcg": 1.0 - value} for value in curve[:n])))
        for n in range(len(curve) + 1)
    ]
    assert over == [False, False, False, False, True, False]
    assert stopping.best_epoch(Progress(validation=({"recall": 0.1}, {"recall": 0.3}, {"recall": 0.3}))) == 2
    assert not stopping.is_over(Progress())


def scripted(monkeypatch, curve):
    """Let the judge give these figures, epoch by epoch, whatever the model."""
    values = iter(curve)
    monkeypatch.setattr(Judge, "__call__", lambda self: {"recall": 0.5, "ndcg": next(values)})


def rank(planted, work, config, **places):
    """Prepare a job and train it as the one rank of this process; return its metrics."""
    work.mkdir(parents=True)
    step.prepare(config, Snapshot(planted), work, **places)
    train(config, work)
    return read_json(work / "metrics.json")


def state_of(work):
    return {path.relative_to(work): np.load(path) for path in sorted((work / "state").rglob("*.npy"))}


def check_equal_states(first, second):
    own, other = state_of(first), state_of(second)
    assert own.keys() == other.keys() and own
    for name, value in own.items():
        np.testing.assert_array_equal(value, other[name], err_msg=str(name))


def test_the_best_epochs_weights_and_sums_are_kept(planted, one_rank, tmp_path, monkeypatch):
    config = settings({"then": "keep"}, average={"weights": "all"})
    scripted(monkeypatch, [0.1, 0.3, 0.2, 0.3, 0.9])
    metrics = rank(planted, tmp_path / "kept", config)
    assert metrics["best_epoch"] == 2
    assert [each["ndcg"] for each in metrics["validation"]] == [0.1, 0.3, 0.2, 0.3]
    assert len(metrics["losses"]) == 4
    scripted(monkeypatch, [0.1, 0.3])
    short = rank(planted, tmp_path / "short", settings({"then": "keep"}, 2, average={"weights": "all"}))
    assert short["losses"] == metrics["losses"][:2]
    check_equal_states(tmp_path / "kept", tmp_path / "short")


def test_all_rows_are_trained_for_the_chosen_epochs(planted, one_rank, tmp_path, monkeypatch):
    """The second training is that of a configuration of so many epochs."""
    scripted(monkeypatch, [0.1, 0.3, 0.2, 0.2])
    with in_this_process():
        metrics, info = attempt(planted, tmp_path / "chosen", settings())
    assert (metrics["best_epoch"], metrics["held_out_ndcg"], metrics["held_out_recall"]) == (2.0, 0.3, 0.5)
    assert [each["ndcg"] for each in info["validation"]] == [0.1, 0.3, 0.2, 0.2]
    assert len(info["losses"]) == 2
    rank(planted, tmp_path / "plain", settings(epochs=2, training={"early_stopping": None}))
    check_equal_states(tmp_path / "chosen", tmp_path / "plain")


def test_what_was_chosen_outlives_a_kill_in_the_second_training(planted, one_rank, tmp_path, monkeypatch):
    scripted(monkeypatch, [0.1, 0.3, 0.2, 0.2])
    places = {"checkpoints": tmp_path, "warm": None, "run": {}}
    with in_this_process():
        first = step.chosen_epochs(settings(), Snapshot(planted), tmp_path / "work", **places)
    monkeypatch.setattr(step, "launch", lambda *_: pytest.fail("it trains again"))
    assert step.chosen_epochs(settings(), Snapshot(planted), tmp_path / "work", **places) == first
    assert first["best_epoch"] == 2
    assert step.chosen_epochs(settings({"then": "keep"}), Snapshot(planted), tmp_path / "work", **places) is None


class Killed(Exception):
    """Stands for the end of the process."""


@pytest.mark.parametrize("at", [2, 3], ids=["before the best epoch", "after it"])
def test_a_killed_run_goes_on_with_its_figures_and_its_best_epoch(planted, one_rank, tmp_path, monkeypatch, at):
    config, curve = settings({"then": "keep"}), [0.1, 0.2, 0.3, 0.2, 0.2]
    scripted(monkeypatch, curve)
    whole = rank(planted, tmp_path / "whole", config)
    save, calls = Checkpoints.save, []

    def dying(self, *arguments):
        save(self, *arguments)
        calls.append(1)
        if len(calls) == at:
            raise Killed

    scripted(monkeypatch, curve)
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(Checkpoints, "save", dying)
        rank(planted, tmp_path / "first", config, checkpoints=tmp_path)
    scripted(monkeypatch, curve[at:])
    again = rank(planted, tmp_path / "second", config, checkpoints=tmp_path)
    assert again["first_step"] > 0
    assert (again["validation"], again["best_epoch"]) == (whole["validation"], 3)
    check_equal_states(tmp_path / "whole", tmp_path / "second")


@pytest.fixture(scope="module")
def judged(planted, one_rank, tmp_path_factory):
    """One rank's training of three epochs with the true judge."""
    out = tmp_path_factory.mktemp("judged") / "out"
    with in_this_process():
        metrics, info = attempt(planted, out, settings({"then": "keep"}, 3, average={"weights": "all"}))
    return out, metrics, info


def test_the_judge_ranks_as_the_exported_model_does(planted, judged):
    """The figure of the kept epoch, computed anew from the exported files."""
    out, metrics, _ = judged
    snapshot, config = Snapshot(planted), settings().candidate.training
    touches = training_examples(snapshot.events(), snapshot.meta, FEATURES, snapshot.contexts())
    events, held = hold_out(snapshot.events(), touches, config.early_stopping, config.seed)
    examples = training_examples(events, snapshot.meta, FEATURES, snapshot.contexts())
    vectors = np.load(out / "item_vectors.npy")
    start, end = (np.searchsorted(examples.users, held.users, side) for side in ("left", "right"))
    inputs = examples.window(start, end, held.asked_ms, end - 1, FEATURES.history_length, len(vectors))
    scores = UserTower(out / "user_tower.onnx").embed(inputs) @ vectors.T
    items = snapshot.items()
    later = items.created_at_ms >= snapshot.meta.borders.candidate_end_ms
    scores[:, later & (np.bincount(examples.items, minlength=len(later)) == 0)] = -np.inf
    for row, (first, stop) in enumerate(zip(start, end, strict=True)):
        scores[row, examples.items[first:stop]] = -np.inf
    best = np.argsort(-scores, axis=1, kind="stable")[:, : config.early_stopping.k]
    found = figures(best, held)
    assert found == pytest.approx({name: metrics[f"held_out_{name}"] for name in found}, abs=1e-3)
    assert 0.1 < found["ndcg"] < 1.0


def test_two_ranks_judge_as_one_does(planted, judged, tmp_path):
    _, _, info = judged
    ranks = {"n_processes": 2, "sharding": "row_wise"}
    _, other = attempt(
        planted, tmp_path / "out", settings({"then": "keep"}, 3, average={"weights": "all"}, distributed=ranks)
    )
    assert len(other["validation"]) == 3
    for own, theirs in zip(info["validation"], other["validation"], strict=True):
        assert own == pytest.approx(theirs, abs=0.01)


def test_a_line_an_epoch_is_always_shown(caplog):
    read, write = os.pipe()
    lines = ["two-tower:  5%", "two-tower epoch 1: loss 2.0, on held-out rows ndcg@5 0.1", "two-tower:  9%", "else"]
    os.write(write, "\n".join(lines).encode())
    os.close(write)
    with caplog.at_level(logging.INFO, logger="sluice"):
        assert progress_lines.relay(read) == ["else"]
    os.close(read)
    assert [record.getMessage() for record in caplog.records] == [f"[sluice] {lines[1]}"]


def test_held_out_rows_are_written_and_read(tmp_path):
    held = HeldOut(np.array([1]), np.array([5]), np.array([0]), np.array([0, 2]), np.array([3, 4]))
    assert not HeldOut.is_in(tmp_path)
    held.save(tmp_path)
    assert HeldOut.is_in(tmp_path)
    found = HeldOut.load(tmp_path)
    for field in dataclasses.fields(held):
        np.testing.assert_array_equal(getattr(found, field.name), getattr(held, field.name))

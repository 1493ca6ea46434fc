"""Users whom training never met: three events are enough to be served better than the popular list."""

import numpy as np
import pytest

from stages.candidate.config import RetrieveConfig
from stages.candidate.linear.baselines import rank_baselines
from stages.candidate.linear.config import BaselineAls, BaselinesConfig, RankBaselinesConfig
from stages.candidate.retrieval.step import retrieve
from stages.contracts.files import read_json
from stages.contracts.snapshot import Snapshot
from stages.contracts.tables import PART_EVALUATION, EventTable
from stages.evaluation.evaluate import EvaluationConfig, evaluate
from stages.features.config import FeatureConfig

FEATURES = FeatureConfig(history_length=8, history_decay=4.0)
N_KNOWN, N_NEW, N_BLOCKS, BLOCK, K = 160, 40, 4, 15, 12
UNUSUAL = (7, 14)  # places in a block of an item without training rows, and of one that is born late


@pytest.fixture(scope="module")
def newcomers(planted, snapshot_writer, event_table, request_table, tmp_path_factory):
    """The planted world, asked only for users who came after all training, each with three events of one block."""
    rng = np.random.default_rng(11)
    places = np.setdiff1d(np.arange(BLOCK), UNUSUAL)
    weights = 1.0 / (2 + places)
    rows, wanted = [], []
    for number in range(N_NEW):
        chosen = rng.choice(places, 4, replace=False, p=weights / weights.sum()) + BLOCK * (number % N_BLOCKS)
        rows += [(N_KNOWN + number, item, 11_100 + 10 * place) for place, item in enumerate(chosen[:3].tolist())]
        wanted.append(int(chosen[3]))
    user, item, time_ms = np.array(sorted(rows, key=lambda row: row[2])).T
    old = Snapshot(planted).events()
    old = old.take(old.part < PART_EVALUATION)
    new = event_table(user, item, time_ms, np.full(len(user), PART_EVALUATION))
    events = EventTable(**{name: np.concatenate([getattr(old, name), getattr(new, name)]) for name in EventTable.TYPES})
    requests = request_table(
        request_id=np.arange(N_NEW),
        user_index=N_KNOWN + np.arange(N_NEW),
        request_time_ms=np.full(N_NEW, 11_500),
        part=np.full(N_NEW, PART_EVALUATION, np.int8),
    )
    directory = tmp_path_factory.mktemp("newcomers")
    items = Snapshot(planted).items()
    categories = [[item // BLOCK] for item in range(N_BLOCKS * BLOCK)]
    snapshot_writer(directory, events, requests, (np.arange(N_NEW), np.array(wanted)), items.created_at_ms, categories)
    return directory


@pytest.fixture(scope="module")
def ledger(newcomers, trained, indexed, tmp_path_factory):
    """Towers and index are those of the planted world, whose training ended before any newcomer's first event."""
    root = tmp_path_factory.mktemp("ledger")
    inputs = {"snapshot": newcomers, "candidate": trained, "index": indexed}
    for name in ("retrieve", "baselines", "out"):
        inputs[name] = root / name
        inputs[name].mkdir()
    retrieve(RetrieveConfig(candidate_k=K, features=FEATURES), inputs, inputs["retrieve"])
    config = RankBaselinesConfig(k=K, features=FEATURES, baselines=BaselinesConfig(ials=BaselineAls(factors=8)))
    rank_baselines(config, inputs, inputs["baselines"])
    evaluate(EvaluationConfig(ks=(10,), candidate_k=K, bootstrap_samples=300), inputs, inputs["out"])
    return read_json(inputs["out"] / "ledger.json")


def test_everybody_in_it_is_unknown_to_training_and_has_three_events(ledger):
    sizes = {part["name"]: part["requests"] for part in ledger["slices"]}
    assert sizes["new users"] == sizes["history 2-5"] == ledger["counts"]["requests"] == N_NEW


@pytest.mark.parametrize("name", ["candidates", "ease", "ials"])
def test_three_events_do_better_than_popularity(ledger, name):
    """By more than the interval, request by request; a block of 15 beats a list of 60."""
    rows = {row["name"]: row for row in ledger["rows"]}
    gain = rows[name]["gain_over_popularity"]
    assert gain["verdict"] == "gains"
    assert gain["value"] == pytest.approx(rows[name]["metrics"]["ndcg@10"] - rows["popularity"]["metrics"]["ndcg@10"])
    assert gain["low"] > 0.1
    assert rows[name]["metrics"]["recall@10"] > 0.7

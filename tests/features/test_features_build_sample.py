"""Which rows ``build_examples`` takes, and that leaving the others out changes nothing of them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from stages.contracts.examples import ExamplesFile
from stages.features import build as build_module
from stages.features.build import build_examples
from stages.features.ranking import ranking_features
from stages.features.state import FunnelState
from tests.features.worlds import T0, USERS, candidates, pairs, read, sampled
from tests.trees import sha256_tree

MakeState = Callable[..., FunnelState]
MakeInputs = Callable[..., dict[str, Path]]


LARGE, ASKED = 40, 60
"""Items of a larger catalogue, and requests."""


def larger(seed: int = 0) -> dict:
    """A log of a few users, and requests of theirs with 20 candidates each; every third has no target among them."""
    rng = np.random.default_rng(seed)
    events = [
        (int(rng.integers(USERS)), int(LARGE * rng.random() ** 2), int(rng.integers(3)), 1.0, T0 + number)
        for number in range(300)
    ]
    asked = sorted((int(rng.integers(300)), int(rng.integers(USERS))) for _ in range(ASKED))
    lists = [rng.permutation(LARGE)[:20].tolist() for _ in asked]
    targets = [
        (request, item, int(rng.choice([1, 3])))
        for request, items in enumerate(lists)
        for item in sorted(items[:2] if request % 3 else set(range(LARGE)) - set(items))[:2]
    ]
    return {
        "events": events,
        "requests": [(user, T0 + time) for time, user in asked],
        "targets": targets,
        "rows": [(request, item) for request, items in enumerate(lists) for item in items],
        "n_items": LARGE,
        "row_groups": [20 * number for number in range(7, ASKED, 7)],
    }


def with_target(request: int) -> bool:
    return request % 3 != 0


SAMPLES = {
    "uniform": {"per_request": 6},
    "rank": {"per_request": 6, "by": "rank", "band_ends": [4, 10], "band_shares": [0.5, 0.3, 0.2]},
    "popularity": {"per_request": 6, "by": "popularity", "popularity_power": 1},
}


@pytest.mark.parametrize("by", list(SAMPLES))
def test_a_sample_has_the_features_that_all_candidates_have(
    make_inputs: MakeInputs, by: str, make_state: MakeState
) -> None:
    """The negatives that are left out change nothing of the rows that are kept."""
    made = larger()
    inputs = make_inputs(**made)
    metrics, _ = build_examples(sampled(negatives=SAMPLES[by], windows=4), inputs, inputs["out"])
    rows = read(inputs["out"])
    expected_requests = [request for request in range(ASKED) if with_target(request)]
    assert np.unique(rows.request_id).tolist() == expected_requests
    assert metrics["requests"] == len(expected_requests)
    assert metrics["rows"] == len(rows) == 8 * len(expected_requests)
    assert metrics["positive_share"] == pytest.approx(2 / 8)
    assert metrics["requests_without_positive"] == ASKED // 3
    ordered, done, state = made["events"], 0, make_state((), LARGE, history_length=3)
    relevance = {(request, item): value for request, item, value in made["targets"]}
    for request in expected_requests:
        user, time_ms = made["requests"][request]
        while done < len(ordered) and ordered[done][4] < time_ms:
            state.apply(*ordered[done])
            done += 1
        mine = rows.take(rows.request_id == request)
        retrieved = candidates([row for row in made["rows"] if row[0] == request])
        place = [retrieved.item_index.tolist().index(item) for item in mine.item_index.tolist()]
        assert place == sorted(place) == mine.rank.tolist()
        arguments = (retrieved.item_index, retrieved.score, retrieved.rank, np.eye(LARGE, 4, dtype=np.float32))
        np.testing.assert_array_equal(mine.features, ranking_features(state, user, time_ms, *arguments)[place])
        wanted = [relevance.get((request, item), 0) for item in mine.item_index.tolist()]
        assert mine.relevance.tolist() == wanted
        assert mine.labels.tolist() == [[float(value > 0), float(value == 3)] for value in wanted]
        assert set(mine.user_index.tolist()) == {user}
        assert mine.weight[mine.relevance > 0].tolist() == [1, 1]
        assert (mine.relevance == 0).sum() == 6
    weights = rows.weight[rows.relevance == 0]
    if by == "uniform":
        assert set(weights.tolist()) == {3}
    else:
        assert len(set(weights.tolist())) > 2
    assert (np.diff(rows.window) >= 0).all()
    assert np.bincount(rows.window).tolist() == [80] * 4


def test_weights_are_one_over_the_probability_of_the_touches_before_the_ranker_period(make_inputs: MakeInputs) -> None:
    """Two candidates of which one is wanted; exposures and later events are not counted."""
    events = [(0, 1, 0, 1.0, T0), (1, 1, 0, 1.0, T0 + 1), (0, 2, 2, 1.0, T0 + 2), (1, 2, 0, 1.0, T0 + 7)]
    inputs = make_inputs(events=events, rows=[(0, 1), (0, 2), (0, 4), (1, 1), (1, 2), (1, 6)])
    snapshot = pq.read_table(inputs["snapshot"] / "events.parquet")
    parts = np.array([0, 0, 0, 1], dtype=np.int8)
    place = snapshot.schema.get_field_index("part")
    table = snapshot.set_column(place, snapshot.schema.field("part"), [parts])
    pq.write_table(table, inputs["snapshot"] / "events.parquet")
    seen = set()
    for seed in range(20):
        negatives = {"per_request": 1, "by": "popularity", "popularity_power": 1}
        out = inputs["out"] / str(seed)
        out.mkdir()
        build_examples(sampled(seed=seed, negatives=negatives), inputs, out)
        rows = read(out)
        negative = rows.take(rows.relevance == 0)
        assert negative.request_id.tolist() == [0, 1]
        seen |= set(zip(negative.item_index.tolist(), negative.weight.tolist(), strict=True))
    # Item 1 has 2 touches, item 2 none: kept with 3 / 4 and 1 / 4.
    assert seen == {(1, float(np.float32(4 / 3))), (2, 4.0)}


def test_one_seed_gives_one_sample_whatever_the_row_groups(
    make_inputs: MakeInputs, monkeypatch: pytest.MonkeyPatch
) -> None:
    inputs = make_inputs(**larger())
    found = {}
    for name, seed, rows in (("small", 0, 1), ("large", 0, 1 << 20), ("other", 1, 1 << 20)):
        monkeypatch.setattr(build_module, "_GROUP_ROWS", rows)
        out = inputs["out"] / name
        out.mkdir()
        build_examples(sampled(seed=seed, negatives={"per_request": 6}), inputs, out)
        found[name] = ExamplesFile(out)
    assert (found["small"].n_groups, found["large"].n_groups) == (9, 1)
    small, large, other = (file.read() for file in found.values())
    for name, values in vars(small).items():
        np.testing.assert_array_equal(values, getattr(large, name), name)
    assert pairs(large) != pairs(other)
    assert sha256_tree(inputs["out"] / "small" / "state") == sha256_tree(inputs["out"] / "other" / "state")


def test_requests_are_chosen_by_their_number_in_all_and_of_a_user(make_inputs: MakeInputs) -> None:
    made = larger()
    inputs = make_inputs(**made)
    for name, section, wanted in (
        ("in all", {"in_all": 7}, 7),
        ("per user", {"per_user": 4}, 4 * USERS),
        ("without", {"without_positive": True}, ASKED),
    ):
        out = inputs["out"] / name
        out.mkdir()
        metrics, _ = build_examples(sampled(requests=section, windows=2), inputs, out)
        rows = read(out)
        chosen = np.unique(rows.request_id)
        assert len(chosen) == metrics["requests"] == wanted
        windows = rows.window[np.unique(rows.request_id, return_index=True)[1]]
        assert abs(np.diff(np.bincount(windows))[0]) <= 1
        if name == "per user":
            users = [made["requests"][request][0] for request in chosen.tolist()]
            assert np.bincount(users).tolist() == [4] * USERS
        if name != "without":
            assert all(with_target(request) for request in chosen.tolist())

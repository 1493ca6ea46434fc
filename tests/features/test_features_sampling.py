"""Which requests and candidates the rankers learn from."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from stages.contracts.ragged import places_in_rows, run_offsets
from stages.contracts.tables import CandidateTable
from stages.features.config import ExampleRequestsConfig, NegativesConfig, SamplingConfig
from stages.features.sampling import choose_requests, draws, keep_probabilities, sample, windows_of

N_ITEMS = 40
POPULARITY = np.array([item * item % 97 for item in range(N_ITEMS)], dtype=np.int64)
SEEDS = st.integers(0, 1 << 40)
LENGTHS = st.lists(st.integers(1, N_ITEMS), min_size=1, max_size=8)
MANY = 4_000

UNIFORM = st.builds(NegativesConfig, per_request=st.integers(1, 50))
BY_POPULARITY = st.builds(
    NegativesConfig, per_request=st.integers(1, 50), by=st.just("popularity"), popularity_power=st.floats(0, 4)
)
BY_RANK = st.builds(
    NegativesConfig,
    per_request=st.integers(6, 50),
    by=st.just("rank"),
    band_ends=st.sampled_from([(3, 10), (1, 2), (20, 100)]),
    band_shares=st.sampled_from([(0.4, 0.4, 0.2), (0.25, 0.25, 0.5), (0.1, 0.2, 0.7), (0.6, 0.2, 0.2)]),
)
CONFIGS = UNIFORM | BY_POPULARITY | BY_RANK


def table(lengths: list[int], seed: int = 0, first_id: int = 0) -> CandidateTable:
    """Requests ``3 * first_id``, ``3 * first_id + 3`` ... with so many different items."""
    rng = np.random.default_rng(seed)
    ids = 3 * (np.arange(len(lengths)) + first_id)
    items = [rng.permutation(N_ITEMS)[:length] for length in lengths]
    n = sum(lengths)
    return CandidateTable(
        request_id=np.repeat(ids, lengths),
        item_index=np.concatenate([*items, np.zeros(0)]).astype(np.int64),
        score=np.zeros(n, dtype=np.float32),
        rank=places_in_rows(np.array(lengths, dtype=np.int64)).astype(np.int32),
        source=np.zeros(n, dtype=np.int8),
    )


def by_request(rows: CandidateTable, values: np.ndarray) -> np.ndarray:
    """Return the sum of each request's values."""
    return np.add.reduceat(values.astype(np.float64), run_offsets(rows.request_id)[:-1])


def some(rows: CandidateTable, seed: int, share: float = 0.8) -> np.ndarray:
    return np.random.default_rng(seed).random(len(rows)) < share


@given(CONFIGS, LENGTHS, SEEDS, st.floats(0, 1))
@settings(deadline=None)
def test_of_each_request_all_positives_are_kept_and_as_many_negatives_as_are_wanted(
    config: NegativesConfig, lengths: list[int], seed: int, share: float
) -> None:
    rows = table(lengths)
    negative = some(rows, seed, share)
    probability = keep_probabilities(config, rows, negative, POPULARITY)
    kept = sample(seed, rows, probability)
    assert kept[~negative].all()
    assert (probability[~negative] == 1).all()
    assert ((probability >= 0) & (probability <= 1)).all()
    assert config.per_request is not None
    wanted = np.minimum(by_request(rows, negative), config.per_request)
    assert by_request(rows, kept & negative).tolist() == wanted.tolist()
    assert (probability[kept] > 0).all(), "so that each kept row has a weight"


@given(LENGTHS, SEEDS)
def test_without_a_limit_all_are_kept(lengths: list[int], seed: int) -> None:
    rows = table(lengths)
    probability = keep_probabilities(NegativesConfig(per_request=None), rows, some(rows, seed), POPULARITY)
    assert probability.tolist() == [1.0] * len(rows)
    assert sample(seed, rows, probability).all()


def test_of_no_rows_none_are_kept() -> None:
    rows = table([])
    for config in (NegativesConfig(), NegativesConfig(by="rank"), NegativesConfig(by="popularity")):
        assert len(keep_probabilities(config, rows, np.zeros(0, dtype=bool), POPULARITY)) == 0
    assert len(sample(0, rows, np.zeros(0))) == 0


@pytest.mark.parametrize(
    "config",
    [
        NegativesConfig(per_request=7),
        NegativesConfig(per_request=10, by="rank", band_ends=(5, 15), band_shares=(0.5, 0.3, 0.2)),
        NegativesConfig(per_request=7, by="popularity", popularity_power=1.0),
    ],
    ids=lambda config: config.by,
)
def test_a_weight_stands_for_the_rows_that_were_left_out(config: NegativesConfig) -> None:
    """Over many seeds each row is kept as often as its probability says, so any weighted sum is right on average."""
    rows = table([N_ITEMS, 25, 8, 3])
    negative = some(rows, 1)
    probability = keep_probabilities(config, rows, negative, POPULARITY)
    assert (probability > 0).all()
    kept = np.stack([sample(seed, rows, probability) for seed in range(MANY)])
    error = np.sqrt(np.maximum(probability * (1 - probability), 1e-12) / MANY)
    assert (np.abs(kept.mean(axis=0) - probability) < 5 * error + 1e-9).all()
    weights = np.where(kept, 1 / probability, 0.0)
    for parts in (rows.rank < 5, rows.item_index % 2 == 0, POPULARITY[rows.item_index] > 40):
        sums = np.stack([by_request(rows, row * (negative & parts)) for row in weights])
        wanted = by_request(rows, negative & parts)
        assert (np.abs(sums.mean(axis=0) - wanted) <= 5 * sums.std(axis=0) / np.sqrt(MANY) + 1e-9).all()


def test_popular_items_are_kept_in_proportion_to_the_power_of_their_touches() -> None:
    rows = table([20])
    negative = np.ones(20, dtype=bool)
    touched = 1.0 + POPULARITY[rows.item_index]
    for power in (0.0, 0.5, 1.0):
        config = NegativesConfig(per_request=2, by="popularity", popularity_power=power)
        probability = keep_probabilities(config, rows, negative, POPULARITY)
        assert probability == pytest.approx(2 * touched**power / (touched**power).sum())
    config = NegativesConfig(per_request=15, by="popularity", popularity_power=4)
    probability = keep_probabilities(config, rows, negative, POPULARITY)
    assert probability.sum() == pytest.approx(15)
    assert probability.max() == 1
    left = probability < 1
    assert probability[left] / touched[left] ** 4 == pytest.approx(probability[left][0] / touched[left][0] ** 4)
    assert touched[left].max() <= touched[~left].min()


def test_bands_of_ranks_get_their_shares_and_the_places_that_others_cannot_fill() -> None:
    config = NegativesConfig(per_request=10, by="rank", band_ends=(5, 15), band_shares=(0.4, 0.4, 0.2))

    def kept_of(length: int, positives: tuple[int, ...] = ()) -> list[float]:
        rows = table([length])
        negative = ~np.isin(rows.rank, positives)
        probability = keep_probabilities(config, rows, negative, POPULARITY) * negative
        return [float(np.round(probability[a:b].sum(), 9)) for a, b in ((0, 5), (5, 15), (15, N_ITEMS))]

    assert kept_of(40) == [4, 4, 2]
    assert kept_of(16) == [5, 4, 1], "one place of the last band goes to the first"
    assert kept_of(12) == [5, 5, 0]
    assert kept_of(40, (0, 1, 2)) == [2, 6, 2]
    assert kept_of(6) == [5, 1, 0]
    assert kept_of(1) == [1, 0, 0]


@given(CONFIGS, LENGTHS, SEEDS, st.integers(0, 8), st.integers(0, 8))
@settings(deadline=None)
def test_a_choice_depends_on_no_other_request_and_on_no_border_of_blocks(
    config: NegativesConfig, lengths: list[int], seed: int, first: int, last: int
) -> None:
    rows = table(lengths)
    negative = some(rows, seed)

    def chosen(part: np.ndarray) -> list[bool]:
        mine = rows.take(part)
        kept: list[bool] = sample(seed, mine, keep_probabilities(config, mine, negative[part], POPULARITY)).tolist()
        return kept

    part = (rows.request_id >= 3 * first) & (rows.request_id < 3 * last)
    assume(part.any())
    whole = np.array(chosen(np.ones(len(rows), dtype=bool)))
    assert chosen(part) == whole[part].tolist()


def test_seeds_and_requests_are_chosen_for_alike_only_by_chance() -> None:
    rows = table([N_ITEMS] * 50)
    probability = np.full(len(rows), 0.5)
    one, other = (sample(seed, rows, probability) for seed in (1, 2))
    assert 0.4 < (one == other).mean() < 0.6
    same_items = table([N_ITEMS] * 50)
    same_items = CandidateTable(**{**vars(same_items), "item_index": np.tile(np.arange(N_ITEMS), 50)})
    kept = sample(1, same_items, probability).reshape(50, N_ITEMS)
    assert 0.4 < (kept[0] == kept[1:]).mean() < 0.6


@given(SEEDS, st.integers(0, 3))
def test_draws_are_even_and_decided_by_their_keys(seed: int, stream: int) -> None:
    keys = np.arange(2_000)
    drawn = draws(seed, stream, keys, keys % 7)
    assert ((drawn >= 0) & (drawn < 1)).all()
    assert abs(drawn.mean() - 0.5) < 0.05
    assert len(np.unique(drawn)) == len(drawn)
    order = np.random.default_rng(0).permutation(2_000)
    np.testing.assert_array_equal(draws(seed, stream, keys[order], keys[order] % 7), drawn[order])
    assert (draws(seed, stream + 1, keys, keys % 7) != drawn).all()
    assert (draws(seed + 1, stream, keys, keys % 7) != drawn).all()


USERS = st.lists(st.integers(0, 5), max_size=40)


@given(USERS, SEEDS, st.none() | st.integers(1, 4), st.none() | st.integers(1, 20))
def test_requests_are_chosen_for_each_user_and_in_all(
    users: list[int], seed: int, per_user: int | None, in_all: int | None
) -> None:
    user_index, ids = np.array(users, dtype=np.int64), 3 * np.arange(len(users))
    config = ExampleRequestsConfig(per_user=per_user, in_all=in_all)
    chosen = choose_requests(config, seed, ids, user_index)
    assert chosen.dtype == np.int64
    assert (np.diff(chosen) > 0).all() and np.isin(chosen, ids).all()
    counts = np.bincount(user_index, minlength=6)
    of_users = np.minimum(counts, len(users) if per_user is None else per_user)
    assert len(chosen) == min(int(of_users.sum()), len(users) if in_all is None else in_all)
    assert (np.bincount(user_index[chosen // 3], minlength=6) <= of_users).all()
    if in_all is None and per_user is not None:
        for user in range(6):
            mine = user_index == user
            alone = choose_requests(config, seed, ids[mine], user_index[mine])
            assert alone.tolist() == chosen[user_index[chosen // 3] == user].tolist()


def test_each_request_is_chosen_as_often_as_another() -> None:
    ids, users = np.arange(20), np.repeat(np.arange(4), 5)
    for config, share in ((ExampleRequestsConfig(in_all=5), 0.25), (ExampleRequestsConfig(per_user=2), 0.4)):
        counts = np.zeros(20)
        for seed in range(MANY):
            counts[choose_requests(config, seed, ids, users)] += 1
        assert np.abs(counts / MANY - share).max() < 5 * np.sqrt(share * (1 - share) / MANY)


@given(st.integers(0, 3_000), st.integers(2, 1_000))
def test_windows_have_as_many_requests_and_the_last_has_one(requests: int, windows: int) -> None:
    found = windows_of(requests, windows)
    assert found.dtype == np.int16 and len(found) == requests
    assert (np.diff(found) >= 0).all(), "in the order of time"
    assert ((found >= 0) & (found < windows)).all()
    counts = np.bincount(found, minlength=windows)
    assert counts.max() - counts.min() <= 1
    if requests:
        assert counts[-1] >= 1
    if requests > 1:
        assert counts[:-1].sum() >= 1, "something is left to train on"


@pytest.mark.parametrize(
    ("section", "value", "words"),
    [
        ({"negatives": {"per_request": 0}}, "per_request", "greater than or equal to 1"),
        ({"negatives": {"by": "hardness"}}, "by", "'uniform', 'rank' or 'popularity'"),
        ({"negatives": {"band_ends": [20, 20]}}, "band_ends", r"band_ends = \[20, 20\]: must be strictly ascending"),
        ({"negatives": {"band_ends": [0, 20]}}, "band_ends", "greater than or equal to 1"),
        (
            {"negatives": {"by": "rank", "per_request": 1}},
            "per_request",
            r"per_request = 1: gives the bands \[0, 1, 0\] places, every band needs at least 1",
        ),
        (
            {"negatives": {"band_shares": [0.5, 0.5]}},
            "band_shares",
            r"band_shares = \[0.5, 0.5\]: allowed are 3 shares with the sum 1",
        ),
        ({"negatives": {"band_shares": [0.5, 0.5, 0.5]}}, "band_shares", "allowed are 3 shares with the sum 1"),
        ({"negatives": {"band_shares": [1.5, -0.5, 0]}}, "band_shares", "less than or equal to 1"),
        ({"negatives": {"popularity_power": 5}}, "popularity_power", "less than or equal to 4"),
        ({"negatives": {"popularity_power": -1}}, "popularity_power", "greater than or equal to 0"),
        ({"requests": {"in_all": 0}}, "in_all", "greater than or equal to 1"),
        ({"requests": {"per_user": 0}}, "per_user", "greater than or equal to 1"),
        ({"windows": 1}, "windows", "greater than or equal to 2"),
        ({"windows": 1001}, "windows", "less than or equal to 1000"),
        ({"seed": -1}, "seed", "greater than or equal to 0"),
        ({"negatives": {"share": 0.5}}, "share", "not permitted"),
    ],
)
def test_a_wrong_section_names_its_field_and_what_is_allowed(section: dict, value: str, words: str) -> None:
    with pytest.raises(ValidationError, match=words) as caught:
        SamplingConfig.model_validate(section)
    assert value in str(caught.value)

"""A learned mixture as it is served: pools and their features, order, ties, a block against each request, its file."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.candidate.generators.blend import Blend
from stages.candidate.generators.config import SourcesConfig
from stages.candidate.generators.files import MIXTURE_FILE, MixtureSummary, SourcesSummary, load_mixture, write_summary
from stages.candidate.generators.mixture import Mixture
from stages.candidate.generators.pools import SMALL_SHARE, Pools, mixture_features
from stages.contracts.errors import DataError, ReleaseError
from stages.contracts.files import sha256_file, write_json
from stages.contracts.item_lists import ItemLists
from stages.contracts.tables import ScoredItems
from tests.builders.mixtures import write_linear_mixture

N = 12
NAMES = ("tower", "ease", "content")
WEIGHTS = {"tower_reciprocal_rank": 1.0, "ease_share": 0.5, "content_listed": -1.0, "ease_standardised_score": 0.3}


def scored(*pairs: tuple[int, float]) -> ScoredItems:
    return ScoredItems(np.array([id_ for id_, _ in pairs], dtype=np.int64), np.array([s for _, s in pairs], np.float32))


def some_lists(rng: np.random.Generator, n: int) -> dict[str, ItemLists]:
    """Lists of any length with scores that tie, some below 0."""
    sizes = {name: rng.integers(0, N + 1, n) * (rng.random(n) < 0.8) for name in NAMES}
    return {
        name: ItemLists.join(
            [
                ScoredItems(rng.permutation(N)[:size], -np.sort(-rng.integers(-2, 4, size).astype(np.float32)))
                for size in sizes[name]
            ]
        )
        for name in NAMES
    }


def summary_of(pool: int = 4, k: int = 4, **changes) -> SourcesSummary:
    config = SourcesConfig(names=NAMES, mixture={"kind": "learned", "pool": pool})
    values = {
        "names": NAMES,
        "quotas": config.counts(k),
        "learned": False,
        "candidate_k": k,
        "n_items": N,
        "tower_version": "t",
        "data_fingerprint": "f",
        "config": config,
        "mixture": MixtureSummary(features=mixture_features(NAMES), pool=pool, deviation=0.0),
    }
    return SourcesSummary(**{**values, **changes})


@pytest.fixture(scope="module")
def mixture(tmp_path_factory) -> Mixture:
    path = tmp_path_factory.mktemp("mixture") / MIXTURE_FILE
    write_linear_mixture(path, NAMES, WEIGHTS)
    return Mixture(path, NAMES, N)


def test_features_equal_their_formulas() -> None:
    tower = scored((7, 0.5), (2, 0.1), (9, -0.3))
    ease, content = scored((2, 6.0), (5, 2.0)), scored()
    pools = Pools.of([ItemLists.join([each]) for each in (tower, ease, content)], np.array([3]))
    assert pools.ids.tolist() == [2, 5, 7, 9]
    assert pools.ranks.tolist() == [[1, 0, -1], [-1, 1, -1], [0, -1, -1], [2, -1, -1]]
    np.testing.assert_array_equal(pools.scores[0], np.array([0.1, 6.0, np.nan], np.float32))
    columns = dict(zip(mixture_features(NAMES), pools.features.T, strict=True))
    deviation = np.std([0.5, 0.1, -0.3])
    expected = {
        "tower_listed": [1, 0, 1, 1],
        "ease_listed": [1, 1, 0, 0],
        "content_listed": [0, 0, 0, 0],
        "tower_standardised_score": [0, 0, 0.4 / deviation, -0.4 / deviation],
        "ease_standardised_score": [1, -1, 0, 0],
        "tower_share": [np.log1p(1 / 6 / SMALL_SHARE) / 4, 0, np.log1p(5 / 6 / SMALL_SHARE) / 4, 0],
        "ease_share": [np.log1p(0.75 / SMALL_SHARE) / 4, np.log1p(0.25 / SMALL_SHARE) / 4, 0, 0],
        "tower_reciprocal_rank": [61 / 62, 0, 1, 61 / 63],
        "ease_reciprocal_rank": [1, 61 / 62, 0, 0],
        "history_length": [np.log(4) / 4] * 4,
        "tower_length": [np.log(4) / 4] * 4,
        "ease_length": [np.log(3) / 4] * 4,
        "content_length": [0] * 4,
    }
    for name, values in expected.items():
        np.testing.assert_allclose(columns[name], values, atol=1e-6, err_msg=name)
    for feature in ("standardised_score", "share", "reciprocal_rank"):
        assert not columns[f"content_{feature}"].any(), "the list of content is empty"


def test_equal_scores_have_no_standardised_score() -> None:
    lists = ItemLists.join([scored((3, 2.0), (1, 2.0)), scored((4, 0.0))])
    pools = Pools.of([lists], np.array([1, 1]))
    columns = dict(zip(mixture_features(["tower"]), pools.features.T, strict=True))
    assert columns["tower_standardised_score"].tolist() == [0, 0, 0]
    assert columns["tower_share"].tolist() == [np.float32(np.log1p(0.5 / SMALL_SHARE) / 4)] * 2 + [0]


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 2**32 - 1), st.integers(0, 5), st.integers(1, N + 2))
def test_a_block_is_mixed_as_each_request_is(mixture: Mixture, seed: int, n: int, k: int) -> None:
    """Bit for bit: the features, the scores, and everything that is kept of the lists."""
    rng = np.random.default_rng(seed)
    lists, lengths = some_lists(rng, n), rng.integers(1, 9, n)
    blend = Blend(summary_of(), [], mixture)
    found = blend.mix_block(lists, k, N, lengths)
    pools = Pools.of(list(lists.values()), lengths)
    for row in range(n):
        of_row = {name: each.row(row) for name, each in lists.items()}
        wanted, alone = (
            blend.mix(of_row, k, int(lengths[row])),
            Pools.of([ItemLists.join([each]) for each in of_row.values()], lengths[row : row + 1]),
        )
        entries, own = slice(*found.items.offsets[row : row + 2]), slice(*pools.offsets[row : row + 2])
        np.testing.assert_array_equal(pools.features[own], alone.features)
        np.testing.assert_array_equal(found.items.ids[entries], wanted.items.ids)
        np.testing.assert_array_equal(found.items.scores[entries], wanted.items.scores)
        np.testing.assert_array_equal(found.source[entries], wanted.source)
        assert wanted.sources is not None
        for name in ("ranks", "scores"):
            np.testing.assert_array_equal(getattr(found.sources, name)[entries], getattr(wanted.sources, name))


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 2**32 - 1), st.integers(1, N + 2))
def test_the_candidates_are_the_best_of_all_lists(mixture: Mixture, seed: int, k: int) -> None:
    """Against every item of the lists, sorted by score and then by item; the source has the item at its best rank."""
    lists = {name: each.row(0) for name, each in some_lists(np.random.default_rng(seed), 1).items()}
    pools = Pools.of([ItemLists.join([each]) for each in lists.values()], np.array([5]))
    mixed = Blend(summary_of(), [], mixture).mix(lists, k, 5)
    scores = mixture.scores(pools.features) if len(pools.ids) else np.zeros(0, np.float32)
    order = np.lexsort((pools.ids, -scores))[:k]
    assert set(pools.ids) == set(np.concatenate([each.ids for each in lists.values()]))
    np.testing.assert_array_equal(mixed.items.ids, pools.ids[order])
    np.testing.assert_array_equal(mixed.items.scores, scores[order])
    codes = {"tower": 0, "ease": 4, "content": 6}
    for item, source in zip(mixed.items.ids, mixed.source, strict=True):
        ranks = {name: int(np.flatnonzero(each.ids == item)[0]) for name, each in lists.items() if item in each.ids}
        assert source == codes[min(ranks, key=lambda name: ranks[name])]


def test_tied_items_are_ordered_by_index(tmp_path) -> None:
    write_linear_mixture(tmp_path / MIXTURE_FILE, NAMES, {})
    blend = Blend(summary_of(), [], Mixture(tmp_path / MIXTURE_FILE, NAMES, 4))
    mixed = blend.mix(
        {"tower": scored((9, 3.0), (4, 2.0)), "ease": scored((7, 5.0), (1, 4.0)), "content": scored()}, 3, 1
    )
    assert mixed.items.ids.tolist() == [1, 4, 7]
    assert mixed.items.scores == pytest.approx([np.log(0.25)] * 3)
    assert blend.mix({name: scored() for name in NAMES}, 3, 1).items.ids.tolist() == []


def test_lists_are_read_as_far_as_the_mixture_looks(mixture: Mixture) -> None:
    assert Blend(summary_of(), [], mixture).list_length(5) == N
    assert Blend(summary_of(), []).list_length(5) == 5


def test_a_history_of_unknown_length_is_refused(mixture: Mixture) -> None:
    with pytest.raises(DataError, match="reads history_length, found None"):
        Blend(summary_of(), [], mixture).mix({name: scored() for name in NAMES}, 3)


def test_the_file_is_checked_when_it_is_loaded(tmp_path) -> None:
    path = tmp_path / MIXTURE_FILE
    write_linear_mixture(path, NAMES, WEIGHTS)
    files = {MIXTURE_FILE: sha256_file(path)}
    loaded = load_mixture(tmp_path, summary_of(files=files))
    assert loaded is not None and loaded.pool == 4
    with pytest.raises(ReleaseError, match=r"sources\.json does not list mixture\.onnx"):
        load_mixture(tmp_path, summary_of())
    with pytest.raises(ReleaseError, match=r"inputs .*16.*, expected .*11.* for the generators \['tower', 'ease'\]"):
        Mixture(path, NAMES[:2], 4)
    write_linear_mixture(path, NAMES, {})
    with pytest.raises(ReleaseError, match=r"mixture\.onnx: sha256 .* sources\.json says"):
        load_mixture(tmp_path, summary_of(files=files))
    path.unlink()
    with pytest.raises(ReleaseError, match=r"mixture\.onnx: missing"):
        load_mixture(tmp_path, summary_of(files=files))


def test_a_description_that_does_not_fit_is_refused_and_an_older_one_is_read(tmp_path) -> None:
    described = MixtureSummary(features=("tower_listed",), pool=3, deviation=0.0)
    write_summary(tmp_path, summary_of(mixture=described))
    with pytest.raises(ReleaseError, match=r"mixture\.features = .*; mixture\.pool below candidate_k = 1, expected 0"):
        Blend.load(tmp_path, N)
    config = SourcesConfig(names=("tower", "covisitation"))
    older = summary_of(names=config.names, quotas=config.counts(4), config=config, mixture=None)
    write_summary(tmp_path, older)
    values = json.loads((tmp_path / "sources.json").read_text())
    del values["mixture"], values["config"]["mixture"]
    write_json(tmp_path / "sources.json", values)
    loaded = Blend.load(tmp_path, N)
    assert loaded is not None and loaded.mixture is None

"""EASE against least squares item by item, implicit ALS against its own gradient and a dense solution."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse as sparse

from stages.candidate.linear import models as linear
from stages.candidate.linear.config import EaseSettings, ImplicitAlsSettings
from stages.candidate.linear.least_squares import least_squares
from stages.candidate.linear.models import Ease, ImplicitAls, recency_weights
from stages.contracts.config import parse_config
from stages.contracts.errors import ConfigError, DataError

USERS, ITEMS = 40, 13


def als(factors: int, **changes: float) -> ImplicitAlsSettings:
    plain = {"confidence": 5, "unobserved_weight": 1, "regularisation": 2, "regularisation_power": 0}
    return ImplicitAlsSettings(**{"factors": factors, **plain, **changes})


@pytest.fixture
def history() -> sparse.csr_matrix:
    return sparse.csr_matrix((np.random.default_rng(0).random((USERS, ITEMS)) < 0.3).astype(np.float64))


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks that do not divide the sizes, so that borders between blocks are met."""
    monkeypatch.setattr(linear, "_COLUMNS", 5)


def constrained_least_squares(dense: np.ndarray, regularisation: float) -> np.ndarray:
    """A column at a time: regress an item on all others, with the penalty as further rows."""
    weights = np.zeros((dense.shape[1], dense.shape[1]))
    for item in range(dense.shape[1]):
        others = np.delete(np.arange(dense.shape[1]), item)
        rows = np.vstack([dense[:, others], np.sqrt(regularisation) * np.eye(len(others))])
        target = np.concatenate([dense[:, item], np.zeros(len(others))])
        weights[others, item] = np.linalg.lstsq(rows, target)[0]
    return weights


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("regularisation", [0.5, 30.0])
def test_ease_is_the_constrained_optimum(history: sparse.csr_matrix, regularisation: float) -> None:
    found = Ease.fit(history, EaseSettings(regularisation=regularisation))
    wanted = constrained_least_squares(history.toarray(), regularisation)
    np.testing.assert_allclose(found.weights, wanted, atol=1e-6)
    assert not np.diagonal(found.weights).any()
    np.testing.assert_allclose(found.score(history[:3]), history[:3].toarray() @ wanted, atol=1e-5)


def test_ease_of_weighted_histories(history: sparse.csr_matrix) -> None:
    weighted = history.copy()
    weighted.data = np.random.default_rng(1).uniform(-1, 2, history.nnz)
    found = Ease.fit(weighted, EaseSettings(regularisation=2)).weights
    np.testing.assert_allclose(found, constrained_least_squares(weighted.toarray(), 2.0), atol=1e-6)


def als_gradient(history: np.ndarray, model: ImplicitAls) -> tuple[np.ndarray, np.ndarray]:
    """Half the gradients of the objective, over the cells of the dense matrix."""
    users, settings = model.user_vectors(sparse.csr_matrix(history)), model.settings
    scores, weight = users @ model.item_factors.T, settings.confidence * history
    error = weight * (scores - 1) + settings.unobserved_weight * scores
    by_user, by_item = (
        settings.regularisation
        * (weight + settings.unobserved_weight).sum(axis=axis)[:, None] ** settings.regularisation_power
        for axis in (1, 0)
    )
    return error @ model.item_factors + by_user * users, error.T @ users + by_item * model.item_factors


@pytest.mark.parametrize(
    "changes",
    [
        {"factors": 4, "regularisation_power": 0.0, "unobserved_weight": 1.0},
        {"factors": 5, "regularisation_power": 1.0, "unobserved_weight": 0.3, "regularisation": 0.05},
        {"factors": 1, "regularisation_power": 0.5, "unobserved_weight": 2.0, "regularisation": 0.5},
    ],
)
def test_als_comes_to_rest_where_the_gradient_is_zero(history: sparse.csr_matrix, changes: dict[str, float]) -> None:
    history.data = np.random.default_rng(1).uniform(0.2, 3, history.nnz)
    early, late = (ImplicitAls.fit(history, als(**changes, iterations=n), 3) for n in (1, 800))
    by_user, by_item = als_gradient(history.toarray(), late)
    assert np.abs(by_user).max() < 1e-9, "folding in is exact at any time"
    assert np.abs(by_item).max() < 1e-6
    assert np.abs(als_gradient(history.toarray(), early)[1]).max() > 1e-2, "the test can tell"


def test_als_with_the_papers_power_knows_only_the_ratio_of_the_weights(history: sparse.csr_matrix) -> None:
    """The penalty is a share of the weights of the cells, so that all terms grow alike."""
    power = {"regularisation_power": 1.0, "regularisation": 0.1, "unobserved_weight": 0.2}
    small, large = (
        ImplicitAls.fit(history, als(3, **{**power, "confidence": t, "unobserved_weight": 0.2 * t}), 0) for t in (1, 50)
    )
    np.testing.assert_allclose(small.item_factors, large.item_factors, atol=1e-10)
    other = ImplicitAls.fit(history, als(3, **{**power, "confidence": 1, "unobserved_weight": 0.4}), 0)
    assert np.abs(small.item_factors - other.item_factors).max() > 1e-3


def test_als_without_a_weight_of_unobserved_cells_takes_it_from_the_touches(history: sparse.csr_matrix) -> None:
    settled = ImplicitAls.fit(history, als(2, unobserved_weight=None, confidence=3), 0)
    assert settled.unobserved_weight == pytest.approx(8 * 3 * history.nnz / (USERS * ITEMS))
    given = ImplicitAls.fit(history, als(2, unobserved_weight=settled.unobserved_weight, confidence=3), 0)
    assert (given.item_factors == settled.item_factors).all()
    assert (given.user_vectors(history) == settled.user_vectors(history)).all()


@pytest.mark.parametrize("factors", [1, 2, 5, 8, 33, 90])
def test_each_row_of_least_squares_is_solved_exactly(factors: int) -> None:
    """Rows of none to many cells: fewer than factors, and more."""
    rng = np.random.default_rng(factors)
    dense = np.where(rng.random((12, 40)) < np.linspace(0, 0.9, 12)[:, None], rng.uniform(0.01, 2, (12, 40)), 0)
    other_ND, penalty_R = rng.normal(size=(40, factors)), rng.uniform(0.5, 3, 12)
    found = least_squares(sparse.csr_matrix(dense), other_ND, 3.0, 0.5, penalty_R)
    for row, values in enumerate(dense):
        weight = 3.0 * values + 0.5
        system = other_ND.T @ (weight[:, None] * other_ND) + penalty_R[row] * np.eye(factors)
        wanted = np.linalg.solve(system, other_ND.T @ (3.0 * values))
        np.testing.assert_allclose(found[row], wanted, atol=1e-10)
    assert not found[0].any() and found[11].any()


def test_als_folds_each_history_in_alone(history: sparse.csr_matrix) -> None:
    model = ImplicitAls.fit(history, als(3), 1)
    together = model.user_vectors(history)
    np.testing.assert_allclose(model.user_vectors(history[7:8])[0], together[7], atol=1e-12)
    cells = history[7].indices
    confidence = np.ones(ITEMS)
    confidence[cells] += 5.0
    system = model.item_factors.T @ (confidence[:, None] * model.item_factors) + 2.0 * np.eye(3)
    wanted = np.linalg.solve(system, 5.0 * model.item_factors[cells].sum(axis=0))
    np.testing.assert_allclose(together[7], wanted, atol=1e-12)
    np.testing.assert_allclose(model.score(history[7:8])[0], model.item_factors @ wanted, atol=1e-6)
    assert not model.user_vectors(sparse.csr_matrix((2, ITEMS))).any()


def test_als_depends_on_its_seed_alone(history: sparse.csr_matrix) -> None:
    first, again, other = (ImplicitAls.fit(history, als(3, iterations=2), seed).item_factors for seed in (1, 1, 2))
    assert (first == again).all()
    assert not np.allclose(first, other)


def test_planted_groups_are_found() -> None:
    """Items of a group go together: whoever has some of a group gets the rest of it."""
    rng = np.random.default_rng(0)
    group = np.arange(12) % 3
    dense = (group == rng.integers(0, 3, 90)[:, None]) & (rng.random((90, 12)) < 0.7)
    matrix = sparse.csr_matrix(dense.astype(float))
    asked = sparse.csr_matrix(([1.0, 1.0], ([0, 0], [0, 3])), shape=(1, 12))
    fitted = ImplicitAls.fit(matrix, als(3, regularisation=1), 0)
    for scores in (Ease.fit(matrix, EaseSettings(regularisation=5)).score(asked), fitted.score(asked)):
        assert set(np.argsort(-scores[0])[:4]) >= {6, 9}


def test_recency_weights() -> None:
    np.testing.assert_allclose(recency_weights(np.array([0, 5]), 5.0), [1, np.exp(-1)])
    with pytest.raises(ConfigError, match=r"decay = 0\.0"):
        recency_weights(np.array([0]), 0.0)


def test_bad_input(history: sparse.csr_matrix) -> None:
    empty = sparse.csr_matrix((2, 3))
    with pytest.raises(ConfigError, match="regularisation = 0"):
        parse_config(EaseSettings, {"regularisation": 0}, "settings")
    with pytest.raises(ConfigError, match="factors = 0"):
        parse_config(ImplicitAlsSettings, {"factors": 0}, "settings")
    for fit in (
        lambda matrix: Ease.fit(matrix, EaseSettings(regularisation=1)),
        lambda matrix: ImplicitAls.fit(matrix, als(2), 0),
    ):
        with pytest.raises(DataError, match=r"\[2, 3\] is empty"):
            fit(empty)
        with pytest.raises(DataError, match="finite"):
            fit(sparse.csr_matrix(np.array([[1.0, np.nan]])))
    twins = sparse.csr_matrix(np.ones((3, 2)))
    with pytest.raises(DataError, match=r"not positive definite.*regularise more"):
        Ease.fit(twins, EaseSettings(regularisation=1e-300))
    with pytest.raises(DataError, match="above 0"):
        ImplicitAls.fit(sparse.csr_matrix(np.array([[1.0, -1.0]])), als(2), 0)
    for model in (Ease.fit(history, EaseSettings()), ImplicitAls.fit(history, als(2), 0)):
        with pytest.raises(DataError, match="over 3 items, the model has 13"):
            model.score(empty)

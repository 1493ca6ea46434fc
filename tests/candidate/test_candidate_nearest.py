"""The sparse closed forms against the dense ones, and against a system of each support written out."""

from __future__ import annotations

import logging

import numpy as np
import pytest
from scipy import sparse

from stages.candidate.linear import nearest_regression as nearest
from stages.candidate.linear.config import EaseSettings, RidgeSettings
from stages.candidate.linear.directed_ridge import DirectedRidge
from stages.candidate.linear.models import Ease, ease_gigabytes, ease_method
from stages.candidate.linear.moments import pair_sums
from stages.candidate.linear.nearest_regression import nearest_gigabytes
from stages.contracts.errors import ConfigError, DataError

USERS, ITEMS = 70, 17
LAMBDA = 2.5


@pytest.fixture(
    params=[(4096, 1 << 21, 1 << 22), (5, 40, 30), (0, 1, 1)], ids=["one block", "blocks", "an item a block"]
)
def sizes(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """All items or few or none are head items, and blocks of all items, of some and of one."""
    for name, value in zip(("_HEAD", "_ENTRIES", "_CELLS"), request.param, strict=True):
        monkeypatch.setattr(nearest, name, value)


@pytest.fixture
def history() -> sparse.csr_matrix:
    """Weighted histories over items of which one is never met."""
    rng = np.random.default_rng(0)
    dense = (rng.random((USERS, ITEMS)) < np.linspace(0.5, 0.02, ITEMS)) * rng.uniform(-1, 2, (USERS, ITEMS))
    dense[:, 3] = 0
    return sparse.csr_matrix(dense)


def sequences(seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Users with up to eleven events, some on an item that they met before; item 8 is met by nobody."""
    rng = np.random.default_rng(seed)
    rows = [rng.choice(8, rng.integers(1, 12)).tolist() for _ in range(50)]
    return np.repeat(np.arange(50), [len(row) for row in rows]), np.concatenate(rows)


def directed_rows(user: np.ndarray, item: np.ndarray, items: int, power: float, latest: int) -> tuple[np.ndarray, ...]:
    """The histories before each event and what followed, written out."""
    x, y = [], []
    for row in range(len(user)):
        before = item[:row][user[:row] == user[row]][::-1][:latest]
        if len(before):
            x.append(np.zeros(items))
            np.add.at(x[-1], before, (1.0 + np.arange(len(before))) ** -power)
            y.append(np.eye(items)[item[row]])
    return np.array(x), np.array(y)


@pytest.mark.usefixtures("sizes")
def test_ease_on_all_other_items_is_the_dense_one(history: sparse.csr_matrix) -> None:
    dense = Ease.fit(history, EaseSettings(regularisation=LAMBDA, method="dense"))
    found = Ease.fit(history, EaseSettings(regularisation=LAMBDA, method="sparse", neighbours=ITEMS - 1))
    assert (dense.method, found.method) == ("dense", "sparse")
    assert found.weights.dtype == np.float32 and found.weights.has_sorted_indices
    np.testing.assert_allclose(found.weights.toarray(), dense.weights, atol=1e-5)
    np.testing.assert_allclose(found.score(history[:9]), dense.score(history[:9]), atol=1e-5)
    assert np.abs(dense.weights).max() > 0.1


@pytest.mark.usefixtures("sizes")
@pytest.mark.parametrize("neighbours", [1, 4])
def test_ease_on_the_nearest_items_solves_the_system_of_each_support(history, neighbours: int) -> None:
    dense = history.toarray()
    gram = dense.T @ dense
    wanted = np.zeros((ITEMS, ITEMS))
    for item in range(ITEMS):
        cosine = np.abs(gram[:, item]) / np.sqrt(np.maximum(np.diag(gram), 1e-12))
        cosine[item] = 0
        support = [other for other in np.argsort(-cosine)[:neighbours] if cosine[other] > 0]
        system = gram[np.ix_(support, support)] + LAMBDA * np.eye(len(support))
        wanted[support, item] = np.linalg.solve(system, gram[support, item])
    settings = EaseSettings(regularisation=LAMBDA, method="sparse", neighbours=neighbours)
    found = Ease.fit(history, settings).weights
    np.testing.assert_allclose(found.toarray(), wanted, atol=1e-6)
    assert np.diff(found.tocsc().indptr).max() == neighbours
    assert not wanted[3].any() and not wanted[:, 3].any()


@pytest.mark.usefixtures("sizes")
@pytest.mark.parametrize(("power", "latest"), [(0.7, 3), (0.0, 100), (1.0, 1)])
def test_the_directed_ridge_on_all_items_is_the_dense_one(power: float, latest: int) -> None:
    user, item = sequences()
    settings = {"regularisation": LAMBDA, "power": power, "latest": latest}
    dense = DirectedRidge.fit(user, item, 9, RidgeSettings(**settings))
    found = DirectedRidge.fit(user, item, 9, RidgeSettings(**settings, method="sparse", neighbours=9))
    np.testing.assert_allclose(found.weights.toarray(), dense.weights, atol=1e-5)
    x, y = directed_rows(user, item, 9, power, latest)
    wanted = np.linalg.solve(x.T @ x + LAMBDA * np.eye(9), x.T @ y)
    np.testing.assert_allclose(found.weights.toarray(), wanted, atol=1e-5)
    scores = found.score(sparse.csr_matrix(x[:7]))
    np.testing.assert_allclose(scores, x[:7] @ wanted, atol=1e-5)
    assert np.abs(wanted - wanted.T).max() > 0.05, "the weights have a direction"


@pytest.mark.usefixtures("sizes")
def test_the_directed_ridge_on_few_items_solves_the_system_of_each_support() -> None:
    rng = np.random.default_rng(4)
    rows = [rng.permutation(9)[: rng.integers(1, 8)].tolist() for _ in range(40)]
    user, item = np.repeat(np.arange(40), [len(row) for row in rows]), np.concatenate(rows)
    x, y = directed_rows(user, item, 9, 0.7, 4)
    gram, right = x.T @ x, x.T @ y
    wanted = np.zeros((9, 9))
    for target in range(9):
        near = right[:, target] / np.sqrt(np.diag(gram))
        support = [other for other in np.argsort(-near)[:3] if near[other] > 0]
        system = gram[np.ix_(support, support)] + LAMBDA * np.eye(len(support))
        wanted[support, target] = np.linalg.solve(system, right[support, target])
    settings = RidgeSettings(regularisation=LAMBDA, power=0.7, latest=4, method="sparse", neighbours=3)
    np.testing.assert_allclose(DirectedRidge.fit(user, item, 9, settings).weights.toarray(), wanted, atol=1e-6)


def test_the_sums_of_pairs() -> None:
    weights = np.array([1.0, 0.5, 0.25])
    wanted = [[0, 1, 1.25, 1.3125], [0, 0.5, 0.625, 0.625], [0, 0.25, 0.25, 0.25]]
    np.testing.assert_allclose(pair_sums(weights), wanted)


def test_the_dense_one_is_taken_where_it_fits(history: sparse.csr_matrix, caplog: pytest.LogCaptureFixture) -> None:
    settings = EaseSettings(neighbours=3)
    wide = ease_method(settings, 10, 100_000, 1000, 4.0)
    assert (wide.name, wide.gigabytes) == ("sparse", pytest.approx(nearest_gigabytes(10, 100_000, 1000, 3), rel=1e-2))
    small = ease_method(settings, USERS, ITEMS, history.nnz, 4.0)
    assert (small.name, small.gigabytes) == ("dense", ease_gigabytes(ITEMS, history.nnz))
    with caplog.at_level(logging.INFO, "sluice"):
        assert Ease.fit(history, settings).method == "dense"
        assert Ease.fit(history, settings.model_copy(update={"method": "sparse"})).method == "sparse"
    said = [record.getMessage() for record in caplog.records]
    assert said[0].startswith("[sluice] EASE: 17 items with dense item-item matrices, at most 0.03")
    assert said[1].startswith("[sluice] EASE: 17 items on the 3 nearest items of each, at most 0.03")


def test_what_does_not_fit_even_so_says_what_it_needs() -> None:
    wide = sparse.csr_matrix(([1.0], ([0], [99_999])), shape=(1, 100_000))
    with pytest.raises(ConfigError, match=r"100,000 items need 120 GB with dense .* memory_gb = 4: .* method = sparse"):
        Ease.fit(wide, EaseSettings(method="dense"))
    with pytest.raises(ConfigError, match=r"100,000 items need 1\.\d+ GB on the 200 nearest .*fewer neighbours"):
        Ease.fit(wide, EaseSettings(), memory_gb=1.0)
    with pytest.raises(ConfigError, match=r"directed ridge: 9 items need .* GB on the 200 nearest .*memory_gb = 1e-09"):
        DirectedRidge.fit(*sequences(), 9, RidgeSettings(), 1e-9)


def test_bad_input() -> None:
    twins = sparse.csr_matrix(np.ones((3, 3)))
    with pytest.raises(DataError, match=r"EASE: the system of an item's 2 nearest items is not positive definite"):
        Ease.fit(twins, EaseSettings(regularisation=1e-300, method="sparse"))
    with pytest.raises(DataError, match=r"\[2, 3\] is empty"):
        Ease.fit(sparse.csr_matrix((2, 3)), EaseSettings(method="sparse"))
    model = Ease.fit(twins, EaseSettings(method="sparse"))
    with pytest.raises(DataError, match="histories are over 2 items, the model has 3"):
        model.score(sparse.csr_matrix((1, 2)))


def test_items_that_nobody_met_have_no_weights() -> None:
    lonely = sparse.csr_matrix(np.array([[1.0, 0, 0, 0], [0, 0, 1.0, 0], [1.0, 0, 1.0, 0]]))
    found = Ease.fit(lonely, EaseSettings(regularisation=1, method="sparse", neighbours=2)).weights
    assert found.shape == (4, 4) and found.nnz == 2
    assert found[0, 2] == found[2, 0] == pytest.approx(1 / 3)

"""The directed ridge against the normal equations written out, and on a world with a direction."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import sparse

from stages.candidate.linear import directed_ridge as directed
from stages.candidate.linear.config import RidgeSettings
from stages.candidate.linear.directed_ridge import DirectedRidge
from stages.candidate.linear.history_weights import power_weights
from stages.contracts.config import parse_config
from stages.contracts.errors import ConfigError, DataError


def settings_of(regularisation: float, power: float, latest: int) -> RidgeSettings:
    return RidgeSettings(regularisation=regularisation, power=power, latest=latest, method="dense")


def sequences(seed: int = 0) -> list[list[int]]:
    rng = np.random.default_rng(seed)
    return [rng.permutation(9)[: rng.integers(1, 8)].tolist() for _ in range(40)]


def flat(rows: list[list[int]]) -> tuple[np.ndarray, np.ndarray]:
    users = np.repeat(np.arange(len(rows)), [len(row) for row in rows])
    return users, np.array([item for row in rows for item in row])


@pytest.mark.parametrize("cost", [0, 1e9])
@pytest.mark.parametrize(("power", "latest", "chunk"), [(0.7, 3, 5), (0.0, 100, 1000)])
def test_it_is_the_ridge_regression(
    monkeypatch: pytest.MonkeyPatch, power: float, latest: int, chunk: int, cost: float
) -> None:
    monkeypatch.setattr(directed, "_CHUNK", chunk)
    monkeypatch.setattr(directed, "_SPARSE_COST", cost)  # either way of adding up
    rows = sequences()
    features, targets = [], []
    for row in rows:
        for place in range(1, len(row)):
            features.append(np.zeros(9))
            for back in range(1, min(place, latest) + 1):
                features[-1][row[place - back]] = back**-power
            targets.append(np.eye(9)[row[place]])
    x, y = np.array(features), np.array(targets)
    wanted = np.linalg.solve(x.T @ x + 2.5 * np.eye(9), x.T @ y)
    found = DirectedRidge.fit(*flat(rows), 9, settings_of(2.5, power, latest))
    np.testing.assert_allclose(found.weights, wanted, atol=1e-5)
    scores = found.score(sparse.csr_matrix(x[:7]))
    np.testing.assert_allclose(scores, x[:7] @ wanted, atol=1e-5)
    assert scores.dtype == np.float32


def test_it_knows_the_direction() -> None:
    """Item i is followed by i + 1: forwards weighs more than backwards."""
    rows = [list(range(start, start + 4)) for start in range(6)] * 5
    weights = DirectedRidge.fit(*flat(rows), 9, settings_of(1.0, 1.0, 3)).weights
    steps = np.arange(8)
    assert (weights[steps, steps + 1] > weights[steps + 1, steps] + 0.3).all()


def test_weights_of_a_history() -> None:
    np.testing.assert_allclose(power_weights(np.array([1, 2, 4, 5]), 0.5, 4), [1, 2**-0.5, 0.5, 0])


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"memory_gb": 1e-9}, ConfigError, r"directed ridge: 9 items need 0\.0\d* GB with dense item-item matrices"),
        ({"user_R": np.arange(5), "item_R": np.arange(5)}, DataError, "no user has two events"),
        ({"user_R": np.array([0, 1, 0]), "item_R": np.arange(3)}, DataError, "users one after the other"),
    ],
)
def test_wrong_use(changes: dict, error: type[Exception], message: str) -> None:
    users, items = flat(sequences())
    given = {"user_R": users, "item_R": items, "items": 9, "settings": settings_of(1.0, 1.0, 3)}
    with pytest.raises(error, match=message):
        DirectedRidge.fit(**{**given, **changes})


@pytest.mark.parametrize(
    ("power", "latest", "message"),
    [(-1.0, 3, r"power = -1\.0, latest = 3: allowed are"), (1.0, 0, r"latest = 0: allowed are")],
)
def test_weights_that_make_no_sense(power: float, latest: int, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        power_weights(np.arange(1, 4), power, latest)
    with pytest.raises(ConfigError, match="greater than"):
        parse_config(RidgeSettings, {"power": power, "latest": latest}, "settings")


def test_other_histories_are_refused() -> None:
    ridge = DirectedRidge.fit(*flat(sequences()), 9, settings_of(1.0, 1.0, 3))
    with pytest.raises(DataError, match="histories are over 8 items, the model has 9"):
        ridge.score(sparse.csr_matrix((2, 8)))

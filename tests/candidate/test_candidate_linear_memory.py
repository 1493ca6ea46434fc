"""What the closed forms say that they take, against what they take: the peak of a process of its own."""

from __future__ import annotations

import subprocess
import sys

import pytest

MEASURE = """
import sys
import numpy as np
from scipy import sparse
from stages.candidate.linear.directed_ridge import DirectedRidge, ridge_method
from stages.candidate.linear.config import EaseSettings, ImplicitAlsSettings, ItemKnnSettings, RidgeSettings
from stages.candidate.linear.item_knn import knn_gigabytes, nearest_items
from stages.candidate.linear.models import Ease, ImplicitAls, als_gigabytes, ease_method

kind, method = (sys.argv[1].split("-") + [""])[:2]
users, items, length = map(int, sys.argv[2:])
rng = np.random.default_rng(0)
item = np.concatenate([rng.choice(items, length, replace=False) for _ in range(users)])
user = np.repeat(np.arange(users), length)
history = sparse.csr_matrix((np.ones(len(user), dtype=np.float32), (user, item)), shape=(users, items))


def fit(user, item, history, neighbours):
    users, items = history.shape
    if kind == "ease":
        settings = EaseSettings(regularisation=500, method=method, neighbours=neighbours)
        Ease.fit(history, settings)
        return ease_method(settings, users, items, history.nnz, 4.0).gigabytes
    if kind == "ridge":
        settings = RidgeSettings(method=method, neighbours=neighbours)
        DirectedRidge.fit(user, item, items, settings)
        return ridge_method(settings, users, items, len(user), length, 4.0).gigabytes
    if kind == "knn":
        nearest_items(history, ItemKnnSettings(weighting="tf_idf"), neighbours)
        return knn_gigabytes(users, items, history.nnz, neighbours)
    ImplicitAls.fit(history, ImplicitAlsSettings(factors=32, confidence=5, regularisation=10, iterations=1), 0)
    return als_gigabytes(users, items, history.nnz, 32)


def memory(field):
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith(field + ":")) * 1024


few = np.arange(20) % 10
fit(np.sort(few), few, sparse.csr_matrix(np.eye(10)), 3)  # what the libraries take once
before = memory("VmRSS")
said = fit(user, item, history, 100)
print((memory("VmHWM") - before) / 1e9, said)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize(
    ("kind", "users", "items", "length", "most"),
    [
        ("ease-dense", 500, 3000, 10, 1.5),
        ("ridge-dense", 500, 3000, 10, 1.7),
        ("ridge-dense", 60, 500, 200, None),  # histories that are dense: two arrays of a chunk's size on top
        ("ease-sparse", 6000, 20_000, 20, 3.0),
        ("ridge-sparse", 6000, 20_000, 20, 3.0),
        ("ials", 3000, 6000, 20, None),
        ("knn", 3000, 6000, 20, None),
        ("knn", 20_000, 20_000, 60, 2.5),
    ],
)
def test_no_fit_takes_more_than_it_says(kind: str, users: int, items: int, length: int, most: float | None) -> None:
    command = [sys.executable, "-c", MEASURE, kind, str(users), str(items), str(length)]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    measured, said = map(float, output.split())
    assert measured <= said
    if most is not None:
        assert said <= most * measured, "nobody is refused for what is never taken"

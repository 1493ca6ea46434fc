"""What the closed forms say that they take, against what they take: the peak of a process of its own."""

from __future__ import annotations

import subprocess
import sys

import pytest

MEASURE = """
import sys
import numpy as np
from scipy import linalg, sparse
from stages.candidate.linear.directed_ridge import DirectedRidge, ridge_gigabytes
from stages.candidate.linear.config import EaseSettings, ImplicitAlsSettings, ItemKnnSettings
from stages.candidate.linear.item_knn import knn_gigabytes, nearest_items
from stages.candidate.linear.models import Ease, ImplicitAls, als_gigabytes, ease_gigabytes

kind, users, items, length = sys.argv[1], *map(int, sys.argv[2:])
rng = np.random.default_rng(0)
item = np.concatenate([rng.choice(items, length, replace=False) for _ in range(users)])
user = np.repeat(np.arange(users), length)
history = sparse.csr_matrix((np.ones(len(user), dtype=np.float32), (user, item)), shape=(users, items))
nearest_items(history[:2], ItemKnnSettings(), 2)
linalg.cho_solve(linalg.cho_factor(np.eye(300) + 1), np.eye(300))  # what the libraries take once
ImplicitAls.fit(history[:2], ImplicitAlsSettings(factors=2, confidence=5, regularisation=10, iterations=1), 0)


def memory(field):
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith(field + ":")) * 1024


before = memory("VmRSS")
if kind == "ease":
    Ease.fit(history, EaseSettings(regularisation=500))
    said = ease_gigabytes(items, history.nnz)
elif kind == "knn":
    nearest_items(history, ItemKnnSettings(weighting="tf_idf"), 50)
    said = knn_gigabytes(users, items, history.nnz, 50)
elif kind == "ridge":
    DirectedRidge.fit(user, item, items, 300.0, 0.7, 200)
    said = ridge_gigabytes(items, min(200, length - 1), len(user))
else:
    ImplicitAls.fit(history, ImplicitAlsSettings(factors=32, confidence=5, regularisation=10, iterations=1), 0)
    said = als_gigabytes(users, items, history.nnz, 32)
print((memory("VmHWM") - before) / 1e9, said)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize(
    ("kind", "users", "items", "length", "most"),
    [
        ("ease", 500, 3000, 10, 1.5),
        ("ridge", 500, 3000, 10, 1.7),
        ("ridge", 60, 500, 200, None),  # histories that are dense: two arrays of a chunk's size on top
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

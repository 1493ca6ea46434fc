"""What a release says of its held-out requests, so that another one can be compared with it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from stages.contracts import ledger as module
from stages.contracts.errors import DataError, ReleaseError
from stages.contracts.ledger import JudgedRequests, ledger_metrics, request_key


def judged(keys: list[int], values: list[float], metric: str = "ndcg@10") -> JudgedRequests:
    return JudgedRequests.make(metric, np.array(keys, dtype=np.int64), np.array(values))


def test_a_key_stands_for_who_asks_when_for_what_and_nothing_else() -> None:
    key = request_key("anna", 1000, [("a", 1.0), ("b", 2.0)])
    # sha256 of ["anna",1000,[["a",1.0],["b",2.0]]], its first 64 bits
    assert key == int.from_bytes(bytes.fromhex("90a65d5a211bdbfe"), "big", signed=True)
    assert request_key("anna", 1000, [("b", 2.0), ("a", 1.0)]) == key
    others = [
        ("anne", 1000, [("a", 1.0), ("b", 2.0)]),
        ("anna", 1001, [("a", 1.0), ("b", 2.0)]),
        ("anna", 1000, [("a", 1.0)]),
        ("anna", 1000, [("a", 1.0), ("b", 1.0)]),
    ]
    assert len({key, *(request_key(*other) for other in others)}) == 5


def test_a_file_holds_keys_and_values_and_is_read_as_it_was_written(tmp_path: Path) -> None:
    table = judged([3, -5, 9, 3], [0.3, 0.5, 0.9, 0.7])
    table.write(tmp_path / "held_out.parquet")
    read = JudgedRequests.read(tmp_path / "held_out.parquet")
    assert (read.metric, read.key.tolist(), read.value.tolist()) == ("ndcg@10", [-5, 3, 9], [0.5, 0.3, 0.9])


def test_of_too_many_requests_all_releases_keep_the_same_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_REQUESTS", 2)
    one, other = judged([7, 1, 4], [0.7, 0.1, 0.4]), judged([4, 9, 1], [0.0, 0.9, 0.2])
    assert one.key.tolist() == other.key.tolist() == [1, 4]


def test_common_requests_are_paired_by_key() -> None:
    mine, theirs = judged([7, 1, 4], [0.7, 0.1, 0.4]).common(judged([4, 9, 7], [0.0, 0.9, 0.2]))
    assert (mine.tolist(), theirs.tolist()) == ([0.4, 0.7], [0.0, 0.2])
    with pytest.raises(DataError, match=r"ndcg@10 and ndcg@20 cannot be compared"):
        judged([1], [1.0]).common(judged([1], [1.0], "ndcg@20"))


def test_a_file_of_something_else_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ReleaseError, match=r"nothing\.parquet is not a readable table of judged requests"):
        JudgedRequests.read(tmp_path / "nothing.parquet")
    judged([1], [float("nan")]).write(tmp_path / "nan.parquet")
    with pytest.raises(ReleaseError, match=r"nan\.parquet: request_key must be int64 and value finite float64"):
        JudgedRequests.read(tmp_path / "nan.parquet")


def test_metrics_name_the_served_row_where_the_ledger_does() -> None:
    rows = [{"name": "candidates", "metrics": {"ndcg@10": 0.2}}, {"name": "light", "metrics": {"ndcg@10": 0.1}}]
    old = {"candidates/ndcg@10": 0.2, "light/ndcg@10": 0.1}
    assert ledger_metrics({"rows": rows}) == old
    served = {"row": "candidates", "stages": [], "bypassed": {}, "metrics": {"ndcg@10": 0.2}}
    assert ledger_metrics({"rows": rows, "served": served}) == {**old, "served/ndcg@10": 0.2}

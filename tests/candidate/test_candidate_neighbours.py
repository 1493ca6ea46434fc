"""Pairs of nearly equal vectors, against all pairs compared."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv as pv
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from cli.main import main
from stages.candidate.config import IndexConfig
from stages.candidate.index.similar_pairs import read_vectors, similar_pairs, write_pairs
from stages.contracts.errors import ConfigError, DataError

RNG = np.random.default_rng(0)


def planted(n: int, dim: int = 16) -> np.ndarray:
    """Random vectors of different lengths; every tenth is a noisy copy of the one before; row 5 is zero."""
    vectors = RNG.normal(size=(n, dim)) * RNG.uniform(0.1, 10, (n, 1))
    vectors[10::10] = vectors[9:-1:10] * 3 + 0.02 * RNG.normal(size=vectors[10::10].shape)
    vectors[5] = 0
    return vectors.astype(np.float32)


def brute_force(vectors: np.ndarray, threshold: float) -> dict[tuple[int, int], float]:
    unit = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    cosine = unit.astype(np.float64) @ unit.T
    first, second = np.nonzero(np.triu(cosine >= threshold, 1))
    return {(a, b): cosine[a, b] for a, b in zip(first.tolist(), second.tolist(), strict=True)}


def test_exact_pairs() -> None:
    vectors = planted(400)
    first, second, cosine = similar_pairs(vectors, 0.7, 30, IndexConfig())
    wanted = brute_force(vectors, 0.7)
    found = dict(zip(zip(first.tolist(), second.tolist(), strict=True), cosine.tolist(), strict=True))
    assert found == pytest.approx(wanted, abs=1e-5)
    assert len(found) > 39
    assert cosine.tolist() == sorted(cosine.tolist(), reverse=True)


def test_approximate_pairs_of_many_items() -> None:
    vectors = planted(6_000)
    first, second, _ = similar_pairs(vectors, 0.98, 5, IndexConfig(exact_below=1_000))
    wanted = brute_force(vectors, 0.98)
    found = set(zip(first.tolist(), second.tolist(), strict=True))
    assert found <= set(wanted)
    assert len(found) > 0.9 * len(wanted) > 300


def test_what_the_next_run_reads(tmp_path: Path) -> None:
    vectors = {"item_id": ["a", "b", "c"], "vector": [[1.0, 0.0], [0.0, 2.0], [9.0, 0.1]]}
    pq.write_table(pa.table(vectors), tmp_path / "vectors.parquet")
    names, values = read_vectors(tmp_path / "vectors.parquet")
    assert write_pairs(names, similar_pairs(values, 0.9, 5, IndexConfig()), tmp_path / "pairs.csv") == 1
    (row,) = pv.read_csv(tmp_path / "pairs.csv").to_pylist()
    assert (row["item_a"], row["item_b"], row["similarity"]) == ("a", "c", pytest.approx(0.99994, abs=1e-5))


def test_nothing_to_compare() -> None:
    for vectors in (np.zeros((0, 4)), np.zeros((3, 4)), np.ones((1, 4))):
        assert [len(column) for column in similar_pairs(vectors.astype(np.float32), 0.9, 5, IndexConfig())] == [0, 0, 0]


def test_bad_input(tmp_path: Path) -> None:
    good = np.ones((3, 2), np.float32)
    for threshold, neighbours in ((0.0, 5), (1.5, 5), (0.9, 0)):
        with pytest.raises(ConfigError, match="threshold"):
            similar_pairs(good, threshold, neighbours, IndexConfig())
    with pytest.raises(DataError, match="finite"):
        similar_pairs(np.array([[1.0, np.nan]], np.float32), 0.9, 5, IndexConfig())
    with pytest.raises(DataError, match=r"vectors\.parquet.*item_id and vector"):
        read_vectors(tmp_path / "vectors.parquet")
    pq.write_table(pa.table({"item_id": ["a", "b"], "vector": [[1.0], [1.0, 2.0]]}), tmp_path / "ragged.parquet")
    with pytest.raises(DataError, match="one length"):
        read_vectors(tmp_path / "ragged.parquet")


def test_the_command_writes_pairs_that_the_next_run_decides(job, tiny, tmp_path: Path) -> None:
    """Copies of every tenth item in the vectors become duplicates of the next snapshot."""
    from stages import pipeline
    from stages.contracts.snapshot import Snapshot
    from stages.settings import load_settings

    items = Snapshot(job.results["dataset"].directory).items().item_id.tolist()
    vectors = RNG.normal(size=(len(items), 32))
    copies = [(items[number - 1], items[number]) for number in range(10, len(items), 10)]
    vectors[10::10] = vectors[9:-1:10] if len(items) % 10 else vectors[9::10][: len(vectors[10::10])]
    pq.write_table(pa.table({"item_id": items, "vector": vectors.tolist()}), tmp_path / "vectors.parquet")
    arguments = [
        "dataset",
        "pairs",
        "--data",
        "synthetic",
        "--vectors",
        str(tmp_path / "vectors.parquet"),
        "--output",
        str(tmp_path / "p.csv"),
    ]
    done = CliRunner().invoke(main, arguments, env=job.environ)
    assert done.exit_code == 0, done.output
    assert f"{len(copies)} pairs" in done.output
    duplicates = {"pairs": str(tmp_path / "p.csv"), "method": "none"}
    settings = load_settings(job.environ, data="synthetic", overrides={**tiny, "dataset": {"duplicates": duplicates}})
    results = pipeline.run_all(settings, until="dataset")
    snapshot = Snapshot(results["dataset"].directory)
    names = snapshot.items().item_id
    joined = {frozenset((alias, names[row])) for alias, row in snapshot.aliases().items()}
    categories_agree = {frozenset(pair) for pair in copies}
    assert joined <= categories_agree
    assert len(joined) > len(copies) / 10, "the others have categories that contradict"

"""A disk that fills up on a real small file system: one error with its bytes, nothing half-written, then it goes on."""

from __future__ import annotations

import errno
import os
import re
import sqlite3
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

from stages.contracts.config import Config
from stages.contracts.disk import free_bytes, is_out_of_space, require_disk
from stages.contracts.errors import DataError, OutOfSpaceError, TransientError
from stages.contracts.files import create_array
from stages.contracts.steps import Outcome, run_step
from tests.small_disk import ROOT, on_small_disk

STEP = """
import os, subprocess, sys
from pathlib import Path
import numpy as np
from stages.contracts.config import Config
from stages.contracts.errors import OutOfSpaceError
from stages.contracts.files import create_array, write_json
from stages.contracts.steps import run_step

root, way = Path(sys.argv[1]), sys.argv[2]

def mapped(config, inputs, directory):
    array = create_array(directory / "features.npy", np.float32, (1_000_000,))
    array[:] = 1
    return {"sum": float(array.sum())}, {}

def saved(config, inputs, directory):
    np.save(directory / "labels.npy", np.ones(500_000))
    return {}, {}

def parquet(config, inputs, directory):
    import pyarrow as pa, pyarrow.parquet as pq
    pq.write_table(pa.table({"x": np.random.default_rng(0).random(500_000)}), directory / "x.parquet")
    return {}, {}

def faiss(config, inputs, directory):
    import faiss
    index = faiss.IndexFlatIP(64)
    index.add(np.ones((20_000, 64), dtype=np.float32))
    faiss.write_index(index, str(directory / "index.faiss"))
    return {}, {}

def words(config, inputs, directory):
    write_json(directory / "words.json", "x" * 3_000_000)
    return {}, {}

def run():
    return run_step("build_examples", "1", globals()[way], Config(), {}, root / "runs")

try:
    run()
except OutOfSpaceError as error:
    print(error)
    print([str(path) for path in root.rglob("*") if path.is_file() or path.name.endswith(".tmp")])
    subprocess.run(["mount", "-o", "remount,size=32m", str(root)], check=True)
    print(run().reused, run().reused)
"""


@pytest.mark.parametrize("way", ["mapped", "saved", "parquet", "faiss", "words"])
def test_a_full_disk_is_one_error_and_the_step_goes_on_when_there_is_room(tmp_path: Path, way: str) -> None:
    done = on_small_disk(tmp_path / "small", "2m", STEP, way)
    assert done.returncode == 0, (done.returncode, done.stderr)
    message, left, again = done.stdout.splitlines()
    assert message.startswith("step build_examples: ")
    assert "bytes are free in" in message
    assert "lower examples.negatives.per_request" in message
    assert left == "[]"
    assert again == "False True"


def test_a_mapped_array_says_what_it_needs_before_it_is_written(tmp_path: Path) -> None:
    done = on_small_disk(tmp_path / "small", "2m", STEP, "mapped")
    assert "features.npy needs 4,000,000 bytes, 2,0" in done.stdout


def test_what_will_not_fit_is_refused_before_it_begins(tmp_path: Path) -> None:
    free = free_bytes(tmp_path)
    require_disk("retrieve", tmp_path / "not yet" / "made", 0)
    words = rf"step retrieve: it will write about {10 * free + 5:,} bytes, [\d,]+ are free in .*; lower .*, make room"
    with pytest.raises(OutOfSpaceError, match=words) as found:
        require_disk("retrieve", tmp_path, 10 * free + 5)
    assert found.value.step == "retrieve"
    with pytest.raises(OutOfSpaceError, match=r"; make room, or let SLUICE_HOME be on a larger disk"):
        require_disk("ingest", tmp_path, 10 * free + 5)


DUCKDB = """
import subprocess, sys
from pathlib import Path
from cli.main import main
import os
place = sys.argv[1]
os.environ |= {"SLUICE_HOME": place + "/home", "TMPDIR": place}
arguments = ["ingest", "--data", "synthetic", "--config", "configs/demo.yaml", "--set"]
arguments += ["world={n_users: 300, n_items: 400, n_events: 40000, days: 20, n_topics: 8, n_categories: 4}"]
for size in ("1m", "64m"):
    subprocess.run(["mount", "-o", f"remount,size={size}", place], check=True)
    done = subprocess.run([sys.executable, "-m", "cli", *arguments], capture_output=True, text=True)
    print(done.returncode, [line for line in done.stderr.splitlines() if line.startswith("error")])
    print("Traceback" in done.stderr)
"""


def test_a_warehouse_that_does_not_fit_is_one_line_and_an_exit_code(tmp_path: Path) -> None:
    done = on_small_disk(tmp_path / "small", "1m", DUCKDB)
    assert done.returncode == 0, done.stderr
    first, no_traceback, second, _ = done.stdout.splitlines()
    assert first.startswith("5 ['error: step ingest: a disk is full: ")
    assert "warehouse.duckdb" in first
    assert no_traceback == "False"
    assert second == "0 []"


REGISTER = """
import sys
from pathlib import Path
from stages.contracts.disk import names_full_disk
from stages.contracts.errors import OutOfSpaceError
from stages.release.mlflow_client import mlflow_errors, open_client
place = Path(sys.argv[1])
client = open_client(f"sqlite:///{place}/mlflow.db")
client.search_experiments()
with (place / "filler").open("wb", buffering=0) as filler:
    try:
        while True:
            filler.write(bytes(1 << 12))
    except OSError:
        pass
try:
    with names_full_disk("register", place), mlflow_errors("register release 1"):
        for number in range(1000):
            client.create_experiment(f"{number}")
except OutOfSpaceError as error:
    print(error)
"""


@pytest.mark.slow
def test_mlflows_books_on_a_full_disk_are_told_as_such(tmp_path: Path) -> None:
    done = on_small_disk(tmp_path / "small", "4m", REGISTER)
    assert done.stdout.startswith("step register: a disk is full: "), done.stderr
    assert "database or disk is full" in done.stdout


def test_without_the_kernels_help_the_free_space_is_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(file: int, start: int, size: int) -> None:
        raise OSError(errno.EOPNOTSUPP, "not supported")

    monkeypatch.setattr(os, "posix_fallocate", refuse)
    array = create_array(tmp_path / "a.npy", np.float32, (3, 2))
    assert array.shape == (3, 2) and not array.any()
    with pytest.raises(OutOfSpaceError, match=r"b\.npy needs 4,000,000,000,000 bytes"):
        create_array(tmp_path / "b.npy", np.float32, (10**12,))
    assert [path.name for path in tmp_path.iterdir()] == ["a.npy"]


def test_a_created_array_has_all_of_its_blocks_and_is_read_back(tmp_path: Path) -> None:
    array = create_array(tmp_path / "a.npy", np.float32, (1000, 7))
    found = (tmp_path / "a.npy").stat()
    assert found.st_blocks * 512 >= found.st_size
    array[:] = np.arange(7)
    array.flush()
    np.testing.assert_array_equal(np.load(tmp_path / "a.npy"), np.tile(np.arange(7, dtype=np.float32), (1000, 1)))


def test_mapped_files_are_made_in_one_place_only() -> None:
    makers = [
        path.relative_to(ROOT).as_posix()
        for folder in ("stages", "serving", "cli", "benchmarks")
        for path in (ROOT / folder).rglob("*.py")
        if re.search(r"memmap\([^)]*\b[wr]\+", path.read_text(encoding="utf-8"))
    ]
    assert makers == ["stages/contracts/files.py"]


def _caused(error: Exception, cause: BaseException) -> Exception:
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("error", "full"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), True),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), True),
        (OSError("400000 requested and 131056 written"), True),
        (_caused(RuntimeError("x"), OSError(errno.ENOSPC, "no")), True),
        (TransientError("MLflow could not x: (sqlite3.OperationalError) database or disk is full"), True),
        (sqlite3.OperationalError("database or disk is full"), True),
        (OSError(errno.EACCES, "Permission denied"), False),
        (RuntimeError("could not write"), False),
        (DataError("12 rows requested"), False),
    ],
)
def test_every_librarys_words_for_a_full_disk_are_known(error: BaseException, full: bool) -> None:
    assert is_out_of_space(error) is full


def test_another_fault_stays_what_it_is_and_one_that_was_named_is_not_named_twice(tmp_path: Path) -> None:
    def broken(config: Config, inputs: Mapping[str, Path], directory: Path) -> Outcome:
        raise OSError(errno.EACCES, "no")

    with pytest.raises(OSError, match="no") as found:
        run_step("make", "1", broken, Config(), {}, tmp_path)
    assert not isinstance(found.value, OutOfSpaceError)

    def full(config: Config, inputs: Mapping[str, Path], directory: Path) -> Outcome:
        raise OSError(errno.ENOSPC, "full")

    with pytest.raises(OutOfSpaceError) as once:
        run_step("make", "1", full, Config(), {}, tmp_path)
    assert str(once.value).count("step make") == 1
    assert isinstance(once.value, TransientError), "other processes, or a person, may make room"
    assert list((tmp_path / "make").iterdir()) == []

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from stages.contracts import arrays
from stages.contracts.arrays import load_npy

WHOLE = np.arange(12, dtype=np.int32).reshape(3, 4)


@pytest.fixture(params=["read", "mapped"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "mapped":
        monkeypatch.setattr(arrays, "IN_MEMORY_BYTES", -1)
    return request.param


def put(directory: Path, data: bytes | np.ndarray) -> Path:
    path = directory / "a.npy"
    if isinstance(data, np.ndarray):
        np.save(path, data)
    else:
        path.write_bytes(data)
    return path


@pytest.mark.parametrize("array", [WHOLE, np.asfortranarray(WHOLE), np.zeros((0, 4)), np.float32(1.5), WHOLE > 5])
@pytest.mark.parametrize("mode", ["r", "c"])
def test_an_array_comes_back_whole(way: str, tmp_path: Path, array: np.ndarray, mode: Literal["r", "c"]) -> None:
    path = put(tmp_path, np.asarray(array))
    before = path.read_bytes()
    found = load_npy(path, mode)
    np.testing.assert_array_equal(found, array, strict=True)
    assert found.flags.writeable == (mode == "c")
    if mode == "c":
        found[...] = 0
    assert path.read_bytes() == before


@pytest.mark.parametrize("data", [b"", b"\x93NUM", b"PK\x03\x04" + bytes(200), b"[1, 2, 3]", bytes(500)])
def test_what_is_no_array_is_refused(way: str, tmp_path: Path, data: bytes) -> None:
    with pytest.raises(ValueError, match=r"."):
        load_npy(put(tmp_path, data))


def test_an_archive_and_objects_are_refused(way: str, tmp_path: Path) -> None:
    with (tmp_path / "a.npy").open("wb") as stream:
        np.savez(stream, a=WHOLE)
    with pytest.raises(ValueError, match="magic"):
        load_npy(tmp_path / "a.npy")
    np.save(tmp_path / "a.npy", np.array([{}], dtype=object), allow_pickle=True)
    with pytest.raises(ValueError, match=r"[Oo]bject"):
        load_npy(tmp_path / "a.npy")


def test_a_file_that_was_cut_short_is_refused(way: str, tmp_path: Path) -> None:
    whole = put(tmp_path, WHOLE).read_bytes()
    for length in range(len(whole)):
        path = put(tmp_path, whole[:length])
        with pytest.raises(ValueError, match=r"."):
            load_npy(path)


def test_what_follows_the_array_is_refused(way: str, tmp_path: Path) -> None:
    whole = put(tmp_path, WHOLE).read_bytes()
    with pytest.raises(ValueError, match="5 bytes follow the array, which ends at byte 176"):
        load_npy(put(tmp_path, whole + b"noise"))
    with pytest.raises(ValueError, match="bytes follow the array"):
        load_npy(put(tmp_path, whole + whole))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.lists(st.tuples(st.integers(0, 127), st.integers(0, 255)), min_size=1, max_size=3))
@example([(60, ord("{"))])  # a header whose braces do not close
def test_a_header_of_noise_is_an_array_or_refused(tmp_path: Path, changes: list[tuple[int, int]]) -> None:
    data = bytearray(put(tmp_path, WHOLE).read_bytes())
    for place, value in changes:
        data[place] = value
    path = put(tmp_path, bytes(data))
    try:
        found = load_npy(path)
    except ValueError:
        return
    assert found.nbytes == WHOLE.nbytes


def test_a_header_that_claims_more_than_memory_holds_is_refused(way: str, tmp_path: Path) -> None:
    whole = put(tmp_path, WHOLE).read_bytes()
    for claimed in (b"(99999999999999999, 4)", b"(9999, 9999, 9999, 9999)"):
        path = put(tmp_path, whole.replace(b"(3, 4), }" + b" " * (len(claimed) - 6), claimed + b", }"))
        with pytest.raises(ValueError, match=r"."):
            load_npy(path)


def test_a_missing_file_is_an_os_error(way: str, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        load_npy(tmp_path / "a.npy")

from __future__ import annotations

import gzip
import random
import zlib
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from stages.contracts.errors import DataError
from stages.warehouse.readers import blocks
from stages.warehouse.readers.blocks import Block, read_blocks

ONE_FILE = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)


def read(path: Path, size: int = 64, quote: str | None = None) -> list[Block]:
    return list(read_blocks(path, size, quote, lambda _: None))


def put(directory: Path, name: str, data: bytes) -> Path:
    path = directory / name
    path.write_bytes(data)
    return path


def lines(n: int, seed: int = 0) -> bytes:
    """Lines of random digits, which hardly compress: a stream of them has many places to break in."""
    rng = random.Random(seed)
    return b"".join(b"%d,%d\n" % (row, rng.getrandbits(64)) for row in range(n))


def check_broken(found: list[Block], fault: str, whole: bytes) -> None:
    """Only the last block has the fault; all of them and the tail are the file's beginning."""
    assert [block.fault for block in found[:-1]] == [None] * (len(found) - 1)
    assert found[-1].fault == fault
    assert all(block.data.endswith(b"\n") for block in found[:-1])
    before = b"".join(block.data for block in found)
    assert not before or before.endswith(b"\n")
    assert b"\n" not in found[-1].tail
    assert whole.startswith(before + found[-1].tail)


@ONE_FILE
@given(st.binary(max_size=300).map(lambda data: data.replace(b"\0", b"\n")), st.integers(1, 80), st.booleans())
def test_the_blocks_of_a_file_are_the_file(tmp_path: Path, data: bytes, size: int, packed: bool) -> None:
    path = put(tmp_path, "a.gz" if packed else "a.txt", gzip.compress(data) if packed else data)
    told: list[int] = []
    found = list(read_blocks(path, size, None, told.append))
    assert b"".join(block.data for block in found) == data
    assert all(block.data.endswith(b"\n") for block in found[:-1])
    assert all(block.data and (block.fault, block.tail) == (None, b"") for block in found)
    assert sum(told) == path.stat().st_size


@ONE_FILE
@given(st.lists(st.sampled_from(['a,"b\nc"\n', "d\n", '"\n\n"\n', '"e""f\n"\n']), max_size=12), st.integers(1, 12))
def test_no_block_ends_within_quotes(tmp_path: Path, records: list[str], size: int) -> None:
    data = "".join(records).encode()
    found = read(put(tmp_path, "a.csv", data), size * 8, '"')
    assert b"".join(block.data for block in found) == data
    ends, whole = set(), b""
    for record in records:
        whole += record.encode()
        ends.add(len(whole))
    place = 0
    for block in found:
        place += len(block.data)
        assert place in ends


def test_a_quote_that_never_closes_does_not_swallow_the_file(tmp_path: Path) -> None:
    data = b'"open\n' + b"x" * 10 + b"\n" + lines(100)
    found = read(put(tmp_path, "a.csv", data), 64, '"')
    assert b"".join(block.data for block in found) == data
    assert max(len(block.data) for block in found) <= 5 * 64 + 64


def test_a_line_without_an_end_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocks, "_LONGEST_RECORD", 1_000)
    path = put(tmp_path, "a.csv", b"a\n" + b"x" * 2_000)
    with pytest.raises(DataError, match=r"a\.csv: a line is longer than 1,000 bytes; is it a text file\?"):
        read(path)
    assert len(read(put(tmp_path, "b.csv", b"x" * 900 + b"\n"))) == 1


@pytest.mark.parametrize("between", [b"", b"\0" * 200])
def test_members_follow_one_another_with_zeros_between_and_after(tmp_path: Path, between: bytes) -> None:
    parts = [lines(40, 1), b"", lines(1, 2), lines(40, 3)]
    data = between.join(gzip.compress(part) for part in parts) + between
    found = read(put(tmp_path, "a.gz", data))
    assert b"".join(block.data for block in found) == b"".join(parts)
    assert found[-1].fault is None


def test_what_compresses_well_is_read_in_blocks_too(tmp_path: Path) -> None:
    """A thousand bytes of text for one of the file: no piece is larger than asked for."""
    data = (b"0" * 99 + b"\n") * 20_000
    found = read(put(tmp_path, "a.gz", gzip.compress(data)), 1_000)
    assert b"".join(block.data for block in found) == data
    assert max(len(block.data) for block in found) <= 2_000


@pytest.mark.parametrize("size", [64, 1_000, 1 << 20])
def test_a_file_cut_anywhere_keeps_its_beginning(tmp_path: Path, size: int) -> None:
    whole = lines(60)
    packed = gzip.compress(whole)
    for cut in range(1, len(packed), 7):
        found = read(put(tmp_path, "a.gz", packed[:cut]), size)
        check_broken(found, "truncated_gzip", whole)
    kept = [sum(len(block.data) for block in read(put(tmp_path, "a.gz", packed[:-cut]), size)) for cut in (8, 300)]
    assert kept[0] == len(whole), "only the checksum is missing"
    assert 0 < kept[1] < len(whole)


@pytest.mark.parametrize("size", [64, 1_000, 1 << 20])
def test_a_wrong_checksum_is_told_and_the_lines_before_it_are_kept(tmp_path: Path, size: int) -> None:
    whole = lines(60)
    packed = bytearray(gzip.compress(whole))
    packed[-5] ^= 1
    found = read(put(tmp_path, "a.gz", bytes(packed)), size)
    check_broken(found, "corrupt_gzip", whole)
    assert b"".join(block.data for block in found) == whole


@pytest.mark.parametrize("size", [64, 1_000, 1 << 20])
def test_noise_within_a_file_keeps_what_came_before(tmp_path: Path, size: int) -> None:
    """The second of three parts begins with a block type that does not exist."""
    packer = zlib.compressobj(wbits=31)
    first = packer.compress(lines(60, 1)) + packer.flush(zlib.Z_FULL_FLUSH)
    path = put(tmp_path, "a.gz", first + b"\xff" * 50 + gzip.compress(lines(60, 2)))
    found = read(path, size)
    check_broken(found, "corrupt_gzip", lines(60, 1))
    assert b"".join(block.data for block in found) == lines(60, 1)


@pytest.mark.parametrize("noise", [b"noise", b"\0\0noise", b"\x1f\x8b\xff\xff\xff\xff\xff\xff\xff\xff\xff"])
def test_noise_after_the_last_member_is_told(tmp_path: Path, noise: bytes) -> None:
    whole = lines(60)
    found = read(put(tmp_path, "a.gz", gzip.compress(whole) + noise))
    check_broken(found, "corrupt_gzip", whole)
    assert b"".join(block.data for block in found) == whole


@ONE_FILE
@given(st.data())
def test_a_flipped_bit_is_never_silent_and_never_another_error(tmp_path: Path, data: st.DataObject) -> None:
    whole = lines(30)
    packed = bytearray(gzip.compress(whole, mtime=0))
    # The header's time, flags of extra speed and operating system say nothing about the content.
    place = data.draw(st.integers(0, len(packed) - 1).filter(lambda at: not 4 <= at < 10))
    packed[place] ^= 1 << data.draw(st.integers(0, 7))
    path = put(tmp_path, "a.gz", bytes(packed))
    try:
        found = read(path, data.draw(st.sampled_from([16, 500, 1 << 20])))
    except DataError as error:
        assert "a.gz: named .gz, but it is not gzip" in str(error)
    else:
        # The bits behind the end of the last compressed block say nothing about the content either.
        harmless = found[-1].fault is None and b"".join(block.data for block in found) == whole
        assert harmless or found[-1].fault in {"corrupt_gzip", "truncated_gzip"}


@pytest.mark.parametrize("data", [b"user,item\n", b"\x1f", b"PK\x03\x04" + bytes(50), bytes(500)])
def test_what_is_no_gzip_is_refused_or_told(tmp_path: Path, data: bytes) -> None:
    path = put(tmp_path, "a.csv.gz", data)
    if b"\x1f\x8b".startswith(data):  # the beginning of a header
        assert read(path) == [Block(b"", "truncated_gzip")]
        return
    with pytest.raises(DataError, match=r"a\.csv\.gz: named \.gz, but it is not gzip"):
        read(path)


def test_an_empty_file_has_no_block(tmp_path: Path) -> None:
    assert read(put(tmp_path, "a.csv", b"")) == []
    assert read(put(tmp_path, "a.gz", b"")) == []
    assert read(put(tmp_path, "b.gz", gzip.compress(b""))) == []


def test_a_gzip_by_another_name_is_not_unpacked(tmp_path: Path) -> None:
    packed = gzip.compress(b"a\n")
    assert b"".join(block.data for block in read(put(tmp_path, "a.csv", packed))) == packed
    assert read(put(tmp_path, "A.CSV.GZ", packed)) == [Block(b"a\n")]


def test_a_missing_file_and_a_folder_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none\.csv: No such file"):
        read(tmp_path / "none.csv")
    (tmp_path / "folder.csv").mkdir()
    with pytest.raises(DataError, match=r"folder\.csv: Is a directory"):
        read(tmp_path / "folder.csv")

"""Data that no model can be judged on are refused before anything trains: one line, an exit code, no traceback."""

from __future__ import annotations

import gzip
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from benchmarks.retrieval.__main__ import main
from benchmarks.retrieval.replay.models import Trending
from benchmarks.retrieval.static.models import Popularity

GOOD = b"".join(b"%d %d %d %d\n" % (user, user % 5, 5 + user % 3, 8 + user % 2) for user in range(12))
SEQUENCES = "allowed are lines of whole numbers: user item item"
RATINGS = "allowed are rows of user, item, rating, seconds"
Refused = Callable[..., str]


@pytest.fixture
def refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Refused:
    """Run the command on files; return its error after checking that it is one line and nothing was trained."""

    def never(*arguments: object) -> None:
        raise AssertionError("something was trained")

    monkeypatch.setattr(Popularity, "fit", never)
    monkeypatch.setattr(Trending, "ranks", never)

    def run(protocol: str, files: dict[str, bytes | pa.Table], *options: str, path: str = "") -> str:
        for name, content in files.items():
            if isinstance(content, bytes):
                (tmp_path / name).write_bytes(content)
            else:
                pq.write_table(content, tmp_path / name)
        command = ["--protocol", protocol, "--data", str(tmp_path / path), "--models", "popularity", *options]
        assert main(command) == 3
        said = capsys.readouterr()
        assert said.out == ""
        errors = said.err.splitlines()
        assert errors[-1].startswith("error: ")
        assert not any(line.startswith(("error", "Traceback")) for line in errors[:-1])
        return errors[-1]

    return run


TEXT_FAULTS = {
    "empty": (b"", "the file is empty"),
    "blank": (b" \n\n", "the file is empty"),
    "negative": (b"1 2 -3 4\n", "line 1: '-3' is not a whole number"),
    "fraction": (b"1 2 3 4\n1 2.5 3 4\n", "line 2: '2.5' is not a whole number"),
    "text": ("1 2 3 ☃\n".encode(), "line 1: '☃' is not a whole number"),
    "underscore": (b"1 2 3 1_0\n", "line 1: '1_0' is not a whole number"),
    "large": (b"1 2 3 99999999999999999999\n", "line 1: '99999999999999999999' is not a whole number"),
    "gzip under another name": (gzip.compress(GOOD), "u.data: line 1: "),
}


@pytest.mark.parametrize("fault", TEXT_FAULTS)
@pytest.mark.parametrize(("protocol", "name"), [("ml-100k", "u.data"), ("ml-100k-replay", "u.data")])
def test_ratings_that_are_none(refused: Refused, protocol: str, name: str, fault: str) -> None:
    content, message = TEXT_FAULTS[fault]
    assert message in refused(protocol, {name: content})


@pytest.mark.parametrize("fault", list(TEXT_FAULTS)[:-1])
def test_sequences_that_are_none(refused: Refused, fault: str) -> None:
    content, message = TEXT_FAULTS[fault]
    assert message in refused("beauty", {"Beauty.txt": content})
    assert f"test.txt: {message}" in refused("ml-1m-m1", {"train.txt": GOOD, "test.txt": content})
    assert f"train.txt: {message}" in refused("ml-1m-m1", {"train.txt": content, "test.txt": GOOD})


@pytest.mark.parametrize("content", [b"1 2 3", b"1 2 3 4 5", b"user\titem\trating\ttime"])
def test_rows_of_other_fields(refused: Refused, content: bytes) -> None:
    assert RATINGS in refused("ml-100k", {"u.data": b"1 2 3 4\n" + content + b"\n"})
    assert RATINGS in refused("ml-100k-replay", {"u.data": b"1 2 3 4\n" + content + b"\n"})


def test_times_that_overflow(refused: Refused) -> None:
    assert "line 2: seconds = 100000000000000000: allowed are" in refused(
        "ml-100k-replay", {"u.data": b"1 2 3 4\n1 3 3 100000000000000000\n"}
    )


@pytest.mark.parametrize(
    "content",
    [b"plain", gzip.compress(GOOD)[:-9], gzip.compress(GOOD)[:20] + b"xxxx" + gzip.compress(GOOD)[24:]],
    ids=["plain", "cut short", "damaged"],
)
def test_gzips_that_are_none(refused: Refused, content: bytes) -> None:
    assert "u.data.gz: unreadable" in refused("ml-100k", {"u.data.gz": content})
    assert "Beauty.txt.gz: unreadable" in refused("beauty", {"Beauty.txt.gz": content})
    assert "test.txt.gz: unreadable" in refused("ml-1m-m1", {"train.txt": GOOD, "test.txt.gz": content})


def test_one_file_where_two_are_needed(refused: Refused) -> None:
    needed = "this protocol needs train.txt and test.txt (also .gz): give the folder that holds them"
    assert f"train.txt: one file; {needed}" in refused("ml-1m-m1", {"train.txt": GOOD}, path="train.txt")
    assert f"there is no test.txt; {needed}" in refused("ml-1m-m1", {})
    assert f"nothing: there is no train.txt; {needed}" in refused("ml-1m-m1", {}, path="nothing")


def pairs(text: bytes) -> list[tuple[bytes, bytes]]:
    """Return the pairs of user and item of lines ``user item item …``."""
    return [(line.split()[0], item) for line in text.splitlines() for item in line.split()[1:]]


@pytest.mark.parametrize("protocol", ["m1", "ml-1m-m1", "amazoncds-m1"])
def test_every_name_of_given_files_refuses_alike(refused: Refused, protocol: str) -> None:
    files = {"train.txt": b"1 2 3\n4 2 5\n", "test.txt": b"1 3\n"}
    assert "test.txt: 1 of 1 rows are in train.txt too" in refused(protocol, files)
    assert "test.txt: the file is empty" in refused(protocol, {**files, "test.txt": b"\n"})
    assert "test.txt: no line has an item" in refused(protocol, {**files, "test.txt": b"1\n4\n"})
    assert "such as user 7" in refused(protocol, {**files, "test.txt": b"7 3\n"})


def test_given_files_that_do_not_go_together(refused: Refused) -> None:
    files = {"train.txt": b"1 2 3\n4 2 5\n", "test.txt": b"1 5\n4 3 2\n"}
    assert "test.txt: 1 of 3 rows are in train.txt too, such as user 4 with item 2" in refused("ml-1m-m1", files)
    reordered = b"\n".join(reversed(GOOD.splitlines())) + b"\n"
    for copy in (GOOD, reordered):
        assert f"test.txt: the same {len(set(pairs(GOOD)))} rows as train.txt" in refused(
            "m1", {"train.txt": GOOD, "test.txt": copy}
        )
    files["test.txt"] = b"1 5\n9 3\n"
    assert "test.txt: 1 users have no row in train.txt, such as user 9" in refused("ml-1m-m1", files)


@pytest.mark.parametrize("options", [(), ("--validation",)])
def test_one_item_a_user(refused: Refused, options: tuple[str, ...]) -> None:
    """So is a user of one item several times."""
    for content in (b"".join(b"%d %d\n" % (user, user % 4) for user in range(9)), b"1 5 5 5\n2 5 5\n"):
        assert "the protocol needs users with two items or more" in refused("beauty", {"Beauty.txt": content}, *options)
    ids = list(range(9))
    table = pa.table({"user_id": ids, "movie_id": ids, "chrono_pos": [0] * 9})
    assert "no row is left" in refused("ml-1m-loo", {"interactions.parquet": table}, *options)
    ratings = b"".join(b"%d %d 3 %d\n" % (user, user % 4, user) for user in range(150))
    assert "nobody who is judged has a training row" in refused("ml-100k", {"u.data": ratings}, *options)
    assert "nobody who is judged has met another item" in refused("ml-100k-replay", {"u.data": ratings}, *options)
    clicks = pa.table({"user_id": range(150), "article_id": [1] * 150, "clicked_at": np.arange(150) * 2_880_000})
    assert "nobody who is judged has met another item" in refused(
        "globo", {"a.parquet": clicks}, *options, path="a.parquet"
    )


def test_one_training_item_a_user(refused: Refused) -> None:
    files = {"train.txt": b"1 2\n2 3\n", "test.txt": b"1 3\n2 2\n"}
    assert "with --validation users of several items" in refused("ml-1m-m1", files, "--validation")


def test_one_rating_an_item(refused: Refused) -> None:
    ratings = b"".join(b"%d %d 3 %d\n" % (item % 9, item, item) for item in range(30))
    assert "the protocol needs items that three users or more have" in refused("ml-100k", {"u.data": ratings})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"user_id": pa.array([1, None, 1])}, "user_id is int64 with 1 missing values"),
        ({"movie_id": ["a", "b", "c"]}, "movie_id is string"),
        ({"movie_id": [-1, 2, 3]}, "item = -1"),
        ({"chrono_pos": [0.0, 1.0, 2.0]}, "chrono_pos is double"),
        ({"chrono_pos": [-1, -1, -1]}, "no row is left"),
    ],
)
def test_positions_that_are_none(refused: Refused, changes: dict[str, object], message: str) -> None:
    table = pa.table({"user_id": [1, 1, 1], "movie_id": [1, 2, 3], "chrono_pos": [0, 1, 2], **changes})
    assert message in refused("ml-1m-loo", {"interactions.parquet": table})
    assert "no row" in refused("ml-1m-loo", {"interactions.parquet": table.slice(0, 0)})
    assert "interactions.parquet: " in refused("ml-1m-loo", {"interactions.parquet": b""})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"user_id": pa.array([None] * 9, pa.int64())}, "user_id is int64 with 9 missing values"),
        ({"user_id": [1.5] * 9}, "user_id is double"),
        ({"article_id": [[1]] * 9}, "article_id is list"),
        ({"article_id": [-1] * 9}, "article_id = -1"),
        ({"clicked_at": ["2017-10-01"] * 9}, "clicked_at is string"),
        ({"clicked_at": pa.array([None] * 9, pa.timestamp("us"))}, "clicked_at is timestamp[us] with 9 missing values"),
        ({"region": [[1]] * 9}, "region is list"),
        ({}, "allowed is a log with clicks on two days to judge"),
    ],
)
def test_clicks_that_are_none(refused: Refused, changes: dict[str, object], message: str) -> None:
    table = pa.table({"user_id": [1] * 9, "article_id": range(9), "clicked_at": range(9), **changes})
    assert message in refused("globo", {"a.parquet": table})
    assert "no row" in refused("globo", {"a.parquet": table.slice(0, 0)})
    assert "2 Parquet files" in refused("globo", {"b.parquet": table})


def test_a_repeated_row_counts_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Else an item that is held out would be known from training, and could never be answered."""
    (tmp_path / "Beauty.txt").write_bytes(b"1 5 6 7 5\n2 6 5\n3 7 6\n")
    assert main(["--protocol", "beauty", "--data", str(tmp_path), "--models", "popularity"]) == 0
    said = capsys.readouterr()
    assert "1 of 8 rows repeat a user's item; the first of each counts" in said.err
    assert '"train": 4, "test": 3' in said.out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--seeds", "-1"], "--seeds -1: allowed are whole numbers"),
        (["--seeds", "5000000000"], "from 0 to 4000000000"),
        (["--memory-gb", "0"], "--memory-gb 0: allowed is a number above 0"),
        (["--data", "another"], "--data: 2 given; allowed is one folder or file"),
    ],
)
def test_options(tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], message: str) -> None:
    (tmp_path / "Beauty.txt").write_bytes(GOOD)
    assert main(["--protocol", "beauty", "--data", str(tmp_path), *options]) == 2
    assert message in capsys.readouterr().err

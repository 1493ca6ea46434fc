"""Public logs: Globo's news clicks, GH Archive, impressions in MIND's format, and lists of items.

Each function returns the data source of some files, or None if they are of another layout.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from stages.contracts.errors import DataError
from stages.warehouse.mapping import FileSource, IngestSource, InteractionColumns, ItemColumns
from stages.warehouse.readers.blocks import read_blocks
from stages.warehouse.readers.json_lines import split_objects

TEST_START_MS = 86_400_000
"""Time of the first held-out item, int ms: later than every item of a training line. The longest line
(64 MiB of text) holds fewer items than this."""

_HOUR = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}-[0-9]{1,2}\.json")
_TIMELINE_HOUR = re.compile(r"201[234]-[0-9]{2}-[0-9]{2}-[0-9]{1,2}\.json")
_GLOBO_CONTEXT = ("environment", "device_group", "os", "country", "region", "referrer_type")
_GLOBO_KAGGLE = (
    "click_environment",
    "click_deviceGroup",
    "click_os",
    "click_country",
    "click_region",
    "click_referrer_type",
)
_BEHAVIOURS = ("impression_id", "user_id", "time", "history", "impressions")
_NEWS = ("news_id", "category", "subcategory", "title", "abstract", "url", "title_entities", "abstract_entities")


def globo_parquet(path: Path, files: Mapping[str, Path]) -> IngestSource | None:
    """Return Globo's clicks in Parquet files with the log's columns under plain names.

    Items come from the clicks only. ``session_id`` and ``session_start`` are not read.
    """
    wanted = {"user_id", "article_id", "clicked_at", *_GLOBO_CONTEXT}
    found = [file for name, file in sorted(files.items()) if name.endswith(".parquet") and wanted <= _columns(file)]
    mapping = InteractionColumns(
        user_id="user_id",
        item_id="article_id",
        event_time="clicked_at",
        signal="click",
        context=_GLOBO_CONTEXT,
    )
    return _source("globo", tuple(FileSource(path=file, mapping=mapping) for file in found))


def globo_hours(path: Path, files: Mapping[str, Path]) -> IngestSource | None:
    """Return Globo's clicks as first published: a CSV file an hour, ``clicks_hour_000.csv``.

    G. de Souza Pereira Moreira, F. Ferreira and A. M. da Cunha, "News Session-Based Recommendations
    using Deep Neural Networks", DLRS 2018. ``session_size`` is known only when a session is over, so
    it must never be a feature; it is not read.
    """
    if not path.is_dir() or not any(re.fullmatch(r"clicks_hour_[0-9]+\.csv", name) for name in files):
        return None
    mapping = InteractionColumns(
        user_id="user_id",
        item_id="click_article_id",
        event_time="click_timestamp",
        time_unit="ms",
        allow_times=True,  # a file is an hour
        signal="click",
        context=_GLOBO_KAGGLE,
        context_names=_GLOBO_CONTEXT,
    )
    return _source("globo", (FileSource(path=path / "clicks_hour_*", format="csv", mapping=mapping),))


def gharchive(path: Path, files: Mapping[str, Path]) -> IngestSource | None:
    """Return hours of GH Archive (https://www.gharchive.org): every event, from 2015 on.

    Each line is an event of GitHub's Events API
    (https://docs.github.com/en/rest/using-the-rest-api/github-event-types). Users and items are the
    numbers of actors and repositories, which a change of name does not alter. An event is identified by
    its id, kind and time. Its id alone is not enough: on 2025-10-09 GitHub restarted its counting in two
    sequences (pushes with creations and deletions; all else), so that an id occurs up to three times. The
    files are read twice: as repositories with their latest name as title, and as events.
    """
    hours = [file for name, file in files.items() if _HOUR.fullmatch(name)]
    if not hours:
        return None
    where = path / "[0-9][0-9][0-9][0-9]-[0-9][0-9]-[0-9][0-9]-*.json*" if path.is_dir() else path
    repositories = ItemColumns(item_id="repo.id", title="repo.name")
    events = InteractionColumns(
        user_id="actor.id",
        item_id="repo.id",
        event_time="created_at",
        time_unit="iso",
        allow_times=True,  # a file is an hour
        event_id=("id", "type", "created_at"),
        signal_column="type",
    )
    mappings = (repositories, events)
    return _source("gharchive", tuple(FileSource(path=where, format="jsonl", mapping=each) for each in mappings))


def refuse_timeline(files: Mapping[str, Path]) -> None:
    """Refuse hours of GH Archive that come from GitHub's old timeline.

    Such hours have neither the numbers of users nor the ids of events, so the same person would become
    another user in later hours.

    Raises:
        DataError: naming the first such hour.
    """
    for name, file in sorted(files.items()):
        if _TIMELINE_HOUR.fullmatch(name) and _is_timeline(file):
            raise DataError(
                f"{file}: found an hour of GitHub's old timeline (from about March 2012 to 2014), whose actors are "
                f"logins and whose events have no id; allowed are hours of GitHub's events, as from 2015 on, or a "
                f"mapping of its own, see GH Archive in docs/sources.md"
            )


def mind(behaviours: Path, news: Path) -> IngestSource:
    """Return an impression log in MIND's format: ``behaviors.tsv`` and ``news.tsv``.

    F. Wu et al., "MIND: A Large-scale Dataset for News Recommendation", ACL 2020;
    https://learn.microsoft.com/azure/open-datasets/dataset-microsoft-news. Each candidate is an
    ``impression``; a clicked candidate is also a ``click`` at the same time. The history is not read: its
    clicks have no times.
    """
    shown = InteractionColumns(
        user_id="user_id",
        item_id="impressions",
        event_time="time",
        time_unit="%m/%d/%Y %I:%M:%S %p",
        item_separator=" ",
        outcomes={"0": ("impression",), "1": ("impression", "click")},
    )
    titles = ItemColumns(item_id="news_id", title="title", categories=("category", "subcategory"), text="abstract")
    files = tuple(
        FileSource(path=path, mapping=mapping, column_names=names, format="csv", delimiter="\t", quote=None)
        for path, mapping, names in ((news, titles, _NEWS), (behaviours, shown, _BEHAVIOURS))
    )
    return IngestSource(name="mind", files=files)


def given_lists(path: Path, files: Mapping[str, Path]) -> IngestSource | None:
    """Return a training and a held-out file with lines of ``user item item …``.

    Signals are ``train`` and ``test``. Times are made up, see ``readers.item_lists``.
    """
    if not path.is_dir() or "train.txt" not in files or not _is_list(files["train.txt"]):
        return None
    if "test.txt" not in files:
        raise DataError(f"{path}: train.txt was found but not test.txt; item-lists needs both, or one file alone")
    parts = (("train", 0), ("test", TEST_START_MS))
    return _source("item-lists", tuple(_list(files[f"{name}.txt"], name, start) for name, start in parts))


def item_lists(path: Path, files: Mapping[str, Path]) -> IngestSource | None:
    """Return one file with lines of ``user item item …`` in time order.

    The signal is ``interaction``. Times are made up, see ``readers.item_lists``.
    """
    texts = [file for name, file in files.items() if name.endswith(".txt")]
    if len(texts) != 1 or not _is_list(texts[0]):
        return None
    return _source("item-lists", (_list(texts[0], "interaction", 0),))


def _list(path: Path, signal: str, start_ms: int) -> FileSource:
    mapping = InteractionColumns(
        user_id="user",
        item_id="item",
        event_time="time",
        time_unit="ms",
        signal=signal,
        allow_times=True,  # the times are made up
    )
    return FileSource(path=path, format="sequences", mapping=mapping, start_ms=start_ms)


def _source(name: str, files: tuple[FileSource, ...]) -> IngestSource | None:
    return IngestSource(name=name, files=files) if files else None


def _columns(path: Path) -> set[str]:
    try:
        return set(pq.read_schema(path).names)
    except (OSError, pa.ArrowException):
        return set()


def _is_list(path: Path) -> bool:
    """Return whether a file's first line has at least two words and all are numbers."""
    words = _first_line(path).split()
    return len(words) > 1 and all(word.isdigit() for word in words)


def _is_timeline(path: Path) -> bool:
    """Return whether a file's first line is an event of GitHub's old timeline."""
    event = split_objects(_first_line(path).decode(errors="replace"))[0][1]
    return event is not None and "repo" not in event and isinstance(event.get("actor"), str)


def _first_line(path: Path) -> bytes:
    first = next(read_blocks(path, 1 << 12, None, lambda read: None), None)
    return first.data.split(b"\n", 1)[0] if first else b""

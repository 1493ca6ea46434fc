"""Find the known layout of a directory or file, which loads without a declared mapping.

``docs/sources.md`` lists the layouts and what becomes of each column.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from stages.contracts.errors import DataError
from stages.warehouse.layouts.movielens import movielens_1m, movielens_25m, movielens_100k
from stages.warehouse.layouts.public_logs import (
    gharchive,
    given_lists,
    globo_hours,
    globo_parquet,
    item_lists,
    mind,
    refuse_timeline,
)
from stages.warehouse.mapping import (
    ColumnMapping,
    FileSource,
    IngestSource,
    InteractionColumns,
    ItemColumns,
    UserColumns,
)


@dataclass(frozen=True)
class Layout:
    """A known layout of files.

    Attributes:
        name: of the data source.
        what: the files that identify the layout, for messages.
        recipe: file name of a recipe to start with.
        find: returns the data source of some files, or None. Its arguments are the path, and the files
            of a directory, or one file, by name without ``.gz``.
        check: raises ``DataError`` for files that look like the layout but need a mapping.
    """

    name: str
    what: str
    recipe: str
    find: Callable[[Path, Mapping[str, Path]], IngestSource | None]
    check: Callable[[Mapping[str, Path]], None] = lambda files: None


def detect(path: Path) -> IngestSource:
    """Return the data source of a directory or a file; text files may be gzipped.

    Args:
        path: data in one of ``LAYOUTS``.

    Raises:
        DataError: if no layout fits, or a file of the layout is missing or needs a mapping.
    """
    found = find_layout(path)
    if found is not None:
        found[0].check(_named_files(path))
        return found[1]
    allowed = "; ".join(f"{layout.what} ({layout.name})" for layout in LAYOUTS)
    if not path.is_dir():
        there = "a file of another kind" if path.exists() else "nothing"
        raise DataError(f"{path}: found {there}; without a mapping, allowed is {allowed}")
    there = ", ".join(sorted(_files(path))[:8]) or "no file"
    raise DataError(f"{path}: found {there}; allowed is a directory with {allowed}")


def find_layout(path: Path) -> tuple[Layout, IngestSource] | None:
    """Return the layout of a directory or file and its data source, or None if no layout fits.

    Raises:
        DataError: if a file of the layout is missing.
    """
    if not path.exists():
        return None
    files = _named_files(path)
    for layout in LAYOUTS:
        source = layout.find(path, files)
        if source is not None:
            return layout, source
    return None


def table_mappings() -> dict[str, ColumnMapping]:
    """Return the mappings of data whose columns already have the names of the warehouse's tables."""
    return {
        "interactions": InteractionColumns(
            user_id="user_id",
            item_id="item_id",
            event_time="event_time_ms",
            time_unit="ms",
            signal_column="signal",
            value_column="value",
        ),
        "items": ItemColumns(
            item_id="item_id",
            title="title",
            categories="categories",
            created_at="created_at_ms",
            time_unit="ms",
            duration="duration_s",
        ),
        "users": UserColumns(user_id="user_id", attributes_json="attributes"),
    }


def _named_files(path: Path) -> dict[str, Path]:
    return _files(path) if path.is_dir() else {path.name.removesuffix(".gz"): path}


def _files(directory: Path) -> dict[str, Path]:
    entries = (entry for entry in sorted(directory.iterdir(), reverse=True) if entry.is_file())
    return {entry.name.removesuffix(".gz"): entry for entry in entries}


def _named(
    name: str, make: Callable[..., IngestSource], *needed: str, optional: tuple[str, ...] = ()
) -> Callable[[Path, Mapping[str, Path]], IngestSource | None]:
    """Return a ``find`` function for a directory with files of these names; the first one identifies the layout."""

    def find(path: Path, files: Mapping[str, Path]) -> IngestSource | None:
        if needed[0] not in files or not path.is_dir():
            return None
        missing = [file for file in needed if file not in files]
        if missing:
            wanted = ", ".join(needed)
            raise DataError(f"{path}: {needed[0]} was found but not {', '.join(missing)}; {name} needs {wanted}")
        return make(*(files[file] for file in needed), *(files.get(file) for file in optional))

    return find


def _sluice(events: Path, items: Path, users: Path) -> IngestSource:
    paths = {"items": items, "users": users, "interactions": events}
    mappings = table_mappings()
    files = tuple(FileSource(path=path, mapping=mappings[table]) for table, path in paths.items())
    return IngestSource(name="sluice", files=files)


LAYOUTS = (
    Layout(
        "movielens-100k",
        "u.data, u.item, u.user",
        "movielens.yaml",
        _named("movielens-100k", movielens_100k, "u.data", "u.item", "u.user"),
    ),
    Layout(
        "movielens-1m",
        "ratings.dat, movies.dat, users.dat",
        "movielens.yaml",
        _named("movielens-1m", movielens_1m, "ratings.dat", "movies.dat", "users.dat"),
    ),
    Layout(
        "movielens-25m",
        "ratings.csv, movies.csv, perhaps tags.csv",
        "movielens.yaml",
        _named("movielens-25m", movielens_25m, "ratings.csv", "movies.csv", optional=("tags.csv",)),
    ),
    Layout(
        "sluice",
        "events.parquet, items.parquet, users.parquet",
        "demo.yaml",
        _named("sluice", _sluice, "events.parquet", "items.parquet", "users.parquet"),
    ),
    Layout("mind", "behaviors.tsv, news.tsv", "mind.yaml", _named("mind", mind, "behaviors.tsv", "news.tsv")),
    Layout("gharchive", "hours such as 2015-01-01-15.json.gz", "gharchive.yaml", gharchive, refuse_timeline),
    Layout("globo", "clicks_hour_*.csv", "globo.yaml", globo_hours),
    Layout("globo", "Parquet files of its clicks", "globo.yaml", globo_parquet),
    Layout("item-lists", "train.txt, test.txt with lines of: user item item …", "given-split.yaml", given_lists),
    Layout("item-lists", "one file with lines of: user item item …", "item-lists.yaml", item_lists),
)
"""The known layouts, in the order in which they are tried."""

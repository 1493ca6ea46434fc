"""Directories that load without a declared mapping: MovieLens 100K, MovieLens 1M, and our own layout.

F. M. Harper and J. A. Konstan, "The MovieLens Datasets: History and Context", ACM TiiS 5(4), 2015.
The files are read as GroupLens publishes them: Latin-1, no header, no quoting.
"""

from __future__ import annotations

from pathlib import Path

from stages.contracts.errors import DataError
from stages.warehouse.mapping import (
    ColumnMapping,
    FileSource,
    IngestSource,
    InteractionColumns,
    ItemColumns,
    UserColumns,
)

RATING_SIGNAL = "rating"
GENRES = (
    "Action",
    "Adventure",
    "Animation",
    "Children's",
    "Comedy",
    "Crime",
    "Documentary",
    "Drama",
    "Fantasy",
    "Film-Noir",
    "Horror",
    "Musical",
    "Mystery",
    "Romance",
    "Sci-Fi",
    "Thriller",
    "War",
    "Western",
)
_RATINGS = InteractionColumns(
    user_id="user_id", item_id="item_id", event_time="timestamp", signal=RATING_SIGNAL, value_column="rating"
)
_RATING_NAMES = ("user_id", "item_id", "rating", "timestamp")
_ITEM_NAMES = ("item_id", "title", "release_date", "video_release_date", "url", "unknown", *GENRES)
_LAYOUTS = {
    "movielens-100k": ("u.data", "u.item", "u.user"),
    "movielens-1m": ("ratings.dat", "movies.dat", "users.dat"),
    "sluice": ("events.parquet", "items.parquet", "users.parquet"),
}


def detect(path: Path) -> IngestSource:
    """Return the source that a directory's file names stand for; each file may be gzipped.

    Args:
        path: a directory with ``u.data``, ``u.item``, ``u.user`` (MovieLens 100K), with
            ``ratings.dat``, ``movies.dat``, ``users.dat`` (MovieLens 1M), or with
            ``events.parquet``, ``items.parquet``, ``users.parquet`` (columns as in the tables).

    Raises:
        DataError: if it is not a directory, or a file of the layout is missing.
    """
    allowed = "; ".join(f"{', '.join(files)} ({name})" for name, files in _LAYOUTS.items())
    if not path.is_dir():
        found = "a file" if path.exists() else "nothing"
        raise DataError(f"{path}: found {found}; without a mapping, allowed is a directory with {allowed}")
    present = {entry.name.removesuffix(".gz"): entry for entry in sorted(path.iterdir(), reverse=True)}
    for name, files in _LAYOUTS.items():
        if files[0] not in present:
            continue
        missing = [file for file in files if file not in present]
        if missing:
            raise DataError(
                f"{path}: {files[0]} was found but not {', '.join(missing)}; {name} needs {', '.join(files)}"
            )
        return _MAKERS[name](*(present[file] for file in files))
    found = ", ".join(sorted(present)[:8]) or "no file"
    raise DataError(f"{path}: found {found}; allowed is a directory with {allowed}")


def movielens_100k(ratings: Path, items: Path, users: Path) -> IngestSource:
    """Return the source of ``u.data``, ``u.item`` and ``u.user``; the genre ``unknown`` is no category."""
    item_columns = ItemColumns(
        item_id="item_id", title="title", category_flags=GENRES, created_at="release_date", time_unit="%d-%b-%Y"
    )
    user_columns = UserColumns(user_id="user_id", attributes=("age", "gender", "occupation", "zip"))
    return IngestSource(
        name="movielens-100k",
        files=(
            _file(items, "|", _ITEM_NAMES, item_columns),
            _file(users, "|", ("user_id", "age", "gender", "occupation", "zip"), user_columns),
            _file(ratings, "\t", _RATING_NAMES, _RATINGS),
        ),
    )


def movielens_1m(ratings: Path, items: Path, users: Path) -> IngestSource:
    """Return the source of ``ratings.dat``, ``movies.dat`` and ``users.dat``."""
    item_columns = ItemColumns(item_id="item_id", title="title", categories="genres")
    user_columns = UserColumns(user_id="user_id", attributes=("gender", "age", "occupation", "zip"))
    return IngestSource(
        name="movielens-1m",
        files=(
            _file(items, "::", ("item_id", "title", "genres"), item_columns),
            _file(users, "::", ("user_id", "gender", "age", "occupation", "zip"), user_columns),
            _file(ratings, "::", _RATING_NAMES, _RATINGS),
        ),
    )


def table_mappings() -> dict[str, ColumnMapping]:
    """Return the mappings of data whose columns already have the names of our tables."""
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


def _sluice(events: Path, items: Path, users: Path) -> IngestSource:
    paths = {"items": items, "users": users, "interactions": events}
    mappings = table_mappings()
    files = tuple(FileSource(path=path, mapping=mappings[table]) for table, path in paths.items())
    return IngestSource(name="sluice", files=files)


def _file(path: Path, delimiter: str, names: tuple[str, ...], mapping: ColumnMapping) -> FileSource:
    return FileSource(
        path=path,
        mapping=mapping,
        format="csv",
        delimiter=delimiter,
        quote=None,
        encoding="latin-1",
        column_names=names,
    )


_MAKERS = {"movielens-100k": movielens_100k, "movielens-1m": movielens_1m, "sluice": _sluice}

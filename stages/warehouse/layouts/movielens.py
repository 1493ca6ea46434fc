"""MovieLens, in the three forms in which GroupLens publishes it.

F. M. Harper and J. A. Konstan, "The MovieLens Datasets: History and Context", ACM TiiS 5(4), 2015.
100K and 1M are Latin-1 without header and quotes; 25M, and 20M and 32M like it, are CSV files in UTF-8
(https://files.grouplens.org/datasets/movielens/ml-25m-README.html).
"""

from __future__ import annotations

from pathlib import Path

from stages.warehouse.mapping import (
    ColumnMapping,
    FileSource,
    IngestSource,
    InteractionColumns,
    ItemColumns,
    UserColumns,
)

RATING_SIGNAL = "rating"
TAG_SIGNAL = "tag"
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


def movielens_100k(ratings: Path, items: Path, users: Path) -> IngestSource:
    """Return the data source of ``u.data``, ``u.item`` and ``u.user``; the genre ``unknown`` is no category."""
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
    """Return the data source of ``ratings.dat``, ``movies.dat`` and ``users.dat``."""
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


def movielens_25m(ratings: Path, items: Path, tags: Path | None) -> IngestSource:
    """Return the data source of ``ratings.csv``, ``movies.csv`` and, if it exists, ``tags.csv``.

    A tag is an event with a signal of its own; its text is not kept. ``links.csv`` and the genome are not read.
    """
    files = [
        FileSource(
            path=items,
            mapping=ItemColumns(
                item_id="movieId", title="title", categories="genres", ignored_categories=("(no genres listed)",)
            ),
        ),
        FileSource(
            path=ratings,
            mapping=InteractionColumns(
                user_id="userId",
                item_id="movieId",
                event_time="timestamp",
                signal=RATING_SIGNAL,
                value_column="rating",
                non_negative=True,
            ),
        ),
    ]
    if tags is not None:
        mapping = InteractionColumns(user_id="userId", item_id="movieId", event_time="timestamp", signal=TAG_SIGNAL)
        files.append(FileSource(path=tags, mapping=mapping))
    return IngestSource(name="movielens-25m", files=tuple(files))


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

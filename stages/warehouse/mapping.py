"""What to load: files, their format, and which column means what."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from stages.contracts.config import Config
from stages.contracts.errors import ConfigError

FileFormat = Literal["csv", "jsonl", "parquet"]
_SUFFIXES: dict[str, FileFormat] = {
    ".csv": "csv",
    ".tsv": "csv",
    ".txt": "csv",
    ".dat": "csv",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "jsonl",
    ".parquet": "parquet",
    ".pq": "parquet",
}
_UNITS = ("s", "ms", "us", "iso")


class _Columns(Config):
    """Base of the three mappings.

    Attributes:
        time_unit: unit of time columns: ``s``, ``ms`` or ``us`` since 1970-01-01 UTC, ``iso`` for
            ISO 8601 (UTC where it names no zone), or a strptime format such as ``%d-%b-%Y``.
            A Parquet timestamp or date column needs none.
    """

    time_unit: str = "s"

    @model_validator(mode="after")
    def _check_unit(self) -> Self:
        if self.time_unit not in _UNITS and "%" not in self.time_unit:
            raise ValueError(f"time_unit = {self.time_unit!r}: allowed are {', '.join(_UNITS)} or a strptime format")
        return self


class InteractionColumns(_Columns):
    """Columns of a file of events.

    Attributes:
        user_id, item_id, event_time: column names; all required.
        signal_column: column of the kind of event; where None, every row has ``signal``.
        value_column: column of the event's strength; where None, every row has ``value``.
        context: columns that tell about the moment (device, region); kept with the event by name.
    """

    table: Literal["interactions"] = "interactions"
    user_id: str
    item_id: str
    event_time: str
    signal_column: str | None = None
    signal: str = "interaction"
    value_column: str | None = None
    value: float = 1.0
    context: tuple[str, ...] = ()

    @property
    def columns(self) -> tuple[str, ...]:
        """Every file column that the mapping reads."""
        wanted = (self.user_id, self.item_id, self.event_time, self.signal_column, self.value_column, *self.context)
        return tuple(dict.fromkeys(name for name in wanted if name is not None))


class ItemColumns(_Columns):
    """Columns of a file of items.

    Attributes:
        item_id: column name, required; the other columns may be None.
        title: where None or empty, the id is the title.
        categories: column of names joined by ``category_separator`` (or a Parquet list).
        category_flags: columns that hold 1 where the item has the category of that name.
        created_at: time of birth or release.
        duration: length in seconds.
        text: column of the body or abstract.
        state: column such as ``published`` or ``deleted``.
    """

    table: Literal["items"] = "items"
    item_id: str
    title: str | None = None
    categories: str | None = None
    category_separator: str = Field(default="|", min_length=1)
    category_flags: tuple[str, ...] = ()
    created_at: str | None = None
    duration: str | None = None
    text: str | None = None
    state: str | None = None

    @property
    def columns(self) -> tuple[str, ...]:
        """Every file column that the mapping reads."""
        plain = (self.item_id, self.title, self.categories, self.created_at, self.duration, self.text, self.state)
        wanted = (*plain, *self.category_flags)
        return tuple(dict.fromkeys(name for name in wanted if name is not None))


class UserColumns(_Columns):
    """Columns of a file of users.

    Attributes:
        user_id: column name, required.
        attributes: columns to keep as the user's attributes.
        attributes_json: one column that already holds a JSON object.
    """

    table: Literal["users"] = "users"
    user_id: str
    attributes: tuple[str, ...] = ()
    attributes_json: str | None = None

    @property
    def columns(self) -> tuple[str, ...]:
        """Every file column that the mapping reads."""
        wanted = (self.user_id, *self.attributes, self.attributes_json)
        return tuple(dict.fromkeys(name for name in wanted if name is not None))


ColumnMapping = Annotated[InteractionColumns | ItemColumns | UserColumns, Field(discriminator="table")]


class FileSource(Config):
    """One file and how to read it.

    Attributes:
        path: CSV, JSON lines or Parquet; text files may be gzipped (``.gz``).
        mapping: which column means what, and which table it fills.
        format: by default from the file's suffix.
        delimiter: of CSV, one or more characters.
        quote: of CSV, one character; None takes quotes literally.
        encoding: of text files.
        column_names: of CSV without a header line; None reads the names from the first line.
    """

    path: Path
    mapping: ColumnMapping
    format: FileFormat | None = None
    delimiter: str = Field(default=",", min_length=1)
    quote: str | None = Field(default='"', min_length=1, max_length=1)
    encoding: Literal["utf-8", "latin-1"] = "utf-8"
    column_names: tuple[str, ...] | None = None

    @model_validator(mode="after")
    def _check_quoting(self) -> Self:
        if len(self.delimiter) > 1 and self.quote is not None:
            raise ValueError(f"delimiter = {self.delimiter!r}: one of several characters needs quote = null")
        if "\n" in self.delimiter or (self.quote is not None and not self.quote.isascii()):
            raise ValueError(
                f"delimiter = {self.delimiter!r}, quote = {self.quote!r}: no line break, and an ASCII quote"
            )
        return self

    def resolved_format(self) -> FileFormat:
        """Return the format, from the suffix where it is not given.

        Raises:
            ConfigError: if the suffix says nothing.
        """
        if self.format is not None:
            return self.format
        suffixes = [suffix.lower() for suffix in self.path.suffixes if suffix.lower() != ".gz"]
        if not suffixes or suffixes[-1] not in _SUFFIXES:
            known = ", ".join(_SUFFIXES)
            raise ConfigError(f"{self.path}: format is not known from the name; set format or use one of {known}")
        return _SUFFIXES[suffixes[-1]]


class IngestSource(Config):
    """A named set of files that belong together.

    Attributes:
        name: kept with every event and part of its identity: the same event from two sources
            counts twice, a longer file of the same source adds only what is new.
        files: loaded in this order.
    """

    name: str = Field(min_length=1)
    files: tuple[FileSource, ...] = Field(min_length=1)

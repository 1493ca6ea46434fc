"""What to load: files, their format, and which column means what."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from stages.contracts.config import Config
from stages.contracts.errors import ConfigError

FileFormat = Literal["csv", "jsonl", "parquet", "sequences"]
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
KNOWN_LATER = "later:"
"""Prefix of the name of a context column that is known only after its event."""
_UNITS = ("s", "ms", "us", "iso", "ns", "days")


class _Columns(Config):
    """Base of the three mappings.

    Attributes:
        time_unit: unit of time columns: ``days``, ``s``, ``ms``, ``us`` or ``ns`` since 1970-01-01 UTC,
            ``iso`` for ISO 8601 (UTC where it names no zone), or a strptime format such as ``%d-%b-%Y``.
            A Parquet timestamp or date column needs none.
    """

    time_unit: str = "s"
    column_fields: ClassVar[tuple[str, ...]] = ()

    @property
    def named(self) -> list[tuple[str, str]]:
        """Pairs of a field of the mapping and the file column that it refers to."""
        pairs = []
        for field in self.column_fields:
            value = getattr(self, field)
            pairs += [(field, name) for name in ((value,) if isinstance(value, str) else value or ())]
        return pairs

    @property
    def columns(self) -> tuple[str, ...]:
        """The distinct file columns that the mapping reads."""
        return tuple(dict.fromkeys(name for _, name in self.named))

    @model_validator(mode="after")
    def _check_unit(self) -> Self:
        if self.time_unit not in _UNITS and "%" not in self.time_unit:
            raise ValueError(f"time_unit = {self.time_unit!r}: allowed are {', '.join(_UNITS)} or a strptime format")
        return self


class InteractionColumns(_Columns):
    """Columns of a file of events.

    Attributes:
        user_id, item_id, event_time: column names; all required.
        event_id: column of an id that is unique among the events of the data source, or several columns
            that are unique together. With an ``event_id``, two rows are the same event if their ids are
            equal, in one file or in two. Without it, two rows of different files are the same event if
            their content is equal, and identical rows of one file are different events.
        signal_column: column of the kind of event.
        signal: kind of every event, where there is no ``signal_column``.
        value_column: column of the event's strength.
        value: strength of every event, where there is no ``value_column``.
        non_negative: whether a value below zero (a watch time) is a fault.
        allow_times: whether to accept times that look like a wrong unit: before 1990, in the future, or
            those of many users within an hour.
        max_skew_s: how many seconds an event may be later than the time of ingestion, since clocks
            differ. A later event is quarantined until its time has come.
        context: columns of the event's context (device, region); kept with the event by name.
        known_later: context columns, by the names that they are kept by, that are known only after the
            event, such as the final length of its session. They stay with the event and can never
            become a feature.
        context_names: names by which the context columns are kept, in the order of ``context``; by
            default the names of the columns.
        item_separator: if set, the item column holds a list of items joined by this separator, and each
            item becomes an event.
        outcomes: signals of a listed item by the text after its last ``outcome_separator``, such as
            ``{"0": ["impression"], "1": ["impression", "click"]}`` for ``N1-0 N2-1``.
        outcome_separator: see ``outcomes``.
    """

    table: Literal["interactions"] = "interactions"
    user_id: str
    item_id: str
    event_time: str
    event_id: str | Annotated[tuple[str, ...], Field(min_length=1)] | None = None
    signal_column: str | None = None
    signal: str = "interaction"
    value_column: str | None = None
    value: float = 1.0
    non_negative: bool = False
    allow_times: bool = False
    max_skew_s: float = Field(default=0.0, ge=0)
    context: tuple[str, ...] = ()
    context_names: tuple[str, ...] = ()
    known_later: tuple[str, ...] = ()
    item_separator: str | None = Field(default=None, min_length=1)
    outcomes: dict[str, tuple[str, ...]] = {}
    outcome_separator: str = Field(default="-", min_length=1)
    column_fields = ("user_id", "item_id", "event_time", "event_id", "signal_column", "value_column", "context")

    def kept_context(self) -> list[str]:
        """Return the names by which the columns of ``context`` are kept, in the same order."""
        names = self.context_names or self.context
        return [KNOWN_LATER + name if name in self.known_later else name for name in names]

    @model_validator(mode="after")
    def _check_lists(self) -> Self:
        if self.context_names and len(set(self.context_names)) != len(self.context):
            raise ValueError(
                f"context_names = {self.context_names}: allowed are as many different names as context = {self.context}"
            )
        kept = self.context_names or self.context
        if not set(self.known_later) <= set(kept) or any(name.startswith(KNOWN_LATER) for name in kept):
            raise ValueError(
                f"known_later = {self.known_later}: allowed are names of context columns, {kept}, none of which "
                f"starts with {KNOWN_LATER!r}"
            )
        if self.outcomes and (self.item_separator is None or self.signal_column is not None):
            raise ValueError("outcomes: item_separator is needed, and signal_column is not allowed with it")
        if not all(self.outcomes.values()):
            raise ValueError(f"outcomes = {self.outcomes}: each outcome needs at least one signal")
        return self


class ItemColumns(_Columns):
    """Columns of a file of items.

    Attributes:
        item_id: column name, required; the other columns may be None.
        title: if it is None or a cell is empty, the id is the title.
        categories: column or columns of names joined by ``category_separator`` (or a Parquet list).
        category_separator: between the names in one cell.
        ignored_categories: names that mean that an item has no category.
        category_flags: columns named like categories; they hold 1 if the item has the category.
        created_at: time of creation or release.
        duration: length in seconds.
        text: column of the body or abstract.
        state: column such as ``published`` or ``deleted``.
    """

    table: Literal["items"] = "items"
    item_id: str
    title: str | None = None
    categories: str | tuple[str, ...] | None = None
    category_separator: str = Field(default="|", min_length=1)
    ignored_categories: tuple[str, ...] = ()
    category_flags: tuple[str, ...] = ()
    created_at: str | None = None
    duration: str | None = None
    text: str | None = None
    state: str | None = None
    column_fields = ("item_id", "title", "categories", "created_at", "duration", "text", "state", "category_flags")


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
    column_fields = ("user_id", "attributes", "attributes_json")


ColumnMapping = Annotated[InteractionColumns | ItemColumns | UserColumns, Field(discriminator="table")]


class FileSource(Config):
    """One file, or several alike, and how to read it.

    Attributes:
        path: CSV, JSON lines or Parquet; text files may be gzipped (``.gz``). A name with ``*``, ``?``
            or ``[`` is a pattern for files of its folder. They are read in the order of their names, in
            which numbers are sorted by value.
        mapping: which column means what, and which table it fills. In JSON lines, ``actor.id`` is the
            field ``id`` of the object ``actor``.
        format: by default from the file's suffix. ``sequences`` means lines of ``user item item …``, see
            ``stages.warehouse.readers.item_lists``.
        delimiter: of CSV, one or more characters.
        quote: of CSV, one character; None takes quotes literally.
        encoding: of text files.
        column_names: of CSV without a header line; None reads the names from the first line.
        start_ms: of sequences, the time of a line's first item; each item is 1 ms later than the one before.
    """

    path: Path
    mapping: ColumnMapping
    format: FileFormat | None = None
    delimiter: str = Field(default=",", min_length=1)
    quote: str | None = Field(default='"', min_length=1, max_length=1)
    encoding: Literal["utf-8", "latin-1"] = "utf-8"
    column_names: tuple[str, ...] | None = None
    start_ms: int = Field(default=0, ge=0)

    @model_validator(mode="after")
    def _check_quoting(self) -> Self:
        if len(self.delimiter) > 1 and self.quote is not None:
            raise ValueError(f"delimiter = {self.delimiter!r}: a delimiter of several characters needs quote = null")
        if "\n" in self.delimiter or (self.quote is not None and not self.quote.isascii()):
            raise ValueError(
                f"delimiter = {self.delimiter!r}, quote = {self.quote!r}: allowed are a delimiter without a line "
                "break, and an ASCII quote"
            )
        return self

    def resolved_format(self) -> FileFormat:
        """Return the format, from the suffix where it is not given.

        Raises:
            ConfigError: if the suffix is unknown.
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
        name: stored with every event and part of its id. So the same event from two data sources counts
            twice, and a longer file of the same data source adds only its new events.
        files: loaded in this order; a pattern matches the files that exist at the time of loading.
    """

    name: str = Field(min_length=1)
    files: tuple[FileSource, ...] = Field(min_length=1)

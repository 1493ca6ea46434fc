"""Code the context columns of events (such as device) for features.

Shapes: X distinct contexts, C context columns.
"""

from __future__ import annotations

import json
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field, field_validator

from stages.contracts.config import Config
from stages.contracts.errors import ConfigError
from stages.contracts.snapshot import ContextColumn
from stages.warehouse.mapping import KNOWN_LATER


class ContextConfig(Config):
    """Which columns of the events' context become features.

    Attributes:
        columns: names by which the data source keeps them, such as ``device``. A column that the data
            source declares as known only later is refused.
        max_values: largest number of values of a column; further values count as unknown, so that a new
            value never stops a run.
    """

    columns: tuple[str, ...] = ()
    max_values: int = Field(default=64, ge=1, le=10_000)

    @field_validator("columns")
    @classmethod
    def _distinct(cls, columns: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(columns)) < len(columns) or any(not name.isidentifier() for name in columns):
            raise ValueError(f"{list(columns)}: allowed are different names of letters, digits and underscores")
        return columns


@dataclass(frozen=True)
class Contexts:
    """The contexts of a selection.

    Attributes:
        columns: C columns with their values.
        codes: int32 ``[X, C]`` as ``Snapshot.contexts``; row 0 is the unknown context.
        rows: ``context``, ``context_index``: the row of each context text in the warehouse.
        n_other: number of values beyond ``max_values``, over all columns.
    """

    columns: tuple[ContextColumn, ...]
    codes: np.ndarray
    rows: pa.Table
    n_other: int


def index_contexts(config: ContextConfig, found: pa.Table, base: tuple[ContextColumn, ...] = ()) -> Contexts:
    """Code the contexts; values of the base keep their codes, new values follow in order of appearance.

    Args:
        config: which columns.
        found: distinct ``id``, each a JSON object of strings, with ``first_ms``.
        base: columns of the snapshot that is extended.

    Raises:
        ConfigError: if a column is known only later, or no event has it.
    """
    order = pc.sort_indices(found, sort_keys=[("first_ms", "ascending"), ("id", "ascending")])
    texts = found["id"].take(order).to_pylist()
    moments = [json.loads(text) for text in texts]
    _check_columns(config.columns, {name for moment in moments for name in moment})
    known = {column.name: column.values for column in base}
    values = [{value: code for code, value in enumerate(known.get(name, ()), start=1)} for name in config.columns]
    other: list[set[str]] = [set() for _ in config.columns]
    rows: dict[tuple[int, ...], int] = {(0,) * len(config.columns): 0}
    place = []
    for moment in moments:
        key = tuple(
            _code(moment.get(name, ""), codes, beyond, config.max_values)
            for name, codes, beyond in zip(config.columns, values, other, strict=True)
        )
        place.append(rows.setdefault(key, len(rows)))
    return Contexts(
        columns=tuple(
            ContextColumn(name=name, values=tuple(codes)) for name, codes in zip(config.columns, values, strict=True)
        ),
        codes=np.array(list(rows), dtype=np.int32).reshape(len(rows), len(config.columns)),
        rows=pa.table({"context": pa.array(texts, pa.string()), "context_index": pa.array(place, pa.int32())}),
        n_other=sum(len(beyond) for beyond in other),
    )


def no_contexts() -> Contexts:
    """Return the contexts of a selection without context columns."""
    rows = pa.table({"context": pa.array([], pa.string()), "context_index": pa.array([], pa.int32())})
    return Contexts(columns=(), codes=np.zeros((1, 0), dtype=np.int32), rows=rows, n_other=0)


def _code(value: str, codes: dict[str, int], beyond: set[str], limit: int) -> int:
    if value == "":
        return 0
    if value not in codes and len(codes) == limit:
        beyond.add(value)
        return 0
    return codes.setdefault(value, len(codes) + 1)


def _check_columns(columns: tuple[str, ...], names: set[str]) -> None:
    later = {name.removeprefix(KNOWN_LATER) for name in names if name.startswith(KNOWN_LATER)}
    known = sorted(name for name in names if not name.startswith(KNOWN_LATER))
    for column in columns:
        if column in later:
            raise ConfigError(
                f"dataset.context.columns names {column!r}, which its source declares as known only after the event "
                f"(known_later): a feature must not read the future; allowed are {known}"
            )
        if column not in names:
            raise ConfigError(
                f"dataset.context.columns names {column!r}, which no selected event has; allowed are {known}"
            )

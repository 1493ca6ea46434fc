"""Files beside the recipe: lists of ids, pairs of items, verdicts. Their hashes are part of a step's fingerprint."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pv
import pyarrow.parquet as pq

from stages.contracts.errors import ConfigError
from stages.contracts.files import sha256_file
from stages.dataset.base import read_base
from stages.dataset.config import DatasetConfig


def resolve_files(config: DatasetConfig) -> DatasetConfig:
    """Return ``config`` with the sha256 of every file that it refers to.

    Raises:
        ConfigError: if a file is missing.
        DataError: if the base is damaged.
    """
    own, content = config.duplicates, config.content
    named = {name: path for name in ("pairs", "verdicts") if (path := getattr(own, name))}
    hashes = {name: _hash(f"duplicates.{name}", path) for name, path in named.items()}
    lists = {reason: _hash(f"content.lists.{reason}", path) for reason, path in content.lists.items()}
    return config.model_copy(
        update={
            "base_sha256": "" if config.base is None else read_base(config.base).sha256,
            "duplicates": own.model_copy(update={"files_sha256": hashes}),
            "content": content.model_copy(update={"files_sha256": lists}),
        }
    )


def _hash(field: str, path: str) -> str:
    if not Path(path).is_file():
        raise ConfigError(f"dataset.{field} = {path!r}: no such file")
    return sha256_file(Path(path))


def read_columns(field: str, path: str, types: dict[str, pa.DataType]) -> pa.Table:
    """Return the named columns of a CSV or Parquet file.

    Args:
        field: of the configuration, for the message.
        path: ``.parquet``, or anything else for CSV with a header.
        types: Arrow type by column.

    Raises:
        ConfigError: if the file cannot be read, or lacks a column or a value.
    """
    try:
        if path.endswith(".parquet"):
            table = pq.read_table(path)  # type: ignore[no-untyped-call]
        else:
            table = pv.read_csv(path, convert_options=pv.ConvertOptions(column_types=types))
        table = table.select(list(types)).cast(pa.schema(list(types.items())))
    except (OSError, pa.ArrowException, KeyError) as error:
        raise ConfigError(
            f"dataset.{field} = {path!r}: {error}; allowed is a CSV or Parquet with {list(types)}"
        ) from error
    for name in types:
        if table[name].null_count:
            raise ConfigError(f"dataset.{field} = {path!r}: column {name} has {table[name].null_count} empty values")
    return table


def read_ids(field: str, path: str) -> list[str]:
    """Return the ids of a list: a text file with one id a line, or the column ``item_id`` of a CSV or Parquet."""
    if path.endswith((".parquet", ".csv")):
        ids: list[str] = read_columns(field, path, {"item_id": pa.string()})["item_id"].to_pylist()
        return ids
    try:
        lines = Path(path).read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"dataset.{field} = {path!r}: {error}; allowed is UTF-8 with one id a line") from error
    return [line.strip() for line in lines if line.strip()]


def read_verdicts(path: str) -> list[tuple[str, str, bool]]:
    """Return (item, item, whether they are the same) of every verdict.

    Raises:
        ConfigError: if a verdict is neither ``same`` nor ``different``.
    """
    table = read_columns("duplicates.verdicts", path, {n: pa.string() for n in ("item_a", "item_b", "verdict")})
    words = pc.utf8_lower(pc.utf8_trim_whitespace(table["verdict"])).to_pylist()
    wrong = sorted(set(words) - {"same", "different"})
    if wrong:
        raise ConfigError(f"dataset.duplicates.verdicts = {path!r}: verdict {wrong}, allowed: same, different")
    pairs = zip(table["item_a"].to_pylist(), table["item_b"].to_pylist(), words, strict=True)
    return [(a, b, word == "same") for a, b, word in pairs]

"""The snapshot or release that a new snapshot extends; its rows keep their indices."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import ValidationError

from stages.contracts.errors import ConfigError, DataError
from stages.contracts.files import canonical_json, read_json, sha256_text
from stages.contracts.id_map import IdMap
from stages.contracts.snapshot import ContextColumn, SnapshotMeta
from stages.contracts.value_ranges import ValueRange


@dataclass(frozen=True)
class Base:
    """The data that a snapshot takes over from its base.

    Attributes:
        users, items: id maps.
        categories: names by code.
        context: columns with their values.
        value_ranges: allowed values of its signals.
    """

    users: IdMap
    items: IdMap
    categories: tuple[str, ...]
    context: tuple[ContextColumn, ...]
    value_ranges: tuple[ValueRange, ...] = ()

    @classmethod
    def nothing(cls) -> Base:
        """Return the empty base of a snapshot that starts anew."""
        return cls(IdMap.empty("users"), IdMap.empty("items"), (), ())

    @property
    def sha256(self) -> str:
        """Hex sha256 that identifies the base's content."""
        hashes = [map_.versions[-1].hash if map_.versions else "" for map_ in (self.users, self.items)]
        context = [column.model_dump(mode="json") for column in self.context]
        ranges = [entry.model_dump(mode="json") for entry in self.value_ranges]
        return sha256_text(canonical_json([*hashes, list(self.categories), context, *ranges]))


def read_base(path: str) -> Base:
    """Read the base from the directory of a finished snapshot or of a release.

    Raises:
        ConfigError: if it is neither.
        DataError: if its ids do not match the versions of its id maps.
    """
    directory = Path(path)
    try:
        meta = SnapshotMeta.model_validate(read_json(directory / "snapshot.json"))
        users, items = (
            _column(directory / f"{kind}s.parquet", f"{kind}_id", f"{kind}_index") for kind in ("user", "item")
        )
    except (OSError, ValueError, KeyError, ValidationError) as error:
        raise ConfigError(
            f"dataset.base = {path!r}: allowed is the directory of a snapshot or a release ({error})"
        ) from None
    return Base(
        users=IdMap.read("users", users, meta.ids.get("users", ())),
        items=IdMap.read("items", items, meta.ids.get("items", ())),
        categories=meta.categories,
        context=meta.context,
        value_ranges=meta.value_ranges,
    )


def _column(path: Path, name: str, index: str) -> pa.Array:
    table = pq.read_table(path, columns=[name, index])  # type: ignore[no-untyped-call]
    if table[index].to_pylist() != list(range(len(table))):
        raise DataError(f"{path}: {index} must be the row number")
    return table[name].combine_chunks().cast(pa.string())

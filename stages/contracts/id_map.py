"""Append-only maps from ids to rows, with versions.

A map grows only at its end and an id keeps its row for ever, so that tables of vectors can grow with the map. Each
version is identified by a hash chained over the versions before it: maps with the same version hash hold the same ids
below the version's size.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from stages.contracts.config import Config
from stages.contracts.errors import DataError


class IdMapVersion(Config):
    """One version of a map.

    Attributes:
        size: number of ids.
        hash: hex sha256 over the hash of the version before and the appended ids.
    """

    size: int
    hash: str


@dataclass(frozen=True)
class IdMap:
    """Ids by row.

    Attributes:
        kind: such as ``users``, for messages.
        ids: Arrow strings ``[N]``, all different.
        versions: oldest first; the last one has size N.
    """

    kind: str
    ids: pa.Array
    versions: tuple[IdMapVersion, ...]

    @property
    def version(self) -> int:
        """Number of the newest version, from 1; 0 for a map without ids."""
        return len(self.versions)

    @classmethod
    def empty(cls, kind: str) -> IdMap:
        """Return the map without ids."""
        return cls(kind, pa.array([], pa.string()), ())

    @classmethod
    def read(cls, kind: str, ids: pa.Array, versions: Sequence[IdMapVersion]) -> IdMap:
        """Check stored ids against their versions.

        Args:
            kind: for messages.
            ids: Arrow strings ``[N]``.
            versions: as stored; if there are none, as in maps of older versions of Sluice, the ids become the first
                version.

        Raises:
            DataError: if ids and versions do not match, or an id repeats.
        """
        if not versions:
            return cls.empty(kind).extend(ids)
        if versions[-1].size != len(ids):
            raise DataError(f"id map {kind}: {len(ids)} ids, version {len(versions)} has {versions[-1].size}")
        known = cls.empty(kind)
        for number, version in enumerate(versions, start=1):
            known = known.extend(ids.slice(len(known.ids), max(version.size - len(known.ids), 0)))
            if known.versions[-1:] != (version,):
                raise DataError(f"id map {kind}: its ids are not those of version {number} ({version.hash[:12]})")
        return known

    def extend(self, ids: pa.Array) -> IdMap:
        """Return the map with ids appended; the same map if there are none.

        Raises:
            DataError: if an id is in the map already, or repeats.
        """
        if not len(ids):
            return self
        whole = pa.concat_arrays([self.ids, ids.cast(pa.string())])
        if len(whole.unique()) < len(whole):
            counts = pc.value_counts(whole)
            name = next(row["values"] for row in counts.to_pylist() if row["counts"] > 1)
            raise DataError(f"id map {self.kind}: {name!r} more than once; each id has one row")
        digest = hashlib.sha256((self.versions[-1].hash if self.versions else "").encode())
        for name in ids.to_pylist():
            data = name.encode()
            digest.update(len(data).to_bytes(8, "little") + data)
        return IdMap(self.kind, whole, (*self.versions, IdMapVersion(size=len(whole), hash=digest.hexdigest())))

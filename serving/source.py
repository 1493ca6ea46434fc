"""Where the server gets its release from: a directory, or the registry's champion."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from stages.contracts.manifest import read_manifest

if TYPE_CHECKING:
    from stages.release.registry import ReleaseRegistry


class ReleaseSource(Protocol):
    """Names the release that should be served, and fetches it."""

    def wanted(self) -> str:
        """Return the id of the release that should be served."""
        ...

    def fetch(self) -> Path:
        """Return a local directory with that release."""
        ...


class DirectorySource:
    """A release directory, or a link to one that may be switched to another."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def wanted(self) -> str:
        """Return the release id in the directory's manifest."""
        return read_manifest(self._directory).release_id

    def fetch(self) -> Path:
        """Return the directory, links resolved, so that switching a link does not mix two releases."""
        return self._directory.resolve()


class RegistrySource:
    """The release that an alias of the registry points at."""

    def __init__(self, registry: ReleaseRegistry, alias: str, cache_dir: Path) -> None:
        self._registry = registry
        self._alias = alias
        self._cache_dir = cache_dir

    def wanted(self) -> str:
        """Return the release id behind the alias."""
        return self._registry.resolve(self._alias).release_id

    def fetch(self) -> Path:
        """Pull the alias' release into the cache."""
        return self._registry.pull(self._alias, self._cache_dir)

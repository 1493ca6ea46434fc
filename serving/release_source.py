"""Where the server gets its release from: a directory, or the registry's champion."""

from __future__ import annotations

import shutil
import tempfile
import weakref
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from stages.contracts.deadline import Deadline
from stages.contracts.errors import RegistryError, TransientError
from stages.contracts.manifest import VerifiedRelease, read_manifest
from stages.release.cache import copy_release

if TYPE_CHECKING:
    from stages.release.registry import ReleaseRegistry

UNREACHABLE = (TransientError, RegistryError)
"""Errors of a release source that cannot say which release is wanted, or cannot fetch it now."""
START_ASK_SECONDS, START_PULL_SECONDS = 5.0, 30.0
"""How long a start waits for the registry to name the release, and to deliver it, if another release is known."""
ASK_SECONDS, PULL_SECONDS = 30.0, 1800.0
"""The same if there is nothing to serve instead, and while another release is served."""


class ReleaseSource(Protocol):
    """Names the release that should be served, and fetches it."""

    def wanted(self) -> str:
        """Return the id of the release that should be served."""
        ...

    def fetch(self) -> Path | VerifiedRelease:
        """Return that release, verified or as a local directory; nobody else writes to its files."""
        ...

    def last_known(self) -> Path | None:
        """Return the local directory of the release that was wanted last, as far as it is known, or None."""
        ...


class DirectorySource:
    """A release directory, or a link to one that may be switched to another.

    A copy is served: overwriting a file of the directory itself would change answers, or kill the server where the file
    becomes shorter.
    """

    def __init__(self, directory: Path, cache_dir: Path | None = None) -> None:
        """Take a directory.

        Args:
            directory: a release.
            cache_dir: copies are kept here and used again; None takes a temporary directory.
        """
        self._directory = directory
        self._cache_dir = cache_dir

    def wanted(self) -> str:
        """Return the release id in the directory's manifest."""
        return read_manifest(self._directory).release_id

    def fetch(self) -> VerifiedRelease:
        """Copy the directory, links resolved, so that switching a link does not mix two releases."""
        if self._cache_dir is None:
            self._cache_dir = Path(tempfile.mkdtemp(prefix="sluice-releases-"))
            weakref.finalize(self, shutil.rmtree, self._cache_dir, ignore_errors=True)
        return copy_release(self._directory, self._cache_dir)

    def last_known(self) -> None:
        """Return None: a directory is there or it is not."""
        return


class RegistrySource:
    """The release that an alias of the registry points at.

    Every call to the registry has a time limit: a server that cannot reach it goes on serving the release that it has.
    """

    def __init__(self, registry: ReleaseRegistry, alias: str, cache_dir: Path) -> None:
        self._registry = registry
        self._alias = alias
        self._cache_dir = cache_dir
        self._deadline = Deadline("the registry")
        self._started = False

    def wanted(self) -> str:
        """Return the release id behind the alias.

        Raises:
            TransientError: if the registry does not answer in time.
        """
        return self._deadline.call(lambda: self._registry.resolve(self._alias), ASK_SECONDS).release_id

    def fetch(self) -> VerifiedRelease:
        """Pull the alias' release into the cache.

        Raises:
            TransientError: if the registry does not answer in time; the time limit of the first call is short if
                another release is known.
        """
        hurried = not self._started and self.last_known() is not None
        ask, pull = (START_ASK_SECONDS, START_PULL_SECONDS) if hurried else (ASK_SECONDS, PULL_SECONDS)
        self._started = True
        self._deadline.call(lambda: self._registry.resolve(self._alias), ask)
        return self._deadline.call(lambda: self._registry.pull_verified(self._alias, self._cache_dir), pull)

    def last_known(self) -> Path | None:
        """Return the cached release that the alias pointed at when it was pulled last."""
        return self._registry.last_pulled(self._alias, self._cache_dir)


def fetch_or_last_known(source: ReleaseSource) -> tuple[Path | VerifiedRelease, Exception | None]:
    """Return the wanted release and None; or, if the source is unreachable, the one wanted before and the error.

    Raises:
        SluiceError: the error of the release source, if there is no other release.
    """
    try:
        return source.fetch(), None
    except UNREACHABLE as error:
        known = source.last_known()
        if known is None:
            raise
        return known, error

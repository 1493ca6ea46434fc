"""The local cache of releases: complete, verified and read-only; and the release that an alias pointed at last.

    <release id>/          a release that was pulled from the registry
    <release id>-<hash>/   a copy of a release directory, by the hash of its manifest
    alias-<name>.json      which release an alias pointed at when it was pulled last

A release appears under its name in one step. Its files are read-only: a server maps the large ones, so that a write to
them would change its answers.
"""

from __future__ import annotations

import fcntl
import logging
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from stages.contracts.errors import ReleaseError, TransientError
from stages.contracts.files import read_json, sha256_file, write_json
from stages.contracts.manifest import MANIFEST_FILE, ReleaseManifest, VerifiedRelease, read_manifest, verified_release

_TEMPORARY = ".pull-"
_logger = logging.getLogger("sluice")


@contextmanager
def locked(cache_dir: Path) -> Iterator[None]:
    """Lock the cache for one process; leftovers of a killed process are removed."""
    cache_dir.mkdir(parents=True, exist_ok=True)
    with (cache_dir / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        for stale in cache_dir.glob(f"{_TEMPORARY}*"):
            shutil.rmtree(stale)
        yield


@contextmanager
def temporary(cache_dir: Path) -> Iterator[Path]:
    """Yield a directory on the cache's disk that is removed at the end."""
    with tempfile.TemporaryDirectory(prefix=_TEMPORARY, dir=cache_dir) as path:
        yield Path(path)


def cached(directory: Path) -> VerifiedRelease | None:
    """Return a cached release, None if it is not there or does not match its manifest; a damaged one is removed."""
    if not directory.is_dir():
        return None
    try:
        release = verified_release(directory)
    except ReleaseError:
        shutil.rmtree(directory)
        return None
    with suppress(OSError):  # another user's files, or a disk that is mounted read-only
        _protect(directory)
    return release


def place(copy: VerifiedRelease, final: Path) -> VerifiedRelease:
    """Make a verified copy read-only and give it its name."""
    _protect(copy.directory)
    copy.directory.rename(final)
    return copy.moved(final)


def copy_release(source: Path, cache_dir: Path) -> VerifiedRelease:
    """Return a verified, read-only copy of a release directory; each file of it was hashed once.

    A release that lies in the cache itself is only verified.

    Raises:
        ReleaseError: if the release is not whole.
        TransientError: if it cannot be copied, such as to a full disk.
    """
    source = source.resolve()
    manifest = read_manifest(source)
    if source.parent == cache_dir.resolve():
        return verified_release(source)
    final = cache_dir / f"{_checked_name(manifest)}-{sha256_file(source / MANIFEST_FILE)[:12]}"
    try:
        with locked(cache_dir):
            if (release := cached(final)) is not None:
                return release
            with temporary(cache_dir) as directory:
                return place(_copied(source, directory / final.name), final)
    except (OSError, shutil.Error) as error:
        raise TransientError(f"release {source}: could not be copied to {cache_dir}: {error}") from None


def _copied(source: Path, copy: Path) -> VerifiedRelease:
    # Contents, not permissions. Hard links would not protect: a write to one file changes the other.
    shutil.copytree(source, copy, copy_function=shutil.copyfile)
    try:
        return verified_release(copy)
    except ReleaseError as error:
        raise ReleaseError(str(error).replace(str(copy), str(source))) from None


def _checked_name(manifest: ReleaseManifest) -> str:
    name = manifest.release_id
    if not name or name != Path(name).name or name.startswith("."):
        raise ReleaseError(f"release_id = {name!r}: allowed is a plain name, as the folder of the release")
    return name


@dataclass(frozen=True)
class AliasKey:
    """An alias of one model in one registry.

    Attributes:
        alias: its name.
        model: registered model of the funnel.
        registry: hash of the registry's address.
    """

    alias: str
    model: str
    registry: str


def remember_alias(cache_dir: Path, key: AliasKey, release_id: str, version: int) -> None:
    """Record which release in ``cache_dir`` an alias points at."""
    pointed = {"release_id": release_id, "version": version, "pulled_at_ms": time.time_ns() // 1_000_000}
    write_json(_record(cache_dir, key.alias), {**asdict(key), **pointed})


def recall_alias(cache_dir: Path, key: AliasKey) -> Path | None:
    """Return the cached release that an alias pointed at when it was pulled last, not verified.

    A record of the same model at another address counts, with a warning: registries move.

    Returns:
        Its directory; None if nothing is known of this model's alias or the release is no longer there.
    """
    try:
        seen: Any = read_json(_record(cache_dir, key.alias))
        release_id, model, registry = str(seen["release_id"]), seen["model"], seen["registry"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    directory = cache_dir / release_id
    if model != key.model or release_id != Path(release_id).name or not (directory / MANIFEST_FILE).is_file():
        return None
    if registry != key.registry:
        _logger.warning("release %s was named by a registry at another address", release_id)
    return directory


def _record(cache_dir: Path, alias: str) -> Path:
    return cache_dir / f"alias-{quote(alias, safe='')}.json"


def _protect(directory: Path) -> None:
    """Make every file read-only; the directories stay writable, so that they can be removed."""
    for path in (directory, *directory.rglob("*")):
        path.chmod(0o755 if path.is_dir() else 0o444)

"""A full disk: every way of running out of space becomes one error that says where, how much, and what to do."""

from __future__ import annotations

import errno
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from stages.contracts.errors import ConfigError, DataError, OutOfSpaceError, ReleaseError

_NUMBERS = frozenset({errno.ENOSPC, errno.EDQUOT})
# Messages of the C library, SQLite, PostgreSQL and numpy (which drops the error's number).
_SAYS_SO = re.compile(
    r"no space left on device|disk quota exceeded|database or disk is full|\b\d+ requested and \d+ written\b",
    re.IGNORECASE,
)
# Messages that do not say why a write failed: they mean a full disk where almost no space is free.
_MAY_MEAN_IT = re.compile(r"\bwrit|flush|save|disk i/o error|unable to open database|inline_container", re.IGNORECASE)
_NEXT_TO_NOTHING = 1 << 16
_QUOTED_PATH = re.compile(r"[\"'](/[^\"'\n]+)[\"']")

SMALLER = {
    "dataset": "dataset.history_days or a stricter dataset.activity",
    "train_candidate": "candidate.model.dimension, candidate.checkpoints.keep",
    "build_index": "index.kinds",
    "train_sources": "sources.names",
    "retrieve": "funnel.candidate_k",
    "build_examples": "examples.negatives.per_request",
    "train_light": "examples.negatives.per_request",
    "train_heavy": "examples.negatives.per_request",
    "rank_held_out": "funnel.candidate_k, funnel.light_k",
    "rank_baselines": "funnel.candidate_k",
}
"""The settings that make the output of a step smaller, by step."""


def is_out_of_space(error: BaseException, directory: Path | None = None) -> bool:
    """Return whether an exception, or what caused it, says that a disk is full.

    Args:
        error: of Python or of any library.
        directory: that was being written to; if almost no space is free there, any write error counts.
    """
    tight = directory is not None and free_bytes(directory) < _NEXT_TO_NOTHING
    for each in _chain(error):
        words = str(each)
        if isinstance(each, OutOfSpaceError) or getattr(each, "errno", None) in _NUMBERS or _SAYS_SO.search(words):
            return True
        permanent = isinstance(each, ConfigError | DataError | ReleaseError)
        if tight and not permanent and _MAY_MEAN_IT.search(words):
            return True
    return False


def _chain(error: BaseException) -> Iterator[BaseException]:
    seen: set[int] = set()
    open_ones: list[BaseException | None] = [error]
    while open_ones:
        each = open_ones.pop()
        if isinstance(each, BaseException) and id(each) not in seen:
            seen.add(id(each))
            yield each
            open_ones += [each.__cause__, each.__context__, getattr(each, "orig", None)]


def free_bytes(directory: Path) -> int:
    """Return the bytes that are free to this process on a directory's file system; the directory need not exist yet."""
    while not directory.exists() and directory != directory.parent:
        directory = directory.parent
    return shutil.disk_usage(directory).free


def require_disk(step: str, directory: Path, needed_bytes: int) -> None:
    """Refuse to begin what will not fit a disk.

    Args:
        step: what will be done.
        directory: that it will write to.
        needed_bytes: an estimate of what it will write.

    Raises:
        OutOfSpaceError: with the bytes needed and free, and the settings that make the output smaller.
    """
    free = free_bytes(directory)
    if needed_bytes > free:
        raise OutOfSpaceError(
            f"step {step}: it will write about {needed_bytes:,} bytes, {free:,} are free in {directory}{_advice(step)}",
            step,
        )


def _advice(step: str) -> str:
    smaller = SMALLER.get(step)
    advice = f"; lower {smaller}, make room, or" if smaller else "; make room, or"
    return f"{advice} let SLUICE_HOME be on a larger disk; finished steps are re-used"


@contextmanager
def names_full_disk(step: str, directory: Path, own: bool = False) -> Iterator[None]:
    """Turn any error of a full disk into one that names the step.

    Args:
        step: what is being done.
        directory: that it writes to.
        own: whether the directory holds only the step's files, so that their size is what the step has written.

    Raises:
        OutOfSpaceError: with the bytes that were written, needed and free, where they are known.
    """
    try:
        yield
    except Exception as error:
        if (isinstance(error, OutOfSpaceError) and error.step) or not is_out_of_space(error, directory):
            raise
        found = str(error) if isinstance(error, OutOfSpaceError) else _found(error, directory, own)
        raise OutOfSpaceError(f"step {step}: {found}{_advice(step)}", step) from error


def _found(error: BaseException, directory: Path, own: bool) -> str:
    """Return the text of the error, the free bytes and, where they are known, the bytes written and needed."""
    words = (str(error).strip().splitlines() or [""])[0]
    quoted = [getattr(error, "filename", None), *_QUOTED_PATH.findall(words)]
    named = [Path(path).parent for path in quoted if isinstance(path, str)]
    full = min((path for path in named if path.is_dir()), key=free_bytes, default=None)
    full = full or min(directory, Path(tempfile.gettempdir()), key=free_bytes)
    free = free_bytes(full)
    found = f"a disk is full: {type(error).__name__}: {words}; {free:,} bytes are free in {full}"
    if own and full.is_relative_to(directory):
        written = sum(path.stat().st_blocks * 512 for path in directory.rglob("*") if path.is_file())
        found += f" and the step had written {written:,}: it needs more than {written + free:,}"
    return found

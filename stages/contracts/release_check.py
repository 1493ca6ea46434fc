"""The one check that artifacts belong together, for a release and for finished steps.

Several files state the same value: a summary by its keys, any other file by its bytes. All of them must agree. Checked
artifacts are passed on with their hashes and summaries.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from stages.contracts.artifacts import Artifact, collect
from stages.contracts.errors import ReleaseError
from stages.contracts.files import canonical_json
from stages.contracts.hashed_files import HashedFiles
from stages.contracts.summaries import (
    INDEX_JSON,
    ITEMS_FILE,
    RECALL_FLOOR,
    SCHEMA_FILE,
    SOURCES_JSON,
    VECTORS_FILE,
    IndexSummary,
    SchemaSummary,
    SourcesIdentity,
    Summary,
    SummaryT,
    read_summary,
)

_HASH = re.compile("[0-9a-f]{32,}")


@dataclass(frozen=True)
class Claim:
    """A value as one file states it; other files state the same value.

    Attributes:
        what: name of the value, such as ``tower_version``.
        origin: the file, or anything else, that states it.
        value: plain JSON.
        again: what to do where this claim is the wrong one; empty for a value that is taken as given.
    """

    what: str
    origin: str
    value: Any
    again: str = ""


@dataclass(frozen=True)
class CheckedArtifacts:
    """Artifacts that belong together, each file hashed once; scorers load them without checking again.

    Attributes:
        files: with their hashes.
        summaries: by name.
    """

    files: HashedFiles
    summaries: Mapping[str, Summary]

    def path(self, name: str) -> Path:
        """Return the path of an artifact.

        Raises:
            ReleaseError: if it is not among those that were checked.
        """
        if name not in self.files.paths:
            raise ReleaseError(f"{name}: not among the artifacts that were checked")
        return self.files.paths[name]

    def summary(self, name: str, model: type[SummaryT]) -> SummaryT:
        """Return a summary that was read for the check.

        Raises:
            ReleaseError: if it is not among them.
        """
        found = self.summaries.get(name)
        if not isinstance(found, model):
            raise ReleaseError(f"{name}: not among the summaries that were checked")
        return found


def check_steps(
    artifacts: Sequence[Artifact], directories: Mapping[str, Path], claims: Iterable[Claim] = ()
) -> CheckedArtifacts:
    """Hash the artifacts of finished steps, each file once, and check that they belong together.

    Args:
        artifacts: rows of the table.
        directories: of the steps, by the names of ``assemble``'s inputs.
        claims: further values that must agree.

    Raises:
        ReleaseError: naming every file that is missing or does not belong to the others, and what to do.
    """
    return check_together(HashedFiles.of(collect(artifacts, directories)), artifacts, claims)


def check_together(files: HashedFiles, artifacts: Sequence[Artifact], claims: Iterable[Claim] = ()) -> CheckedArtifacts:
    """Check that artifacts belong together.

    Args:
        files: hashed, by the names of the artifacts.
        artifacts: rows of the table; files without a row are ignored.
        claims: further values that must agree.

    Raises:
        ReleaseError: naming every value that files disagree on, each file with its value, and what to do.
    """
    missing = [
        f"{artifact.name}: missing ({artifact.remedy})"
        for artifact in artifacts
        if not (artifact.is_optional or artifact.name.endswith("/") or artifact.name in files.paths)
    ]
    if missing:
        raise ReleaseError("; ".join(missing))
    present = [artifact for artifact in artifacts if artifact.name in files.paths]
    summaries = {
        artifact.name: read_summary(files.paths[artifact.name], artifact.summary)
        for artifact in present
        if artifact.summary is not None
    }
    checked = CheckedArtifacts(files, summaries)
    refuse_disagreements([*_of_files(present, checked), *claims], _faults(present, checked))
    return checked


def refuse_disagreements(claims: Iterable[Claim], faults: Iterable[str] = ()) -> None:
    """Refuse claims that differ.

    The most frequent value is taken as right; of equally frequent ones a given one, then the first.

    Args:
        claims: about any number of values.
        faults: further faults, which the error names as well.

    Raises:
        ReleaseError: naming each value that differs, every origin with its own, and what to do.
    """
    by_what: dict[str, list[Claim]] = {}
    for claim in sorted(claims, key=lambda each: bool(each.again)):
        if claim.value is not None:
            by_what.setdefault(claim.what, []).append(claim)
    found = [text for what, said in by_what.items() if (text := _disagreement(what, said))]
    found += faults
    if found:
        raise ReleaseError("the files do not belong together: " + "; ".join(found))


def _disagreement(what: str, claims: list[Claim]) -> str:
    values = [canonical_json(claim.value) for claim in claims]
    (right, _), *others = Counter(values).most_common()  # of equally frequent ones the first
    if not others:
        return ""
    said = ", ".join(f"{_shown(claim.value)} in {claim.origin}" for claim in claims)
    wrong = [claim for claim, value in zip(claims, values, strict=True) if value != right]
    todo = dict.fromkeys(claim.again for claim in wrong if claim.again)
    return f"{what} is {said}" + (f" ({', then '.join(todo)})" if todo else "")


def _shown(value: Any) -> str:
    """Return a value for a message; the beginning of a hash is enough to tell it from another one."""
    return f"'{value[:12]}…'" if isinstance(value, str) and _HASH.fullmatch(value) else repr(value)


def _of_files(artifacts: Sequence[Artifact], checked: CheckedArtifacts) -> Iterator[Claim]:
    """Yield the claims of each file, from its bytes or its keys."""
    for artifact in artifacts:
        name = artifact.name
        said = dict(checked.summaries[name].says()) if name in checked.summaries else {}
        if artifact.described is not None:
            said[artifact.described[1]] = checked.files.hashes[name]
        if name in _MEASURED:
            said |= _measured(name, checked.path(name), artifact.remedy)
        yield from (Claim(what, name, value, artifact.remedy) for what, value in said.items())
    for name, sha256 in _of_sources(checked).items():
        yield Claim(f"sha256 of {name}", name, sha256, SourcesIdentity.AGAIN)


def _of_sources(checked: CheckedArtifacts) -> dict[str, str]:
    """Return the sha256 of every other file in ``sources/`` that ``sources.json`` may list."""
    if SOURCES_JSON not in checked.summaries:
        return {}
    directory = SOURCES_JSON.removesuffix("sources.json")
    hashes = checked.files.hashes.items()
    return {name: sha256 for name, sha256 in hashes if name.startswith(directory) and name != SOURCES_JSON}


def _measured(name: str, path: Path, again: str) -> dict[str, int]:
    try:
        return _MEASURED[name](path)
    except (OSError, ValueError, IndexError, pa.ArrowException) as error:
        raise ReleaseError(f"{path} is not readable: {error}; {again}") from None


def _item_rows(path: Path) -> dict[str, int]:
    return {"n_items": pq.read_metadata(path).num_rows}  # type: ignore[no-untyped-call]


def _vector_shape(path: Path) -> dict[str, int]:
    shape = np.load(path, mmap_mode="r", allow_pickle=False).shape
    return {"n_items": shape[0], "dim": shape[1]}


_MEASURED = {ITEMS_FILE: _item_rows, VECTORS_FILE: _vector_shape}
"""How values are read from files that are not summaries."""


def _faults(artifacts: Sequence[Artifact], checked: CheckedArtifacts) -> Iterator[str]:
    """Yield the faults of single files, and the files that are missing."""
    summaries = checked.summaries
    for artifact in artifacts:
        summary, key = artifact.described or ("", "")
        if key and (summary not in summaries or summaries[summary].says().get(key) is None):
            yield f"{summary} lacks the key {key!r} for {artifact.name} ({artifact.remedy})"
    index, schema, sources = summaries.get(INDEX_JSON), summaries.get(SCHEMA_FILE), summaries.get(SOURCES_JSON)
    if isinstance(index, IndexSummary) and not index.recall >= RECALL_FLOOR:
        yield f"recall is {index.recall} in {INDEX_JSON}, allowed is {RECALL_FLOOR} or more ({index.AGAIN})"
    if isinstance(schema, SchemaSummary) and schema.sources and sources is None:
        told_apart = list(schema.sources)
        yield (
            f"{SCHEMA_FILE} has features of the candidate generators {told_apart}, but {SOURCES_JSON} is missing "
            f"({SourcesIdentity.AGAIN})"
        )
    if isinstance(sources, SourcesIdentity):
        listed = [SOURCES_JSON.removesuffix("sources.json") + name for name in sources.files]
        missing = [name for name in listed if name not in checked.files.paths]
        yield from (f"{name} is missing, {SOURCES_JSON} names it ({sources.AGAIN})" for name in missing)

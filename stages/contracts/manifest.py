"""The release manifest: written last, it binds the artifacts of one compatible set together.

A release is one directory; ``stages.contracts.artifacts`` has the table of what is in it:

    manifest.json        ReleaseManifest
    config.json          the resolved configuration of the run that made it
    ledger.json          the stage ledger
    held_out.parquet     how the served row did on each held-out request (stages.contracts.ledger)
    snapshot.json        SnapshotMeta
    items.parquet, users.parquet, aliases.parquet    the id maps and the catalogue
    state/               serving state as of ``as_of_ms`` (stages.features)
    feature_schema.json  names and hash of the ranking features
    user_tower.onnx, item_tower.onnx, item_vectors.npy, tower.json    the candidate generator
    index.faiss, index.json
    sources/             sources.json and the arrays of the other candidate generators
    light_ranker.txt, light_ranker.json      where the light ranker is in use, or the heavy one
    heavy_ranker.onnx, heavy_ranker.json     where the heavy ranker is in use
    fallback.json        popular items for users without history
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from pydantic import ValidationError

from stages.contracts.config import Config
from stages.contracts.errors import ReleaseError
from stages.contracts.files import read_json
from stages.contracts.hashed_files import HashedFiles
from stages.contracts.ranking_stages import RANKING_STAGES

MANIFEST_FILE = "manifest.json"


class FunnelSpec(Config):
    """How many items each stage passes on, and which stages run.

    Attributes:
        candidate_k: items that retrieval returns.
        light_k: items that the light ranker passes to the heavy ranker.
        max_k: largest ``k`` that a request may ask for.
        stages: the ranking stages after retrieval: in a recipe the requested ones, in a release those in use. A stage
            that is left out is bypassed; it still runs where another stage reads its scores.
        objective: weight of each task's probability in the heavy ranker's score.
    """

    candidate_k: int = 1000
    light_k: int = 200
    max_k: int = 100
    stages: tuple[str, ...] = tuple(RANKING_STAGES)
    objective: dict[str, float] = {}


class ReleaseManifest(Config):
    """``manifest.json``.

    Attributes:
        format_version: of this layout; a reader refuses another one.
        release_id: ``<as-of date>-<12 hex digits of the hash over all other fields of the manifest>``.
        as_of_ms: events before this time are in the release's state.
        trained_as_of_ms: events before this time trained its models; earlier than ``as_of_ms`` in a refreshed
            release, None where both are the same.
        parts: sha256 of every other file by relative posix path.
        feature_schema_hash: hash of the ranking features' names and configuration.
        tower_version: sha256 of ``user_tower.onnx``; index and vectors belong to it.
        data_fingerprint: fingerprint of the snapshot.
        funnel: sizes, stages and objective weights.
        metrics: held-out metrics by ``<ledger row>/<metric>``; those of the served row by ``served/<metric>`` as well.
        bypassed: reason by name of each ranking stage that is not in use; empty in releases of older versions.
    """

    format_version: int = 1
    release_id: str
    as_of_ms: int
    trained_as_of_ms: int | None = None
    parts: dict[str, str]
    feature_schema_hash: str
    tower_version: str
    data_fingerprint: str
    funnel: FunnelSpec
    metrics: dict[str, float]
    bypassed: dict[str, str] = {}

    @property
    def age(self) -> tuple[int, int]:
        """The as-of times of training data and state, int ms UTC: the release with the larger pair is the newer one."""
        return (self.as_of_ms if self.trained_as_of_ms is None else self.trained_as_of_ms, self.as_of_ms)


def read_manifest(directory: Path) -> ReleaseManifest:
    """Read and check ``manifest.json``.

    Raises:
        ReleaseError: if it is missing, malformed or of another format version.
    """
    path = directory / MANIFEST_FILE
    if not path.is_file():
        raise ReleaseError(f"{path}: missing; a release without a manifest is not complete")
    try:
        manifest = ReleaseManifest.model_validate(read_json(path))
    except (ValidationError, ValueError) as error:
        raise ReleaseError(f"{path} is not a valid manifest: {error}") from None
    if manifest.format_version != 1:
        raise ReleaseError(f"{path}: format_version = {manifest.format_version}, this version reads 1")
    return manifest


@dataclass(frozen=True)
class VerifiedRelease:
    """A release whose files all match its manifest.

    Attributes:
        directory: of the release.
        manifest: of the release.
        files: every file, hashed once, including the manifest.
    """

    directory: Path
    manifest: ReleaseManifest
    files: HashedFiles

    def moved(self, directory: Path) -> VerifiedRelease:
        """Return the same release after its directory was renamed to ``directory``."""
        return replace(self, directory=directory, files=self.files.moved(directory))


def verified_release(directory: Path) -> VerifiedRelease:
    """Hash every file of a release, each once, and compare it with the manifest.

    Raises:
        ReleaseError: naming each file that is missing, changed or not listed, and what to do.
    """
    manifest = read_manifest(directory)
    files = HashedFiles.below(directory)
    faults, listed = [], {*manifest.parts, MANIFEST_FILE}
    for name, wanted in manifest.parts.items():
        if name not in files.hashes:
            faults.append(f"{name}: missing")
        elif (found := files.hashes[name]) != wanted:
            faults.append(f"{name}: sha256 {found[:12]}…, the manifest says {wanted[:12]}…")
    faults += [f"{name}: not in the manifest" for name in files.paths if name not in listed]
    if faults:
        raise ReleaseError(
            f"release {manifest.release_id} in {directory}: {'; '.join(faults)}; copy or pull the release again"
        )
    return VerifiedRelease(directory, manifest, files)


def verify_release(directory: Path) -> ReleaseManifest:
    """Verify a release and return its manifest, see ``verified_release``."""
    return verified_release(directory).manifest

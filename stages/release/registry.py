"""Releases in MLflow: register, promote, roll back, pull.

The version of the funnel model with the alias ``champion`` is the one that is served. The stages' own models are
registered for lineage only and never served.

A release is logged to one MLflow run and becomes a model version only when all of it is there, so a
version is never half a release. Moving an alias is one call of the registry, hence one transaction.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stages.contracts.errors import GateError, ReleaseError, TransientError
from stages.contracts.files import sha256_text
from stages.contracts.ledger import HELD_OUT_FILE
from stages.contracts.manifest import MANIFEST_FILE, ReleaseManifest, VerifiedRelease, read_manifest, verified_release
from stages.contracts.redaction import redacted
from stages.contracts.release_code import check_code
from stages.release.cache import AliasKey, cached, locked, place, recall_alias, remember_alias, temporary
from stages.release.config import RegistryConfig
from stages.release.gate import BY_HAND, Comparison, Contender, GateConfig, check_gate, compare, read_contender
from stages.release.mlflow_client import (
    artifact_uri,
    download,
    load_mlflow,
    local_path,
    mlflow_errors,
    open_client,
    opened_late,
)
from stages.release.runs import lineage, log_release, page_of_runs

CHAMPION, CHALLENGER, PREVIOUS = "champion", "challenger", "previous"
FORCED = "forced"
"""Tag of a model version that was promoted without passing the gate; its value is the champion that it replaced."""

_RELEASE_ID = re.compile(r"\d{8}-[0-9a-f]{12}")


@dataclass(frozen=True)
class RegisteredRelease:
    """One version of the funnel model.

    Attributes:
        version: number of the model version.
        release_id: of the release behind it.
        run_id: MLflow run that holds its artifacts.
        source: URI of the release directory.
        aliases: aliases that point at it, sorted.
        created_at_ms: when it was registered, ms UTC.
    """

    version: int
    release_id: str
    run_id: str
    source: str
    aliases: tuple[str, ...]
    created_at_ms: int


@dataclass(frozen=True)
class Promotion:
    """The outcome of a challenge.

    Attributes:
        release: the challenger, with the aliases that it has now.
        promoted: whether it is the champion.
        comparison: with the champion at that time.
    """

    release: RegisteredRelease
    promoted: bool
    comparison: Comparison

    def winner(self) -> RegisteredRelease:
        """Return the release if it is the champion.

        Raises:
            GateError: if it is not, with the reason.
        """
        if not self.promoted:
            name = f"release {self.release.release_id} (version {self.release.version})"
            raise GateError(f"{name} stays challenger: {self.comparison.reason}")
        return self.release


class ReleaseRegistry:
    """The releases of one funnel in MLflow.

    A store on this machine, or a database, is opened on first use; only ``register`` creates a missing one.
    """

    def __init__(self, config: RegistryConfig) -> None:
        """Load MLflow.

        Raises:
            ConfigError: if the store's kind is unknown.
        """
        self.config = config
        load_mlflow()
        self._opened: Any = None if opened_late(config.tracking_uri) else open_client(config.tracking_uri)

    @property
    def _client(self) -> Any:
        if self._opened is None:
            self._opened = open_client(self.config.tracking_uri, create=False)
        return self._opened

    def register(
        self,
        release_dir: Path,
        metrics: Mapping[str, float] | None = None,
        params: Mapping[str, Any] | None = None,
        stage_metrics: Mapping[str, Mapping[str, float]] | None = None,
        reports: Sequence[Path] = (),
    ) -> RegisteredRelease:
        """Log a release to MLflow and make it the challenger.

        A release that is registered already is returned as it is; an interrupted registration is continued in its run.

        Args:
            release_dir: a complete release.
            metrics: of the run, beside those of the manifest.
            params: nested; logged flat.
            stage_metrics: metrics by step, logged as ``<step>/<metric>``.
            reports: files to keep beside the release, below ``reports``.

        Raises:
            ReleaseError: if the release is incomplete or corrupt.
            TransientError: if MLflow does not answer.
        """
        manifest = verified_release(release_dir).manifest
        _check_id(manifest.release_id)
        steps = {
            f"{step}/{name}": value for step, group in (stage_metrics or {}).items() for name, value in group.items()
        }
        all_metrics = {**manifest.metrics, **steps, **(metrics or {})}
        if self._opened is None:
            self._opened = open_client(self.config.tracking_uri)
        with mlflow_errors(f"register release {manifest.release_id}"):
            found = self._version_of(self.config.model_name, manifest.release_id)
            if found is None:
                run = log_release(
                    self._client, self._experiment_id(), manifest, release_dir, all_metrics, params or {}, reports
                )
                found = self._add_versions(manifest, run)
            self._point(CHALLENGER, int(found.version))
        return self.resolve(int(found.version))

    def promote(
        self, reference: str | int = CHALLENGER, gate: GateConfig | None = None, force: bool = False
    ) -> RegisteredRelease:
        """Make a registered release the champion, as ``challenge`` does.

        Raises:
            GateError: if it does not pass the gate, or the champion stays.
            ReleaseError: if it does not exist or its artifacts are corrupt.
        """
        return self.challenge(reference, gate, force).winner()

    def challenge(
        self, reference: str | int = CHALLENGER, gate: GateConfig | None = None, force: bool = False
    ) -> Promotion:
        """Make a registered release the champion if it passes the gate and is no worse than the champion.

        The old champion gets the alias ``previous``. That alias is set first: if the process is killed in between, the
        old champion stays in place.

        Args:
            reference: version, release id or alias.
            gate: what the release has to show, None to promote without a gate and a comparison.
            force: promote in any case, and record it as the tag ``forced`` of the model version.

        Raises:
            GateError: if it does not pass the gate against the baseline.
            ReleaseError: if it does not exist, its artifacts are corrupt, or other code computed its features.
        """
        target = self.resolve(reference)
        manifest = self._verified(target)
        if CHAMPION in target.aliases:
            return Promotion(target, True, Comparison(True, "it is the champion already"))
        if gate is not None and not force:
            check_gate(manifest, gate)
            comparison = self._compare(target, gate)
        else:
            comparison = Comparison(True, "forced" if force else "without a gate")
        if comparison.passes:
            self._crown(target, force)
        return Promotion(self.resolve(target.version), comparison.passes, comparison)

    def _compare(self, target: RegisteredRelease, gate: GateConfig) -> Comparison:
        champion = next((release for release in self.list() if CHAMPION in release.aliases), None)
        if champion is None:
            return Comparison(True, "there was no champion before")
        mine = self._contender(target)
        try:
            theirs = self._contender(champion)
        except ReleaseError as error:
            raise ReleaseError(f"cannot compare with the champion: {error}; {BY_HAND}") from None
        return compare(mine, theirs, gate)

    def _contender(self, release: RegisteredRelease) -> Contender:
        """Read only what the comparison needs of a release."""
        local = local_path(release.source)
        if local is not None:
            return read_contender(local, release.release_id)
        with tempfile.TemporaryDirectory(prefix="sluice-") as temporary:
            copy = Path(temporary)
            download(f"{release.source}/{MANIFEST_FILE}", copy, self.config.tracking_uri)
            if HELD_OUT_FILE in read_manifest(copy).parts:
                download(f"{release.source}/{HELD_OUT_FILE}", copy, self.config.tracking_uri)
            return read_contender(copy, release.release_id)

    def _crown(self, target: RegisteredRelease, force: bool) -> None:
        champion = self._aliases().get(CHAMPION)
        with mlflow_errors(f"promote version {target.version}"):
            if force:
                over = f"over version {champion}" if champion is not None else "true"
                self._client.set_model_version_tag(self.config.model_name, str(target.version), FORCED, over)
            if champion is not None:
                self._point(PREVIOUS, champion)
            self._point(CHAMPION, target.version)

    def rollback(self) -> RegisteredRelease:
        """Make the champion before this one the champion again.

        Raises:
            ReleaseError: if there is none, its artifacts are corrupt, or other code computed its features.
        """
        aliases = self._aliases()
        previous = aliases.get(PREVIOUS)
        if previous is None or previous == aliases.get(CHAMPION):
            raise ReleaseError(f"{self.config.model_name}: no earlier champion to roll back to, aliases are {aliases}")
        self._verified(self.resolve(previous))
        with mlflow_errors(f"roll back to version {previous}"):
            self._point(CHAMPION, previous)
            self._client.delete_registered_model_alias(self.config.model_name, PREVIOUS)
        return self.resolve(previous)

    def resolve(self, reference: str | int) -> RegisteredRelease:
        """Return the registered release behind a version, a release id or an alias.

        Raises:
            ReleaseError: if there is none; the message lists the registered ones.
        """
        releases = self.list()
        for release in releases:
            if str(reference) in {str(release.version), release.release_id, *release.aliases}:
                return release
        known = {release.version: (release.release_id, *release.aliases) for release in releases}
        raise ReleaseError(
            f"{self.config.model_name}: no version, release id or alias {str(reference)!r} in "
            f"{redacted(self.config.tracking_uri)}; registered are {known or 'none'}"
        )

    def pull(self, reference: str | int, cache_dir: Path) -> Path:
        """Return the path of a verified local copy of a release, see ``pull_verified``."""
        return self.pull_verified(reference, cache_dir).directory

    def pull_verified(self, reference: str | int, cache_dir: Path) -> VerifiedRelease:
        """Return a verified local copy of a release, ``cache_dir / release_id``; each file of it was hashed once.

        A cached copy is verified and used again, or replaced if it is corrupt. Processes that pull
        at the same time wait for one another. The copy's files are read-only. The release that an alias pointed at is
        recorded beside it, see ``last_pulled``.

        Raises:
            ReleaseError: if the release does not exist or its artifacts are corrupt; then nothing
                new is left in the cache.
            TransientError: if MLflow does not answer, or the cache cannot be written.
        """
        release = self.resolve(reference)
        final = cache_dir / release.release_id
        try:
            with locked(cache_dir):
                if (copy := cached(final)) is None:
                    with temporary(cache_dir) as directory:
                        downloaded = download(release.source, directory, self.config.tracking_uri)
                        copy = place(_check_copy(downloaded, release), final)
                if str(reference) in release.aliases:
                    remember_alias(cache_dir, self._key(str(reference)), release.release_id, release.version)
        except OSError as error:
            raise TransientError(f"release cache {cache_dir}: {error.strerror or error}") from None
        return copy

    def last_pulled(self, alias: str, cache_dir: Path) -> Path | None:
        """Return the cached release that an alias pointed at when it was pulled last, without asking MLflow.

        It is not verified; None if nothing is known or it is no longer there.
        """
        return recall_alias(cache_dir, self._key(alias))

    def runs_page(self, server: str) -> str:
        """Return the address of MLflow's page that lists this funnel's runs, see ``page_of_runs``."""
        return page_of_runs(self._client, self.config.experiment, server)

    def _key(self, alias: str) -> AliasKey:
        return AliasKey(alias, self.config.model_name, sha256_text(redacted(self.config.tracking_uri)))

    def _verified(self, release: RegisteredRelease) -> ReleaseManifest:
        """Return the manifest of a release that may be served: its artifacts are intact and made by this code."""
        local = local_path(release.source)
        if local is not None:
            return _check_servable(local, release)
        with tempfile.TemporaryDirectory(prefix="sluice-") as temporary:
            return _check_servable(download(release.source, Path(temporary), self.config.tracking_uri), release)

    def _experiment_id(self) -> str:
        found = self._client.get_experiment_by_name(self.config.experiment)
        if found is None:
            location = artifact_uri(self.config.artifact_root)
            return str(self._client.create_experiment(self.config.experiment, artifact_location=location))
        return str(found.experiment_id)

    def _add_versions(self, manifest: ReleaseManifest, run: Any) -> Any:
        """Register the stages' models, then the funnel's: its version marks the registration as complete."""
        for suffix in lineage(manifest):
            self._add_version(f"{self.config.model_name}-{suffix}", manifest, run)
        return self._add_version(self.config.model_name, manifest, run)

    def _add_version(self, model: str, manifest: ReleaseManifest, run: Any) -> Any:
        if not self._client.search_registered_models(f"name = '{model}'"):
            self._client.create_registered_model(model)
        found = self._version_of(model, manifest.release_id)
        if found is None:
            tags = {
                "release_id": manifest.release_id,
                "data_fingerprint": manifest.data_fingerprint,
                "tower_version": manifest.tower_version,
                "feature_schema_hash": manifest.feature_schema_hash,
            }
            source = f"{run.info.artifact_uri}/release"
            self._client.create_model_version(model, source=source, run_id=run.info.run_id, tags=tags)
            found = self._version_of(model, manifest.release_id)
        return found

    def _version_of(self, model: str, release_id: str) -> Any | None:
        """Return the first version of a release, so that concurrent writers agree on one."""
        found = self._client.search_model_versions(f"name = '{model}' and tags.release_id = '{release_id}'")
        return min(found, key=lambda version: int(version.version), default=None)

    def _aliases(self) -> dict[str, int]:
        with mlflow_errors(f"read the aliases of {self.config.model_name}"):
            found = self._client.search_registered_models(f"name = '{self.config.model_name}'")
            if not found:
                return {}
            aliases = self._client.get_registered_model(self.config.model_name).aliases
        return {alias: int(version) for alias, version in sorted(aliases.items())}

    def _point(self, alias: str, version: int) -> None:
        self._client.set_registered_model_alias(self.config.model_name, alias, str(version))

    def list(self) -> tuple[RegisteredRelease, ...]:
        """Return all registered releases, oldest version first."""
        aliases = self._aliases()
        with mlflow_errors(f"list the versions of {self.config.model_name}"):
            versions = self._client.search_model_versions(f"name = '{self.config.model_name}'")
        releases = [
            RegisteredRelease(
                version=int(found.version),
                release_id=found.tags["release_id"],
                run_id=found.run_id,
                source=found.source,
                aliases=tuple(alias for alias, version in aliases.items() if version == int(found.version)),
                created_at_ms=int(found.creation_timestamp),
            )
            for found in versions
            if "release_id" in found.tags  # versions that others made by hand are not ours to serve
        ]
        return tuple(sorted(releases, key=lambda release: release.version))


def _check_id(release_id: str) -> None:
    if not _RELEASE_ID.fullmatch(release_id):
        raise ReleaseError(f"release_id = {release_id!r}, allowed is <8 digits>-<12 hex digits>")


def _check_servable(directory: Path, release: RegisteredRelease) -> ReleaseManifest:
    manifest = _check_copy(directory, release).manifest
    check_code(directory)
    return manifest


def _check_copy(directory: Path, release: RegisteredRelease) -> VerifiedRelease:
    verified = verified_release(directory)
    if verified.manifest.release_id != release.release_id:
        raise ReleaseError(
            f"version {release.version} is registered as {release.release_id}, "
            f"its manifest in {directory} says {verified.manifest.release_id}"
        )
    return verified

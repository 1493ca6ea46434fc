"""Loading a release into memory."""

from __future__ import annotations

from os import PathLike
from pathlib import Path

from serving.release import LoadedRelease
from serving.release import load_release as load_checked


def load_release(path: str | PathLike[str]) -> LoadedRelease:
    """Verify and load a release; ``Funnel(release)`` answers from it as the server would.

    A funnel changes the release's state with every event: load the release again for a second funnel.

    Args:
        path: a release directory, such as ``Run.release``, a folder in ``<home>/serving/releases``, or one that was
            downloaded from MLflow.

    Returns:
        The catalogue of N items, the models and the state of histories and counters as of
        ``release.manifest.as_of_ms`` (int ms UTC). Arrays may be mapped from the release's files: leave them in place.

    Raises:
        ReleaseError: if a file is missing, changed or unreadable, if two do not belong together, or if other code than
            this version's computed the features.
    """
    return load_checked(Path(path))

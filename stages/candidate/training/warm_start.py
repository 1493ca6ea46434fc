"""What a training starts from: its own checkpoints after a failure, or an earlier model (warm start).

Checkpoints lie beside the step's directory under a name made from what identifies the run, so that they
outlive a failed attempt and the next one finds them. The finished step keeps its state in ``state/``:
one ``.npy`` a tensor and ``state.json``, which says what the rows of the tables are.
"""

from __future__ import annotations

import fcntl
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import accumulate
from pathlib import Path
from typing import Any

import pyarrow as pa

from stages import __version__
from stages.candidate.config import GIVES_SHAPE, NO_PART_OF_THE_RESULT, CandidateConfig, TrainCandidateConfig
from stages.contracts.code import code_digest
from stages.contracts.config import Config, parse_config, under_new_names
from stages.contracts.errors import ConfigError, DataError, TransientError
from stages.contracts.files import canonical_json, read_json, sha256_text
from stages.contracts.id_map import IdMap, IdMapVersion
from stages.contracts.snapshot import ContextColumn, Snapshot, context_faults
from stages.contracts.summaries import TOWER_JSON

RUN_FILE, STATE, STATE_JSON, WEIGHTS = "run.json", "state", "state.json", "weights"
_CONTEXT = "context"
"""Name of the table of context values."""
_FORMER = {"candidate.model.input_scale": 1.0, "candidate.loss.learned_temperature": False}
"""Values of fields that the descriptions of older models do not contain."""


class StateDescription(Config):
    """``state.json``.

    Attributes:
        shape: the configuration's fields that give the tensors their shapes and meaning, by dotted key. Older
            models have the former keys of ``CandidateConfig``.
        ids: versions of the id maps ``users`` and ``items``: what the rows are.
        categories: names of the category table's rows.
        signals: kinds of events that histories tell apart.
        context: context columns and their values: the rows of the context table.
    """

    shape: dict[str, Any]
    ids: dict[str, tuple[IdMapVersion, ...]]
    categories: tuple[str, ...]
    signals: tuple[str, ...]
    context: tuple[ContextColumn, ...]


def identity(config: TrainCandidateConfig, snapshot: Snapshot) -> dict[str, Any]:
    """Return what a run must have in common with a checkpoint to resume from it, as flat JSON."""
    candidate = {
        name: value
        for name, value, marks in _fields(config.candidate, "candidate")
        if NO_PART_OF_THE_RESULT not in marks
    }
    features = {name: value for name, value, _ in _fields(config.features, "features")}
    return {
        "version": __version__,
        "code": code_digest("stages.candidate.training.step"),
        "snapshot": snapshot.meta.fingerprint,
        "warm_start_version": config.warm_start_version,
        **candidate,
        **features,
    }


@contextmanager
def kept_checkpoints(directory: Path, run: dict[str, Any]) -> Iterator[Path]:
    """Yield the run's own directory of checkpoints beside ``directory``; it stays after a transient error.

    A second process that trains the same at the same time is refused. The directory is removed after success,
    and after a permanent error, since its checkpoints are of no use then.

    Raises:
        TransientError: if another process trains the same.
    """
    place = directory.parent / f".{sha256_text(canonical_json(run))[:16]}.checkpoints"
    place.mkdir(parents=True, exist_ok=True)
    with (place / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise TransientError(f"candidate training: another process trains the same into {place}") from None
        try:
            yield place
        except Exception as error:
            if isinstance(error, ConfigError | DataError):
                shutil.rmtree(place, ignore_errors=True)
            raise
        shutil.rmtree(place, ignore_errors=True)


def describe(config: TrainCandidateConfig, snapshot: Snapshot) -> StateDescription:
    """Return what ``state.json`` says of a model trained on the snapshot."""
    ids = {kind: _versions(kind, snapshot) for kind in ("users", "items")}
    meta = snapshot.meta
    return StateDescription(
        shape=_shape(config), ids=ids, categories=meta.categories, signals=meta.signals, context=meta.context
    )


def _shape(config: TrainCandidateConfig) -> dict[str, Any]:
    return {name: value for name, value, marks in _fields(config.candidate, "candidate") if GIVES_SHAPE in marks}


def _fields(config: Config, name: str) -> Iterator[tuple[str, Any, tuple[Any, ...]]]:
    """Yield dotted name, JSON value and marks of each field; a field has its section's marks as well."""
    values = config.model_dump(mode="json")
    for own, field in type(config).model_fields.items():
        section = getattr(config, own)
        if isinstance(section, Config):
            for below, value, marks in _fields(section, f"{name}.{own}"):
                yield below, value, (*field.metadata, *marks)
        else:
            yield f"{name}.{own}", values[own], tuple(field.metadata)


def _versions(kind: str, snapshot: Snapshot) -> tuple[IdMapVersion, ...]:
    """Return the map's versions; an old snapshot without versions counts as a first version."""
    return snapshot.meta.ids.get(kind) or IdMap.read(kind, _ids(kind, snapshot), ()).versions


def _ids(kind: str, snapshot: Snapshot) -> pa.Array:
    return pa.array(snapshot.user_ids() if kind == "users" else snapshot.items().item_id, pa.string())


def _grown(kind: str, versions: tuple[IdMapVersion, ...], snapshot: Snapshot) -> bool:
    """Return whether the snapshot's first rows are those of an earlier map with these versions."""
    own = snapshot.meta.ids.get(kind, ())
    if own[: len(versions)] == versions or not versions:
        return True
    # The two are not connected through a base, but their ids may still be the same.
    try:
        IdMap.read(kind, _ids(kind, snapshot).slice(0, versions[-1].size), versions)
    except DataError:
        return False
    return True


def warm_start_version(path: str) -> str:
    """Return the tower version of the model at ``path``; of a refreshed one, the version that was trained.

    Raises:
        ConfigError: if there is none, or its summary does not say it.
    """
    tower = Path(path) / TOWER_JSON
    if not tower.is_file():
        raise ConfigError(
            f"candidate.warm_start.path = {path!r}: has no {TOWER_JSON}; allowed is the directory of a finished "
            "train_candidate step, or of a release"
        )
    version = _trained_version(tower)
    if version is None:
        raise ConfigError(
            f"candidate.warm_start.path: {tower}: tower_version: missing or not readable; another version made it, or "
            "it was damaged since: train anew, or name another train_candidate step"
        )
    return version


def _trained_version(tower: Path) -> str | None:
    try:
        summary = read_json(tower)
        version = summary.get("trained_version", summary.get("tower_version"))
    except (OSError, ValueError, AttributeError):
        return None
    return version if isinstance(version, str) else None


def warm_state(config: TrainCandidateConfig, snapshot: Snapshot, beside: Path) -> Path | None:
    """Return the state to start from, if the configuration names one and its rows are still the same rows.

    Args:
        config: of the training.
        snapshot: to train on.
        beside: where finished ``train_candidate`` steps lie. The state of a release is looked for there by its
            tower version, because a release itself holds only what serving needs.

    Raises:
        ConfigError: if there is no state, or it is of another shape.
        ConfigError: if the rows of the snapshot do not begin with those that the model was trained on.
    """
    path = config.candidate.warm_start.path
    if path is None:
        return None
    state = _find_state(Path(path), warm_start_version(path), beside)
    _check(path, _read_description(state / STATE_JSON), config, snapshot)
    return state


def _read_description(file: Path) -> StateDescription:
    """Read ``state.json``.

    Raises:
        ConfigError: naming the file, the field and what to do, if another version wrote it.
    """
    origin = f"candidate.warm_start.path: {file}"
    try:
        return parse_config(StateDescription, read_json(file), origin)
    except (OSError, ValueError, ConfigError) as error:
        words = str(error) if isinstance(error, ConfigError) else f"{origin}: not readable ({error})"
        raise ConfigError(
            f"{words}; another version made it, or it was damaged since: train anew, or name another "
            "train_candidate step"
        ) from None


def _find_state(path: Path, version: str, beside: Path) -> Path:
    for step in (path, *sorted(beside.iterdir())):
        state = step / STATE
        # A release has a ``state/state.json`` as well: that of serving, which holds no weights.
        if (state / WEIGHTS).is_dir() and _trained_version(step / TOWER_JSON) == version:
            return state
    raise ConfigError(
        f"candidate.warm_start.path = {str(path)!r}: holds no training state, and no finished step below {beside} has "
        f"its tower {version[:12]}; name the train_candidate step that it was made by"
    )


def _check(path: str, found: StateDescription, config: TrainCandidateConfig, snapshot: Snapshot) -> None:
    shape = {**_FORMER, **under_new_names(CandidateConfig, "candidate", found.shape)}
    other = [
        f"{name} = {value!r}, the model there has {shape.get(name)!r}"
        for name, value in _shape(config).items()
        if shape.get(name) != value
    ]
    other += [
        f"its {versions[-1].size} rows of {kind} (version {len(versions)}, {versions[-1].hash[:12]}) are not the first "
        f"rows of this snapshot, which has {_size(kind, snapshot)}; build the snapshot with the model's snapshot as "
        "dataset.base, which keeps its ids"
        for kind, versions in found.ids.items()
        if not _grown(kind, versions, snapshot)
    ]
    if snapshot.meta.categories[: len(found.categories)] != found.categories:
        other.append(f"its {len(found.categories)} categories are not the first of this snapshot's")
    if snapshot.meta.signals != found.signals:
        other.append(f"its signals are {list(found.signals)}, the snapshot's {list(snapshot.meta.signals)}")
    if config.candidate.model.context:
        other += context_faults(found.context, snapshot.meta.context)
    if other:
        raise ConfigError(f"candidate.warm_start.path = {path!r}: {'; '.join(other)}")


def moved_rows(state: Path, columns: Sequence[ContextColumn]) -> dict[str, list[int]]:
    """Return by table where the rows of an earlier model's state go, for tables that do not grow at their end.

    The context table has the values of one column after another, so a new value moves those of later columns.

    Args:
        state: that ``warm_state`` returned.
        columns: of the snapshot to train on.
    """
    starts = {
        column.name: start
        for column, start in zip(columns, accumulate((len(each.values) for each in columns), initial=0), strict=False)
    }
    found = _read_description(state / STATE_JSON).context
    return {_CONTEXT: [starts[column.name] + code for column in found for code in range(len(column.values))]}


def _size(kind: str, snapshot: Snapshot) -> int:
    return len(_ids(kind, snapshot))

"""The step ``train_candidate``: prepare a job, run it under torchrun, export the result."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from stages.candidate.config import TrainCandidateConfig
from stages.candidate.data.examples import training_examples
from stages.candidate.data.item_features import Catalogue
from stages.candidate.data.validation import checked_tables
from stages.candidate.onnx_towers import item_tower_deviation
from stages.candidate.training.held_out import hold_out
from stages.candidate.training.progress import relay
from stages.candidate.training.warm_start import (
    RUN_FILE,
    STATE,
    STATE_JSON,
    describe,
    identity,
    kept_checkpoints,
    moved_rows,
    warm_state,
)
from stages.contracts.errors import (
    ConfigError,
    DataError,
    EmptyDatasetError,
    OutOfSpaceError,
    SluiceError,
    TransientError,
)
from stages.contracts.files import read_json, write_json
from stages.contracts.snapshot import Snapshot
from stages.contracts.steps import Outcome
from stages.contracts.summaries import ITEM_TOWER_FILE, VECTORS_FILE, load_vectors

_SEARCH = "search"
WORKER = ("-m", "stages.candidate.training.worker")
_LAUNCHER = ("-m", "torch.distributed.run", "--standalone", "--local-addr", "127.0.0.1", "--shutdown-timeout", "3")
"""torchrun's options. Ranks have nothing to save when it stops, so they get 3 seconds for it, not torch's 30."""
_SINGLE_RANK = {
    "RANK": "0",
    "LOCAL_RANK": "0",
    "WORLD_SIZE": "1",
    "LOCAL_WORLD_SIZE": "1",
    "MASTER_ADDR": "127.0.0.1",
    "MASTER_PORT": "0",  # any free one, for nobody else joins
}
"""What torchrun would set for the only rank."""
_OURS: dict[str, type[SluiceError]] = {
    kind.__name__: kind for kind in (ConfigError, DataError, EmptyDatasetError, OutOfSpaceError, TransientError)
}
_WAITED_IN_VAIN = (
    "timed out",
    "timeout",
    "connection closed",
    "connection refused",
    "connection reset",
    "broken pipe",
    "address already in use",
)


def train_candidate(config: TrainCandidateConfig, inputs: Mapping[str, Path], directory: Path) -> Outcome:
    """Train the two-tower model on the candidate period of a snapshot.

    A killed run resumes from its newest checkpoint when the step is called again with the same
    configuration, inputs and parent of ``directory``; the number of processes may differ. With
    ``candidate.warm_start.path`` training starts from an earlier model, whose tables are grown.

    Args:
        config: model, training and features.
        inputs: ``snapshot``.
        directory: receives ``user_tower.onnx``, ``item_tower.onnx``, ``item_vectors.npy``, ``tower.json`` and
            ``state/``.

    Raises:
        ConfigError: if the model to start from does not fit, naming what differs.
        EmptyDatasetError: if nothing is left to train on.
        DataError: if an event or an item is malformed, the training diverges, or an exported tower differs
            from the trained one.
        TransientError: if a rank was killed or lost its connection to the others.
    """
    # torch is heavy, and workflows that only list their steps import this module.
    from stages.candidate.export.user_tower import PARITY, export

    snapshot = Snapshot(inputs["snapshot"])
    warm, run = warm_state(config, snapshot, directory.parent), identity(config, snapshot)
    with (
        tempfile.TemporaryDirectory(prefix="sluice-candidate-") as name,
        kept_checkpoints(directory, run) as checkpoints,
    ):
        work = Path(name)
        search = chosen_epochs(config, snapshot, work / "search", checkpoints=checkpoints, warm=warm, run=run)
        catalogue = prepare(
            config,
            snapshot,
            work,
            checkpoints=checkpoints,
            warm=warm,
            run=run,
            until=None if search is None else search["best_epoch"],
        )
        launch(config, work)
        summary = export(directory, work, config, catalogue)
        trained = {**read_json(work / "metrics.json"), **(search or {})}
        shutil.move(work / STATE, directory / STATE)
    write_json(directory / STATE / STATE_JSON, describe(config, snapshot).model_dump(mode="json"))
    vectors_ND = load_vectors(directory / VECTORS_FILE, summary)
    deviation = item_tower_deviation(directory / ITEM_TOWER_FILE, snapshot.items(), vectors_ND, catalogue.end_ms)
    if not deviation <= PARITY:
        raise DataError(f"{ITEM_TOWER_FILE}: differs by {deviation:.2g} from {VECTORS_FILE}, allowed is {PARITY:g}")
    losses = list(summary.losses)
    metrics: dict[str, float] = {
        "examples": float(catalogue.frequency.sum()),
        "items": float(len(catalogue)),
        "cold_items": float(summary.n_cold_items),
        "steps": float(trained["steps"] * len(losses)),
        "loss_first": losses[0],
        "loss_last": losses[-1],
        "export_deviation": summary.export_deviation,
        "item_tower_deviation": deviation,
        "examples_per_s": round(trained["examples_per_s"], 1),
        "input_wait_share": round(trained["input_wait_share"], 4),
        "resumed_at_step": float(trained["first_step"]),
        "temperature": trained["temperature"],
        **_of_best_epoch(trained),
    }
    curve = {"validation": trained["validation"]} if "validation" in trained else {}
    return metrics, {"tower_version": summary.tower_version, "device": summary.device, "losses": losses, **curve}


def _of_best_epoch(trained: dict[str, Any]) -> dict[str, float]:
    """Return the number of the best epoch and its figures; nothing without early stopping."""
    if "validation" not in trained:
        return {}
    best = trained["validation"][trained["best_epoch"] - 1]
    return {"best_epoch": float(trained["best_epoch"]), **{f"held_out_{name}": value for name, value in best.items()}}


def chosen_epochs(
    config: TrainCandidateConfig,
    snapshot: Snapshot,
    work: Path,
    *,
    checkpoints: Path,
    warm: Path | None,
    run: dict[str, Any],
) -> dict[str, Any] | None:
    """Return the ``best_epoch`` and the ``validation`` of a first training that holds rows out.

    Its result is kept beside its checkpoints, so that a run that is killed in the second training does not repeat the
    first. None where the configuration asks for one training only.
    """
    stopping = config.candidate.training.early_stopping
    if stopping is None or stopping.then == "keep":
        return None
    place, kept = checkpoints / _SEARCH, checkpoints / f"{_SEARCH}.json"
    if not kept.is_file():
        work.mkdir(parents=True, exist_ok=True)
        prepare(config, snapshot, work, checkpoints=place, warm=warm, run=run)
        launch(config, work)
        found = read_json(work / "metrics.json")
        write_json(kept, {name: found[name] for name in ("best_epoch", "validation")})
        shutil.rmtree(place, ignore_errors=True)
        shutil.rmtree(work)
    result: dict[str, Any] = read_json(kept)
    return result


def prepare(
    config: TrainCandidateConfig,
    snapshot: Snapshot,
    work: Path,
    *,
    checkpoints: Path | None = None,
    warm: Path | None = None,
    run: dict[str, Any] | None = None,
    until: int | None = None,
) -> Catalogue:
    """Write ``job.json``, ``run.json`` and the arrays that every rank maps.

    Args:
        config: of the training.
        snapshot: to train on.
        work: directory of the job.
        checkpoints: directory of the run's checkpoints; None writes none.
        warm: state of an earlier model to start from.
        run: what identifies the run, see ``warm_start.identity``.
        until: epochs that were chosen before; with None and early stopping, rows are held out to choose them.

    Returns:
        The catalogue.

    Raises:
        DataError: if an event or an item of the snapshot is malformed, see ``data.validation``.
        EmptyDatasetError: if nothing is left to train on.
    """
    meta, (events, items) = snapshot.meta, checked_tables(snapshot)
    examples = training_examples(events, meta, config.features, snapshot.contexts())
    training = config.candidate.training
    of_others = training.histories == "others"
    if training.early_stopping is not None and until is None:
        events, held_out = hold_out(events, examples, training.early_stopping, training.seed)
        held_out.save(work)
        examples = training_examples(events, meta, config.features, snapshot.contexts())
    catalogue = Catalogue.of(
        items,
        examples,
        examples.usable(training.use_empty_histories, of_others),
        config.features.history_length,
        meta.borders.candidate_end_ms,
        of_others=of_others,
        word_buckets=config.candidate.model.word_buckets,
        n_signals=len(meta.signals),
        n_users=snapshot.n_users() if config.candidate.model.user_id else 0,
        context_sizes=[len(column.values) for column in meta.context],
    )
    examples.save(work)
    catalogue.save(work)
    write_json(work / "job.json", config.model_dump(mode="json"))
    places = {"checkpoints": checkpoints and str(checkpoints.resolve()), "warm_start": warm and str(warm.resolve())}
    moved = moved_rows(warm, meta.context) if warm and config.candidate.model.context else {}
    write_json(work / RUN_FILE, {**places, "moved": moved, "identity": run or {}, "until": until})
    return catalogue


def launch(config: TrainCandidateConfig, work: Path) -> None:
    """Run the ranks and pass their progress on to stderr.

    Several ranks run under torchrun's elastic launcher. A single one is started directly: the launcher would import
    torch for seconds and have nothing to coordinate.

    Raises:
        SluiceError: if a rank failed, with its rank and message; see ``rank_failure``.
    """
    ranks = config.candidate.distributed.n_processes
    options = ("-u",) if ranks == 1 else (*_LAUNCHER, "--nproc-per-node", str(ranks))
    command = [sys.executable, *options, *WORKER, str(work)]
    environment = {
        # Ranks of one machine talk over its loopback interface, whatever its host name resolves to.
        "GLOO_SOCKET_IFNAME": "lo" if sys.platform == "linux" else "lo0",
        "NCCL_SOCKET_IFNAME": "lo",
        **os.environ,
        **(_SINGLE_RANK if ranks == 1 else {}),
        "OMP_NUM_THREADS": str(config.candidate.distributed.threads),
        "PYTHONWARNINGS": "ignore",
    }
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL) as process:
        try:
            output = relay(process.stderr.fileno())  # type: ignore[union-attr]
        except BaseException:
            process.terminate()  # the launcher, if there is one, hands the signal on to its ranks
            raise
        code = process.wait()
    if code != 0 or not (work / "metrics.json").is_file():
        raise rank_failure(work, code, output)


def rank_failure(work: Path, code: int, output: list[str]) -> SluiceError:
    """Return the error that says why the ranks failed.

    The earliest rank that described its failure is the cause; the launcher stops the others. A rank
    that left no description was killed from outside, for instance because memory ran out.
    """
    faults = sorted((read_json(path) for path in work.glob("error-*.json")), key=lambda fault: fault["time"])
    if not faults:
        return TransientError(
            f"candidate training ended with exit code {code} and no message of a rank; it was killed or could not "
            "start. Last lines: " + " | ".join(output[-5:])
        )
    fault = faults[0]
    message = f"candidate training: rank {fault['rank']} failed: {fault['type']}: {fault['message']}"
    if fault["type"] in _OURS:
        return _OURS[fault["type"]](f"candidate training, rank {fault['rank']}: {fault['message']}")
    if any(sign in fault["message"].lower() for sign in _WAITED_IN_VAIN):
        return TransientError(message)
    return SluiceError(message)

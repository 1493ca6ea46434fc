"""Train the heavy ranker: multi-task DCN-v2 on the rows that the light ranker passes on.

R example rows, Q requests, n rows of a batch's requests, T tasks.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from stages.contracts.errors import ConfigError, DataError
from stages.contracts.example_windows import late_requests
from stages.contracts.examples import ExamplesFile, mean_ndcg, read_array
from stages.contracts.memory import require_memory
from stages.contracts.progress import Advance, progress_of
from stages.contracts.snapshot import Snapshot, Task
from stages.contracts.steps import Outcome
from stages.contracts.summaries import VECTORS_FILE, HeavySummary
from stages.heavy_ranker.config import HeavyRankerConfig
from stages.heavy_ranker.data import BUFFER_GROUPS, Batch, HeavyData
from stages.heavy_ranker.export import export_onnx
from stages.heavy_ranker.lists import Lists, light_lists
from stages.heavy_ranker.loss import listwise_loss, log_score, pointwise_loss
from stages.heavy_ranker.model import HeavyRanker
from stages.heavy_ranker.platt import platt_scaling
from stages.heavy_ranker.scorer import META_FILE, MODEL_FILE

STEP = "heavy ranker"
SMALLER = "heavy_ranker.memory_rows, examples.requests or examples.negatives.per_request"
_BYTES_OF_ROW = 150
"""Memory of a row apart from its features, while rows are sorted and chosen; 110 were measured with one task and two
thirds of 2 million rows kept."""


def train_heavy(config: HeavyRankerConfig, inputs: Mapping[str, Path], directory: Path) -> Outcome:
    """Train the heavy ranker and export it.

    Epoch 0 is the light ranker's own order. The number of epochs is the one with the best NDCG@10 on the requests of
    the last window, 0 included; then a model is trained for that many epochs on all windows. Weights of sampled rows
    make probabilities those of the lists that were not sampled.

    Args:
        config: see ``HeavyRankerConfig``.
        inputs: directories ``snapshot``, ``candidate``, ``retrieve``, ``examples`` and ``light``.
        directory: gets ``heavy_ranker.onnx`` and ``heavy_ranker.json``.

    Raises:
        ConfigError: if the objective or the device cannot be used, or the examples do not fit the memory.
        DataError: if a task has no positive, fewer than two requests have a relevant row, or an input is malformed.
    """
    torch.set_num_threads(config.threads)
    tasks = Snapshot(inputs["snapshot"]).meta.tasks
    objective = training_objective(config.objective, tasks)
    data = _read(config, inputs, tasks)
    check_positives(data.lists, tasks)
    late = late_requests(STEP, data.lists.window, data.lists.positive)

    trainer = Trainer(config, data, np.array([objective[task.name] for task in tasks]))
    epochs, metrics = trainer.choose_epochs(late)
    model = trainer.fit(np.ones(len(data.lists), dtype=bool), epochs)
    export_onnx(model, directory / MODEL_FILE)
    metrics |= {
        "epochs": float(epochs),
        "validation_requests": float(late.sum()),
        "training_requests": float(len(data.lists)),
        "training_rows": float(len(data.lists.rows)),
    }
    summary = HeavySummary(
        feature_schema_hash=data.file.schema_hash,
        input_width=data.width,
        vector_dim=int(data.vectors.shape[1]),
        light_k=config.light_k,
        tasks=tuple(task.name for task in tasks),
        objective=objective,
        metrics=metrics,
    )
    summary.write(directory / META_FILE)
    return metrics, {"feature_schema_hash": data.file.schema_hash, "objective": objective}


def training_objective(objective: Mapping[str, float], tasks: tuple[Task, ...]) -> dict[str, float]:
    """Return the weight of every task: the configured ones (0 if left out), else those of the tasks.

    Raises:
        ConfigError: if a task is unknown or no weight is above zero.
    """
    names = [task.name for task in tasks]
    unknown = sorted(set(objective) - set(names))
    if unknown:
        raise ConfigError(f"objective: unknown task {', '.join(unknown)}; allowed: {', '.join(names)}")
    weights = {task.name: float(objective.get(task.name, 0.0) if objective else task.weight) for task in tasks}
    if max(weights.values()) <= 0:
        raise ConfigError(f"objective = {weights}: at least one weight must be above 0")
    return weights


def _read(config: HeavyRankerConfig, inputs: Mapping[str, Path], tasks: tuple[Task, ...]) -> HeavyData:
    file = ExamplesFile(inputs["examples"])
    names = tuple(task.name for task in tasks)
    if file.task_names != names:
        raise DataError(
            f"{file.path} has labels of {len(file.task_names)} tasks: {', '.join(file.task_names)}; the snapshot has "
            f"{len(names)} tasks: {', '.join(names)}"
        )
    _check_memory(config, file)
    light_scores = np.asarray(read_array(inputs["light"] / "scores.npy"))
    if light_scores.shape != (file.n_rows,) or not np.isfinite(light_scores).all():
        raise DataError(
            f"scores.npy {list(light_scores.shape)} must be finite [{file.n_rows}], one score a row of {file.path.name}"
        )
    return HeavyData(
        file=file,
        lists=light_lists(file.read(with_features=False), light_scores, config.light_k),
        queries=read_array(inputs["retrieve"] / "queries.npy"),
        vectors=read_array(inputs["candidate"] / VECTORS_FILE),
        memory_rows=config.memory_rows,
    )


def _check_memory(config: HeavyRankerConfig, file: ExamplesFile) -> None:
    """Refuse examples that do not fit the memory.

    Raises:
        ConfigError: with the bytes that are needed and available, and the settings.
    """
    largest = int(file.group_rows.max(initial=0))
    held = file.n_rows if file.n_rows <= config.memory_rows else BUFFER_GROUPS * largest
    width = len(file.feature_names)
    # While a row group is decoded and its rows are chosen, three times its float32 values are in memory.
    needed = 4 * width * (held + 3 * largest) + _BYTES_OF_ROW * file.n_rows
    require_memory(f"train_heavy ({file.n_rows:,} rows x {width} features)", needed, SMALLER)


def check_positives(lists: Lists, tasks: tuple[Task, ...]) -> None:
    """Refuse a task that cannot be learnt.

    Raises:
        DataError: naming each task without a positive and the number of rows.
    """
    counts = lists.labels.sum(axis=0)
    missing = [task.name for task, count in zip(tasks, counts, strict=True) if count == 0]
    if missing:
        raise DataError(
            f"{STEP}: task {', '.join(missing)} has no positive among {len(lists.rows)} rows of {len(lists)} requests; "
            "remove the task, or raise light_k or candidate_k"
        )


class Trainer:
    """Fits heavy rankers on requests of one data set; which requests is bool ``[Q]``.

    Args:
        config: see ``HeavyRankerConfig``.
        data: the requests.
        weights: float ``[T]``, the objective.
    """

    def __init__(self, config: HeavyRankerConfig, data: HeavyData, weights: np.ndarray) -> None:
        self.config = config
        self.data = data
        self.weights = torch.tensor(weights, dtype=torch.float32)
        self.device = choose_device(config.device)

    def choose_epochs(self, late: np.ndarray) -> tuple[int, dict[str, float]]:
        """Return the best number of epochs on the late requests, and NDCG@10 of their sampled rows.

        Args:
            late: bool ``[Q]``, the requests that are held out; both they and the others have a relevant row.
        """
        model = self._build(~late)
        best, curve = 0, [self._ndcg(model, late)]
        total = self.config.max_epochs * int((~late).sum())
        with progress_of("heavy: epochs", total, "request") as advance:
            for epoch in self._epochs(model, ~late, self.config.max_epochs, advance):
                curve.append(self._ndcg(model, late))
                best = int(np.argmax(curve))
                if epoch - best >= self.config.patience:
                    break
        return best, {"validation_ndcg@10": curve[best], "validation_light_ndcg@10": curve[0]}

    def fit(self, wanted: np.ndarray, epochs: int) -> HeavyRanker:
        """Train a new model for a fixed number of epochs on the requests of bool ``[Q]``."""
        model = self._build(wanted)
        total = epochs * int(wanted.sum())
        with progress_of("heavy: all", total, "request") as advance:
            for _ in self._epochs(model, wanted, epochs, advance):
                pass
        return model

    def _build(self, wanted: np.ndarray) -> HeavyRanker:
        mean, std = self.data.moments(wanted)
        lists = self.data.lists
        rows = np.repeat(wanted, lists.lengths)
        scores, labels, weight = (
            values[rows].astype(np.float64) for values in (lists.light_scores, lists.labels, lists.weight)
        )
        platt = np.array([platt_scaling(scores, labels[:, task], weight) for task in range(labels.shape[1])]).T
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.config.seed)
            model = HeavyRanker(
                mean=torch.tensor(mean, dtype=torch.float32),
                std=torch.tensor(std, dtype=torch.float32),
                platt=torch.tensor(platt, dtype=torch.float32),
                light_column=self.data.light_column,
                config=self.config.network,
                ensemble=self.config.ensemble,
            )
        model.to(self.device)
        return model

    def _epochs(self, model: HeavyRanker, wanted: np.ndarray, epochs: int, advance: Advance) -> Iterator[int]:
        """Train one epoch at a time and yield its number; dropout does not touch the caller's generator."""
        matrices = [parameter for name, parameter in model.named_parameters() if name.endswith("weight")]
        others = [parameter for name, parameter in model.named_parameters() if not name.endswith("weight")]
        optimizer = torch.optim.AdamW(
            [{"params": matrices, "weight_decay": self.config.weight_decay}, {"params": others, "weight_decay": 0.0}],
            lr=self.config.learning_rate,
        )
        order = np.random.default_rng(self.config.seed)
        for epoch in range(1, epochs + 1):
            with torch.random.fork_rng(devices=[self.device] if self.device.type == "cuda" else []):
                torch.manual_seed(self.config.seed * 100_003 + epoch)
                model.train()
                for batch in self.data.batches(wanted, self.config.batch_requests, order):
                    self._step(model, optimizer, batch.to(self.device))
                    advance(batch.n_requests)
            yield epoch

    def _step(self, model: HeavyRanker, optimizer: torch.optim.Optimizer, batch: Batch) -> None:
        losses = [self._loss(member, batch) for member in model.member_logits(batch.inputs)]
        optimizer.zero_grad(set_to_none=True)
        torch.stack(losses).sum().backward()
        optimizer.step()

    def _loss(self, logits_nT: Tensor, batch: Batch) -> Tensor:
        # A task with a negative weight cannot be part of a share of the score: only BCE trains it.
        log_weights = self.weights.clamp_min(0.0).log().to(self.device)
        pointwise = pointwise_loss(logits_nT, batch.labels, batch.weight, batch.n_requests)
        listwise = listwise_loss(
            *(batch.padded(values) for values in (log_score(logits_nT, log_weights), batch.relevance, batch.weight))
        )
        return self.config.pointwise_weight * pointwise + self.config.listwise_weight * listwise

    def _ndcg(self, model: HeavyRanker, wanted: np.ndarray) -> float:
        model.eval()
        weights = self.weights.to(self.device)
        with torch.inference_mode():
            scores = [
                (model(batch.inputs.to(self.device)) @ weights).cpu().numpy() for batch in self.data.passes(wanted)
            ]
        lists = self.data.lists
        rows = np.repeat(wanted, lists.lengths)
        request_id = np.repeat(lists.request_id, lists.lengths)
        return mean_ndcg(request_id[rows], lists.relevance[rows], np.concatenate(scores))


def choose_device(name: str) -> torch.device:
    """Return the torch device of ``auto``, ``cpu`` or ``cuda``.

    Raises:
        ConfigError: if CUDA is asked for and absent.
    """
    available = torch.cuda.is_available()
    if name == "cuda" and not available:
        raise ConfigError("device = 'cuda': torch finds no CUDA device here; allowed: auto, cpu")
    return torch.device("cuda" if available and name != "cpu" else "cpu")

"""Train the heavy ranker: multi-task DCN-v2 on the rows that the light ranker passes on.

R example rows, Q requests, M rows of chosen requests, T tasks.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from stages.contracts.errors import ConfigError, DataError
from stages.contracts.examples import Examples, mean_ndcg, read_array
from stages.contracts.ranking import SOURCE_POPULAR, rank_rows
from stages.contracts.snapshot import Snapshot, Task
from stages.contracts.steps import Outcome
from stages.contracts.summaries import VECTORS_FILE, HeavySummary
from stages.contracts.tables import PART_EVALUATION, PART_RANKER
from stages.heavy_ranker.config import HeavyRankerConfig
from stages.heavy_ranker.data import HeavyData, Lists, light_lists
from stages.heavy_ranker.export import export_onnx
from stages.heavy_ranker.loss import listwise_loss, log_score, pointwise_loss
from stages.heavy_ranker.model import HeavyRanker
from stages.heavy_ranker.platt import platt_scaling
from stages.heavy_ranker.scorer import META_FILE, MODEL_FILE, HeavyScorer


def train_heavy(config: HeavyRankerConfig, inputs: Mapping[str, Path], directory: Path) -> Outcome:
    """Train the heavy ranker, export it and re-rank the evaluation requests with the exported model.

    Epoch 0 is the light ranker's own order. The number of epochs is the one with the best NDCG@10 on the latest ranker
    requests, 0 included; then a model is trained for that many epochs on all ranker requests.

    Args:
        config: see ``HeavyRankerConfig``.
        inputs: directories ``snapshot``, ``candidate``, ``retrieve``, ``examples`` and ``light``.
        directory: gets ``heavy_ranker.onnx``, ``heavy_ranker.json`` and ``ranked.parquet``: evaluation
            requests, the ``light_k`` best rows by light score in the heavy ranker's order.

    Raises:
        ConfigError: if the objective or the device cannot be used.
        DataError: if a task has no positive, or an input is malformed.
    """
    torch.set_num_threads(config.threads)
    snapshot = Snapshot(inputs["snapshot"])
    tasks = snapshot.meta.tasks
    objective = training_objective(config.objective, tasks)
    data = _read(inputs)
    _check_labels(data, tasks)
    part = snapshot.requests().part[data.examples.rows.request_id]
    ranker = (part == PART_RANKER) & (data.examples.rows.source != SOURCE_POPULAR)
    lists = light_lists(data.examples.rows, data.light_scores, ranker, config.light_k)
    check_positives(data, lists, tasks)

    trainer = Trainer(config, data, np.array([objective[task.name] for task in tasks]))
    epochs, metrics = trainer.choose_epochs(lists)
    model = trainer.fit(lists, epochs)
    export_onnx(model, directory / MODEL_FILE)
    metrics |= {
        "epochs": float(epochs),
        "training_requests": float(len(lists)),
        "training_rows": float(len(lists.rows)),
    }
    summary = HeavySummary(
        feature_schema_hash=data.examples.schema_hash,
        input_width=data.width,
        vector_dim=int(data.vectors.shape[1]),
        light_k=config.light_k,
        tasks=tuple(task.name for task in tasks),
        objective=objective,
        metrics=metrics,
    )
    summary.write(directory / META_FILE)
    _rank_evaluation(config, data, part == PART_EVALUATION, directory)
    return metrics, {"feature_schema_hash": data.examples.schema_hash, "objective": objective}


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


def _read(inputs: Mapping[str, Path]) -> HeavyData:
    return HeavyData(
        examples=Examples.read(inputs["examples"]),
        light_scores=np.asarray(read_array(inputs["light"] / "scores.npy")),
        queries=read_array(inputs["retrieve"] / "queries.npy"),
        vectors=read_array(inputs["candidate"] / VECTORS_FILE),
    )


def _check_labels(data: HeavyData, tasks: tuple[Task, ...]) -> None:
    labels = data.examples.labels
    if labels.ndim != 2 or labels.shape[1] != len(tasks):
        names = ", ".join(task.name for task in tasks)
        raise DataError(f"labels.npy {list(labels.shape)} needs one column for each of {len(tasks)} tasks: {names}")
    if not np.isin(labels, (0.0, 1.0)).all():
        raise DataError("labels.npy may hold 0 and 1 only")


def check_positives(data: HeavyData, lists: Lists, tasks: tuple[Task, ...]) -> None:
    """Refuse a task that cannot be learnt.

    Raises:
        DataError: naming each task without a positive and the number of rows.
    """
    counts = data.examples.labels[lists.rows].sum(axis=0)
    missing = [task.name for task, count in zip(tasks, counts, strict=True) if count == 0]
    if missing:
        raise DataError(
            f"heavy ranker: task {', '.join(missing)} has no positive among {len(lists.rows)} rows of "
            f"{len(lists)} ranker requests; remove the task, or raise light_k or candidate_k"
        )


class Trainer:
    """Fits heavy rankers on lists of one data set.

    Args:
        config: see ``HeavyRankerConfig``.
        data: the rows that the lists refer to.
        weights: float ``[T]``, the objective.
    """

    def __init__(self, config: HeavyRankerConfig, data: HeavyData, weights: np.ndarray) -> None:
        self.config = config
        self.data = data
        self.weights = torch.tensor(weights, dtype=torch.float32)
        self.device = choose_device(config.device)

    def choose_epochs(self, lists: Lists) -> tuple[int, dict[str, float]]:
        """Return the best number of epochs on the latest requests, and NDCG@10 there.

        Raises:
            DataError: if the earlier or the latest requests hold no relevant row.
        """
        late = max(1, round(self.config.validation_share * len(lists)))
        border = len(lists) - late
        for name, first, last in (("earlier", 0, border), ("latest", border, len(lists))):
            rows = lists.rows[lists.starts[first] : lists.starts[last]]
            if not (self.data.examples.relevance[rows] > 0).any():
                raise DataError(
                    f"heavy ranker: no relevant row in the {name} {last - first} of {len(lists)} ranker requests "
                    f"(validation_share = {self.config.validation_share})"
                )
        training, held_out = lists.select(0, border), lists.select(border, len(lists))
        model = self._build(training)
        best, curve = 0, [self._ndcg(model, held_out)]
        bar = tqdm(range(1, self.config.max_epochs + 1), desc="heavy: epochs", disable=None, leave=False)
        for epoch in self._epochs(model, training, bar):
            curve.append(self._ndcg(model, held_out))
            bar.set_postfix({"ndcg@10": f"{curve[-1]:.4f}", "light": f"{curve[0]:.4f}"})
            best = int(np.argmax(curve))
            if epoch - best >= self.config.patience:
                break
        return best, {"validation_ndcg@10": curve[best], "validation_light_ndcg@10": curve[0]}

    def fit(self, lists: Lists, epochs: int) -> HeavyRanker:
        """Train a new model for a fixed number of epochs."""
        model = self._build(lists)
        bar = tqdm(range(1, epochs + 1), desc="heavy: all", disable=None, leave=False)
        for _ in self._epochs(model, lists, bar):
            pass
        return model

    def _build(self, lists: Lists) -> HeavyRanker:
        mean, std = self.data.moments(lists)
        scores = self.data.light_scores[lists.rows].astype(np.float64)
        labels = self.data.examples.labels[lists.rows]
        platt = np.array([platt_scaling(scores, labels[:, task]) for task in range(labels.shape[1])]).T
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

    def _epochs(self, model: HeavyRanker, lists: Lists, numbers: Iterable[int]) -> Iterator[int]:
        """Train one epoch at a time and yield its number; dropout does not touch the caller's generator."""
        matrices = [parameter for name, parameter in model.named_parameters() if name.endswith("weight")]
        others = [parameter for name, parameter in model.named_parameters() if not name.endswith("weight")]
        optimizer = torch.optim.AdamW(
            [{"params": matrices, "weight_decay": self.config.weight_decay}, {"params": others, "weight_decay": 0.0}],
            lr=self.config.learning_rate,
        )
        order = np.random.default_rng(self.config.seed)
        for epoch in numbers:
            with torch.random.fork_rng(devices=[self.device] if self.device.type == "cuda" else []):
                torch.manual_seed(self.config.seed * 100_003 + epoch)
                self._train_epoch(model, optimizer, lists, order)
            yield epoch

    def _train_epoch(
        self, model: HeavyRanker, optimizer: torch.optim.Optimizer, lists: Lists, order: np.random.Generator
    ) -> None:
        model.train()
        for batch in self.data.batches(lists, self.config.batch_requests, order):
            logits = model.member_logits(batch.inputs.to(self.device))
            labels, relevance, mask = (part.to(self.device) for part in (batch.labels, batch.relevance, batch.mask))
            loss = sum((self._loss(member, labels, relevance, mask) for member in logits), start=torch.zeros(()))
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()

    def _loss(self, logits_BKT: Tensor, labels_BKT: Tensor, relevance_BK: Tensor, mask_BK: Tensor) -> Tensor:
        # A task with a negative weight cannot be part of a share of the score: only BCE trains it.
        log_weights = self.weights.clamp_min(0.0).log().to(self.device)
        pointwise = pointwise_loss(logits_BKT, labels_BKT, mask_BK)
        listwise = listwise_loss(log_score(logits_BKT, log_weights), relevance_BK, mask_BK)
        return self.config.pointwise_weight * pointwise + self.config.listwise_weight * listwise

    def _ndcg(self, model: HeavyRanker, lists: Lists) -> float:
        model.eval()
        weights = self.weights.to(self.device)
        with torch.inference_mode():
            scores = [
                (model(batch.inputs.to(self.device)) @ weights)[batch.mask.to(self.device) > 0].cpu().numpy()
                for batch in self.data.batches(lists, self.config.batch_requests)
            ]
        rows = lists.rows
        return mean_ndcg(
            self.data.examples.rows.request_id[rows], self.data.examples.relevance[rows], np.concatenate(scores)
        )


def choose_device(name: str) -> torch.device:
    """Return the torch device of ``auto``, ``cpu`` or ``cuda``.

    Raises:
        ConfigError: if CUDA is asked for and absent.
    """
    available = torch.cuda.is_available()
    if name == "cuda" and not available:
        raise ConfigError("device = 'cuda': torch finds no CUDA device here; allowed: auto, cpu")
    return torch.device("cuda" if available and name != "cpu" else "cpu")


def _rank_evaluation(config: HeavyRankerConfig, data: HeavyData, held_out: np.ndarray, directory: Path) -> None:
    """Write ``ranked.parquet``, scored by the exported model as the server will score."""
    scorer = HeavyScorer.load(directory, data.examples.schema_hash, {})
    rows = data.examples.rows
    lists = light_lists(rows, data.light_scores, held_out & (rows.source != SOURCE_POPULAR), config.light_k)
    scores = np.full(len(rows), -np.inf, dtype=np.float32)
    for request in tqdm(range(len(lists)), desc="heavy: evaluation", disable=None, leave=False):
        chosen = lists.rows[lists.starts[request] : lists.starts[request + 1]]
        scores[chosen] = scorer.score(data.inputs(lists, request))
    rank_rows(rows.take(held_out), scores[held_out], keep=config.light_k).write(directory / "ranked.parquet")

"""Sections of the two-tower's configuration, one for each component that reads it."""

from __future__ import annotations

from enum import Enum, auto
from typing import Annotated, Literal

from pydantic import Field, model_validator

from stages.contracts.config import Config

Probability = Annotated[float, Field(ge=0.0, lt=1.0)]
Positive = Annotated[float, Field(gt=0.0)]


class _Mark(Enum):
    SHAPE = auto()
    RUN = auto()


GIVES_SHAPE = _Mark.SHAPE
"""Marks a field that sets the shape or meaning of state tensors. A warm start must have the same value."""
NO_PART_OF_THE_RESULT = _Mark.RUN
"""Marks a section that may differ between two attempts at one training. It changes the result by rounding only."""


class ModelConfig(Config):
    """The two towers.

    In a warm start, the fields marked ``GIVES_SHAPE`` must have the same values as in the earlier model.

    Attributes:
        encoder: how a history becomes a query: ``mean`` (weighted mean with learned recency), ``tastes``
            (several such means, of which the best match counts) or ``attention`` (causal self-attention).
        dimension: D, width of the item embeddings and of the towers' outputs.
        normalisation: ``cosine`` puts the towers' outputs on the unit sphere, ``dot`` leaves their length.
        tastes: T, vectors a user with ``tastes``.
        blocks: transformer blocks with ``attention``.
        heads: of each block; must divide the dimension.
        dropout: inside of the blocks.
        time_bias: whether attention is biased by the time between events.
        distance_bias: where the learned bias by distance d starts: ``decay`` at -d / ``features.history_decay``,
            ``logarithm`` at -c log(1 + d), with c from 2 to 1/2 over the heads.
        input_scale: multiplies the item rows that attention reads; sqrt(dimension) in SASRec.
        user_id: add a vector of the user; users without training rows have none.
        context: add vectors of the request's context (``dataset.context``).
        category_dimension: width of the category embeddings.
        word_buckets: rows that the words of titles are hashed to; 0 leaves titles out.
        word_dimension: width of their embeddings.
        item_age: let the item tower read the item's age. Exported vectors use the ages at the end of the candidate
            period; an item that is created later has age 0.
        hidden: widths of each tower's hidden layers; empty makes the towers linear.
        shared_item_table: one item table for histories and for candidates; otherwise two.
        initial_deviation: standard deviation of the item tables' first values; None is dimension ** -0.5.
        item_parts: number of partitions of each item table, at most one per item. Item i is in partition i modulo
            their number, so that ranks that hold whole partitions share the work on items evenly; see
            ``towers.table_parts``.
    """

    encoder: Annotated[Literal["mean", "tastes", "attention"], GIVES_SHAPE] = "mean"
    dimension: Annotated[int, GIVES_SHAPE] = Field(default=64, ge=4, le=1024, multiple_of=4)
    normalisation: Annotated[Literal["cosine", "dot"], GIVES_SHAPE] = "cosine"
    tastes: Annotated[int, GIVES_SHAPE] = Field(default=4, ge=1, le=64)
    blocks: Annotated[int, GIVES_SHAPE] = Field(default=2, ge=1, le=32)
    heads: Annotated[int, GIVES_SHAPE] = Field(default=2, ge=1)
    dropout: Probability = 0.2
    time_bias: Annotated[bool, GIVES_SHAPE] = True
    distance_bias: Literal["decay", "logarithm"] = "decay"
    input_scale: Annotated[Positive, GIVES_SHAPE] = 1.0
    user_id: Annotated[bool, GIVES_SHAPE] = False
    context: Annotated[bool, GIVES_SHAPE] = False
    category_dimension: Annotated[int, GIVES_SHAPE] = Field(default=16, ge=4, le=1024, multiple_of=4)
    word_buckets: Annotated[int, GIVES_SHAPE] = Field(default=0, ge=0)
    word_dimension: Annotated[int, GIVES_SHAPE] = Field(default=16, ge=4, le=1024, multiple_of=4)
    item_age: Annotated[bool, GIVES_SHAPE] = False
    hidden: Annotated[tuple[Annotated[int, Field(ge=1)], ...], GIVES_SHAPE] = (128,)
    shared_item_table: Annotated[bool, GIVES_SHAPE] = True
    initial_deviation: Positive | None = None
    item_parts: int = Field(default=4, ge=1, le=1024)

    def parts_of(self, n_items: int) -> int:
        """Return how many partitions an item table of ``n_items`` rows has."""
        return max(1, min(self.item_parts, n_items))

    @property
    def vectors_a_user(self) -> int:
        """Return how many vectors the user tower gives a user."""
        return self.tastes if self.encoder == "tastes" else 1

    @model_validator(mode="after")
    def _heads_divide_the_dimension(self) -> ModelConfig:
        if self.encoder == "attention" and self.dimension % self.heads:
            raise ValueError(f"heads = {self.heads} must divide dimension = {self.dimension}")
        return self


class LossConfig(Config):
    """What is minimised.

    Attributes:
        kind: ``softmax`` (sampled softmax), ``bpr`` (pairs; exact with few negatives a step), ``gbce`` (the logits are
            those of calibrated probabilities) or ``full_softmax`` (over every item that may be a negative). Of the
            section ``negatives``, ``full_softmax`` reads ``mask_history`` only.
        temperature: divides the product of the two vectors. ``auto`` follows from the number of items, see
            ``towers.temperature``.
        learned_temperature: train the temperature too, from that start.
        temperature_bounds: smallest and largest learned temperature.
        gbce_calibration: t of ``gbce``: 0 is binary cross-entropy, 1 calibrates its probabilities.
    """

    kind: Literal["softmax", "bpr", "gbce", "full_softmax"] = "softmax"
    temperature: Positive | Literal["auto"] = 0.15
    learned_temperature: Annotated[bool, GIVES_SHAPE] = False
    temperature_bounds: tuple[Positive, Positive] = (0.02, 1.0)
    gbce_calibration: float = Field(default=0.75, ge=0.0, le=1.0)

    @property
    def over_all_items(self) -> bool:
        """Return whether each step uses every item that may be a negative."""
        return self.kind == "full_softmax"

    @model_validator(mode="after")
    def _bounds_are_in_order(self) -> LossConfig:
        low, high = self.temperature_bounds
        if low > high:
            raise ValueError(f"temperature_bounds = [{low:g}, {high:g}]: the first must not be above the second")
        return self


class NegativesConfig(Config):
    """What a query's positive is compared with.

    Attributes:
        in_batch: whether the other queries' positives are negatives.
        shared: negatives that each step draws from the catalogue and shares in the batch, beside the in-batch ones. A
            number of at least the catalogue's size takes every item.
        sampling: how the shared ones are drawn: ``uniform``, or ``popularity``.
        popularity_power: power of the popularity in that draw.
        logq_correction: correct the logits of negatives for how often their items are sampled: by an item's expected
            count among the in-batch and the shared negatives together.
        mask_history: an item of a user's history is no negative for that user.
    """

    in_batch: bool = True
    shared: int = Field(default=1024, ge=0)
    sampling: Literal["uniform", "popularity"] = "uniform"
    popularity_power: float = Field(default=0.75, ge=0.0, le=1.0)
    logq_correction: bool = True
    mask_history: bool = True

    @model_validator(mode="after")
    def _are_some(self) -> NegativesConfig:
        if not self.in_batch and self.shared == 0:
            raise ValueError("in_batch = False with shared = 0 leaves no negatives")
        return self


class EarlyStoppingConfig(Config):
    """Chooses the number of epochs on rows that are held out from the candidate period.

    After each epoch the held-out items of a sample of users are ranked among all items that can be candidates.

    Attributes:
        hold_out: ``later``: all rows from the moment on after which this ``share`` of them lies. ``random``: for data
            without times, this share of each sampled user's rows.
        share: of the rows.
        users: sampled users at most; users without a held-out row or without any other row are not sampled.
        metric: what is compared: ``ndcg`` or ``recall``, both at ``k``, of the mean user.
        k: answers of a user.
        patience: epochs without a better figure after which the training ends.
        then: ``keep``: the model has the best epoch's weights, and has never seen the rows that were held out.
            ``refit``: a second training on all rows ends after as many epochs.
    """

    hold_out: Literal["later", "random"] = "later"
    share: float = Field(default=0.1, gt=0.0, lt=1.0)
    users: int = Field(default=2000, ge=1)
    metric: Literal["ndcg", "recall"] = "ndcg"
    k: int = Field(default=20, ge=1, le=1000)
    patience: int = Field(default=1, ge=1)
    then: Literal["keep", "refit"] = "refit"


class TrainingConfig(Config):
    """Examples, batches and passes.

    Attributes:
        mode: ``examples`` encodes each example's history. ``sequences`` trains every position of a user's sequence
            in one pass, and needs the encoder ``attention``.
        epochs: passes over the examples; with ``early_stopping`` at most so many.
        early_stopping: ends the training when held-out rows are no longer ranked better. None trains all epochs.
        batch_size: examples a step, over all ranks; at most as many as there are.
        windows_by_length: only with ``sequences``. True: a batch holds windows of about one length, to which it is
            cut, and batches have about equally many examples. False: batches have equally many windows, drawn at
            random.
        histories: ``earlier``: what the user touched before the example. ``others``, for data without times: all other
            touches of the user, in an order drawn anew in each epoch, with ages as of a second after the last one.
        use_empty_histories: train also on a user's first events, whose history is empty.
        history_dropout: probability of leaving an item out of a training history.
        item_id_dropout: probability of hiding an item's id in training, so that the rest of the
            towers learns to represent items without training rows.
        user_id_dropout: probability of hiding the user's vector in training, so that the history alone serves as
            well; only with ``model.user_id``.
        precision: of the towers' layers on CUDA (autocast); tables, loss and optimizers keep float32. On
            the CPU everything is float32, whatever is set.
        seed: of the initial weights, the order of examples and the sampling.
    """

    mode: Literal["examples", "sequences"] = "examples"
    epochs: int = Field(default=8, ge=1)
    early_stopping: EarlyStoppingConfig | None = None
    batch_size: int = Field(default=512, ge=2)
    windows_by_length: bool = False
    histories: Literal["earlier", "others"] = "earlier"
    use_empty_histories: bool = False
    history_dropout: Probability = 0.1
    item_id_dropout: Probability = 0.1
    user_id_dropout: Probability = 0.5
    precision: Literal["float32", "bfloat16"] = "float32"
    seed: int = Field(default=42, ge=0)

    @model_validator(mode="after")
    def _windows_are_of_sequences(self) -> TrainingConfig:
        if self.windows_by_length and self.mode != "sequences":
            raise ValueError(f"windows_by_length with mode = {self.mode!r}: it needs mode = 'sequences'")
        return self

    @model_validator(mode="after")
    def _sequences_are_in_order(self) -> TrainingConfig:
        if self.histories == "others" and self.mode == "sequences":
            raise ValueError("histories = 'others' with mode = 'sequences': it needs mode = 'examples'")
        return self


class OptimizerConfig(Config):
    """The optimizers of the tables (sparse) and of the towers (dense, AdamW).

    Attributes:
        sparse: the fused optimizer of the embedding tables; fbgemm has no fused Adam on the CPU.
        sparse_learning_rate: its learning rate.
        dense_learning_rate: Adam's learning rate for the towers.
        dense_beta2: Adam's decay of squared gradients.
        weight_decay: decoupled weight decay of the dense parameters.
        clip_norm: largest gradient norm of the dense parameters; None clips nothing.
    """

    sparse: Annotated[Literal["rowwise_adagrad", "adagrad"], GIVES_SHAPE] = "rowwise_adagrad"
    sparse_learning_rate: Positive = 0.1
    dense_learning_rate: Positive = 1e-3
    dense_beta2: Probability = 0.999
    weight_decay: float = Field(default=0.0, ge=0.0)
    clip_norm: Positive | None = None


class ScheduleConfig(Config):
    """What multiplies both learning rates over the steps.

    Attributes:
        kind: after the warm-up: ``constant``, or ``cosine`` down to ``final_rate``.
        warmup_steps: steps over which the rates rise linearly.
        final_rate: share of the learning rates that is left at the end of ``cosine``.
    """

    kind: Literal["constant", "cosine"] = "constant"
    warmup_steps: int = Field(default=0, ge=0)
    final_rate: float = Field(default=0.0, ge=0.0, le=1.0)


class AverageConfig(Config):
    """The exponential moving average of the weights that is exported in place of the last ones.

    Attributes:
        weights: which weights are averaged: ``none``, ``dense``, or ``all``, which includes the tables and costs a
            pass over them in each step.
        decay: decay of the average; smaller at first, see ``training.ema.decay_at``.
    """

    weights: Literal["none", "dense", "all"] = "none"
    decay: Probability = 0.995


class DistributedConfig(Config):
    """Where the training runs. It changes the result by rounding only, and may change from attempt to attempt.

    Attributes:
        sharding: how tables are distributed over the ranks. ``auto`` lets the planner choose among the kinds whose
            result does not depend on the number of ranks. Column-wise needs ``optimizer.sparse = adagrad``:
            row-wise Adagrad keeps one sum per row, and each rank would sum over its own columns only.
        n_processes: ranks that torchrun starts; on the CPU each keeps to its even share of the cores.
        device: ``auto`` takes CUDA where there is one device a rank, else the CPU.
        threads: threads a rank on the CPU.
        timeout_s: seconds after which a collective that waits for another rank gives up.
        prefetch: batches prepared ahead by a thread; 0 prepares each when it is needed.
    """

    sharding: Literal["auto", "table_wise", "column_wise", "row_wise", "data_parallel"] = "auto"
    n_processes: int = Field(default=1, ge=1)
    device: Literal["auto", "cpu", "cuda"] = "auto"
    threads: int = Field(default=1, ge=1)
    timeout_s: int = Field(default=300, ge=1)
    prefetch: int = Field(default=2, ge=0, le=64)


class CheckpointsConfig(Config):
    """Checkpoints, from which a killed training resumes. They do not change the result.

    Attributes:
        every_steps: steps between two checkpoints inside an epoch; 0 = at its end only.
        keep: how many of the newest checkpoints are kept until the step is finished.
    """

    every_steps: int = Field(default=0, ge=0)
    keep: int = Field(default=2, ge=1)


class WarmStartConfig(Config):
    """An earlier model to start from.

    Attributes:
        path: directory of a finished ``train_candidate`` step, or of a release that was made from one. Its tables are
            grown for new rows. None starts anew.
        epochs: passes over the examples of a warm start, in place of ``training.epochs``.
    """

    path: str | None = None
    epochs: int = Field(default=2, ge=1)

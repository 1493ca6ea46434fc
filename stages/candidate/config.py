"""Configuration of the candidate stage: the model, its training, the index and retrieval."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from stages.contracts.config import Config
from stages.contracts.manifest import RECALL_FLOOR
from stages.features.config import FeatureConfig

Probability = Annotated[float, Field(ge=0.0, lt=1.0)]
Positive = Annotated[float, Field(gt=0.0)]


class CandidateConfig(Config):
    """The two-tower model and how it is trained.

    Attributes:
        encoder: how a history becomes a query: ``mean`` (weighted mean with learned recency), ``tastes``
            (several such means, of which the best match counts) or ``attention`` (causal self-attention).
        training: ``examples`` encodes each example's history, ``sequences`` trains every position of a
            user's sequence in one pass; the latter needs ``attention``.
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
        user_id_dropout: probability of hiding it in training, so that the history alone serves as well.
        context: add vectors of what is known of the moment (``dataset.context``).
        category_dimension: width of the category embeddings.
        word_buckets: rows that the words of titles are hashed to; 0 leaves titles out.
        word_dimension: width of their embeddings.
        item_age: let the item tower read the item's age; vectors are made as of the end of the candidate
            part, at which an item to come is new.
        hidden: widths of each tower's hidden layers; empty makes the towers linear.
        shared_item_table: one item table for histories and for candidates; otherwise two.
        initial_deviation: standard deviation of the item tables' first values; None is dimension ** -0.5.
        temperature: divides the product of the two vectors in every loss but ``ccl``.
        item_id_dropout: probability of hiding an item's id in training, so that the rest of the
            towers learns to speak for items without training rows.
        history_dropout: probability of leaving an item out of a training history.
        use_empty_histories: train also on a user's first events, whose history is empty.
        loss: ``softmax`` (sampled softmax), ``bpr``, ``ccl`` (cosine contrastive), ``gbce`` or ``full_softmax``,
            over every item that may be a negative, to which what is said of negatives but ``mask_history``
            does not apply.
        logq_correction: correct the negatives for how often they are sampled.
        correction: ``mixture`` corrects by an item's expected count over both kinds of negatives,
            ``by_kind`` each kind by its own and averages the two; without effect without ``logq_correction``.
        in_batch_negatives: whether the other queries' positives are negatives.
        uniform_negatives: negatives a step drawn from the catalogue and shared by the batch, beside
            the in-batch ones. At least the catalogue's size means every item.
        negative_sampling: how the shared negatives are drawn: ``uniform``, or ``popularity``.
        popularity_power: power of the popularity in that draw.
        mask_history: an item of a user's history is no negative for that user.
        ccl_margin: cosine below which a negative costs nothing in ``ccl``.
        ccl_negative_weight: weight of the mean over the negatives in ``ccl``.
        gbce_calibration: t of ``gbce``: 0 is binary cross-entropy, 1 calibrates its probabilities.
        epochs: passes over the examples.
        batch_size: examples a step, over all ranks; cut where the data is smaller.
        windows_by_length: with ``sequences``: windows of one length form a batch, which is cut to it, and batches
            hold equally many examples; otherwise equally many windows, drawn at random.
        sparse_optimizer: the fused optimizer of the embedding tables; fbgemm has no fused Adam on the CPU.
        sparse_learning_rate: its learning rate.
        dense_learning_rate: Adam's learning rate for the towers.
        dense_beta2: Adam's decay of squared gradients.
        weight_decay: decoupled weight decay of the dense part.
        clip_norm: longest gradient of the dense part; None leaves gradients as they are.
        schedule: of both learning rates after the warm-up: ``constant``, or ``cosine`` down to ``final_rate``.
        warmup_steps: steps over which both learning rates rise linearly.
        final_rate: share of the learning rates that is left at the end of ``cosine``.
        average: export an exponential moving average of the weights: ``none``, ``dense`` or ``all``, with the
            tables, which costs a pass over them a step.
        average_decay: of that average; smaller at first, see ``training.ema.decay_at``.
        sharding: how tables are laid over the ranks; ``auto`` leaves it to the planner, among the kinds
            whose result does not depend on the number of ranks. Column-wise needs ``adagrad``: row-wise
            Adagrad keeps one sum a row, of which each rank would see its columns only.
        item_parts: each table of items is kept as so many (no more than there are items), item i in part i modulo
            their number, so that ranks with whole tables share the work on items evenly; see ``towers.table_parts``.
        n_processes: ranks that torchrun starts; on the CPU each keeps to its even share of the cores.
        device: ``auto`` takes CUDA where there is one device a rank, else the CPU.
        threads: threads a rank on the CPU.
        timeout_s: seconds after which a collective that waits for another rank gives up.
        seed: of the initial weights, the order of examples and the sampling.
        precision: of the towers' layers on CUDA (autocast); tables, loss and optimizers keep float32. On
            the CPU everything is float32, whatever is set.
        prefetch: batches prepared ahead by a thread; 0 prepares each when it is needed.
        checkpoint_every_steps: steps between two checkpoints inside an epoch; 0 = at its end only.
        keep_checkpoints: the newest so many are kept until the step is finished.
        warm_start: directory of a finished ``train_candidate`` step, or of a release that was made of one,
            to go on from on grown tables; None starts anew.
        warm_start_epochs: passes over the examples in that case, in place of ``epochs``.
    """

    encoder: Literal["mean", "tastes", "attention"] = "mean"
    training: Literal["examples", "sequences"] = "examples"
    dimension: int = Field(default=64, ge=4, le=1024, multiple_of=4)
    normalisation: Literal["cosine", "dot"] = "cosine"
    tastes: int = Field(default=4, ge=1, le=64)
    blocks: int = Field(default=2, ge=1, le=32)
    heads: int = Field(default=2, ge=1)
    dropout: Probability = 0.2
    time_bias: bool = True
    distance_bias: Literal["decay", "logarithm"] = "decay"
    input_scale: Positive = 1.0
    user_id: bool = False
    user_id_dropout: Probability = 0.5
    context: bool = False
    category_dimension: int = Field(default=16, ge=4, le=1024, multiple_of=4)
    word_buckets: int = Field(default=0, ge=0)
    word_dimension: int = Field(default=16, ge=4, le=1024, multiple_of=4)
    item_age: bool = False
    hidden: tuple[Annotated[int, Field(ge=1)], ...] = (128,)
    shared_item_table: bool = True
    initial_deviation: Positive | None = None
    temperature: Positive = 0.15
    item_id_dropout: Probability = 0.1
    history_dropout: Probability = 0.1
    use_empty_histories: bool = False
    loss: Literal["softmax", "bpr", "ccl", "gbce", "full_softmax"] = "softmax"
    logq_correction: bool = True
    correction: Literal["mixture", "by_kind"] = "mixture"
    in_batch_negatives: bool = True
    uniform_negatives: int = Field(default=1024, ge=0)
    negative_sampling: Literal["uniform", "popularity"] = "uniform"
    popularity_power: float = Field(default=0.75, ge=0.0, le=1.0)
    mask_history: bool = True
    ccl_margin: float = Field(default=0.4, ge=-1.0, lt=1.0)
    ccl_negative_weight: Positive = 150.0
    gbce_calibration: float = Field(default=0.75, ge=0.0, le=1.0)
    epochs: int = Field(default=8, ge=1)
    batch_size: int = Field(default=512, ge=2)
    windows_by_length: bool = False
    sparse_optimizer: Literal["rowwise_adagrad", "adagrad"] = "rowwise_adagrad"
    sparse_learning_rate: Positive = 0.1
    dense_learning_rate: Positive = 1e-3
    dense_beta2: Probability = 0.999
    weight_decay: float = Field(default=0.0, ge=0.0)
    clip_norm: Positive | None = None
    schedule: Literal["constant", "cosine"] = "constant"
    warmup_steps: int = Field(default=0, ge=0)
    final_rate: float = Field(default=0.0, ge=0.0, le=1.0)
    average: Literal["none", "dense", "all"] = "none"
    average_decay: Probability = 0.995
    sharding: Literal["auto", "table_wise", "column_wise", "row_wise", "data_parallel"] = "auto"
    item_parts: int = Field(default=4, ge=1, le=1024)
    n_processes: int = Field(default=1, ge=1)
    device: Literal["auto", "cpu", "cuda"] = "auto"
    threads: int = Field(default=1, ge=1)
    timeout_s: int = Field(default=300, ge=1)
    seed: int = Field(default=42, ge=0)
    precision: Literal["float32", "bfloat16"] = "float32"
    prefetch: int = Field(default=2, ge=0, le=64)
    checkpoint_every_steps: int = Field(default=0, ge=0)
    keep_checkpoints: int = Field(default=2, ge=1)
    warm_start: str | None = None
    warm_start_epochs: int = Field(default=2, ge=1)

    @model_validator(mode="after")
    def _columns_need_adagrad(self) -> CandidateConfig:
        if self.sharding == "column_wise" and self.sparse_optimizer != "adagrad":
            raise ValueError(
                f"sharding = 'column_wise' needs sparse_optimizer = 'adagrad', found {self.sparse_optimizer!r}, whose "
                "one sum a row would be of each rank's columns only; or use table_wise, row_wise or data_parallel"
            )
        return self

    def parts_of(self, n_items: int) -> int:
        """Return how many tables hold the rows of ``n_items``."""
        return max(1, min(self.item_parts, n_items))

    @property
    def passes(self) -> int:
        """Return the epochs to train."""
        return self.epochs if self.warm_start is None else self.warm_start_epochs

    @model_validator(mode="after")
    def _has_negatives(self) -> CandidateConfig:
        if not self.in_batch_negatives and self.uniform_negatives == 0:
            raise ValueError("in_batch_negatives = False with uniform_negatives = 0 leaves no negatives")
        return self

    @model_validator(mode="after")
    def _parts_fit(self) -> CandidateConfig:
        if self.training == "sequences" and self.encoder != "attention":
            raise ValueError(f"training = 'sequences' with encoder = {self.encoder!r}: it needs encoder = 'attention'")
        if self.windows_by_length and self.training != "sequences":
            raise ValueError(f"windows_by_length with training = {self.training!r}: it needs training = 'sequences'")
        if self.encoder == "attention" and self.dimension % self.heads:
            raise ValueError(f"heads = {self.heads} must divide dimension = {self.dimension}")
        if self.loss == "ccl" and self.normalisation != "cosine":
            raise ValueError("loss = 'ccl' compares cosines: it needs normalisation = 'cosine', found 'dot'")
        return self


class TrainCandidateConfig(Config):
    """Configuration of the step ``train_candidate``.

    Attributes:
        warm_start_version: filled in: tower version of the model at ``candidate.warm_start``.
    """

    candidate: CandidateConfig = CandidateConfig()
    features: FeatureConfig = FeatureConfig()
    warm_start_version: str = ""


class BaselinesConfig(Config):
    """The linear baselines of the stage ledger, see ``linear.models``.

    Attributes:
        ease, ials: whether each has a row.
        memory_gb: 10^9 bytes that fitting either may take; one that needs more is left out, and the ledger
            says why.
        ease_regularisation: of ``Ease.fit``.
        ease_decay: the item r places before a history's newest one weighs exp(-r / ease_decay); None
            weighs all alike, as published.
        ials_factors, ials_confidence, ials_regularisation, ials_iterations: of ``ImplicitAls.fit``.
        seed: of its first factors.
    """

    ease: bool = True
    ials: bool = True
    memory_gb: Positive = 4.0
    ease_regularisation: Positive = 200.0
    ease_decay: Positive | None = None
    ials_factors: int = Field(default=32, ge=1)
    ials_confidence: Positive = 5.0
    ials_regularisation: Positive = 10.0
    ials_iterations: int = Field(default=15, ge=1)
    seed: int = Field(default=42, ge=0)


class RankBaselinesConfig(Config):
    """Configuration of the step ``rank_baselines``.

    Attributes:
        baselines: what is fitted, and how.
        k: items that a request is answered with.
        features: which signals are exposures.
    """

    baselines: BaselinesConfig = BaselinesConfig()
    k: int = Field(default=200, ge=1)
    features: FeatureConfig = FeatureConfig()


IndexKind = Literal["flat", "ivf_flat", "ivf_sq8", "ivf_pq", "hnsw"]


class IndexConfig(Config):
    """The nearest-neighbour index over the item vectors, chosen by measurement.

    Every kind that may fit ``memory_limit_mb`` is built, searched at the smallest effort that reaches
    ``wanted_recall``, and timed; the quickest is published.

    Attributes:
        kinds: what is tried: ``flat`` compares with every vector; ``ivf_*`` are inverted lists over
            k-means clusters whose vectors are whole, of 8 bits a dimension, or product codes of 2 bits
            a dimension behind a rotation (OPQ); ``hnsw`` is a graph. Empty: as the size suggests.
        exact_below: with fewer items than this only ``flat`` is tried, unless ``kinds`` says otherwise.
        hnsw_below: with at least this many items the graph is not tried unless ``kinds`` names it: it
            takes minutes to build.
        n_lists: inverted lists, or None for about 4 sqrt(N).
        points_a_list: training vectors for each list, at most; bounds the training's time and memory.
        memory_limit_mb: 10^6 bytes that the index may take; None = no limit. Product codes are tried
            only where the other lists exceed it.
        wanted_recall: recall@recall_k against exact search that the index must reach, by the lower bound of the
            mean over the queries (95%, one-sided).
        recall_k: neighbours compared. A run sets it to ``funnel.candidate_k``, what is served.
        n_queries: queries that measure the recall, at most.
        n_timed: of these are timed, one at a time in one thread.
        device: trains lists and searches exactly on CUDA; ``auto`` where Faiss sees a GPU. The index
            itself always serves from the CPU.
        seed: of the samples and of the clustering.
    """

    kinds: tuple[IndexKind, ...] = ()
    exact_below: int = Field(default=50_000, ge=0)
    hnsw_below: int = Field(default=200_000, ge=0)
    n_lists: int | None = Field(default=None, ge=1)
    points_a_list: int = Field(default=64, ge=39, le=256)
    memory_limit_mb: Positive | None = None
    wanted_recall: float = Field(default=RECALL_FLOOR, ge=RECALL_FLOOR, le=1.0)
    recall_k: int = Field(default=100, ge=1)
    n_queries: int = Field(default=1000, ge=1)
    n_timed: int = Field(default=200, ge=1)
    device: Literal["auto", "cpu", "cuda"] = "auto"
    seed: int = Field(default=42, ge=0)


class RetrieveConfig(Config):
    """Configuration of the step ``retrieve``.

    Attributes:
        candidate_k: items retrieved for each request.
        block: requests answered at a time; bounds the memory.
        features: must equal the configuration that the tower was trained with.
    """

    candidate_k: int = Field(default=200, ge=1)
    block: int = Field(default=1024, ge=1)
    features: FeatureConfig = FeatureConfig()

"""From counts to settings: rules, each with its reason. docs/recipes.md has them as a table, with their evidence."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from stages.auto.counts import Counts

MANY_ITEMS = 200_000
"""Items above which a loss over every item costs more than one over samples."""
MANY_TOUCHES = 300_000
"""Touches from which on larger batches leave steps enough."""
LARGE = 20_000
"""Items from which on 64 dimensions are too few for a mean of histories."""
RARE = 40.0
"""Touches of the mean item below which an item keeps much of its first vector."""
NEWBORN = 0.3
"""Share of the latest events on newborn items from which on what is read now decides."""
LONG = 50.0
"""Touches of the mean user from which on a history pays for a wide model."""
ENOUGH_REQUESTS = 500
"""Ranker requests that a mixture is learned from, at least."""


@dataclass(frozen=True)
class Choice:
    """One chosen setting.

    Attributes:
        key: dotted, such as ``candidate.model.encoder``.
        value: plain, as YAML gives it.
        reason: one sentence with the count that decided.
    """

    key: str
    value: Any
    reason: str


def choose(counts: Counts, encoder: str | None = None, sources: tuple[str, ...] | None = None) -> tuple[Choice, ...]:
    """Return what suits the data.

    Args:
        counts: of the data.
        encoder: what the recipe says; what depends on the encoder follows it.
        sources: the generators that the recipe says; what depends on them follows them.
    """
    chosen = encoder or _encoder(counts)
    rules = [*_of_encoder(counts, chosen), *_of_training(counts, chosen), *_of_sources(counts, sources)]
    if encoder is None:
        rules.insert(0, Choice("candidate.model.encoder", chosen, _why_encoder(counts)))
    return tuple(rules)


def _encoder(counts: Counts) -> str:
    return "attention" if counts.ordered and not counts.timed else "mean"


def _why_encoder(counts: Counts) -> str:
    if not counts.ordered:
        return "the order of a user's events says nothing"
    if counts.timed:
        return "requests come days after what is trained on, so that the latest event is only one of many"
    return "the latest events of a user say most of what comes next"


def _of_encoder(counts: Counts, encoder: str) -> Iterator[Choice]:
    if not counts.timed:
        length = 200 if counts.a_user >= LONG else 50
        yield Choice("features.history_length", length, f"{counts.a_user:.0f} touches of the mean user")
    if encoder != "attention":
        return
    wide = counts.a_user >= LONG
    why = f"{counts.a_user:.0f} touches of the mean user, {'from' if wide else 'below'} {LONG:.0f}"
    yield Choice("candidate.model.dimension", 128 if wide else 64, why)
    yield Choice("candidate.model.dropout", 0.1 if wide else 0.3, why)
    for key, value in _SASREC.items():
        yield Choice(key, value, "the settings of SASRec with a softmax over all items")
    yield Choice("candidate.model.input_scale", 11.3 if wide else 8.0, "the square root of the dimension")
    yield Choice("candidate.training.batch_size", 2048 if wide else 1024, why)
    yield Choice("candidate.training.epochs", 6 if wide else 10, why)
    if counts.items > MANY_ITEMS:
        yield Choice("candidate.loss.kind", "softmax", f"{counts.items:,} items, more than {MANY_ITEMS:,}")
    else:
        yield Choice("candidate.loss.kind", "full_softmax", f"{counts.items:,} items, at most {MANY_ITEMS:,}")


_SASREC: Mapping[str, Any] = {
    "candidate.model.normalisation": "dot",
    "candidate.model.blocks": 2,
    "candidate.model.heads": 2,
    "candidate.model.hidden": [],
    "candidate.model.category_dimension": 4,
    "candidate.model.distance_bias": "logarithm",
    "candidate.model.initial_deviation": 0.02,
    "candidate.loss.temperature": 1.0,
    "candidate.negatives.mask_history": False,
    "candidate.training.mode": "sequences",
    "candidate.training.windows_by_length": True,
    "candidate.training.history_dropout": 0.0,
    "candidate.training.item_id_dropout": 0.0,
    "candidate.optimizer.sparse_learning_rate": 0.05,
    "candidate.optimizer.dense_beta2": 0.98,
    "candidate.optimizer.weight_decay": 0.01,
    "candidate.optimizer.clip_norm": 1.0,
    "candidate.schedule.kind": "cosine",
    "candidate.schedule.warmup_steps": 60,
    "candidate.schedule.final_rate": 0.05,
    "candidate.average.weights": "all",
}


def _of_training(counts: Counts, encoder: str) -> Iterator[Choice]:
    if encoder == "attention":
        return
    large = counts.touches >= MANY_TOUCHES
    why = f"{counts.touches:,} touches, {'from' if large else 'below'} {MANY_TOUCHES:,}"
    yield Choice("candidate.training.batch_size", 1024 if large else 512, why)
    if not counts.timed or counts.items >= LARGE:
        yield Choice("candidate.loss.temperature", "auto", f"{counts.items:,} items: 1 / log of their number")
    if counts.items >= LARGE and counts.newborn < NEWBORN:
        yield Choice("candidate.model.dimension", 128, f"{counts.items:,} items, {LARGE:,} or more")
    if counts.described >= 0.5:
        why = f"{counts.described:.0%} of the items have a title or a category"
        yield Choice("candidate.model.word_buckets", 4096, why)
    elif not counts.timed:
        why = f"{counts.described:.0%} of the items have a title or a category that could stand for an id"
        yield Choice("candidate.training.item_id_dropout", 0.0, why)
    if counts.an_item < RARE and not counts.timed:
        why = f"{counts.an_item:.0f} touches of the mean item: its first vector must not outweigh them"
        yield Choice("candidate.model.initial_deviation", 0.02, why)
    if not counts.ordered:
        why = "the order of a user's events says nothing"
        yield Choice("candidate.training.histories", "others", why)
        yield Choice("features.history_decay", 200.0, why)
    if counts.newborn >= NEWBORN:
        why = f"{counts.newborn:.0%} of the latest events are on newborn items: an id is soon out of use"
        yield Choice("candidate.training.epochs", 2, why)


def _of_sources(counts: Counts, given: tuple[str, ...] | None) -> Iterator[Choice]:
    names = given
    if names is None:
        names = tuple(_generators(counts))
        yield Choice("sources.names", list(names), _why_generators(counts))
    if len(names) == 1:
        return
    yield Choice("sources.quotas", "learned", "they are measured on the ranker part")
    rare = counts.an_item < RARE
    why = f"{counts.an_item:.0f} touches of the mean item, {'below' if rare else 'from'} {RARE:.0f}"
    if "ease" in names:
        yield Choice("sources.ease.regularisation", 100.0 if rare else 400.0, why)
    if "directed_ridge" in names:
        yield Choice("sources.directed_ridge.regularisation", 10.0 if rare else 300.0, why)
    if counts.requests >= ENOUGH_REQUESTS:
        why = f"{counts.requests:,} ranker requests to learn from, at least {ENOUGH_REQUESTS}"
        yield Choice("sources.mixture.kind", "learned", why)
    if not counts.ordered:
        yield Choice("sources.history_length", 200, "the order of a user's events says nothing")
        yield Choice("sources.history_decay", 200.0, "the order of a user's events says nothing")


def _generators(counts: Counts) -> Iterator[str]:
    yield "tower"
    if counts.timed:
        yield from ("covisitation", "trending")
    if counts.newborn < NEWBORN:
        yield "ease"
        if counts.timed or counts.an_item >= RARE:
            yield "ials"
        if not counts.timed:
            yield "item_knn"
        if counts.ordered and not counts.timed:
            yield "directed_ridge"
    if counts.described >= 0.5:
        yield "content"


def _why_generators(counts: Counts) -> str:
    lists = []
    if counts.newborn < NEWBORN:
        follows = " and of what follows" if counts.ordered and not counts.timed else ""
        lists.append(f"linear models of what goes together{follows}")
    if counts.timed:
        lists.append("what is touched now")
    if counts.described >= 0.5:
        lists.append("titles and categories")
    why = ", ".join(lists)
    if counts.newborn >= NEWBORN:
        why += f"; {counts.newborn:.0%} of the latest events are on newborn items, which no fitted generator knows"
    return why

"""The small world with everything that towers may read, and the same world grown by two items.

It has as many users and context values as items: tables of the user tower then differ in their names alone.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import torch

from stages.candidate.config import CandidateConfig, TrainCandidateConfig
from stages.candidate.data.examples import Examples
from stages.candidate.data.item_features import Catalogue, standardised_log
from stages.candidate.data.words import hashed_words
from stages.contracts.config import merged
from stages.contracts.snapshot import ItemTable
from stages.features.config import FeatureConfig
from tests.candidate.towers import build, load_whole, whole_state

FEATURES = FeatureConfig(history_length=4, history_decay=2.0)
SMALL = {
    "model": {"dimension": 8, "category_dimension": 4, "word_dimension": 4, "hidden": (6,)},
    "training": {"batch_size": 16},
}
N, NEW, BUCKETS = 12, 2, 50
UNHEARD = "unheard"  # its bucket is that of no other word here
LATER_MS = 900_000


def item_table(catalogue: Catalogue) -> ItemTable:
    """The small world's items, with titles, births and durations."""
    rng = np.random.default_rng(6)
    return ItemTable(
        item_id=np.array([f"i{item}" for item in range(N)], object),
        title=np.array([f"w{item % 3} common" if item else "" for item in range(N)], object),
        created_at_ms=rng.integers(-(10**7), 5000, N),
        duration_s=np.where(np.arange(N) % 4, rng.integers(20, 4000, N), np.nan).astype(np.float32),
        category_offsets=catalogue.offsets,
        category_codes=catalogue.codes.astype(np.int32),
        n_categories=int(catalogue.codes.max()) + 1,
    )


def grow(items: ItemTable) -> ItemTable:
    """Add an item with a known and an unknown category and word, and one of which nothing is known."""
    known = int(items.category_codes[0])
    return ItemTable(
        item_id=np.append(items.item_id, ["new0", "new1"]),
        title=np.append(items.title, [f"W1, {UNHEARD}", ""]),
        created_at_ms=np.append(items.created_at_ms, [4000, LATER_MS + 1]),
        duration_s=np.append(items.duration_s, np.array([5000, np.inf], np.float32)),
        category_offsets=np.append(items.category_offsets, items.category_offsets[-1] + np.array([2, 2])),
        category_codes=np.append(items.category_codes, np.array([known, items.n_categories], np.int32)),
        n_categories=items.n_categories + 1,
    )


def world(small_world: tuple[Examples, Catalogue], config: CandidateConfig) -> tuple[Examples, Catalogue, ItemTable]:
    """Twelve users, items and context values."""
    examples, plain = small_world
    rng, items = np.random.default_rng(5), item_table(plain)
    examples = dataclasses.replace(
        examples,
        users=examples.users % N,
        moments=np.array([[0, 0], [1, 0], [2, 6], [6, 1]], np.int32),
        contexts=rng.integers(0, 4, len(examples)).astype(np.int32),
        version_signals=rng.integers(0, 3, len(examples.version_signals)).astype(np.int16),
    )
    catalogue = Catalogue.of(
        items,
        examples,
        examples.usable(False),
        FEATURES.history_length,
        6000,
        word_buckets=config.model.word_buckets,
        n_signals=3,
        n_users=N,
        context_sizes=(6, 6),
    )
    return examples, catalogue, items


def grown_catalogue(catalogue: Catalogue, items: ItemTable, config: CandidateConfig) -> Catalogue:
    """What training would know of the grown items, had it the tables, scale and words of before."""
    offsets, codes = hashed_words(np.append(items.title[:N], ["w1", ""]), config.model.word_buckets)
    return dataclasses.replace(
        catalogue,
        offsets=np.append(catalogue.offsets, catalogue.offsets[-1] + np.array([1, 1])),
        codes=np.append(catalogue.codes, items.category_codes[-2]),
        log_duration=standardised_log(items.duration_s, catalogue.duration_scale),
        frequency=np.append(catalogue.frequency, [0, 0]),
        in_histories=np.append(catalogue.in_histories, [False, False]),
        word_offsets=offsets,
        word_codes=codes,
        created_at_ms=items.created_at_ms,
        end_ms=LATER_MS,
    )


def models(small_world: tuple[Examples, Catalogue], **changes):
    """Return settings, items, catalogue, weights, and batches and loss of the same model over the grown world.

    In the grown world's histories new items stand in the place of items 3 and 7; their rows are zeros.
    """
    config = CandidateConfig(**merged(SMALL, changes))
    settings = TrainCandidateConfig(candidate=config, features=FEATURES)
    examples, catalogue, items = world(small_world, config)
    model, _, _ = build(examples, catalogue, config, FEATURES)
    for tower in (model.query_tower, model.item_tower):
        for parameter in tower.parameters():
            torch.nn.init.normal_(parameter, std=0.4)
    state = whole_state(model)
    replaced = np.array([*range(3), N, *range(4, 7), N + 1, *range(8, N)], np.int32)
    examples = dataclasses.replace(examples, items=replaced[examples.items])
    larger = grown_catalogue(catalogue, grow(items), config)
    grown, batches, loss_of = build(examples, larger, config, FEATURES)
    rows = dict(state)
    for name in ("item", "history"):
        if (key := f"embeddings.embedding_bags.{name}.weight") in rows:
            rows[key] = np.concatenate([rows[key], np.zeros((NEW, config.model.dimension), np.float32)])
    load_whole(grown, rows)
    grown.eval()
    return settings, items, catalogue, state, batches, loss_of

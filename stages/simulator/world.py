"""The world and its true preferences: who likes what, when, and which items are copies.

The probability that user u, looking at item i at time t, likes the item is

    sigmoid(TASTE * taste(u, t) . vector(i) + QUALITY * quality(i) + FRESHNESS * exp(-age / FRESH_DAYS)
            - DURATION * |ln(duration(i) / preferred(u))| + OFFSET)

Tastes mix a few topics and move from a first mixture to a second one over the log, so recent
behaviour is more informative than old behaviour. A plain dot product of two towers cannot express
freshness and duration, so that rankers can improve on it.

Shapes: U users, N items, E taste dimensions, M topics a user.
"""

from __future__ import annotations

import json
from functools import cached_property
from typing import TYPE_CHECKING, Literal

import numpy as np
import pyarrow as pa

from stages.contracts.tables import DAY_MS
from stages.contracts.top_k import top_k
from stages.simulator import titles
from stages.simulator.config import WorldConfig

if TYPE_CHECKING:
    from numpy.random import Generator

TASTE, QUALITY, FRESHNESS, DURATION, OFFSET = 4.5, 0.5, 1.2, 0.8, -2.2
FRESH_DAYS = 5.0
TASTE_DIM = 16
TOPICS_PER_USER = 3
_COUNTRIES = ("BR", "DE", "FR", "IN", "JP", "KE", "MX", "PL", "US", "ZA")


class World:
    """Users, items and their true preferences, drawn from one seed."""

    def __init__(self, config: WorldConfig) -> None:
        self.config = config
        self.end_ms = config.start_ms + config.days * DAY_MS
        rng = np.random.default_rng([config.seed, 0])
        self._draw_items(rng)
        self._draw_users(rng)

    def _draw_items(self, rng: Generator) -> None:
        """Draw items in birth order; 60 % exist before the log starts."""
        config, n = self.config, self.config.n_items
        self.topic_vectors = _unit(rng.standard_normal((config.n_topics, TASTE_DIM)))
        before = max(round(0.6 * n), min(n, 2 * config.slate_size))
        births = rng.integers(config.start_ms - 60 * DAY_MS, config.start_ms, n)
        births[before:] = rng.integers(config.start_ms, self.end_ms - (self.end_ms - config.start_ms) // 20, n - before)
        self.birth_ms = np.sort(births)
        topic_share = rng.dirichlet(np.full(config.n_topics, 3.0))
        self.item_topic = rng.choice(config.n_topics, n, p=topic_share)
        noise = _unit(rng.standard_normal((n, TASTE_DIM)))
        self.item_vectors = _unit(self.topic_vectors[self.item_topic] + 0.7 * noise)
        self.quality = rng.standard_normal(n)
        self.duration_s = np.round(np.exp(rng.normal(np.log(300.0), 0.8, n)).clip(10, 14_400))
        self.exposure_weight = np.exp(0.8 * self.quality + 0.9 * rng.standard_normal(n))
        second = rng.integers(0, config.n_categories, n)
        self.item_second_category = np.where(rng.random(n) < 0.2, second, -1)
        self._plant_duplicates(rng)

    def _plant_duplicates(self, rng: Generator) -> None:
        """Turn some items into later copies of earlier items; half of the copies keep the normalised title."""
        n = self.config.n_items
        n_duplicates = round(self.config.duplicate_share * n)
        rows = np.sort(rng.choice(n, 2 * n_duplicates, replace=False))
        # Rows are in birth order, so if the lower half is paired with the upper half, the original is older.
        originals, copies = rng.permutation(rows[:n_duplicates]), rows[n_duplicates:]
        self.original = np.arange(n)
        self.original[copies] = originals
        self._near_copies = set(copies[1::2].tolist())
        for column in (
            self.item_topic,
            self.item_vectors,
            self.quality,
            self.duration_s,
            self.item_second_category,
        ):
            column[copies] = column[originals]
        self._content_birth_ms = self.birth_ms[self.original]

    def _draw_users(self, rng: Generator) -> None:
        n = self.config.n_users
        self.user_topics = rng.integers(0, self.config.n_topics, (n, TOPICS_PER_USER), dtype=np.int16)
        strength = np.full(TOPICS_PER_USER, 0.8)
        self._first_mix = rng.dirichlet(strength, n).astype(np.float32)
        self._last_mix = rng.dirichlet(strength, n).astype(np.float32)
        self.preferred_duration_s = np.exp(rng.normal(np.log(300.0), 0.7, n))
        self.activity = np.exp(0.8 * rng.standard_normal(n))
        n_inactive = min(round(self.config.inactive_share * n), n - 1)
        self.inactive_rows = np.sort(rng.choice(n, n_inactive, replace=False))
        self.activity[self.inactive_rows] = 0.0

    def interests(self, user_rows: np.ndarray, times_ms: np.ndarray) -> np.ndarray:
        """Return the weights ``[..., M]`` of each user's topics at a time; they sum to 1."""
        elapsed = (np.asarray(times_ms) - self.config.start_ms) / (self.end_ms - self.config.start_ms)
        elapsed = elapsed.clip(0.0, 1.0)[..., None]
        mixed: np.ndarray = (1 - elapsed) * self._first_mix[user_rows] + elapsed * self._last_mix[user_rows]
        return mixed

    def tastes(self, user_rows: np.ndarray, times_ms: np.ndarray) -> np.ndarray:
        """Return unit taste vectors ``[..., E]`` of users at times."""
        weights = self.interests(user_rows, times_ms)
        return _unit(np.einsum("...m,...me->...e", weights, self.topic_vectors[self.user_topics[user_rows]]))

    def logits(
        self, tastes: np.ndarray, user_rows: np.ndarray, times_ms: np.ndarray, item_rows: np.ndarray
    ) -> np.ndarray:
        """Return the log-odds of a click on an item that is looked at; all arguments broadcast."""
        match = np.einsum("...e,...e->...", tastes, self.item_vectors[item_rows])
        age_days = np.maximum(np.asarray(times_ms) - self._content_birth_ms[item_rows], 0) / DAY_MS
        misfit = np.abs(np.log(self.duration_s[item_rows] / self.preferred_duration_s[user_rows]))
        appeal = QUALITY * self.quality[item_rows] + FRESHNESS * np.exp(-age_days / FRESH_DAYS)
        logits: np.ndarray = TASTE * match + appeal - DURATION * misfit + OFFSET
        return logits

    def true_preference(self, user_rows: np.ndarray, times_ms: np.ndarray, item_rows: np.ndarray) -> np.ndarray:
        """Return the expected utility of items: the probability of a click without position bias.

        Args:
            user_rows: int ``[...]`` user rows.
            times_ms: int ``[...]`` times, int ms UTC.
            item_rows: int ``[...]`` item rows; the three arguments broadcast.

        Returns:
            float64 ``[...]`` between 0 and 1; a copy has the same utility as its original.
        """
        users, times = np.broadcast_arrays(np.asarray(user_rows), np.asarray(times_ms))
        return sigmoid(self.logits(self.tastes(users, times), users, times, np.asarray(item_rows)))

    def best_items(self, user_row: int, time_ms: int, k: int) -> np.ndarray:
        """Return the rows ``[min(k, born originals)]`` of the best items at a time, best first."""
        born = np.flatnonzero((self.birth_ms <= time_ms) & (self.original == np.arange(len(self.original))))
        preference = self.true_preference(np.array(user_row), np.array(time_ms), born)
        best: np.ndarray = born[top_k(preference, k)]
        return best

    def duplicates(self, kind: Literal["exact", "near"] | None = None) -> dict[str, str]:
        """Return ``{id of a planted copy: id of its original}``, of all copies or of one kind.

        ``exact`` copies have the same title after normalisation; ``near`` copies have a word added
        or two words swapped.
        """
        found = {}
        for row in np.flatnonzero(self.original != np.arange(len(self.original))).tolist():
            if kind is None or (row in self._near_copies) == (kind == "near"):
                found[item_id(row)] = item_id(int(self.original[row]))
        return found

    def inactive_users(self) -> list[str]:
        """Return the ids of users with at most one session, in the first half of the log."""
        return [user_id(row) for row in self.inactive_rows.tolist()]

    @cached_property
    def item_ids(self) -> pa.Array:
        """Item ids by row."""
        return pa.array([item_id(row) for row in range(self.config.n_items)], pa.string())

    @cached_property
    def user_ids(self) -> pa.Array:
        """User ids by row."""
        return pa.array([user_id(row) for row in range(self.config.n_users)], pa.string())

    def item_titles(self) -> list[str]:
        """Return the titles by item row; a planted copy has a changed title of its original."""
        names = titles.item_titles(self.item_topic)
        for variant, row in enumerate(np.flatnonzero(self.original != np.arange(len(names))).tolist()):
            title = names[int(self.original[row])]
            change = titles.near_title if row in self._near_copies else titles.same_title
            names[row] = change(title, variant // 2)
        return names

    def items(self) -> pa.Table:
        """Return the catalogue: item_id, title, categories ('|'-joined), created_at_ms, duration_s."""
        names = titles.category_names(self.config.n_categories)
        first = (self.item_topic % self.config.n_categories).tolist()
        categories = [
            names[main] if other in (-1, main) else f"{names[main]}|{names[other]}"
            for main, other in zip(first, self.item_second_category.tolist(), strict=True)
        ]
        return pa.table(
            {
                "item_id": self.item_ids,
                "title": self.item_titles(),
                "categories": categories,
                "created_at_ms": self.birth_ms,
                "duration_s": self.duration_s,
            }
        )

    def users(self) -> pa.Table:
        """Return the users: user_id, attributes (JSON)."""
        attributes = [
            json.dumps({"country": _COUNTRIES[row * 7 % len(_COUNTRIES)], "joined": "before" if row % 3 else "lately"})
            for row in range(self.config.n_users)
        ]
        return pa.table({"user_id": self.user_ids, "attributes": attributes})


def item_id(row: int) -> str:
    """Return the id of an item row."""
    return f"i{row:07d}"


def user_id(row: int) -> str:
    """Return the id of a user row."""
    return f"u{row:07d}"


def sigmoid(x: np.ndarray) -> np.ndarray:
    """Return the logistic function of ``x``."""
    result: np.ndarray = 1.0 / (1.0 + np.exp(-x))
    return result


def _unit(vectors: np.ndarray) -> np.ndarray:
    """Scale vectors ``[..., E]`` to length 1."""
    scaled: np.ndarray = vectors / np.linalg.norm(vectors, axis=-1, keepdims=True).clip(1e-9)
    return scaled

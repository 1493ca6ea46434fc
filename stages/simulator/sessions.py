"""The log of a world: sessions, slates of a logging policy, clicks and the events after them.

Sessions are numbered in time order and drawn in blocks of fixed size, each with its own random generator. So
the log depends neither on the reader's chunk size nor on earlier blocks, and memory stays bounded. Events later
than the start of the next block are held back and sorted into that block.

Shapes: S sessions of a block, P positions of a slate, R events.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields

import numpy as np
import pyarrow as pa

from stages.contracts.tables import DAY_MS
from stages.simulator.config import SIGNALS
from stages.simulator.world import DURATION, TOPICS_PER_USER, World, sigmoid

BLOCK_SESSIONS = 4_096
POSITION_DECAY = 0.5
POLICY_POPULAR, POLICY_TASTE = 0.35, 0.45
"""Shares of slots filled by popularity and by taste; exploration fills the rest."""

IMPRESSION, CLICK, WATCH, LIKE, PURCHASE = range(len(SIGNALS))


@dataclass(frozen=True)
class Events:
    """Events of a block as columns ``[R]``: rows of users and items, codes of signals."""

    time_ms: np.ndarray
    user: np.ndarray
    item: np.ndarray
    signal: np.ndarray
    value: np.ndarray

    def take(self, rows: np.ndarray) -> Events:
        """Return the selected rows."""
        return Events(**{field.name: getattr(self, field.name)[rows] for field in fields(self)})

    @staticmethod
    def concat(parts: list[Events]) -> Events:
        """Return the rows of all parts, one after the other."""
        return Events(**{f.name: np.concatenate([getattr(part, f.name) for part in parts]) for f in fields(Events)})


def examination(slate_size: int) -> np.ndarray:
    """Return the probability ``[P]`` that the user looks at each position of a slate (position bias)."""
    chance: np.ndarray = (1.0 + np.arange(slate_size)) ** -POSITION_DECAY
    return chance


class LoggingPolicy:
    """Fill slates from items born so far: by popularity, by the user's interests, or at random."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._popular = np.concatenate([[0.0], np.cumsum(world.exposure_weight)])
        # Stable sort: within a topic items stay in birth order, so the items born so far are a prefix.
        self._by_topic = np.argsort(world.item_topic, kind="stable")
        self._topical = np.concatenate([[0.0], np.cumsum(world.exposure_weight[self._by_topic])])
        self._first = np.searchsorted(world.item_topic[self._by_topic], np.arange(world.config.n_topics))
        self._span = int(world.birth_ms[-1] - world.birth_ms[0]) + 2
        self._key = world.item_topic[self._by_topic] * self._span + self._since(world.birth_ms[self._by_topic])

    def _since(self, times_ms: np.ndarray) -> np.ndarray:
        since: np.ndarray = (times_ms - self._world.birth_ms[0]).clip(0, self._span - 1)
        return since

    def fill(self, users: np.ndarray, times_ms: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Return item rows ``[S, P]`` without repeats within a session; -1 if no item is left.

        Args:
            users: user rows ``[S]``.
            times_ms: session times ``[S]``.
            rng: of this block.
        """
        wanted = self._world.config.slate_size
        shape = (len(users), wanted + max(4, wanted // 2))
        born = np.searchsorted(self._world.birth_ms, times_ms, side="right")[:, None]
        choice, position = rng.random(shape), rng.random(shape)
        popular = np.searchsorted(self._popular, position * self._popular[born], side="right") - 1
        slates = np.where(choice < POLICY_POPULAR, popular, (position * born).astype(np.int64))
        topical = self._by_interest(users, times_ms, position, rng)
        use = (choice >= POLICY_POPULAR) & (choice < POLICY_POPULAR + POLICY_TASTE) & (topical >= 0)
        slates = np.minimum(np.where(use, topical, slates), born - 1)
        return _drop_repeats(slates, wanted)

    def _by_interest(
        self, users: np.ndarray, times_ms: np.ndarray, position: np.ndarray, rng: np.random.Generator
    ) -> np.ndarray:
        """Draw a topic by the user's interests, then one of its items by weight; -1 if no item is born yet."""
        cumulative = np.cumsum(self._world.interests(users, times_ms), axis=1)
        draws = rng.random(position.shape)
        chosen = (draws[:, :, None] > cumulative[:, None, : TOPICS_PER_USER - 1]).sum(axis=2)
        topic = np.take_along_axis(self._world.user_topics[users].astype(np.int64), chosen, axis=1)
        start = self._first[topic]
        end = np.searchsorted(self._key, topic * self._span + self._since(times_ms)[:, None], side="right")
        low, high = self._topical[start], self._topical[end]
        slot = np.searchsorted(self._topical, low + position * (high - low), side="right") - 1
        rows = self._by_topic[slot.clip(start, np.maximum(end - 1, start)).clip(0, len(self._by_topic) - 1)]
        return np.where(end > start, rows, -1)


def _drop_repeats(slates: np.ndarray, wanted: int) -> np.ndarray:
    """Keep the first ``wanted`` different items of each row; pad with -1."""
    order = np.argsort(slates, axis=1, kind="stable")
    ordered = np.take_along_axis(slates, order, axis=1)
    repeated = np.zeros(slates.shape, dtype=bool)
    np.put_along_axis(repeated, order[:, 1:], ordered[:, 1:] == ordered[:, :-1], axis=1)
    front = np.argsort(repeated, axis=1, kind="stable")[:, :wanted]
    kept = np.take_along_axis(slates, front, axis=1)
    return np.where(np.take_along_axis(repeated, front, axis=1), -1, kept)


class SessionLog:
    """Draws the events of one block of sessions at a time."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._policy = LoggingPolicy(world)
        self.n_sessions = max(1, round(world.config.n_events / world.config.slate_size))
        self.n_blocks = -(-self.n_sessions // BLOCK_SESSIONS)
        self._activity = np.cumsum(world.activity)
        half = max(1, self.n_sessions // 2)
        visitors = world.inactive_rows[:half]
        self._visitors = visitors
        self._visits = np.arange(len(visitors)) * half // max(1, len(visitors))
        hours = 1.0 + 0.6 * np.sin((np.arange(24) - 9) / 24 * 2 * np.pi)
        self._day_curve = np.concatenate([[0.0], np.cumsum(hours) / hours.sum()])

    def start_of(self, session: np.ndarray) -> np.ndarray:
        """Return the start, int ms UTC, of a (fractional) session number; few sessions start at night."""
        day, share = np.divmod(session / self.n_sessions * self._world.config.days, 1.0)
        within = np.interp(share, self._day_curve, np.arange(25) / 24)
        starts: np.ndarray = self._world.config.start_ms + ((day + within) * DAY_MS).astype(np.int64)
        return starts

    def block(self, number: int) -> Events:
        """Return the events of a block, unsorted."""
        rng = np.random.default_rng([self._world.config.seed, 1, number])
        sessions = np.arange(number * BLOCK_SESSIONS, min((number + 1) * BLOCK_SESSIONS, self.n_sessions))
        times = self.start_of(sessions + rng.random(len(sessions)))
        draws = rng.random(len(sessions)) * self._activity[-1]
        users = np.searchsorted(self._activity, draws, side="right").clip(0, len(self._activity) - 1)
        planned = (self._visits >= sessions[0]) & (self._visits <= sessions[-1])
        users[self._visits[planned] - sessions[0]] = self._visitors[planned]
        slates = self._policy.fill(users, times, rng)
        return self._respond(users, times, slates, rng)

    def _respond(self, users: np.ndarray, times: np.ndarray, slates: np.ndarray, rng: np.random.Generator) -> Events:
        """Draw clicks by utility and position, then the events after each click."""
        world = self._world
        shown = slates >= 0
        items = slates.clip(0)
        logits = world.logits(world.tastes(users, times)[:, None], users[:, None], times[:, None], items)
        clicked = shown & (rng.random(slates.shape) < sigmoid(logits) * examination(slates.shape[1]))
        session, position = np.nonzero(shown)
        shown_times = times[session] + 150 * position
        parts = [self._events(IMPRESSION, shown_times, users[session], items[session, position])]
        session, position = np.nonzero(clicked)
        user, item, logit = users[session], items[session, position], logits[session, position]
        click_ms = times[session] + 4_000 * (position + 1) + rng.integers(0, 3_000, len(session))
        parts.append(self._events(CLICK, click_ms, user, item))
        parts += self._follow(user, item, logit, click_ms, rng)
        return Events.concat(parts)

    def _follow(
        self, user: np.ndarray, item: np.ndarray, logit: np.ndarray, click_ms: np.ndarray, rng: np.random.Generator
    ) -> list[Events]:
        """Return watch, like and purchase events after clicks ``[R]``."""
        world, n = self._world, len(user)
        duration = world.duration_s[item]
        misfit = np.abs(np.log(duration / world.preferred_duration_s[user]))
        share = sigmoid(0.8 + 0.5 * logit - DURATION * misfit + 0.8 * rng.standard_normal(n))
        share = np.round(share, 3).clip(0.001, 1.0)
        watch_ms = click_ms + (share * duration * 1_000).astype(np.int64)
        liked = rng.random(n) < sigmoid(0.9 * logit - 1.2)
        bought = rng.random(n) < sigmoid(logit - 3.5)
        later = rng.integers(60_000, 3_600_000, n)
        return [
            self._events(WATCH, watch_ms, user, item, share),
            self._events(LIKE, watch_ms[liked] + 1_000, user[liked], item[liked]),
            self._events(PURCHASE, (click_ms + later)[bought], user[bought], item[bought]),
        ]

    def _events(
        self, signal: int, times: np.ndarray, user: np.ndarray, item: np.ndarray, value: np.ndarray | None = None
    ) -> Events:
        return Events(
            time_ms=np.minimum(times, self._world.end_ms - 1),
            user=user,
            item=item,
            signal=np.full(len(user), signal, dtype=np.int8),
            value=np.ones(len(user)) if value is None else value,
        )


def _ordered_blocks(log: SessionLog) -> Iterator[Events]:
    """Yield blocks whose rows are sorted by time across blocks."""
    waiting: list[Events] = []
    for number in range(log.n_blocks):
        rows = Events.concat([*waiting, log.block(number)])
        rows = rows.take(np.lexsort((rows.signal, rows.item, rows.user, rows.time_ms)))
        last = number + 1 == log.n_blocks
        next_start = int(log.start_of(np.array((number + 1) * BLOCK_SESSIONS)))
        ready = len(rows.time_ms) if last else int(np.searchsorted(rows.time_ms, next_start))
        yield rows.take(np.arange(ready))
        waiting = [rows.take(np.arange(ready, len(rows.time_ms)))]


def _encode(world: World, rows: Events) -> pa.RecordBatch:
    return pa.RecordBatch.from_arrays(
        [
            world.user_ids.take(pa.array(rows.user)),
            world.item_ids.take(pa.array(rows.item)),
            pa.array(SIGNALS, pa.string()).take(pa.array(rows.signal)),
            pa.array(rows.value, pa.float64()),
            pa.array(rows.time_ms, pa.int64()),
        ],
        names=["user_id", "item_id", "signal", "value", "event_time_ms"],
    )


def event_batches(world: World, chunk: int = 100_000) -> Iterator[pa.RecordBatch]:
    """Yield the log of ``world`` in time order, ``chunk`` rows a batch (the last batch may be shorter).

    Columns: user_id, item_id, signal, value (1, or the watched share of the duration for ``watch``), event_time_ms. The
    rows do not depend on ``chunk``.
    """
    if chunk < 1:
        raise ValueError(f"chunk = {chunk}: must be at least 1")
    pending: list[Events] = []
    held = 0
    for block in _ordered_blocks(SessionLog(world)):
        pending.append(block)
        held += len(block.time_ms)
        if held < chunk:
            continue
        rows = Events.concat(pending)
        full = held - held % chunk
        for start in range(0, full, chunk):
            yield _encode(world, rows.take(np.arange(start, start + chunk)))
        pending = [rows.take(np.arange(full, held))]
        held -= full
    if held:
        yield _encode(world, Events.concat(pending))

"""Picks users and items of a release that show what it does."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from serving.release import LoadedRelease
from stages.contracts.top_k import top_k


@dataclass(frozen=True)
class ShownUser:
    """A user of the release: what kind, and how many items are in the history."""

    kind: str
    user_id: str
    n_items: int


@dataclass(frozen=True)
class Showcase:
    """The users, items and event that a demonstration shows.

    Attributes:
        heavy_user: a user whose history is at the upper end.
        light_user: a user with very few items.
        item_ids, titles: three items of one taste, none at the top of the popular list.
        signal, value: the event to post for each of them.
    """

    heavy_user: ShownUser
    light_user: ShownUser
    item_ids: tuple[str, ...]
    titles: tuple[str, ...]
    signal: str
    value: float


def choose(release: LoadedRelease, popular_k: int = 20) -> Showcase:
    """Choose users and items; the same release gives the same choice.

    Args:
        release: a loaded release.
        popular_k: items of the popular list that are not chosen.
    """
    user_ids = sorted(release.user_index)
    lengths = np.array([len(release.state.touched(release.user_index[user_id])) for user_id in user_ids])
    heavy = int(np.argsort(lengths, kind="stable")[int(0.98 * (len(lengths) - 1))])
    known = np.flatnonzero(lengths > 0)
    light = int(known[np.argmin(lengths[known])])
    items = _three_of_a_taste(release, popular_k)
    main = release.meta.tasks[0]
    return Showcase(
        heavy_user=ShownUser("heavy", user_ids[heavy], int(lengths[heavy])),
        light_user=ShownUser("light", user_ids[light], int(lengths[light])),
        item_ids=tuple(str(release.items.item_id[item]) for item in items),
        titles=tuple(str(release.items.title[item]) for item in items),
        signal=main.signals[0],
        value=_best_value(release, main.signals[0], main.min_value or 0.0),
    )


def _best_value(release: LoadedRelease, signal: str, least: float) -> float:
    """Return the top of a scale, such as five stars; of an amount, 1 or what the task needs."""
    allowed = release.value_ranges.get(signal)
    if allowed is None:
        return max(least, 1.0)
    return allowed.high if allowed.low > 0 else min(max(least, 1.0), allowed.high)


def _three_of_a_taste(release: LoadedRelease, popular_k: int) -> np.ndarray:
    """Return a well-known item below the top of the list, and the two most similar well-known ones."""
    counts = release.state.popularity(release.manifest.as_of_ms, None)
    order = np.argsort(-counts, kind="stable")
    well_known = order[popular_k : popular_k + max(3, len(order) // 10)]
    vectors = np.asarray(release.candidate.item_vectors)[well_known]
    mean = vectors.mean(axis=0)
    first = int(np.argmin(vectors @ mean))
    nearest = top_k(vectors @ vectors[first], 3)
    return np.asarray(well_known[nearest])

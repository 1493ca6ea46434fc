"""The lists that users without history may get: popular items of all time or at a half-life, or a generator's items.

A generator's items come before popular ones, so that an answer is full. ``retrieval.choose_newcomers`` measures the
lists; a release says in ``sources.json`` which one is served.
"""

from __future__ import annotations

from collections.abc import Sequence

from stages.contracts.errors import ReleaseError
from stages.contracts.newcomers import NewcomerList, half_life_name
from stages.features.config import FeatureConfig


def newcomer_lists(features: FeatureConfig, generators: Sequence[str]) -> dict[str, NewcomerList]:
    """Return every list that may be served, by name; the first one is served where nothing was measured.

    Args:
        features: their half-lives are those of the state.
        generators: those that answer users without history, in the order of configuration.
    """
    longest = features.half_lives_days[-1]
    days: tuple[float | None, ...] = (*features.half_lives_days[::-1], None)
    named = [NewcomerList(name=name, half_life_days=longest, generator=name) for name in generators]
    popular = [NewcomerList(name=half_life_name(each), half_life_days=each) for each in days]
    return {each.name: each for each in (*named, *popular)}


def popular_half_life(chosen: NewcomerList | None, features: FeatureConfig) -> int | None:
    """Return the position of the popular list's half-life among those of the state; None counts all time alike.

    Args:
        chosen: of ``sources.json``; None, as in an older release, takes the longest half-life.
        features: of the state.

    Raises:
        ReleaseError: if the state has no such half-life.
    """
    if chosen is None:
        return len(features.half_lives_days) - 1
    if chosen.half_life_days is None:
        return None
    if chosen.half_life_days not in features.half_lives_days:
        raise ReleaseError(
            f"sources.json: newcomers.half_life_days = {chosen.half_life_days}, the state counts "
            f"{list(features.half_lives_days)}; train the sources again"
        )
    return features.half_lives_days.index(chosen.half_life_days)

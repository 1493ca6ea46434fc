"""What the ranking features of a request know of its user, in compiled code.

Shapes: n candidates of one request, N items, D vector dimensions, C categories, K half-lives, T tasks, X context
columns, G generators, H newest items of the user.
"""

from __future__ import annotations

import math

import numpy as np

from stages.contracts.compiled import in_place_part
from stages.features.feature_arrays import (
    DAY_MS,
    HOUR_MS,
    LAST,
    MAIN_SHARE,
    RECENT,
    TOUCHES,
    WEIGHTS,
    Scratch,
    Settings,
    norm_of,
    open_of_user,
    ratio,
    smooth,
)
from stages.features.state_arrays import ITEMS, LATEST, NEVER_MS, POSITIVES, TIMES, VALUES, State


@in_place_part
def _user_categories(
    state: State, settings: Settings, scratch: Scratch, user: int, time_ms: int, newest_ms: int
) -> int:
    """Fill ``of_user``, ``latest_ms`` and ``touched``; return the number of the user's categories."""
    users, items = state.users, state.items
    start, count = users.start[user], users.sizes[user]
    k_half, n_tasks, found = len(settings.half_lives_ms), len(state.rules.gains), 0
    columns = users.pool if users.capacity[user] else users.base
    recent_total = 0.0
    n_newest = min(count, settings.newest)
    middle_ms = settings.half_lives_ms[settings.middle]
    for entry in range(start, start + count):
        recent_total += 2.0 ** (-max(newest_ms - columns[TIMES][entry], 0) / middle_ms)
    for entry in range(start, start + count):
        item, event_ms, positives = columns[ITEMS][entry], columns[TIMES][entry], columns[POSITIVES][entry]
        age = max(time_ms - event_ms, 0)
        recent = 2.0 ** (-max(newest_ms - event_ms, 0) / middle_ms) / recent_total
        first = items.category_offsets[item]
        for k in range(k_half):
            scratch.touched[k] += 2.0 ** (-age / settings.half_lives_ms[k])
        decayed = 2.0 ** (-age / middle_ms)
        for place in range(first, items.category_offsets[item + 1]):
            category = items.category_codes[place]
            found += open_of_user(scratch, category)
            of_user = scratch.of_user
            of_user[TOUCHES, category] += 1.0
            of_user[RECENT, category] += recent
            if place == first and entry >= start + count - n_newest:
                of_user[MAIN_SHARE, category] += 1.0 / n_newest
            if entry == start + count - 1:
                of_user[LAST, category] = 1.0
            for k in range(k_half):
                of_user[WEIGHTS + k, category] += 2.0 ** (-age / settings.half_lives_ms[k])
            for task in range(n_tasks):
                if positives >> task & 1:
                    of_user[WEIGHTS + k_half + task, category] += 1.0
                    of_user[WEIGHTS + k_half + n_tasks + task, category] += decayed
            scratch.latest_ms[category] = max(scratch.latest_ms[category], event_ms)
    return found


@in_place_part
def _user_rates(state: State, settings: Settings, scratch: Scratch, user: int, time_ms: int) -> None:
    """Fill ``rates``: of all the user's touches, and decayed ones."""
    users, middle_ms = state.users, settings.half_lives_ms[settings.middle]
    known = 0 <= user < len(users.start)
    start, count = (users.start[user], users.sizes[user]) if known else (0, 0)
    columns = users.pool if known and users.capacity[user] else users.base
    for task in range(len(state.rules.gains)):
        prior, positive, decayed, weights = ratio(state.counts.totals[4 + task], state.counts.totals[0]), 0.0, 0.0, 0.0
        for entry in range(start, start + count):
            weight = 2.0 ** (-max(time_ms - columns[TIMES][entry], 0) / middle_ms)
            weights += weight
            if columns[POSITIVES][entry] >> task & 1:
                positive += 1.0
                decayed += weight
        scratch.rates[0, task] = smooth(positive, count, prior, settings.smoothing)
        scratch.rates[1, task] = smooth(decayed, weights, prior, settings.smoothing)


@in_place_part
def newest_items(state: State, settings: Settings, scratch: Scratch, vectors: np.ndarray, user: int) -> int:
    """Fill ``newest`` and ``unit``; return how many items they hold."""
    users = state.users
    start, count = users.start[user], users.sizes[user]
    columns = users.pool if users.capacity[user] else users.base
    n = min(count, settings.newest)
    for place in range(n):
        item = columns[ITEMS][start + count - 1 - place]
        scratch.newest[place] = item
        norm = norm_of(vectors, item)
        for d in range(vectors.shape[1]):
            scratch.unit[place, d] = vectors[item, d] / norm
    return n


@in_place_part
def user_columns(
    state: State, settings: Settings, scratch: Scratch, out: np.ndarray, row: int, column: int, user: int, time_ms: int
) -> float:
    """Write the user's columns into a row, fill the user's scratch; return the mean duration, NaN where unknown."""
    k_half, n_tasks, users = len(settings.half_lives_ms), len(state.rules.gains), state.users
    known = 0 <= user < len(users.start)
    start, count = (users.start[user], users.sizes[user]) if known else (0, 0)
    columns = users.pool if known and users.capacity[user] else users.base
    first_ms, newest_ms, last_ms = time_ms, time_ms, NEVER_MS
    values, durations, watched = 0.0, 0.0, 0
    for entry in range(start, start + count):
        event_ms = columns[TIMES][entry]
        first_ms = event_ms if entry == start else min(first_ms, event_ms)
        newest_ms = event_ms if entry == start else max(newest_ms, event_ms)
        last_ms = max(last_ms, columns[LATEST][entry])
        values += columns[VALUES][entry]
        duration = np.float64(state.items.duration_s[columns[ITEMS][entry]])
        if not math.isnan(duration):
            durations += math.log1p(duration)
            watched += 1
    for k in range(k_half):
        scratch.touched[k] = 0.0
    categories = _user_categories(state, settings, scratch, user, time_ms, newest_ms) if count else 0
    _user_rates(state, settings, scratch, user, time_ms)
    out[row, column] = math.log1p(count)
    for k in range(k_half):
        out[row, column + 1 + k] = math.log1p(scratch.touched[k])
    column += 1 + k_half
    out[row, column] = math.log1p(max(time_ms - first_ms, 0) / DAY_MS) if count else -1.0
    out[row, column + 1] = math.log1p(max(time_ms - last_ms, 0) / HOUR_MS) if count else -1.0
    out[row, column + 2] = math.log1p((newest_ms - first_ms) / (count - 1) / HOUR_MS) if count > 1 else 0.0
    out[row, column + 3] = math.log1p(categories)
    column += 4
    for task in range(n_tasks):
        out[row, column + task], out[row, column + n_tasks + task] = scratch.rates[0, task], scratch.rates[1, task]
    column += 2 * n_tasks
    mean, squares = values / max(count, 1), 0.0
    for entry in range(start, start + count):
        squares += (columns[VALUES][entry] - mean) ** 2
    out[row, column], out[row, column + 1] = mean, math.sqrt(squares / max(count, 1))
    return durations / watched if watched else math.nan

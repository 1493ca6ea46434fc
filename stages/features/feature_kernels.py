"""The ranking features in compiled code: ``request_features`` writes the columns of ``ranking.FEATURES``, in order.

Shapes: n candidates of one request, N items, D vector dimensions, C categories, K half-lives, T tasks, X context
columns, G generators, H newest items of the user.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from stages.contracts.compiled import in_place, in_place_once, in_place_part, in_place_sum
from stages.features.state_kernels import (
    ITEMS,
    LATEST,
    NEVER_MS,
    POSITIVES,
    TIMES,
    VALUES,
    Decayed,
    EventColumns,
    Items,
    State,
    apply_events,
    links_sum_and_max,
)

HOUR_MS = 3_600_000.0
DAY_MS = 86_400_000.0
USER_STAMP, GLOBAL_STAMP = 0, 1
TOUCHES, RECENT, MAIN_SHARE, LAST, WEIGHTS = 0, 1, 2, 3, 4
"""Rows of ``Scratch.of_user``: touches, the same decayed to the newest, share as a main category, whether the newest
item has the category; then K decayed touches, T positives and T decayed positives."""
POPULARITY, TREND, RATES = 0, 1, 2
"""Rows of ``Scratch.of_all``: popularity, trend; then T rates, T recent rates and X logarithms of lifts."""


class Settings(NamedTuple):
    """What ``FeatureConfig`` says.

    Attributes:
        half_lives_ms: float64 ``[K]``.
        middle: position of the middle half-life.
        smoothing: pseudo-observations of a smoothed rate.
        newest: H, at most.
        weights: float64 ``[H]``, of the newest items by position.
        starts: int64 ``[X]``, position of each context column's first value.
    """

    half_lives_ms: np.ndarray
    middle: int
    smoothing: float
    newest: int
    weights: np.ndarray
    starts: np.ndarray


class Scratch(NamedTuple):
    """Room for one request at a time.

    Attributes:
        of_user: float64 ``[4 + K + 2 T, C]`` and latest_ms int64 ``[C]``, valid where ``stamps[0]`` is the newest.
        of_all: float64 ``[2 + 2 T + X, C]``, valid where ``stamps[1]`` is the newest stamp.
        stamps: int64 ``[2, C]``; stamp: int64 ``[1]``, the newest stamp.
        touched: float64 ``[K]``, decayed touches; rates: float64 ``[2, T]``, the user's rates and recent rates.
        unit: float32 ``[H, D]``, the newest items' vectors at length 1; newest: int64 ``[H]``.
        total, best: float64 ``[n]``, links of each candidate.
    """

    of_user: np.ndarray
    latest_ms: np.ndarray
    of_all: np.ndarray
    stamps: np.ndarray
    stamp: np.ndarray
    touched: np.ndarray
    rates: np.ndarray
    unit: np.ndarray
    newest: np.ndarray
    total: np.ndarray
    best: np.ndarray


class Candidates(NamedTuple):
    """Candidates of requests, one row each: int64, float32, int32, float32 ``[n, G]``, int32 ``[n, G]``."""

    items: np.ndarray
    scores: np.ndarray
    ranks: np.ndarray
    source_scores: np.ndarray
    source_ranks: np.ndarray


class Requests(NamedTuple):
    """Requests by row: int64, int64, int32 rows of ``contexts`` (int32 ``[., X]``), and the first event not before."""

    user: np.ndarray
    time_ms: np.ndarray
    context: np.ndarray
    contexts: np.ndarray
    borders: np.ndarray


@in_place
def _read(counts: Decayed, k: int, row: int, time_ms: int) -> float:
    elapsed = max(time_ms - counts.last_ms[row], 0)
    return counts.values[k, row] * 2.0 ** (-elapsed / counts.half_lives_ms[k])


@in_place
def _smooth(successes: float, trials: float, prior: float, weight: float) -> float:
    return (successes + weight * prior) / (trials + weight)


@in_place
def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else 0.0


@in_place
def _log_hours(time_ms: int, since_ms: int) -> float:
    return -1.0 if since_ms == NEVER_MS else math.log1p(max(time_ms - since_ms, 0) / HOUR_MS)


@in_place_sum
def _dot(vectors: np.ndarray, row: int, others: np.ndarray, other: int) -> Any:
    total = np.float32(0.0)
    for d in range(vectors.shape[1]):
        total += vectors[row, d] * others[other, d]
    return total


@in_place
def _norm(vectors: np.ndarray, row: int) -> Any:
    return max(np.float32(math.sqrt(_dot(vectors, row, vectors, row))), np.float32(1e-12))


@in_place
def _open_of_user(scratch: Scratch, category: int) -> bool:
    """Let a category have zeros where the user was not seen in it yet; return whether that is so."""
    if scratch.stamps[USER_STAMP, category] == scratch.stamp[0]:
        return False
    scratch.stamps[USER_STAMP, category] = scratch.stamp[0]
    for place in range(scratch.of_user.shape[0]):
        scratch.of_user[place, category] = 0.0
    scratch.latest_ms[category] = NEVER_MS
    return True


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
            found += _open_of_user(scratch, category)
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
        prior, positive, decayed, weights = _ratio(state.counts.totals[4 + task], state.counts.totals[0]), 0.0, 0.0, 0.0
        for entry in range(start, start + count):
            weight = 2.0 ** (-max(time_ms - columns[TIMES][entry], 0) / middle_ms)
            weights += weight
            if columns[POSITIVES][entry] >> task & 1:
                positive += 1.0
                decayed += weight
        scratch.rates[0, task] = _smooth(positive, count, prior, settings.smoothing)
        scratch.rates[1, task] = _smooth(decayed, weights, prior, settings.smoothing)


@in_place_part
def _category(
    state: State, settings: Settings, scratch: Scratch, codes: np.ndarray, category: int, time_ms: int
) -> None:
    """Fill ``of_all`` of a category that a candidate has, once a request."""
    if scratch.stamps[GLOBAL_STAMP, category] == scratch.stamp[0]:
        return
    scratch.stamps[GLOBAL_STAMP, category] = scratch.stamp[0]
    _open_of_user(scratch, category)
    counts, of_all, k_half, n_tasks = state.counts, scratch.of_all, len(settings.half_lives_ms), len(state.rules.gains)
    shortest = _read(state.category_counts, 0, category, time_ms)
    middle = _read(state.category_counts, settings.middle, category, time_ms)
    longest = _read(state.category_counts, k_half - 1, category, time_ms)
    of_all[POPULARITY, category] = middle
    scale = settings.half_lives_ms[k_half - 1] / settings.half_lives_ms[0]
    of_all[TREND, category] = math.log((shortest * scale + 1.0) / (longest + 1.0))
    touches = counts.category_touches[category]
    for task in range(n_tasks):
        prior = _ratio(counts.totals[4 + task], counts.totals[0])
        positives = counts.category_positives[task, category]
        of_all[RATES + task, category] = _smooth(positives, touches, prior, settings.smoothing)
        row = task * len(counts.category_touches) + category
        recent = _read(state.category_task_counts, 0, row, time_ms)
        of_all[RATES + n_tasks + task, category] = _smooth(recent, middle, prior, settings.smoothing)
    for column in range(len(settings.starts)):
        value = settings.starts[column] + codes[column] - 1
        share = _ratio(counts.context_totals[value], counts.totals[0]) if codes[column] > 0 else 0.0
        lift = 1.0
        if share:
            lift = _smooth(counts.context_categories[value, category], touches, share, settings.smoothing) / share
        of_all[RATES + 2 * n_tasks + column, category] = math.log(lift)


@in_place
def _mean_of_all(items: Items, of_all: np.ndarray, place: int, item: int) -> float:
    first, last = items.category_offsets[item], items.category_offsets[item + 1]
    total = 0.0
    for entry in range(first, last):
        total += of_all[place, items.category_codes[entry]]
    return total / max(last - first, 1)


@in_place
def _mean_of_user(items: Items, of_user: np.ndarray, place: int, item: int) -> float:
    first, last = items.category_offsets[item], items.category_offsets[item + 1]
    total = 0.0
    for entry in range(first, last):
        total += of_user[place, items.category_codes[entry]]
    return total / max(last - first, 1)


@in_place
def _max_of_user(items: Items, of_user: np.ndarray, place: int, item: int) -> float:
    best = 0.0
    for entry in range(items.category_offsets[item], items.category_offsets[item + 1]):
        best = max(best, of_user[place, items.category_codes[entry]])
    return best


@in_place_part
def _item_columns(
    state: State, settings: Settings, out: np.ndarray, row: int, column: int, item: int, time_ms: int
) -> int:
    """Write the item's popularity, trend, age and rates; return the next column."""
    counts, k_half, smoothing = state.counts, len(settings.half_lives_ms), settings.smoothing
    touches = counts.touches[item]
    for k in range(k_half):
        out[row, column + k] = math.log1p(_read(state.item_counts, k, item, time_ms))
    column += k_half
    for k in range(k_half - 1):
        # The decayed counts of an item with a constant rate are proportional to the half-lives: its ratio is near 1.
        scale = settings.half_lives_ms[k + 1] / settings.half_lives_ms[k]
        short, long = _read(state.item_counts, k, item, time_ms), _read(state.item_counts, k + 1, item, time_ms)
        out[row, column + k] = math.log((short * scale + 1.0) / (long + 1.0))
    column += k_half - 1
    out[row, column] = math.log1p(touches)
    out[row, column + 1] = math.log1p(max((time_ms - state.items.created_at_ms[item]) / DAY_MS, 0.0))
    out[row, column + 2] = _log_hours(time_ms, state.item_counts.last_ms[item])
    prior = _ratio(counts.totals[0], max(counts.totals[1], counts.totals[0]))
    out[row, column + 3] = _smooth(touches, max(counts.exposures[item], touches), prior, smoothing)
    recent = _read(state.item_counts, settings.middle, item, time_ms)
    shown = max(_read(state.exposure_counts, 0, item, time_ms), recent)
    out[row, column + 4] = _smooth(recent, shown, prior, smoothing)
    column += 5
    n_tasks = len(state.rules.gains)
    for task in range(n_tasks):
        prior = _ratio(counts.totals[4 + task], counts.totals[0])
        out[row, column + task] = _smooth(counts.positives[task, item], touches, prior, smoothing)
        positives = _read(state.task_counts, 0, task * len(counts.touches) + item, time_ms)
        out[row, column + n_tasks + task] = _smooth(positives, recent, prior, smoothing)
    column += 2 * n_tasks
    prior = _ratio(counts.totals[3], counts.totals[2])
    out[row, column] = _smooth(counts.item_value_sum[item], counts.item_events[item], prior, smoothing)
    return column + 1


@in_place_part
def _category_columns(
    state: State, settings: Settings, scratch: Scratch, out: np.ndarray, row: int, column: int, item: int, time_ms: int
) -> int:
    """Write what the item's categories say, up to ``category_recent_rate``; return the next column."""
    k_half, n_tasks, smoothing = len(settings.half_lives_ms), len(state.rules.gains), settings.smoothing
    first, last = state.items.category_offsets[item], state.items.category_offsets[item + 1]
    n = max(last - first, 1)
    latest_ms = NEVER_MS
    for entry in range(first, last):
        latest_ms = max(latest_ms, scratch.latest_ms[state.items.category_codes[entry]])
    for k in range(k_half):
        out[row, column + k] = math.log1p(_mean_of_user(state.items, scratch.of_user, WEIGHTS + k, item))
    column += k_half
    for task in range(n_tasks):
        rate, recent = 0.0, 0.0
        for entry in range(first, last):
            of_user, category = scratch.of_user, state.items.category_codes[entry]
            positives, decayed = WEIGHTS + k_half + task, WEIGHTS + k_half + n_tasks + task
            rate += _smooth(of_user[positives, category], of_user[TOUCHES, category], scratch.rates[0, task], smoothing)
            weights = of_user[WEIGHTS + settings.middle, category]
            recent += _smooth(of_user[decayed, category], weights, scratch.rates[1, task], smoothing)
        out[row, column + task], out[row, column + n_tasks + task] = rate / n, recent / n
    column += 2 * n_tasks
    out[row, column] = _log_hours(time_ms, latest_ms)
    out[row, column + 1] = math.log1p(_mean_of_all(state.items, scratch.of_all, POPULARITY, item))
    out[row, column + 2] = _mean_of_all(state.items, scratch.of_all, TREND, item)
    column += 3
    for rate in range(2 * n_tasks):
        out[row, column + rate] = _mean_of_all(state.items, scratch.of_all, RATES + rate, item)
    return column + 2 * n_tasks


@in_place
def _similarity_columns(
    settings: Settings, scratch: Scratch, vectors: np.ndarray, out: np.ndarray, row: int, column: int, item: int, h: int
) -> None:
    """Write cosines of the item with the ``h`` newest items: maximum, mean, newest, and weighed by recency."""
    norm, best, total, recent, weights = _norm(vectors, item), np.float32(-2.0), 0.0, 0.0, 0.0
    for place in range(h):
        cosine = _dot(vectors, item, scratch.unit, place) / norm
        best = max(best, cosine)
        total += cosine
        recent += cosine * settings.weights[place]
        weights += settings.weights[place]
        if place == 0:
            out[row, column + 2] = cosine
    if h == 0:
        for place in range(4):
            out[row, column + place] = 0.0
    else:
        out[row, column], out[row, column + 1], out[row, column + 3] = best, total / h, recent / weights


@in_place_part
def _newest_items(state: State, settings: Settings, scratch: Scratch, vectors: np.ndarray, user: int) -> int:
    """Fill ``newest`` and ``unit``; return how many items they hold."""
    users = state.users
    start, count = users.start[user], users.sizes[user]
    columns = users.pool if users.capacity[user] else users.base
    n = min(count, settings.newest)
    for place in range(n):
        item = columns[ITEMS][start + count - 1 - place]
        scratch.newest[place] = item
        norm = _norm(vectors, item)
        for d in range(vectors.shape[1]):
            scratch.unit[place, d] = vectors[item, d] / norm
    return n


@in_place_part
def _user_columns(
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


@in_place
def _time_columns(out: np.ndarray, row: int, column: int, time_ms: int) -> int:
    """Write sine and cosine of the time of day and week; return the next column."""
    hour = 2 * math.pi * (time_ms % 86_400_000) / DAY_MS
    weekday = 2 * math.pi * (time_ms % (7 * 86_400_000)) / (7 * DAY_MS)
    out[row, column], out[row, column + 1] = math.sin(hour), math.cos(hour)
    out[row, column + 2], out[row, column + 3] = math.sin(weekday), math.cos(weekday)
    return column + 4


@in_place_part
def _context_columns(
    state: State,
    settings: Settings,
    scratch: Scratch,
    codes: np.ndarray,
    out: np.ndarray,
    row: int,
    column: int,
    item: int,
) -> int:
    """Write shares and lifts of the request's context; return the next column.

    A lift compares two shares of the request's context value: its share among the touches of an item (or category),
    smoothed by its share among all touches, divided by its share among all touches.
    """
    counts, n, n_tasks = state.counts, len(codes), len(state.rules.gains)
    for context in range(n):
        value = settings.starts[context] + codes[context] - 1
        share = _ratio(counts.context_totals[value], counts.totals[0]) if codes[context] > 0 else 0.0
        lift = 1.0
        if share:
            hits, trials = counts.context_counts[value, item], counts.touches[item]
            lift = _smooth(hits, trials, share, settings.smoothing) / share
        out[row, column + context] = share
        out[row, column + n + context] = math.log(lift)
        out[row, column + 2 * n + context] = _mean_of_all(
            state.items, scratch.of_all, RATES + 2 * n_tasks + context, item
        )
    return column + 3 * n


@in_place
def _source_columns(candidates: Candidates, out: np.ndarray, row: int, column: int) -> None:
    """Write each generator's score and reciprocal rank."""
    n = candidates.source_ranks.shape[1]
    for source in range(n):
        rank = candidates.source_ranks[row, source]
        out[row, column + source] = candidates.source_scores[row, source] if rank >= 0 else 0.0
        out[row, column + n + source] = 1.0 / (1.0 + rank) if rank >= 0 else 0.0


@in_place
def _duration_columns(items: Items, out: np.ndarray, row: int, column: int, item: int, mean: float) -> None:
    duration = math.log1p(np.float64(items.duration_s[item]))
    distance = abs(duration - mean)
    out[row, column] = 0.0 if math.isnan(duration) else duration
    out[row, column + 1] = 0.0 if math.isnan(distance) else distance


@in_place_part
def _affinity_columns(
    state: State, scratch: Scratch, out: np.ndarray, row: int, column: int, item: int, touched: float
) -> int:
    """Write shares of the user's items in the item's categories; return the next column."""
    touched = max(touched, 1.0)
    out[row, column] = _mean_of_user(state.items, scratch.of_user, TOUCHES, item) / touched
    out[row, column + 1] = _max_of_user(state.items, scratch.of_user, TOUCHES, item) / touched
    out[row, column + 2] = _mean_of_user(state.items, scratch.of_user, RECENT, item)
    out[row, column + 3] = _max_of_user(state.items, scratch.of_user, RECENT, item)
    return column + 4


@in_place_part
def _same_category_columns(state: State, scratch: Scratch, out: np.ndarray, row: int, column: int, item: int) -> int:
    """Write what the item shares with the user's newest items; return the next column."""
    first, last = state.items.category_offsets[item], state.items.category_offsets[item + 1]
    out[row, column] = _max_of_user(state.items, scratch.of_user, LAST, item)
    out[row, column + 1] = scratch.of_user[MAIN_SHARE, state.items.category_codes[first]] if last > first else 0.0
    return column + 2


@in_place_once
def request_features(
    state: State,
    settings: Settings,
    scratch: Scratch,
    vectors: np.ndarray,
    user: int,
    time_ms: int,
    codes: np.ndarray,
    candidates: Candidates,
    first: int,
    last: int,
    out: np.ndarray,
) -> None:
    """Write the features of one request's candidates.

    Args:
        state: as it is at the time of the request.
        settings: of the features.
        scratch: overwritten.
        vectors: float32 ``[N, D]``.
        user: index of the user, who may be unknown.
        time_ms: of the request.
        codes: int32 ``[X]``, its codes in the context columns.
        candidates: of this and other requests.
        first: the request's first row.
        last: one behind its last row.
        out: float32, the same rows and F columns.
    """
    if first == last:
        return
    items, k_half, n_tasks = state.items, len(settings.half_lives_ms), len(state.rules.gains)
    known = 0 <= user < len(state.users.start)
    scratch.stamp[0] += 1
    user_first = 2 + 2 * k_half - 1 + 5 + 2 * n_tasks + 1 + 2
    user_last = user_first + 1 + k_half + 4 + 2 * n_tasks + 2
    mean_duration = _user_columns(state, settings, scratch, out, first, user_first, user, time_ms)
    h = _newest_items(state, settings, scratch, vectors, user) if known else 0
    touched = np.float64(state.users.sizes[user]) if known else 0.0
    links_sum_and_max(
        state.links,
        scratch.newest[:h],
        candidates.items[first:last],
        state.counts.touches,
        scratch.total,
        scratch.best,
    )
    for row in range(first, last):
        item = candidates.items[row]
        for place in range(items.category_offsets[item], items.category_offsets[item + 1]):
            _category(state, settings, scratch, codes, items.category_codes[place], time_ms)
        out[row, 0], out[row, 1] = candidates.scores[row], math.log1p(candidates.ranks[row])
        column = _item_columns(state, settings, out, row, 2, item, time_ms)
        _duration_columns(state.items, out, row, column, item, mean_duration)
        for column in range(user_first, user_last):
            out[row, column] = out[first, column]
        column = _affinity_columns(state, scratch, out, row, user_last, item, touched)
        column = _category_columns(state, settings, scratch, out, row, column, item, time_ms)
        out[row, column], out[row, column + 1] = scratch.total[row - first], scratch.best[row - first]
        _similarity_columns(settings, scratch, vectors, out, row, column + 2, item, h)
        column = _same_category_columns(state, scratch, out, row, column + 6, item)
        column = _time_columns(out, row, column, time_ms)
        column = _context_columns(state, settings, scratch, codes, out, row, column, item)
        _source_columns(candidates, out, row, column)


@in_place_once
def block_features(
    state: State,
    events: EventColumns,
    done: int,
    settings: Settings,
    scratch: Scratch,
    vectors: np.ndarray,
    requests: Requests,
    rows: np.ndarray,
    offsets: np.ndarray,
    candidates: Candidates,
    first: int,
    out: np.ndarray,
) -> tuple[int, int]:
    """Advance the state to each request of a block, and write the features of its candidates.

    Args:
        state: has had the events before ``done``.
        events: in time order.
        done: the first event that was not applied yet.
        settings: of the features.
        scratch: overwritten.
        vectors: float32 ``[N, D]``.
        requests: all requests.
        rows: int64 ``[B]``, the block's requests, in the order of time.
        offsets: int64 ``[B + 1]`` into the candidates.
        candidates: of the block.
        first: the first of the block's requests to answer.
        out: float32 ``[n, F]``.

    Returns:
        The next event and the next request of the block; if that is not B, the state needs room for the event.
    """
    for place in range(first, len(rows)):
        row = rows[place]
        done = apply_events(state, events, done, requests.borders[row])
        if done < requests.borders[row]:
            return done, place
        codes = requests.contexts[requests.context[row]]
        user, time_ms = requests.user[row], requests.time_ms[row]
        start, stop = offsets[place], offsets[place + 1]
        request_features(state, settings, scratch, vectors, user, time_ms, codes, candidates, start, stop, out)
    return done, len(rows)

"""The ranking features in compiled code: ``request_features`` writes the columns of ``ranking.FEATURES``, in order.

Shapes: n candidates of one request, N items, D vector dimensions, C categories, K half-lives, T tasks, X context
columns, G generators, H newest items of the user.
"""

from __future__ import annotations

import math

import numpy as np

from stages.contracts.compiled import in_place, in_place_once, in_place_part
from stages.features.feature_arrays import (
    DAY_MS,
    GLOBAL_STAMP,
    LAST,
    MAIN_SHARE,
    POPULARITY,
    RATES,
    RECENT,
    TOUCHES,
    TREND,
    WEIGHTS,
    Candidates,
    Requests,
    Scratch,
    Settings,
    dot,
    log_hours,
    norm_of,
    open_of_user,
    ratio,
    read_decayed,
    smooth,
)
from stages.features.feature_user_kernels import newest_items, user_columns
from stages.features.link_kernels import links_sum_and_max
from stages.features.state_arrays import NEVER_MS, EventColumns, Items, State
from stages.features.state_kernels import apply_events


@in_place_part
def _category(
    state: State, settings: Settings, scratch: Scratch, codes: np.ndarray, category: int, time_ms: int
) -> None:
    """Fill ``of_all`` of a category that a candidate has, once a request."""
    if scratch.stamps[GLOBAL_STAMP, category] == scratch.stamp[0]:
        return
    scratch.stamps[GLOBAL_STAMP, category] = scratch.stamp[0]
    open_of_user(scratch, category)
    counts, of_all, k_half, n_tasks = state.counts, scratch.of_all, len(settings.half_lives_ms), len(state.rules.gains)
    shortest = read_decayed(state.category_counts, 0, category, time_ms)
    middle = read_decayed(state.category_counts, settings.middle, category, time_ms)
    longest = read_decayed(state.category_counts, k_half - 1, category, time_ms)
    of_all[POPULARITY, category] = middle
    scale = settings.half_lives_ms[k_half - 1] / settings.half_lives_ms[0]
    of_all[TREND, category] = math.log((shortest * scale + 1.0) / (longest + 1.0))
    touches = counts.category_touches[category]
    for task in range(n_tasks):
        prior = ratio(counts.totals[4 + task], counts.totals[0])
        positives = counts.category_positives[task, category]
        of_all[RATES + task, category] = smooth(positives, touches, prior, settings.smoothing)
        row = task * len(counts.category_touches) + category
        recent = read_decayed(state.category_task_counts, 0, row, time_ms)
        of_all[RATES + n_tasks + task, category] = smooth(recent, middle, prior, settings.smoothing)
    for column in range(len(settings.starts)):
        value = settings.starts[column] + codes[column] - 1
        share = ratio(counts.context_totals[value], counts.totals[0]) if codes[column] > 0 else 0.0
        lift = 1.0
        if share:
            lift = smooth(counts.context_categories[value, category], touches, share, settings.smoothing) / share
        of_all[RATES + 2 * n_tasks + column, category] = math.log(lift)


@in_place
def _mean(items: Items, of_category: np.ndarray, place: int, item: int) -> float:
    """Return the mean of one row of numbers by category over the item's categories, 0 without any."""
    first, last = items.category_offsets[item], items.category_offsets[item + 1]
    total = 0.0
    for entry in range(first, last):
        total += of_category[place, items.category_codes[entry]]
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
        out[row, column + k] = math.log1p(read_decayed(state.item_counts, k, item, time_ms))
    column += k_half
    for k in range(k_half - 1):
        # The decayed counts of an item with a constant rate are proportional to the half-lives: its ratio is near 1.
        scale = settings.half_lives_ms[k + 1] / settings.half_lives_ms[k]
        short, long = (
            read_decayed(state.item_counts, k, item, time_ms),
            read_decayed(state.item_counts, k + 1, item, time_ms),
        )
        out[row, column + k] = math.log((short * scale + 1.0) / (long + 1.0))
    column += k_half - 1
    out[row, column] = math.log1p(touches)
    out[row, column + 1] = math.log1p(max((time_ms - state.items.created_at_ms[item]) / DAY_MS, 0.0))
    out[row, column + 2] = log_hours(time_ms, state.item_counts.last_ms[item])
    prior = ratio(counts.totals[0], max(counts.totals[1], counts.totals[0]))
    out[row, column + 3] = smooth(touches, max(counts.exposures[item], touches), prior, smoothing)
    recent = read_decayed(state.item_counts, settings.middle, item, time_ms)
    shown = max(read_decayed(state.exposure_counts, 0, item, time_ms), recent)
    out[row, column + 4] = smooth(recent, shown, prior, smoothing)
    column += 5
    n_tasks = len(state.rules.gains)
    for task in range(n_tasks):
        prior = ratio(counts.totals[4 + task], counts.totals[0])
        out[row, column + task] = smooth(counts.positives[task, item], touches, prior, smoothing)
        positives = read_decayed(state.task_counts, 0, task * len(counts.touches) + item, time_ms)
        out[row, column + n_tasks + task] = smooth(positives, recent, prior, smoothing)
    column += 2 * n_tasks
    prior = ratio(counts.totals[3], counts.totals[2])
    out[row, column] = smooth(counts.item_value_sum[item], counts.item_events[item], prior, smoothing)
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
        out[row, column + k] = math.log1p(_mean(state.items, scratch.of_user, WEIGHTS + k, item))
    column += k_half
    for task in range(n_tasks):
        rate, recent = 0.0, 0.0
        for entry in range(first, last):
            of_user, category = scratch.of_user, state.items.category_codes[entry]
            positives, decayed = WEIGHTS + k_half + task, WEIGHTS + k_half + n_tasks + task
            rate += smooth(of_user[positives, category], of_user[TOUCHES, category], scratch.rates[0, task], smoothing)
            weights = of_user[WEIGHTS + settings.middle, category]
            recent += smooth(of_user[decayed, category], weights, scratch.rates[1, task], smoothing)
        out[row, column + task], out[row, column + n_tasks + task] = rate / n, recent / n
    column += 2 * n_tasks
    out[row, column] = log_hours(time_ms, latest_ms)
    out[row, column + 1] = math.log1p(_mean(state.items, scratch.of_all, POPULARITY, item))
    out[row, column + 2] = _mean(state.items, scratch.of_all, TREND, item)
    column += 3
    for rate in range(2 * n_tasks):
        out[row, column + rate] = _mean(state.items, scratch.of_all, RATES + rate, item)
    return column + 2 * n_tasks


@in_place
def _similarity_columns(
    settings: Settings, scratch: Scratch, vectors: np.ndarray, out: np.ndarray, row: int, column: int, item: int, h: int
) -> None:
    """Write cosines of the item with the ``h`` newest items: maximum, mean, newest, and weighed by recency."""
    norm, best, total, recent, weights = norm_of(vectors, item), np.float32(-2.0), 0.0, 0.0, 0.0
    for place in range(h):
        cosine = dot(vectors, item, scratch.unit, place) / norm
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
        share = ratio(counts.context_totals[value], counts.totals[0]) if codes[context] > 0 else 0.0
        lift = 1.0
        if share:
            hits, trials = counts.context_counts[value, item], counts.touches[item]
            lift = smooth(hits, trials, share, settings.smoothing) / share
        out[row, column + context] = share
        out[row, column + n + context] = math.log(lift)
        out[row, column + 2 * n + context] = _mean(state.items, scratch.of_all, RATES + 2 * n_tasks + context, item)
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
    out[row, column] = _mean(state.items, scratch.of_user, TOUCHES, item) / touched
    out[row, column + 1] = _max_of_user(state.items, scratch.of_user, TOUCHES, item) / touched
    out[row, column + 2] = _mean(state.items, scratch.of_user, RECENT, item)
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
    mean_duration = user_columns(state, settings, scratch, out, first, user_first, user, time_ms)
    h = newest_items(state, settings, scratch, vectors, user) if known else 0
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

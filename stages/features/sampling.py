"""Chooses requests and candidates that the rankers learn from, before any feature is computed.

Every choice follows from the seed and the row itself, so that it depends neither on blocks nor on other rows.

Shapes: n candidates of a block, Q requests, N items.
"""

from __future__ import annotations

import numpy as np

from stages.contracts.ragged import places_in_rows, run_offsets
from stages.contracts.splitmix64 import GOLDEN, mix64
from stages.contracts.tables import CandidateTable
from stages.features.config import ExampleRequestsConfig, NegativesConfig

_REQUESTS, _CANDIDATES, _STARTS = 1, 2, 3
"""Streams of random numbers."""


def draws(seed: int, stream: int, *keys: np.ndarray) -> np.ndarray:
    """Return float64 ``[n]`` in [0, 1), for each row a number that its keys decide.

    Args:
        seed: of the choice.
        stream: another one gives other numbers.
        keys: int64 ``[n]`` each.
    """
    state: np.ndarray = np.full(len(keys[0]), (seed * 1_000_003 + stream) % (1 << 64), dtype=np.uint64)
    for key in keys:
        state = mix64(state + GOLDEN) ^ key.astype(np.uint64)
    drawn: np.ndarray = (mix64(state + GOLDEN) >> np.uint64(11)) * 2.0**-53
    return drawn


def choose_requests(
    config: ExampleRequestsConfig, seed: int, request_id: np.ndarray, user_index: np.ndarray
) -> np.ndarray:
    """Return the int64 ids of the chosen requests, ascending.

    Args:
        config: how many in all and of a user.
        seed: of the choice.
        request_id: int64 ``[Q]``, ascending.
        user_index: int64 ``[Q]``.
    """
    drawn = draws(seed, _REQUESTS, request_id)
    if config.per_user is not None:
        order = np.lexsort((drawn, user_index))
        places = places_in_rows(np.diff(run_offsets(user_index[order])))
        kept = np.sort(order[places < config.per_user])
        request_id, drawn = request_id[kept], drawn[kept]
    if config.in_all is not None and len(request_id) > config.in_all:
        request_id = request_id[np.argsort(drawn, kind="stable")[: config.in_all]]
    chosen: np.ndarray = np.sort(request_id)
    return chosen


def keep_probabilities(
    config: NegativesConfig, rows: CandidateTable, negative: np.ndarray, popularity: np.ndarray
) -> np.ndarray:
    """Return float64 ``[n]``: the probability with which each row is kept; 1 for rows that are no negatives.

    Args:
        config: how many, and by what.
        rows: whole requests, sorted by request.
        negative: bool ``[n]``.
        popularity: int64 ``[N]``, touches of each item before the ranker period.
    """
    probability = np.ones(len(rows))
    if config.per_request is None or not negative.any():
        return probability
    chosen = np.flatnonzero(negative)
    offsets = run_offsets(rows.request_id[chosen])
    counts = np.diff(offsets)
    request = np.repeat(np.arange(len(counts)), counts)
    if config.by == "rank":
        band = np.searchsorted(config.band_ends, rows.rank[chosen], side="right")
        probability[chosen] = _band_probabilities(config, config.per_request, request, band, counts)
        return probability
    weights = np.ones(len(chosen))
    if config.by == "popularity":
        weights = (1.0 + popularity[rows.item_index[chosen]]) ** config.popularity_power
    probability[chosen] = _capped(weights, request, np.minimum(config.per_request, counts).astype(np.float64))
    return probability


def _band_probabilities(
    config: NegativesConfig, per_request: int, request: np.ndarray, band: np.ndarray, counts: np.ndarray
) -> np.ndarray:
    """Return the share of each band's rows that is kept; whole numbers of rows of each request and band."""
    n_bands, n = len(config.band_shares), len(counts)
    held = np.bincount(request * n_bands + band, minlength=n * n_bands).reshape(n, n_bands)
    wanted = np.array(config.band_places(per_request), dtype=np.int64)
    kept = np.minimum(held, wanted)
    for place in range(n_bands):  # places that other bands could not fill
        missing = np.minimum(per_request, counts) - kept.sum(axis=1)
        kept[:, place] += np.minimum(held[:, place] - kept[:, place], missing)
    share: np.ndarray = (kept / np.maximum(held, 1))[request, band]
    return share


def _capped(weights: np.ndarray, request: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Return probabilities proportional to weights, at most 1, whose sum is ``wanted`` in each request."""
    probability, is_sure = np.zeros(len(weights)), np.zeros(len(weights), dtype=bool)
    while True:
        left = wanted - np.bincount(request, is_sure, minlength=len(wanted))
        total = np.bincount(request, np.where(is_sure, 0.0, weights), minlength=len(wanted))
        probability = np.where(is_sure, 1.0, weights * (left / np.maximum(total, 1e-300))[request])
        beyond = (probability >= 1.0) & ~is_sure
        if not beyond.any():
            return probability
        is_sure |= beyond


def sample(seed: int, rows: CandidateTable, probability: np.ndarray) -> np.ndarray:
    """Return bool ``[n]``: the rows that are kept, each with its probability, of a request as many as the sum of them.

    Systematic sampling of the rows of a request in a random order (Madow, 1949): where the sum is a whole number, so
    many rows are kept.

    Args:
        seed: of the choice.
        rows: whole requests, sorted by request.
        probability: float64 ``[n]``.
    """
    if not len(rows):
        return np.zeros(0, dtype=bool)
    order = np.lexsort((draws(seed, _CANDIDATES, rows.request_id, rows.item_index), rows.request_id))
    offsets = run_offsets(rows.request_id)
    lengths = np.diff(offsets)
    sums = np.cumsum(probability[order])
    sums -= np.repeat(np.append(0.0, sums)[offsets[:-1]], lengths)
    start = np.repeat(draws(seed, _STARTS, rows.request_id[offsets[:-1]]), lengths)
    # Sums within rounding of a whole number count as that number, so that as many rows are kept as are wanted.
    after = np.floor(np.round(sums, 9) + start)
    before = np.where(places_in_rows(lengths) == 0, np.floor(start), np.append(0.0, after[:-1]))
    kept = np.zeros(len(rows), dtype=bool)
    kept[order] = (after > before) | (probability[order] >= 1.0)
    return kept


def windows_of(requests: int, windows: int) -> np.ndarray:
    """Return int16 ``[Q]``: the window of each of so many requests, which are in the order of time.

    Every window has as many requests, but for the remainder; the last one has at least one wherever there are two.
    """
    if requests < windows:
        return np.maximum(np.arange(requests) - requests + windows, 0).astype(np.int16)
    return (np.arange(requests) * windows // requests).astype(np.int16)

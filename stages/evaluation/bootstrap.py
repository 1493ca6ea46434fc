"""Paired bootstrap over users."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from stages.contracts.errors import DataError

MIN_USERS = 20
"""With fewer users the percentiles of a bootstrap say little, and no verdict is given."""


@dataclass(frozen=True)
class Gain:
    """The difference of two rows' means with its interval.

    Attributes:
        value: mean over requests of the second row minus that of the first.
        low, high: bounds of the percentile interval.
        users: how many users the requests belong to.
    """

    value: float
    low: float
    high: float
    users: int

    @property
    def verdict(self) -> str:
        """``gains``, ``loses``, ``no difference`` or ``too few users``."""
        if self.users < MIN_USERS:
            return "too few users"
        if self.low > 0:
            return "gains"
        return "loses" if self.high < 0 else "no difference"


def paired_bootstrap(
    before: np.ndarray, after: np.ndarray, user_index: np.ndarray, samples: int, seed: int, level: float = 0.95
) -> Gain:
    """Estimate how much ``after`` gains on ``before`` over the same requests.

    Users are drawn with replacement, with all of their requests: requests of one user are not
    independent, and drawing single requests would make the interval too narrow. The interval is
    the percentile interval of Efron and Tibshirani, "An Introduction to the Bootstrap", 1993, ch. 13.

    Args:
        before: float ``[Q]``, the metric of each request under the first row.
        after: float ``[Q]``, the same under the second row.
        user_index: int ``[Q]``.
        samples: number of bootstrap samples, at least 1.
        seed: of the generator; the same seed gives the same interval.
        level: coverage of the interval, in (0, 1).

    Raises:
        DataError: if the arrays differ in length or are empty.
    """
    if not len(before) == len(after) == len(user_index) or not len(before):
        raise DataError(
            f"paired_bootstrap: lengths {len(before)}, {len(after)}, {len(user_index)} must be equal, not 0"
        )
    users, position = np.unique(user_index, return_inverse=True)
    sums = np.bincount(position, weights=np.asarray(after, dtype=np.float64) - before)
    requests = np.bincount(position)
    generator = np.random.default_rng(seed)
    means = np.empty(samples)
    for sample in range(samples):
        drawn = generator.integers(0, len(users), len(users))
        means[sample] = sums[drawn].sum() / requests[drawn].sum()
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return Gain(value=float(sums.sum() / requests.sum()), low=float(low), high=float(high), users=len(users))

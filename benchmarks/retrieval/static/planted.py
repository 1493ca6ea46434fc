"""Small synthetic worlds in which it is known what a candidate generator has to find. No data set is needed.

Legend: U users, N items.
"""

from __future__ import annotations

from typing import Annotated

import numpy as np
from pydantic import Field

from benchmarks.retrieval.data import Interactions, Split
from benchmarks.retrieval.static.protocols import leave_last_out
from stages.contracts.config import Config

Count = Annotated[int, Field(ge=1)]
Share = Annotated[float, Field(ge=0, le=1)]


class World(Config):
    """Users who walk through a catalogue of blocks.

    A user likes two blocks. The next item follows a past one with probability ``follows``: the item that comes after
    the latest one in its block's own order, or, in a third of the cases, after the one before it. Otherwise it is any
    item of the two blocks, the first ones of a block more often. Nobody meets an item twice.

    Attributes:
        users, blocks, block, length: U, number of blocks, items of each, items of a user.
        follows: probability that the next item follows a past one; 0 makes the order meaningless.
        seed: of everything.
    """

    users: Count
    blocks: Annotated[int, Field(ge=2)]
    block: Annotated[int, Field(ge=2)]
    length: Annotated[int, Field(ge=3)]
    follows: Share
    seed: Annotated[int, Field(ge=0)] = 0

    def split(self) -> Split:
        """Return the world with each user's last item held out."""
        rng = np.random.default_rng(self.seed)
        after = np.concatenate([self._ring(rng) + block * self.block for block in range(self.blocks)])
        item = np.concatenate([self._walk(rng, after) for _ in range(self.users)])
        user = np.repeat(np.arange(self.users), self.length)
        items = self.blocks * self.block
        return leave_last_out(Interactions(user, item, np.arange(len(item)), self.users, items), False)

    def _ring(self, rng: np.random.Generator) -> np.ndarray:
        """Return the item after each of a block, int64: one ring through all of them."""
        order = rng.permutation(self.block)
        after = np.empty(self.block, dtype=np.int64)
        after[order] = np.roll(order, -1)
        return after

    def _walk(self, rng: np.random.Generator, after: np.ndarray) -> np.ndarray:
        """Return one user's items, int64 ``[length]``."""
        liked = rng.choice(self.blocks, 2, replace=False)
        pool = (liked[:, None] * self.block + np.arange(self.block)).ravel()
        weight = np.tile(1 / np.arange(2, self.block + 2), 2)
        walked: list[int] = []
        free = np.ones(len(after), dtype=bool)
        while len(walked) < self.length:
            item = -1
            if walked and rng.random() < self.follows:
                back = 2 if len(walked) > 1 and rng.random() < 1 / 3 else 1
                item = int(after[walked[-back]])
            if item < 0 or not free[item]:
                chances = weight * free[pool]
                item = int(rng.choice(pool, p=chances / chances.sum()))
            free[item] = False
            walked.append(item)
        return np.array(walked, dtype=np.int64)

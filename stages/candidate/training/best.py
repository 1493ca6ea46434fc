"""The state of the best epoch so far, which a training with early stopping may go back to.

Each rank copies what it holds, however tables are sharded. The copies are part of a checkpoint.
"""

from __future__ import annotations

import copy

from stages.candidate.distributed.training_state import State, copy_parts, held_parts

BEST = "best/"


class Best:
    """Copies of a training's tensors.

    Args:
        state: weights, optimizers' state and averages of this rank.

    Attributes:
        state: the copies under ``best/<name>``.
    """

    def __init__(self, state: State) -> None:
        self.state: State = {BEST + name: copy.deepcopy(value) for name, value in state.items()}
        self._present, self._best = held_parts(state), held_parts(self.state)

    def take(self) -> None:
        """Remember the present state as the best one."""
        copy_parts(self._present, self._best)

    def restore(self) -> None:
        """Go back to what was remembered."""
        copy_parts(self._best, self._present)

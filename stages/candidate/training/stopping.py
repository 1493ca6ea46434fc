"""Early stopping: judges each epoch on held-out rows and says when the training is over."""

from __future__ import annotations

import contextlib
import sys

from tqdm import tqdm

from stages.candidate.config import EarlyStoppingConfig
from stages.candidate.training.best import Best
from stages.candidate.training.checkpoint import Progress
from stages.candidate.training.ema import Average
from stages.candidate.training.judge import Judge
from stages.candidate.training.progress import EPOCH


class Stopping:
    """Decides after each epoch whether there is another one.

    Args:
        judge: of held-out rows.
        config: which figure counts, and the patience.
        average: where averages of the weights are exported, these are judged.
        best: keeps the best epoch's state; None where a second training follows.
    """

    def __init__(self, judge: Judge, config: EarlyStoppingConfig, average: Average | None, best: Best | None) -> None:
        self._judge, self._config, self._average, self.best = judge, config, average, best

    def judged(self, progress: Progress, bar: tqdm) -> Progress:
        """Return the progress with the figures of the epoch that has just been finished; every rank takes part.

        Rank 0, whose bar is shown, writes a line.
        """
        with contextlib.nullcontext() if self._average is None else self._average.published():
            figures = self._judge()
        progress = progress.model_copy(update={"validation": (*progress.validation, figures)})
        if self.best is not None and self.best_epoch(progress) == progress.epoch:
            self.best.take()
        if not bar.disable:
            words = ", ".join(f"{name}@{self._config.k} {value:.4f}" for name, value in figures.items())
            line = f"{EPOCH} {progress.epoch}: loss {progress.losses[-1]:.4f}, on held-out rows {words}"
            bar.write(line, file=sys.stderr)
        return progress

    def best_epoch(self, progress: Progress) -> int:
        """Return the number of the best epoch so far, from 1."""
        return progress.best_epoch(self._config.metric)

    def is_over(self, progress: Progress) -> bool:
        """Return whether the last ``patience`` epochs were not better than one before them."""
        judged = len(progress.validation)
        return judged > 0 and judged - self.best_epoch(progress) >= self._config.patience

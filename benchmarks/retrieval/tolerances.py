"""Checks figures on small synthetic worlds against ``tolerances.yaml`` beside this file.

    python -m benchmarks.retrieval.tolerances

prints the expected and the measured figures. A figure outside its tolerance, on either side, is a fault. After an
improvement, write the new figure into the file. The tests read the same file.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from pydantic import Field

from benchmarks.retrieval.registry import STATIC, configure
from benchmarks.retrieval.static.judge import judge
from benchmarks.retrieval.static.planted import World
from stages.contracts.config import Config, parse_config, read_yaml
from stages.contracts.errors import ConfigError

TOLERANCES = Path(__file__).with_name("tolerances.yaml")


class Figure(Config):
    """One figure that is guarded.

    Attributes:
        world, model, metric, k: what is measured.
        expected: the mean over the seeds.
        tolerance: how far from it a mean may be.
        seeds: of the model.
    """

    world: str
    model: str
    metric: str
    k: Annotated[int, Field(ge=1)] = 10
    expected: float
    tolerance: Annotated[float, Field(gt=0)]
    seeds: tuple[Annotated[int, Field(ge=0)], ...] = Field(default=(1,), min_length=1)


class Tolerances(Config):
    """The file.

    Attributes:
        worlds: by name.
        settings: of the models in each world, as a recipe has them.
        figures: what is guarded.
    """

    worlds: dict[str, World]
    settings: dict[str, dict[str, Any]]
    figures: tuple[Figure, ...]


@dataclass(frozen=True)
class Found:
    """A figure and what was measured for it; ``values`` is one number a seed."""

    figure: Figure
    values: tuple[float, ...]

    @property
    def mean(self) -> float:
        """Mean over the seeds."""
        return float(np.mean(self.values))

    @property
    def kept(self) -> bool:
        """Whether the mean lies within the tolerance."""
        return abs(self.mean - self.figure.expected) <= self.figure.tolerance

    def __str__(self) -> str:
        figure = self.figure
        named = f"{figure.world:10s} {figure.model:16s} {figure.metric}@{figure.k}"
        allowed = f"expected {figure.expected:.4f} within {figure.tolerance:.4f}"
        return f"{named}  {allowed}, found {self.mean:.4f} ({', '.join(f'{value:.4f}' for value in self.values)})"


def read_tolerances(path: Path = TOLERANCES) -> Tolerances:
    """Read the file.

    Raises:
        ConfigError: if the file is malformed, or a figure belongs to an unknown world.
    """
    found = parse_config(Tolerances, read_yaml(path), str(path))
    for figure in found.figures:
        if figure.world not in found.worlds:
            raise ConfigError(f"{path}: figures: world = {figure.world!r}: allowed are {', '.join(found.worlds)}")
    return found


def measure(tolerances: Tolerances) -> list[Found]:
    """Fit and judge the model of each figure; a model is fitted once for all its figures."""
    splits = {name: world.split() for name, world in tolerances.worlds.items()}
    judged: dict[tuple[str, str, int, int], Mapping[str, np.ndarray]] = {}
    found = []
    for figure in tolerances.figures:
        split, settings = splits[figure.world], tolerances.settings.get(figure.world, {})
        values = []
        for seed in figure.seeds:
            key = (figure.world, figure.model, figure.k, seed)
            if key not in judged:
                model = configure(STATIC, [figure.model], settings, [])[figure.model]
                judged[key] = judge(model.fit(split.train, seed), split, figure.k)
            values.append(float(judged[key][figure.metric].mean()))
        found.append(Found(figure, tuple(values)))
    return found


def main() -> int:
    """Print all figures; 1 if one is outside its tolerance."""
    found = measure(read_tolerances())
    for each in found:
        print(f"{'kept ' if each.kept else 'FAULT'}  {each}")
    return 0 if all(each.kept for each in found) else 1


if __name__ == "__main__":
    sys.exit(main())

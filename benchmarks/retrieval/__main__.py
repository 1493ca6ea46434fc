"""Candidate generation by published protocols, against published numbers: docs/benchmarks-retrieval.md.

    python -m benchmarks.retrieval --protocol ml-100k --data path/to/ml-100k
    python -m benchmarks.retrieval --protocol ml-1m-m1 --data path/to/Gowalla_m1 --models ease --set ease.memory_gb=21
    python -m benchmarks.retrieval --protocol beauty --data path/to/beauty --validation --set ease.regularisation=250
    python -m benchmarks.retrieval --protocol ml-1m-loo --data path/to/ml-1m --models blend --seeds 1

The last printed line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.environment import describe
from benchmarks.retrieval import replay_protocols, static
from benchmarks.retrieval.protocols import PROTOCOLS
from benchmarks.retrieval.registry import REPLAYED, STATIC, configure, merged, read_recipe
from benchmarks.retrieval.replay_protocols import REPLAYS
from benchmarks.retrieval.towers import workplace
from stages.contracts.errors import ConfigError, SluiceError


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; 2 and one line on stderr for an error that is the user's."""
    options = parser().parse_args(arguments)
    try:
        with workplace(options.work):
            result, text = measure(options)
    except SluiceError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(text)
    part = "validation" if options.validation else "test"
    versions = describe("numpy", "scipy", "torch")
    heading = {"benchmark": "retrieval", **versions, "protocol": options.protocol, "part": part}
    print(json.dumps({**heading, **result}))
    return 0


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    found = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    found.add_argument("--protocol", required=True, choices=[*PROTOCOLS, *REPLAYS])
    found.add_argument("--data", type=Path, required=True, help="the folder of the data set, or its file")
    found.add_argument("--models", default="", help="names with commas between; all baselines where left out")
    found.add_argument("--seeds", default="", help="whole numbers with commas between; not of a replay")
    found.add_argument("--validation", action="store_true", help="judge on a part cut from the training rows")
    found.add_argument("--recipe", type=Path, help="settings of models; configs/retrieval/PROTOCOL.yaml if left out")
    found.add_argument("--work", type=Path, help="where trained towers are kept and found again; else forgotten")
    found.add_argument("--set", action="append", default=[], metavar="MODEL.KEY=VALUE", help="a setting of a model")
    found.add_argument("--samples", type=int, default=200, help="of the bootstrap over users, in a replay")
    return found


def measure(options: argparse.Namespace) -> tuple[dict[str, Any], str]:
    """Run what the options ask for; return the result and its table."""
    chosen = options.models.split(",") if options.models else None
    seeds = parse_seeds(options.seeds)
    if options.samples < 1:
        raise ConfigError(f"--samples {options.samples}: allowed are whole numbers from 1")
    if options.protocol in REPLAYS:
        if seeds:
            raise ConfigError(f"--seeds {options.seeds}: a replay has none; allowed is --set ials.seed=N")
        replay = REPLAYS[options.protocol]
        settings = merged(replay.settings, read_recipe(options.recipe, options.protocol, REPLAYED))
        walkers = configure(REPLAYED, chosen or replay.models, settings, options.set)
        result = replay_protocols.run(replay, options.data, walkers, options.validation, options.samples)
        return result, replay_protocols.table(result)
    protocol = PROTOCOLS[options.protocol]
    settings = merged(protocol.settings, read_recipe(options.recipe, options.protocol, STATIC))
    models = configure(STATIC, chosen or protocol.models, settings, options.set)
    result = static.run(protocol, options.data, models, seeds or protocol.seeds, options.validation)
    return result, static.table(result)


def parse_seeds(text: str) -> tuple[int, ...]:
    """Return the seeds of an option."""
    try:
        return tuple(int(word) for word in text.split(",") if word)
    except ValueError:
        raise ConfigError(f"--seeds {text}: allowed are whole numbers with commas between") from None


if __name__ == "__main__":
    sys.exit(main())

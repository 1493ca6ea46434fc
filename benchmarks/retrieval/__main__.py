"""Candidate generation by published protocols, against published numbers: docs/benchmarks-retrieval.md.

    python -m benchmarks.retrieval --protocol ml-100k --data path/to/ml-100k
    python -m benchmarks.retrieval --protocol ml-1m-m1 --data path/to/Gowalla_m1 --models ease --memory-gb 21
    python -m benchmarks.retrieval --protocol beauty --data path/to/beauty --validation --set ease.regularisation=250
    python -m benchmarks.retrieval --protocol ml-1m-loo --data path/to/ml-1m --models learned_mixture --seeds 1

The last printed line is one JSON object. A model that does not fit the memory is left out, and says why.

Exit codes: 0 done; 1 a model failed, the others have their rows; 2 wrong usage, or no model could run; 3 bad data.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.environment import describe
from benchmarks.retrieval.product_steps import workplace
from benchmarks.retrieval.registry import REPLAYED, STATIC, ModelT, allowing, configure, read_recipe, recipe_path
from benchmarks.retrieval.replay import protocols as replay_protocols
from benchmarks.retrieval.replay.protocols import REPLAYS, ReplayProtocol
from benchmarks.retrieval.solved import solved_once
from benchmarks.retrieval.static import run as static
from benchmarks.retrieval.static.protocols import PROTOCOLS, Protocol
from cli.main import EXIT_CODES
from stages.contracts.config import merged
from stages.contracts.errors import ConfigError, SluiceError

LAST_SEED = 4_000_000_000
"""Largest seed: numpy's older generators take 32 bits, and validation splits add one or two million."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; an error is one line on stderr and an exit code, as of the command ``sluice``."""
    options = parser().parse_args(arguments)
    try:
        with workplace(options.work), solved_once():
            result, text = measure(options)
    except (SluiceError, MemoryError) as error:
        why = f"out of memory: {error}" if isinstance(error, MemoryError) else str(error)
        return failed(why, next((code for kind, code in EXIT_CODES if isinstance(error, kind)), 1))
    print(text)
    part = "validation" if options.validation else "test"
    versions = describe("numpy", "scipy", "torch")
    heading = {"benchmark": "retrieval", **versions, "protocol": options.protocol, "part": part}
    print(json.dumps({**heading, **result}))
    left_out = "; ".join(f"{name}: {why}" for name, why in result["left_out"].items())
    if result["failed"]:
        return failed(f"not complete: {left_out}", 1)
    return 0 if result["models"] else failed(f"every model is left out: {left_out}", 2)


def failed(why: str, code: int) -> int:
    """Say why on stderr, in one line; return the exit code."""
    print(f"error: {' '.join(why.split())}", file=sys.stderr)
    return code


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    found = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    found.add_argument("--protocol", required=True, choices=[*PROTOCOLS, *REPLAYS])
    found.add_argument(
        "--data", type=Path, action="append", required=True, help="the folder of the data set, or its file"
    )
    found.add_argument("--models", default="", help="names with commas between; all baselines where left out")
    found.add_argument("--seeds", default="", help="whole numbers with commas between; not of a replay")
    found.add_argument("--validation", action="store_true", help="judge on a part cut from the training rows")
    found.add_argument("--recipe", type=Path, help="settings of models; configs/retrieval/PROTOCOL.yaml if left out")
    found.add_argument("--work", type=Path, help="where trained towers are kept and found again; else forgotten")
    found.add_argument("--set", action="append", default=[], metavar="MODEL.KEY=VALUE", help="a setting of a model")
    found.add_argument("--memory-gb", type=float, help="what a model may take; else its memory_gb, and what is free")
    found.add_argument("--samples", type=int, default=200, help="of the bootstrap over users, in a replay")
    return found


def measure(options: argparse.Namespace) -> tuple[dict[str, Any], str]:
    """Run what the options ask for; return the result and its table."""
    chosen = options.models.split(",") if options.models else None
    seeds = parse_seeds(options.seeds)
    if options.samples < 1:
        raise ConfigError(f"--samples {options.samples}: allowed are whole numbers from 1")
    if len(options.data) > 1:
        raise ConfigError(f"--data: {len(options.data)} given; allowed is one folder or file")
    data, memory_gb = options.data[0], options.memory_gb
    origin = str(recipe_path(options.recipe, options.protocol))
    if options.protocol in REPLAYS:
        if seeds:
            raise ConfigError(f"--seeds {options.seeds}: a replay has none; allowed is --set ials.seed=N")
        replay = REPLAYS[options.protocol]
        walkers = configure(
            REPLAYED, chosen or replay.models, settings_of(options, replay, REPLAYED), options.set, origin
        )
        result = replay_protocols.run(replay, data, walkers, options.validation, options.samples, memory_gb)
        return result, replay_protocols.table(result)
    protocol = PROTOCOLS[options.protocol]
    models = configure(STATIC, chosen or protocol.models, settings_of(options, protocol, STATIC), options.set, origin)
    result = static.run(protocol, data, models, seeds or protocol.seeds, options.validation, memory_gb)
    return result, static.table(result)


def settings_of(
    options: argparse.Namespace, protocol: Protocol | ReplayProtocol, known: Mapping[str, type[ModelT]]
) -> dict[str, Any]:
    """Return the settings by model: --memory-gb, overridden by the protocol's settings, then by the recipe's."""
    allowed = {} if options.memory_gb is None else allowing(known, options.memory_gb)
    recipe = read_recipe(options.recipe, options.protocol, known)
    return merged(merged(allowed, protocol.settings), recipe)


def parse_seeds(text: str) -> tuple[int, ...]:
    """Return the seeds of an option.

    Raises:
        ConfigError: if a word is no whole number, or too large for the generators that it is added to.
    """
    words = [word for word in text.split(",") if word]
    if not all(word.strip().isascii() and word.strip().isdigit() and int(word) <= LAST_SEED for word in words):
        raise ConfigError(f"--seeds {text}: allowed are whole numbers with commas between, from 0 to {LAST_SEED}")
    return tuple(int(word) for word in words)


if __name__ == "__main__":
    sys.exit(main())

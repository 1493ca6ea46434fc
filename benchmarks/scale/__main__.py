"""What replay, features, every step and a whole run cost, and how the costs grow.

    python -m benchmarks.scale replay [--events 20000] [--times 1 10 100] [--turns 3] [--paths replay read_blocks apply]
    python -m benchmarks.scale features [--events 200000] [--requests 256] [--candidates 300] [--turns 5]
    python -m benchmarks.scale closed_form [--items 200000] [--users 200000] [--length 100] [--neighbours 100]
    python -m benchmarks.scale job [--impressions 100000] [--times 1 10] [--recipe FILE] [--until STEP] [--home DIR]
    python -m benchmarks.scale run --data PATH [--recipe FILE] [--until STEP] [--home DIR]

``replay`` advances the state by a made log of skewed users and items, which grow with the log, with exposures and
without: through ``replay``, through ``read_blocks`` with a request every hundred events, and event by event through
``FunnelState.apply``. ``features`` computes the features of a request's candidates in the server's call (``served``)
and in ``feature_blocks`` (``built``). Both print medians of turns that alternate between what is compared, by the clock
and of the processor's time, which says more where other work runs beside; ``growth`` is that of the latter.

``closed_form`` fits EASE or the directed ridge on the nearest items of each item, on made histories with clusters and
skewed popularity. Set ``OMP_NUM_THREADS=1`` to measure one thread.

``job`` runs the whole job on synthetic worlds of growing size, ``run`` on given data (``synthetic`` is the recipe's
world), in a new home below ``--home`` and in a process of its own. Nothing is promoted. Every ``--every`` seconds the
memory and the size of ``runs/`` in the home are read. Memory is the sum of the proportional set sizes (PSS) of the
process and all its children: a page that two of them share counts once in the sum. ``disk`` is what a step's result
takes in the end, and for the whole run the peak of ``runs/``. Of two worlds, ``times`` divides the seconds by those of
the smallest, and ``a row`` the seconds a row likewise: 1 is linear, less is better.

With ``--json`` the last line is one JSON object. Settings in the environment (``SLUICE_*``) are not used.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from tempfile import gettempdir
from typing import Any

import yaml

from benchmarks.environment import describe
from benchmarks.scale.closed_form import MODELS, measure_closed_form, render_closed_form
from benchmarks.scale.features import measure_features, render_features
from benchmarks.scale.jobs import measure_growth, render_growth, render_run, run_watched
from benchmarks.scale.replay import PATHS, measure_replay, render_replay

LAST_STEP = "promote"


def whole(text: str) -> int:
    """Return a number of 1 or more, which may be written as 1e6."""
    number = float(text)
    if number < 1 or number != int(number):
        raise argparse.ArgumentTypeError(f"{text}: allowed are whole numbers of 1 or more")
    return int(number)


def positive(text: str) -> float:
    """Return a number above 0."""
    number = float(text)
    if not number > 0:
        raise argparse.ArgumentTypeError(f"{text}: allowed are numbers above 0")
    return number


def override(text: str) -> dict[str, Any]:
    """Return ``KEY=VALUE`` as a nested mapping; the value is read as YAML."""
    key, sign, value = text.partition("=")
    if not sign or not key:
        raise argparse.ArgumentTypeError(f"{text}: allowed is KEY=VALUE, such as candidate.training.epochs=2")
    nested: Any = yaml.safe_load(value)
    for name in reversed(key.split(".")):
        nested = {name: nested}
    return dict(nested)


def joined(overrides: list[dict[str, Any]]) -> dict[str, Any]:
    """Return nested mappings as one; a later value takes the place of an earlier one."""
    found: dict[str, Any] = {}
    for each in overrides:
        for name, value in each.items():
            both = isinstance(value, dict) and isinstance(found.get(name), dict)
            found[name] = joined([found[name], value]) if both else value
    return found


def arguments() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(
        prog="benchmarks.scale", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    verbs = parser.add_subparsers(dest="verb", required=True)
    replay = verbs.add_parser("replay", help="microseconds an event")
    replay.add_argument("--events", type=whole, default=20_000, help="of the smallest log")
    replay.add_argument("--times", type=whole, nargs="+", default=[1, 10, 100])
    replay.add_argument("--turns", type=whole, default=3)
    replay.add_argument("--paths", choices=PATHS, nargs="+", default=list(PATHS))
    features = verbs.add_parser("features", help="milliseconds for the features of a request's candidates")
    features.add_argument("--events", type=whole, default=200_000, help="before the requests")
    features.add_argument("--requests", type=whole, default=256)
    features.add_argument("--candidates", type=whole, default=300)
    features.add_argument("--turns", type=whole, default=5)
    closed = verbs.add_parser("closed_form", help="seconds and memory of a sparse closed form")
    closed.add_argument("--model", choices=MODELS, default=MODELS[0])
    closed.add_argument("--items", type=whole, default=200_000)
    closed.add_argument("--users", type=whole, default=200_000)
    closed.add_argument("--length", type=whole, default=100, help="items that a user chooses")
    closed.add_argument("--neighbours", type=whole, default=100, help="nearest items of an item")
    closed.add_argument("--memory-gb", type=positive, default=8.0, help="what the fit may take")
    job = verbs.add_parser("job", help="growth of every step")
    job.add_argument("--impressions", type=whole, default=100_000, help="of the smallest world")
    job.add_argument("--times", type=whole, nargs="+", default=[1, 10])
    run = verbs.add_parser("run", help="one job to its end")
    run.add_argument("--data", required=True, help="a path, or synthetic")
    run.add_argument("--set", type=override, action="append", default=[], metavar="KEY=VALUE", help="of the recipe")
    for verb in (replay, features, closed, job, run):
        verb.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    for verb in (job, run):
        verb.add_argument("--recipe", default=None, help="a YAML file; by default the one that suits the data")
        verb.add_argument("--until", default=LAST_STEP, help="last step to run")
        verb.add_argument("--home", type=Path, default=Path(gettempdir()), help="folder of the homes")
        verb.add_argument("--every", type=positive, default=1.0, help="seconds between two looks")
    return parser


def _replay(options: argparse.Namespace) -> tuple[str, dict[str, Any]]:
    sizes = [options.events * times for times in sorted(set(options.times))]
    found = measure_replay(sizes, options.turns, tuple(dict.fromkeys(options.paths)))
    return render_replay(found), found


def _features(options: argparse.Namespace) -> tuple[str, dict[str, Any]]:
    found = measure_features(options.events, options.requests, options.candidates, options.turns)
    return render_features(found), found


def _closed_form(options: argparse.Namespace) -> tuple[str, dict[str, Any]]:
    sizes = options.users, options.items, options.length, options.neighbours
    found = measure_closed_form(options.model, *sizes, options.memory_gb)
    return render_closed_form(found), found


def _job(options: argparse.Namespace) -> tuple[str, dict[str, Any]]:
    times = sorted(set(options.times))
    found = measure_growth(options.impressions, times, options.recipe, options.until, options.home, options.every)
    return render_growth(found), found


def _run(options: argparse.Namespace) -> tuple[str, dict[str, Any]]:
    asked = {"data": options.data, "recipe": options.recipe, "until": options.until}
    asked["overrides"] = joined(options.set)
    found = {**asked, **run_watched(asked, options.home, options.every)}
    return render_run(found), found


VERBS: dict[str, Callable[[argparse.Namespace], tuple[str, dict[str, Any]]]] = {
    "replay": _replay,
    "features": _features,
    "closed_form": _closed_form,
    "job": _job,
    "run": _run,
}


def main() -> None:
    """Measure and print."""
    options = arguments().parse_args()
    table, found = VERBS[options.verb](options)
    print(table)
    if options.json:
        compiled = options.verb in ("replay", "features", "closed_form")
        packages = ("numpy", "numba", "scipy") if compiled else ("numpy", "pyarrow", "lightgbm")
        print(json.dumps({"benchmark": f"scale {options.verb}", **describe(*packages), **found}))


if __name__ == "__main__":
    main()

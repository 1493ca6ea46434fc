"""Near-duplicates: how many of the planted ones are found, how paraphrases are judged, and a million titles.

    python -m benchmarks.duplicates [--items 20000] [--mrpc msr_paraphrase_train.txt] [--titles 1000000]

The planted world and the million titles go through ``find_duplicates`` as the dataset step calls it. The
sentence pairs of MRPC (Dolan and Brockett, "Automatically Constructing a Corpus of Sentential
Paraphrases", 2005) are judged by the same similarity; the threshold is the one with the best
accuracy on the even rows, the figures are those of the odd rows.
"""

from __future__ import annotations

import argparse
import json
import resource
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.environment import describe
from stages.dataset.items.duplicates import Items, find_duplicates, normalise_title
from stages.dataset.items.minhash import jaccard, shingles
from stages.dataset.items_config import DuplicatesConfig
from stages.simulator import World, WorldConfig

NEAR = DuplicatesConfig(method="near")


def catalogue(n: int, share: float) -> tuple[Items, dict[str, str]]:
    """Return the items of a world and its planted duplicates."""
    config = WorldConfig(n_items=n, n_users=10, n_events=1_000, n_topics=max(24, n // 500), duplicate_share=share)
    world = World(config)
    items = world.items().to_pydict()
    categories = [frozenset(text.split("|")) for text in items["categories"]]
    return Items(items["item_id"], items["title"], categories, items["created_at_ms"]), world.duplicates()


def planted(n: int) -> dict[str, Any]:
    """Return precision and recall on planted duplicates."""
    items, truth = catalogue(n, 0.1)
    found = find_duplicates(items, NEAR).aliases
    right = sum(truth.get(copy) == original for copy, original in found.items())
    return {"items": n, "planted": len(truth), "precision": right / len(found), "recall": right / len(truth)}


def paraphrases(path: Path) -> dict[str, Any]:
    """Return the judgement of sentence pairs for each kind of shingles."""
    rows = [line.split("\t") for line in path.read_text(encoding="utf-8-sig").splitlines()[1:]]
    label = np.array([row[0] == "1" for row in rows])
    results = {}
    for kind in ("words", "characters"):
        pairs = ((shingles(normalise_title(text), kind) for text in row[3:5]) for row in rows)
        similarity = np.array([jaccard(*pair) for pair in pairs])
        train, test = slice(0, None, 2), slice(1, None, 2)
        thresholds = np.unique(similarity[train])
        accuracy = [((similarity[train] >= threshold) == label[train]).mean() for threshold in thresholds]
        best = float(thresholds[int(np.argmax(accuracy))])
        results[kind] = {"threshold": best, **judged(similarity[test] >= best, label[test])}
    return {"pairs": len(rows), **results}


def judged(said: np.ndarray, truth: np.ndarray) -> dict[str, float]:
    """Return accuracy, precision, recall (which is sensitivity) and specificity."""
    return {
        "accuracy": float((said == truth).mean()),
        "precision": float(truth[said].mean()),
        "recall": float(said[truth].mean()),
        "sensitivity": float(said[truth].mean()),
        "specificity": float((~said[~truth]).mean()),
        "always_yes_accuracy": float(truth.mean()),
    }


def million(n: int) -> dict[str, Any]:
    """Return the time of clustering n titles, and what it found."""
    items, truth = catalogue(n, 0.05)
    started = time.perf_counter()
    found = find_duplicates(items, NEAR).aliases
    seconds = time.perf_counter() - started
    right = sum(truth.get(copy) == original for copy, original in found.items())
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    return {"titles": n, "seconds": round(seconds, 1), "peak_gb": round(peak, 2), "recall": right / len(truth)}


def main() -> None:
    """Measure and print one JSON object as the last line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, default=20_000)
    parser.add_argument("--mrpc", type=Path, default=None)
    parser.add_argument("--titles", type=float, default=1e6)
    options = parser.parse_args()
    result: dict[str, Any] = {
        "benchmark": "duplicates",
        **describe("rensa", "numpy"),
        "planted": planted(options.items),
    }
    if options.mrpc is not None:
        result["mrpc"] = paraphrases(options.mrpc)
    if options.titles:
        result["million"] = million(int(options.titles))
    print(json.dumps(result))


if __name__ == "__main__":
    main()

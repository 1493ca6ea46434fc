"""Functions of the command ``sluice dataset``: look at the data before and after a selection."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

from stages.contracts.files import atomic_file
from stages.pipeline import run_all
from stages.run_recipe import load_recipe
from stages.settings import Settings


def check_warehouse(settings: Settings, show: Callable[[str], None]) -> None:
    """Evaluate the data contracts on the warehouse in its present state; nothing is ingested or written.

    Args:
        settings: as for ``run_pipeline_step``; the as-of time is just after the latest event unless given.
        show: called with the table of results.

    Raises:
        ContractError: if a contract fails, after the table was shown; the message has every failed contract.
    """
    from stages.dataset.checks.run import check_standing
    from stages.warehouse.database.engine import Warehouse

    recipe = load_recipe(settings)
    with Warehouse(settings.warehouse_url) as warehouse:
        check_standing(recipe.contracts, recipe.dataset, warehouse, settings.as_of_ms, settings.now_ms, show)


def report_dataset(settings: Settings, output: Path | None, progress: Callable[[str], None]) -> tuple[Path, list[str]]:
    """Run the steps up to the dataset report and return its page.

    Args:
        settings: as for ``run_pipeline_step``.
        output: path of a copy of the page, or None.
        progress: called with each step's name before it starts.

    Returns:
        The HTML file, and the report's sentences.
    """
    result = run_all(settings, until="dataset_report", progress=progress)["dataset_report"]
    page = result.directory / "dataset_report.html"
    if output is not None:
        with atomic_file(output) as temporary:
            shutil.copyfile(page, temporary)
    return output or page, [str(result.info["coverage"]), str(result.info["quality"])]


def similar_items(
    settings: Settings,
    output: Path,
    vectors: Path | None,
    threshold: float,
    neighbours: int,
    progress: Callable[[str], None],
) -> int:
    """Write the pairs of items with nearly equal vectors, for ``dataset.duplicates.pairs``.

    Args:
        settings: as for ``run_pipeline_step``.
        output: CSV of item_a, item_b, similarity.
        vectors: Parquet of item_id and vector; None = the item tower's vectors, for which the steps up to
            ``train_candidate`` run.
        threshold: smallest cosine.
        neighbours: number of nearest neighbours of an item that are compared.
        progress: called with each step's name before it starts.

    Returns:
        The number of pairs.
    """
    from stages.candidate.index.similar_pairs import read_vectors, similar_pairs, tower_vectors, write_pairs

    if vectors is None:
        results = run_all(settings, until="train_candidate", progress=progress)
        names, values = tower_vectors(results["dataset"].directory, results["train_candidate"].directory)
    else:
        names, values = read_vectors(vectors)
    found = similar_pairs(values, threshold, neighbours, load_recipe(settings).index)
    return write_pairs(names, found, output)

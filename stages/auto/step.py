"""The step ``choose_settings``, and the recipe with what it has chosen."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from stages.auto.config import ChooseSettingsConfig
from stages.auto.counts import counts_of
from stages.auto.rules import choose
from stages.contracts.config import merged
from stages.contracts.files import write_json
from stages.contracts.snapshot import Snapshot
from stages.contracts.steps import Outcome

log = logging.getLogger("sluice")

CHOICES_FILE = "choices.json"


def choose_settings(config: ChooseSettingsConfig, inputs: Mapping[str, Path], directory: Path) -> Outcome:
    """Choose what suits the data of a snapshot, if the recipe asks for it.

    Args:
        config: whether to choose, and what the recipe gives.
        inputs: ``snapshot``.
        directory: receives ``choices.json``: the counts, and each chosen value with its reason.

    Returns:
        The counts; ``choices`` by dotted key, each with ``value`` and ``reason``.

    Raises:
        DataError: if the events are unreadable.
    """
    if not config.auto.choose:
        write_json(directory / CHOICES_FILE, {"counts": {}, "choices": {}})
        return {}, {"choices": {}}
    counts = counts_of(Snapshot(inputs["snapshot"]), config.exposure_signals, config.auto.ordered)
    chosen = choose(counts, config.encoder, config.sources)
    for choice in chosen:
        log.info("auto: %s = %s: %s", choice.key, choice.value, choice.reason)
    choices = {choice.key: {"value": choice.value, "reason": choice.reason} for choice in chosen}
    numbers = dataclasses.asdict(counts)
    write_json(directory / CHOICES_FILE, {"counts": numbers, "choices": choices})
    return {name: float(value) for name, value in numbers.items()}, {"choices": choices}


def with_choices(recipe: Mapping[str, Any], choices: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Return a recipe's values with what was chosen, and why; a value that the recipe gives stays.

    Args:
        recipe: nested values.
        choices: from ``choose_settings``, by dotted key.
    """
    found: dict[str, Any] = {}
    for key, choice in choices.items():
        section = found
        *sections, name = key.split(".")
        for each in sections:
            section = section.setdefault(each, {})
        section[name] = choice["value"]
    left = {key: str(choice["reason"]) for key, choice in choices.items() if not _gives(recipe, key)}
    return merged(merged(found, recipe), {"auto": {"chosen": left}})


def _gives(recipe: Mapping[str, Any], key: str) -> bool:
    found: Any = recipe
    for name in key.split("."):
        if not isinstance(found, Mapping) or name not in found:
            return False
        found = found[name]
    return True

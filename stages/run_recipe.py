"""The recipe of a run: what its settings say, and what the step ``choose_settings`` has chosen.

Importing this module is cheap: the recipe's sections are imported when a recipe is read.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from stages.contracts.config import parse_config
from stages.contracts.errors import ConfigError
from stages.contracts.results import StageResult
from stages.settings import Settings

if TYPE_CHECKING:
    from stages.recipe import Recipe

CHOOSE = "choose_settings"
"""The step whose choices are part of the recipe of the steps after it."""


def load_recipe(settings: Settings) -> Recipe:
    """Return the recipe that the settings resolve to.

    Raises:
        ConfigError: naming every wrong field.
    """
    from stages.recipe import Recipe

    origin = settings.config_path or "recipe"
    return parse_config(Recipe, settings.recipe, origin, settings.laid_over, settings.file_recipe)


def checked_recipe(settings: Settings) -> Recipe:
    """Return the recipe; an invalid recipe, or a missing path in it, is refused before a step starts.

    Raises:
        ConfigError: with every wrong field, or the missing path.
    """
    recipe = load_recipe(settings)
    paths = {
        "candidate.warm_start.path": recipe.candidate.warm_start.path,
        "dataset.base": recipe.dataset.base,
        "sources.learned_from": recipe.sources.learned_from,
    }
    for name, path in paths.items():
        if path is not None and not Path(path).exists():
            raise ConfigError(f"{name} = {path}: no such directory")
    return recipe


def found_recipe(settings: Settings, results: Mapping[str, StageResult]) -> Recipe:
    """Return the checked recipe; for a step after ``choose_settings``, with what that has chosen.

    Raises:
        ConfigError: with every wrong field, or the missing path.
    """
    choices = results[CHOOSE].info["choices"] if CHOOSE in results else {}
    if not choices:
        return checked_recipe(settings)
    from stages.auto.step import with_choices

    return checked_recipe(settings.model_copy(update={"recipe": with_choices(settings.recipe, choices)}))

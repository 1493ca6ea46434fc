"""Sluice as a library: what a person uses in a notebook.

    import sluice

    run = sluice.run(data="path/to/ml-100k", home="var/notebook")
    funnel = sluice.Funnel(sluice.load_release(run.release))
    print(funnel.recommend("196", k=5).as_dict())

Importing this package loads nothing: each name is imported when it is first used. The names in ``__all__`` are the
public ones; everything else below ``stages`` and ``serving`` may change from one version to the next.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from stages import __version__

if TYPE_CHECKING:
    from serving.answer import Answer, AnsweredItem
    from serving.errors import FieldError
    from serving.events import Event
    from serving.funnel import Funnel
    from serving.release import LoadedRelease
    from sluice.jobs import Run, load_recipe, refresh, run, shipped_recipes
    from sluice.releases import load_release
    from stages.candidate.linear.config import EaseSettings, ImplicitAlsSettings
    from stages.candidate.linear.models import Ease, ImplicitAls
    from stages.contracts.errors import (
        ConfigError,
        ContractError,
        DataError,
        EmptyDatasetError,
        GateError,
        OutOfSpaceError,
        RegistryError,
        ReleaseError,
        RequestError,
        SluiceError,
        TransientError,
    )
    from stages.contracts.item_filter import ItemFilter
    from stages.contracts.results import StageResult
    from stages.contracts.snapshot import Snapshot
    from stages.recipe import Recipe
    from stages.warehouse.database.engine import Warehouse
else:
    # Type checkers read the imports above: with this function in sight they would allow any name.
    def __getattr__(name):
        """Import a public name when it is first used, and keep it."""
        from importlib import import_module

        if name not in _MODULES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}; it has {', '.join(__all__)}")
        value = globals()[name] = getattr(import_module(_MODULES[name]), name)
        return value


__all__ = [
    "Answer",
    "AnsweredItem",
    "ConfigError",
    "ContractError",
    "DataError",
    "Ease",
    "EaseSettings",
    "EmptyDatasetError",
    "Event",
    "FieldError",
    "Funnel",
    "GateError",
    "ImplicitAls",
    "ImplicitAlsSettings",
    "ItemFilter",
    "LoadedRelease",
    "OutOfSpaceError",
    "Recipe",
    "RegistryError",
    "ReleaseError",
    "RequestError",
    "Run",
    "SluiceError",
    "Snapshot",
    "StageResult",
    "TransientError",
    "Warehouse",
    "__version__",
    "load_recipe",
    "load_release",
    "refresh",
    "run",
    "shipped_recipes",
]

_ERRORS = [name for name in __all__ if name.endswith("Error") and name != "FieldError"]
_MODULES = {
    **dict.fromkeys(["Answer", "AnsweredItem"], "serving.answer"),
    **dict.fromkeys(["Ease", "ImplicitAls"], "stages.candidate.linear.models"),
    **dict.fromkeys(["EaseSettings", "ImplicitAlsSettings"], "stages.candidate.linear.config"),
    **dict.fromkeys(["Run", "load_recipe", "refresh", "run", "shipped_recipes"], "sluice.jobs"),
    **dict.fromkeys(_ERRORS, "stages.contracts.errors"),
    "Event": "serving.events",
    "FieldError": "serving.errors",
    "Funnel": "serving.funnel",
    "ItemFilter": "stages.contracts.item_filter",
    "LoadedRelease": "serving.release",
    "Recipe": "stages.recipe",
    "Snapshot": "stages.contracts.snapshot",
    "StageResult": "stages.contracts.results",
    "Warehouse": "stages.warehouse.database.engine",
    "load_release": "sluice.releases",
}
"""The module that each name is imported from."""


def __dir__() -> list[str]:
    """Return the public names, also those that were not used yet."""
    return sorted(__all__)

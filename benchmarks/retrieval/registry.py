"""Every model by name, and its settings: the protocol's, a recipe's, the user's.

A recipe is a YAML mapping of models to their settings, ``configs/retrieval/<protocol>.yaml`` unless another is named.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml

from benchmarks.retrieval.replay.models import REPLAY_MODELS, ReplayModel
from benchmarks.retrieval.replay.stage import ReplayLearnedMixture, ReplayQuotas, ReplayTwoTower
from benchmarks.retrieval.static.auto import Auto, AutoTower
from benchmarks.retrieval.static.models import MODELS, Model
from benchmarks.retrieval.static.stage import LearnedMixture, Quotas, TwoTower
from stages.contracts.config import Config, merged, parse_config, read_yaml
from stages.contracts.errors import ConfigError

RECIPES = Path(__file__).resolve().parents[2] / "configs" / "retrieval"
_SAME_FILES = {"m1": "ml-1m-m1", "amazoncds-m1": "ml-1m-m1"}
ModelT = TypeVar("ModelT", bound=Config)
Settings = dict[str, dict[str, Any]]

STATIC: dict[str, type[Model]] = {
    **MODELS,
    "two_tower": TwoTower,
    "quotas": Quotas,
    "learned_mixture": LearnedMixture,
    "auto_tower": AutoTower,
    "auto": Auto,
}
REPLAYED: dict[str, type[ReplayModel]] = {
    **REPLAY_MODELS,
    "two_tower": ReplayTwoTower,
    "quotas": ReplayQuotas,
    "learned_mixture": ReplayLearnedMixture,
}


def recipe_path(path: Path | None, protocol: str) -> Path:
    """Return ``path``; if that is None, the protocol's own recipe, or that of the protocol with the same files."""
    if path is not None:
        return path
    own = RECIPES / f"{protocol}.yaml"
    return own if own.is_file() else RECIPES / f"{_SAME_FILES.get(protocol, protocol)}.yaml"


def read_recipe(path: Path | None, protocol: str, known: Mapping[str, type[ModelT]]) -> Settings:
    """Return the settings by model of a recipe, or of the protocol's own where there is one.

    Raises:
        ConfigError: if it is no mapping of known models to settings.
    """
    own = recipe_path(path, protocol)
    if path is None and not own.is_file():
        return {}
    found = read_yaml(own)
    for name, settings in found.items():
        if name not in known or not isinstance(settings, dict):
            raise ConfigError(f"{own}: {name}: allowed are settings of {', '.join(known)}")
    return found


def configure(
    known: Mapping[str, type[ModelT]],
    chosen: Sequence[str],
    settings: Mapping[str, Mapping[str, Any]],
    changes: Sequence[str],
    origin: str = "settings",
) -> dict[str, ModelT]:
    """Return the chosen models with their settings, each after the models that it is made of.

    A model that is made of another uses that one's settings, and the other is run as well.

    Args:
        known: models by name.
        chosen: names of some of these.
        settings: by model.
        changes: ``MODEL.KEY=VALUE``, which override settings.
        origin: what to call the settings in an error.

    Raises:
        ConfigError: if a model or a key is not known, or a value is not allowed.
    """
    for name in chosen:
        if name not in known:
            raise ConfigError(f"--models {name}: allowed are {', '.join(known)}")
    parts = {name: tuple(getattr(known[name], "parts", ())) for name in chosen}
    names = list(dict.fromkeys(name for each in chosen for name in (*parts[each], each)))
    given: Settings = {name: dict(settings.get(name, {})) for name in names}
    over: Settings = {name: {} for name in names}
    for change in changes:
        place, _, value = change.partition("=")
        name, _, key = place.partition(".")
        if name not in over or not key or not value:
            raise ConfigError(f"--set {change}: allowed is MODEL.KEY=VALUE of one of {', '.join(over)}")
        over[name] = changed(over[name], key.split("."), parsed(value))
    for own in (given, over):
        for name, made_of in parts.items():
            own[name] = {**own[name], **{part: own[part] for part in made_of}}
    return {
        name: parse_config(
            known[name],
            merged(given[name], over[name]),
            f"{origin}: {name}",
            {f"--set {name}": over[name]},
            given[name],
        )
        for name in names
    }


def allowing(known: Mapping[str, type[ModelT]], memory_gb: float) -> Settings:
    """Return settings that let each model, and the models that it is made of, take so much memory.

    Raises:
        ConfigError: if it is not above 0.
    """
    if not memory_gb > 0:
        raise ConfigError(f"--memory-gb {memory_gb:g}: allowed is a number above 0")
    return {name: _allowing(kind, memory_gb) for name, kind in known.items()}


def _allowing(kind: type[Config], memory_gb: float) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, annotation in kind.sections().items():
        if name == "memory_gb":
            found[name] = memory_gb
        elif isinstance(annotation, type) and issubclass(annotation, Config):
            within = _allowing(annotation, memory_gb)
            found |= {name: within} if within else {}
    return found


def changed(values: Mapping[str, Any], keys: Sequence[str], value: Any) -> dict[str, Any]:
    """Return the values with the one at a path of keys replaced."""
    for key in reversed(keys):
        value = {key: value}
    return merged(values, value)


def parsed(text: str) -> Any:
    """Return a value as YAML reads it, or the text itself."""
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        return text

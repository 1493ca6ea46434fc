"""The base of every configuration model, and the one place that reads YAML."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from stages.contracts.errors import ConfigError


class Config(BaseModel):
    """A frozen configuration model that refuses unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


ConfigT = TypeVar("ConfigT", bound=Config)


def parse_config(model: type[ConfigT], values: dict[str, Any], origin: str) -> ConfigT:
    """Validate ``values`` against ``model``.

    Args:
        model: the configuration class.
        values: nested plain values, as YAML or JSON gives them.
        origin: what to call the source in an error (a file name, ``--set``).

    Raises:
        ConfigError: naming every wrong field, its value and what is allowed.
    """
    try:
        return model.model_validate(values)
    except ValidationError as error:
        faults = []
        for fault in error.errors():
            field = ".".join(str(part) for part in fault["loc"]) or "(root)"
            if fault["type"] == "extra_forbidden":
                faults.append(f"{field}: unknown key")
            else:
                faults.append(f"{field} = {fault['input']!r}: {fault['msg']}")
        raise ConfigError(f"{origin}: " + "; ".join(faults)) from None


def read_yaml(path: Path) -> dict[str, Any]:
    """Read one YAML mapping.

    Raises:
        ConfigError: if the file is missing, unreadable or not a mapping.
    """
    try:
        loaded = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"configuration file {path}: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"configuration file {path} is not valid YAML: {error}") from None
    if not isinstance(loaded, dict):
        raise ConfigError(f"configuration file {path} must hold a mapping, found {type(loaded).__name__}")
    return loaded

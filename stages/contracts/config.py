"""The base of every configuration model, and the one place that reads YAML."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from difflib import SequenceMatcher
from pathlib import Path
from typing import Any, ClassVar, Self, TypeVar, get_args

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from stages.contracts.errors import ConfigError
from stages.contracts.redaction import redacted

_NOTHING = object()
_MANY = 15


class Config(BaseModel):
    """A frozen configuration model that refuses unknown keys and shows no secret.

    Attributes:
        renamed: former keys of this section, each with its present dotted key, relative to this section. A former key
            may have the same name as a present section.
        removed: former keys of this section that are gone, and what to do instead.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)
    renamed: ClassVar[Mapping[str, str]] = {}
    removed: ClassVar[Mapping[str, str]] = {}

    @classmethod
    def sections(cls) -> dict[str, Any]:
        """Return the type of each allowed key by name; a model with keys that are not fields overrides it."""
        return {name: field.annotation for name, field in cls.model_fields.items()}

    def __repr_args__(self) -> Iterator[tuple[str | None, Any]]:
        for name, value in super().__repr_args__():
            yield name, redacted(value) if isinstance(value, str) else value

    def changed(self, **values: Any) -> Self:
        """Return a validated copy with other values; a mapping changes only those keys of a section that it holds.

        Raises:
            ValueError: if a value is not allowed (pydantic's ``ValidationError``).
        """
        return self.model_validate(merged(self.model_dump(), values))


def merged(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Return ``base`` updated with ``over``; nested mappings are merged key by key."""
    found = dict(base)
    for key, value in over.items():
        within = found.get(key)
        found[key] = merged(within, value) if isinstance(within, Mapping) and isinstance(value, Mapping) else value
    return found


ConfigT = TypeVar("ConfigT", bound=Config)


def parse_config(
    model: type[ConfigT],
    values: dict[str, Any],
    origin: str,
    laid_over: Mapping[str, Mapping[str, Any]] | None = None,
    base: Mapping[str, Any] | None = None,
) -> ConfigT:
    """Validate ``values`` against ``model``.

    Args:
        model: the configuration class.
        values: nested plain values, as YAML or JSON gives them.
        origin: where the values come from, for errors (a file name, ``--set``).
        laid_over: nested values that were merged over those of ``origin``, by the name of where they come from. An
            error in one of them names that place instead of ``origin``.
        base: the values of ``origin`` alone.

    Raises:
        ConfigError: naming every wrong field, its value and what is allowed; for a former key, the present one.
    """
    faults: dict[str, list[str]] = {}
    own, laid_over = _faults(model, base), laid_over or {}
    at_fault = _faults(model, values)
    for fault in at_fault:
        faults.setdefault(_blamed(fault, origin, laid_over, own), []).append(_in_words(model, fault))
    # A former key is reported even where a section from elsewhere was merged over it.
    for name, found in ((origin, own), *((name, _faults(model, over)) for name, over in laid_over.items())):
        covered = [fault for fault in found if _former(model, fault) and fault not in at_fault]
        faults.setdefault(name, []).extend(_in_words(model, fault) for fault in covered)
    if told := [f"{blamed}: {'; '.join(words)}" for blamed, words in faults.items() if words]:
        raise ConfigError("; ".join(told))
    return model.model_validate(values)


def faults_of(model: type[Config], values: Mapping[str, Any]) -> list[str]:
    """Return the faults that ``parse_config`` would name, one text each; an empty list where ``values`` are valid."""
    return [_in_words(model, fault) for fault in _faults(model, values)]


def under_new_names(model: type[Config], section: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """Return flat values, such as ``candidate.epochs``, with the former keys of a section under their present names."""
    former = {f"{section}.{old}": f"{section}.{new}" for old, new in model.renamed.items()}
    return {former.get(name, name): value for name, value in values.items()}


def _former(model: type[BaseModel], fault: Any) -> str | None:
    """Return what became of the key at fault, if it is a former one."""
    if fault["type"] not in ("extra_forbidden", "model_type"):
        return None
    *section, name = fault["loc"] or ("",)
    for form in _forms_at(model, tuple(section)):
        if issubclass(form, Config) and name in form.renamed:
            if fault["input"] is None and _default(form, form.renamed[name]) is not None:
                return None  # an empty section, not a former value
            return f"this key is now {'.'.join((*map(str, section), form.renamed[name]))}"
        if issubclass(form, Config) and name in form.removed:
            return f"this key is gone; {form.removed[name]}"
    return None


def _default(form: type[BaseModel], key: str) -> Any:
    """Return the default of a dotted key."""
    first, *rest = key.split(".")
    value = form.model_fields[first].default
    for name in rest:
        value = getattr(value, name)
    return value


def _in_words(model: type[BaseModel], fault: Any) -> str:
    field = ".".join(str(part) for part in fault["loc"]) or "(root)"
    if (now := _former(model, fault)) is not None:
        return f"{field} = {fault['input']!r}: {now}"
    if fault["type"] == "extra_forbidden":
        return f"{field}: unknown key{_allowed(str(fault['loc'][-1]), _names_beside(model, fault['loc']))}"
    if fault["type"].startswith("union_tag"):
        tag = fault["ctx"]["discriminator"].strip("'")
        forms = _forms_at(model, fault["loc"])
        allowed = ", ".join(str(name) for form in forms for name in get_args(form.model_fields[tag].annotation))
        given = f" = {fault['input'][tag]!r}: allowed" if tag in fault["input"] else ": missing, allowed"
        return f"{field}.{tag}{given} are {allowed}"
    words = fault["msg"].removeprefix("Value error, ")
    return (
        f"{field}: {words}"
        if isinstance(fault["input"], BaseModel | dict)
        else f"{field} = {fault['input']!r}: {words}"
    )


def _allowed(name: str, names: list[str]) -> str:
    """Return the keys that are allowed in place of ``name``; if there are many, the most similar ones."""
    if len(names) <= _MANY:
        return f", allowed are {', '.join(names)}" if names else ""
    near = sorted(names, key=lambda other: -SequenceMatcher(None, name, other).ratio())[:_MANY]
    return f", allowed are {', '.join(near)} and {len(names) - _MANY} more"


def _names_beside(model: type[BaseModel], loc: tuple[int | str, ...]) -> list[str]:
    """Return the keys allowed in the section of an unknown key, none where that section has several forms."""
    forms = _forms_at(model, loc[:-1])
    return sorted(_sections(forms[0])) if len(forms) == 1 else []


def _forms_at(model: type[BaseModel], loc: tuple[int | str, ...]) -> list[type[BaseModel]]:
    """Return the models that a section may have."""
    forms = [model]
    for part in loc:
        named = [sections[str(part)] for form in forms if str(part) in (sections := _sections(form))]
        if named:
            forms = [form for annotation in named for form in _forms(annotation)]
        else:  # a place in a list, a key of a mapping, or the tag that says which of several forms it is
            forms = [form for form in forms if _has_tag(form, str(part))] or forms
    return forms


def _sections(form: type[BaseModel]) -> dict[str, Any]:
    """Return the type of each key of a model, by name."""
    if issubclass(form, Config):
        return form.sections()
    return {name: field.annotation for name, field in form.model_fields.items()}


def _forms(annotation: Any) -> list[type[BaseModel]]:
    """Return the models in a type: the type itself, or those of its elements or alternatives."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [form for argument in get_args(annotation) for form in _forms(argument)]


def _has_tag(form: type[BaseModel], tag: str) -> bool:
    return any(tag in get_args(field.annotation) for field in form.model_fields.values())


def _faults(model: type[BaseModel], values: Mapping[str, Any] | None) -> list[Any]:
    """Return pydantic's errors, without those of lists that are too short only because their elements are wrong."""
    if values is None:
        return []
    try:
        model.model_validate(values)
    except ValidationError as error:
        found = error.errors(include_url=False)
        within = {fault["loc"][:depth] for fault in found for depth in range(len(fault["loc"]))}
        return [fault for fault in found if fault["type"] != "too_short" or fault["loc"] not in within]
    return []


def _blamed(fault: Any, origin: str, laid_over: Mapping[str, Mapping[str, Any]], own: list[Any]) -> str:
    """Return where the wrong value comes from; for an inconsistent section, every place that gave some of it."""
    if (fault["loc"], fault["msg"]) in [(other["loc"], other["msg"]) for other in own]:
        return origin
    partly = []
    for name, values in laid_over.items():
        found: Any = values
        for part in fault["loc"]:
            # Anything but a mapping replaced the whole section of the file.
            found = found.get(part, _NOTHING) if isinstance(found, Mapping) else found
        if isinstance(found, Mapping) and found:
            partly.append(name)
        elif found is not _NOTHING:
            return name
    return " with ".join([*partly, origin])


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

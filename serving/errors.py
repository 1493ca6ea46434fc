"""Faults of a request: which field, the value that was found and what is allowed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel

from stages.contracts.errors import RequestError

_LONGEST_ECHO = 120


@dataclass(frozen=True)
class Fault:
    """One thing that is wrong with a request.

    Attributes:
        field: name of the field or query parameter, ``events[2].item_id`` within a list.
        value: what was found, cut to a length that is safe to echo.
        allowed: what would have been accepted.
        message: one sentence for people.
    """

    field: str
    value: Any
    allowed: str
    message: str

    @classmethod
    def of(cls, field: str, value: Any, allowed: str) -> Fault:
        """Make a fault whose message is put together from its parts."""
        shown = echo(value)
        return cls(field, shown, allowed, f"{field} = {shown!r}: allowed is {allowed}")

    def as_dict(self) -> dict[str, Any]:
        """Return the fault as plain JSON values."""
        return {"field": self.field, "value": self.value, "allowed": self.allowed, "message": self.message}


class FieldError(RequestError):
    """A request was refused; every fault is named, nothing of it was applied."""

    def __init__(self, faults: Sequence[Fault], status: int = 422) -> None:
        super().__init__("; ".join(fault.message for fault in faults), status)
        self.faults = tuple(faults)


def error_body(faults: Sequence[Fault]) -> dict[str, Any]:
    """Return the JSON body of an error: the first fault, and the list of all of them."""
    return {"error": {**faults[0].as_dict(), "faults": [fault.as_dict() for fault in faults]}}


def echo(value: Any) -> Any:
    """Return ``value`` if it is short plain JSON, otherwise a short text that stands for it."""
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, int):
        return value if value.bit_length() <= 64 else f"an integer of {value.bit_length()} bits"
    if isinstance(value, float):
        return value if abs(value) < float("inf") else repr(value)
    text = value if isinstance(value, str) else repr(value)
    return text if len(text) <= _LONGEST_ECHO else text[:_LONGEST_ECHO] + "…"


def model_faults(errors: Sequence[Mapping[str, Any]], model: type[BaseModel], prefix: str = "") -> list[Fault]:
    """Translate the errors of a pydantic model; a field's description says what it allows.

    Args:
        errors: ``ValidationError.errors()``; the last part of ``loc`` is the field.
        model: whose field descriptions tell what is allowed.
        prefix: goes before the field's name, such as ``events[2].``.
    """
    faults = []
    for error in errors:
        name = str(error["loc"][-1]) if error["loc"] else ""
        if error["type"] == "extra_forbidden":
            allowed = "one of the fields " + ", ".join(model.model_fields)
            faults.append(_named(prefix, name, error["input"], allowed, "unknown field"))
        elif error["type"] == "missing":
            faults.append(_named(prefix, name, None, _allowed(model, name), "missing"))
        elif name in model.model_fields:
            faults.append(Fault.of(prefix + name, error["input"], _allowed(model, name)))
        else:
            faults.append(_named(prefix, name or "body", error["input"], "an object", "not an object"))
    return faults


def _named(prefix: str, name: str, value: Any, allowed: str, problem: str) -> Fault:
    field = (prefix + name) if name != "body" or not prefix else prefix.rstrip(".")
    field = str(echo(field))
    return Fault(field, echo(value), allowed, f"{field}: {problem}; allowed is {allowed}")


def _allowed(model: type[BaseModel], name: str) -> str:
    field = model.model_fields.get(name)
    return (field.description if field else None) or "see /openapi.json"

"""Faults of a request (field, value and what is allowed), and what a client may know of faults of the server.

An answer holds the first ``MAX_NAMED`` faults of a request, cut short, and their number. A fault of the server is
described in one general sentence; the log has the details.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pydantic import BaseModel

from stages.contracts.errors import ConfigError, DataError, ReleaseError, RequestError, TransientError

MAX_NAMED = 20
"""Faults that an answer names."""
_MOST_BYTES = 8192
_LONGEST_ECHO = 120
_LONGEST_ALLOWED = 600
_SEE_LOG = "; the server's log has the details"
_REASONS: tuple[tuple[type[Exception], str], ...] = (
    (TransientError, "the registry or its store does not answer"),
    (ConnectionError, "the registry or its store does not answer"),
    (TimeoutError, "the registry or its store does not answer"),
    (ReleaseError, "the release that is wanted is missing, not whole, or made for another version"),
    (DataError, "data of the server cannot be read"),
    (ConfigError, "the configuration of the server is not right"),
)


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
    def of(cls, field: str, value: Any, allowed: str, problem: str = "") -> Fault:
        """Make a fault, with a message made from the arguments.

        Args:
            field: its name.
            value: what was found.
            allowed: what would have been accepted.
            problem: goes into the message in place of the value.
        """
        field, shown, allowed = _cut(field), echo(value), _cut(allowed, _LONGEST_ALLOWED)
        found = f"{field}: {problem};" if problem else f"{field} = {shown!r}:"
        return cls(field, shown, allowed, f"{found} allowed is {allowed}")

    def as_dict(self) -> dict[str, Any]:
        """Return the fault as plain JSON values."""
        return {"field": self.field, "value": self.value, "allowed": self.allowed, "message": self.message}


@dataclass
class FaultCount:
    """Counts faults and holds the first ``MAX_NAMED`` of them; the others are only counted."""

    total: int = 0
    named: list[Fault] = field(default_factory=list)

    def add(self, number: int, name: Callable[[int], Sequence[Fault]]) -> None:
        """Count ``number`` faults; ``name(n)`` returns the first n of them, and is called only while there is room."""
        room = MAX_NAMED - len(self.named)
        if number and room > 0:
            self.named += name(min(room, number))[:room]
        self.total += number


class FieldError(RequestError):
    """A request was refused; nothing of it was applied.

    Attributes:
        faults: the first ``MAX_NAMED``.
        total: number of all faults.
    """

    def __init__(self, faults: Sequence[Fault], status: int = 422, total: int | None = None) -> None:
        self.faults = tuple(faults[:MAX_NAMED])
        self.total = len(faults) if total is None else total
        messages = [fault.message for fault in self.faults]
        if self.total > len(messages):
            messages.append(f"{self.total} faults in all")
        super().__init__("; ".join(messages), status)


def error_body(faults: Sequence[Fault], total: int | None = None) -> dict[str, Any]:
    """Return the JSON body of an error: the first fault, and the list of faults.

    If there are more faults than entries, a last entry without a field has the number of all faults as its value.

    Args:
        faults: at least one.
        total: how many there are in all; by default those that are given.
    """
    total = len(faults) if total is None else total
    named: list[dict[str, Any]] = []
    size = 0
    for fault in faults[:MAX_NAMED]:
        entry = fault.as_dict()
        size += len(json.dumps(entry))
        if named and size > _MOST_BYTES:
            break
        named.append(entry)
    first = named[0]
    if len(named) < total:
        message = f"{total} faults in all, of which the first {len(named)} are named"
        named.append(Fault(field="", value=total, allowed="", message=message).as_dict())
    return {"error": {**first, "faults": named}}


def plain_error(message: str) -> dict[str, Any]:
    """Return the JSON body of an error that no field of the request has caused."""
    return error_body([Fault(field="", value=None, allowed="", message=message)])


def public_reason(error: Exception) -> str:
    """Return what a client may know of a fault of the server: no address, no path, no list of releases.

    The error's own message goes to the log only.
    """
    for kind, reason in _REASONS:
        if isinstance(error, kind):
            return reason + _SEE_LOG
    return "internal error" + _SEE_LOG


def echo(value: Any) -> Any:
    """Return ``value`` if it is short plain JSON, otherwise a short text in its place."""
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, int):
        return value if value.bit_length() <= 64 else f"an integer of {value.bit_length()} bits"
    if isinstance(value, float):
        return value if abs(value) < float("inf") else repr(value)
    if isinstance(value, Mapping):
        return f"an object of {len(value)} fields"
    if isinstance(value, list | tuple):
        return f"a list of {len(value)} values"
    return _cut(value if isinstance(value, str) else repr(value))


def model_faults(errors: Sequence[Mapping[str, Any]], model: type[BaseModel], prefix: str = "") -> list[Fault]:
    """Translate the errors of a pydantic model; a field's description says what it allows.

    Args:
        errors: ``ValidationError.errors()``; ``loc`` holds the field, and the place within it.
        model: whose field descriptions tell what is allowed.
        prefix: goes before the field's name, such as ``events[2].``.
    """
    faults = []
    for error in errors:
        names = [str(part) for part in error["loc"]]
        name = next((part for part in names if part in model.model_fields), names[-1] if names else "")
        if error["type"] == "extra_forbidden":
            faults.append(unknown_field(prefix + name, error["input"], model))
        elif error["type"] == "missing":
            faults.append(Fault.of(prefix + name, None, _allowed(model, name), "missing"))
        elif name in model.model_fields:
            within = ".".join(names[names.index(name) :])
            faults.append(Fault.of(prefix + within, error["input"], _allowed(model, name)))
        else:
            faults.append(Fault.of(prefix.rstrip(".") or "body", error["input"], "an object", "not an object"))
    return faults


def unknown_field(field: str, value: Any, model: type[BaseModel]) -> Fault:
    """Return the fault of a field that ``model`` does not have."""
    return Fault.of(field, value, "one of the fields " + ", ".join(model.model_fields), "unknown field")


def _cut(text: str, length: int = _LONGEST_ECHO) -> str:
    return text if len(text) <= length else text[:length] + "…"


def _allowed(model: type[BaseModel], name: str) -> str:
    field = model.model_fields.get(name)
    return (field.description if field else None) or "see /openapi.json"

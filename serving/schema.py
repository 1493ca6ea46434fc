"""The input of the HTTP interface; a field's description says what it allows and is quoted in errors."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, WithJsonSchema
from pydantic_core import from_json

from serving.errors import Fault, FaultCount, FieldError, model_faults, unknown_field
from serving.funnel import MAX_ID_LENGTH
from serving.service import NewEvent
from stages.contracts.item_filter import ItemFilter

MAX_BODY_BYTES = 1 << 20
MAX_EVENTS = 1000
MAX_REPEATED = 32
"""Values of a query parameter that may be repeated, and columns of an event's context."""
MAX_QUERY_BYTES = 1 << 14
MAX_PARAMETERS = 100


class RecommendQuery(BaseModel):
    """Query of ``GET /v1/recommendations``."""

    model_config = ConfigDict(extra="forbid")

    user_id: str = Field(
        min_length=1, max_length=MAX_ID_LENGTH, description=f"a string of 1 to {MAX_ID_LENGTH} characters"
    )
    k: int = Field(default=10, description="an integer from 1 to the release's max_k", json_schema_extra={"minimum": 1})
    explain: bool = Field(default=False, description="true or false")
    context: list[str] = Field(
        default=[],
        max_length=MAX_REPEATED,
        description=f"name:value of a context column, such as device:mobile; at most {MAX_REPEATED} times",
    )
    category: list[str] = Field(
        default=[],
        max_length=MAX_REPEATED,
        description=f"a category of the release; repeated, at most {MAX_REPEATED} times: any of them",
    )
    # A query cannot hold null, so the schema leaves it out.
    max_age_days: Annotated[float | None, WithJsonSchema({"type": "number", "exclusiveMinimum": 0})] = Field(
        default=None, gt=0, allow_inf_nan=False, description="a number of days above 0: created at most so long ago"
    )

    def wanted(self) -> ItemFilter:
        """Return the filter of the items that may be returned."""
        return ItemFilter(categories=tuple(self.category), max_age_days=self.max_age_days)


class EventBody(BaseModel):
    """One posted event."""

    model_config = ConfigDict(extra="forbid", strict=True)

    user_id: str = Field(
        min_length=1, max_length=MAX_ID_LENGTH, description=f"a string of 1 to {MAX_ID_LENGTH} characters"
    )
    item_id: str = Field(min_length=1, description="an item id of the catalogue, a string")
    signal: str = Field(description="one of the release's signals, a string")
    value: float = Field(default=1.0, allow_inf_nan=False, description="a finite number")
    event_time_ms: int | None = Field(default=None, ge=0, description="an integer, ms UTC since 1970, or null for now")
    context: dict[str, str] = Field(
        default={},
        description=f"an object of at most {MAX_REPEATED} strings by the release's context columns",
        json_schema_extra={"maxProperties": MAX_REPEATED},
    )
    event_id: str | None = Field(
        default=None, min_length=1, max_length=128, description="a string of 1 to 128 characters, or null"
    )


def parse_context(pairs: Sequence[str]) -> dict[str, str]:
    """Parse ``name:value`` pairs of a query.

    Raises:
        FieldError: naming every malformed pair, and every pair whose name repeats.
    """
    context: dict[str, str] = {}
    faults = []
    for pair in pairs:
        name, colon, value = pair.partition(":")
        if not (name and colon and value) or name in context:
            faults.append(Fault.of("context", pair, "name:value, each name once"))
        context[name] = value
    if faults:
        raise FieldError(faults)
    return context


def check_query(query: bytes) -> None:
    """Check how long a query is, before anything is done with it.

    Raises:
        FieldError: if it is too long or has too many parameters.
    """
    number = query.count(b"&") + 1
    if len(query) > MAX_QUERY_BYTES or number > MAX_PARAMETERS:
        allowed = f"at most {MAX_QUERY_BYTES} bytes and {MAX_PARAMETERS} parameters"
        raise FieldError([Fault.of("query", f"{len(query)} bytes, {number} parameters", allowed)])


def parse_events(body: bytes) -> tuple[list[NewEvent], list[str]]:
    """Parse a posted body: one event or a list.

    Returns:
        The events, and for each the prefix of its fields' names in errors.

    Raises:
        FieldError: naming the first faults of all events, or that the body is not JSON.
    """
    parsed = _parse_json(body, from_json)
    if not isinstance(parsed, list):
        parsed, prefixes = [parsed], [""]
    elif not 1 <= len(parsed) <= MAX_EVENTS:
        raise FieldError([Fault.of("events", f"{len(parsed)} events", f"1 to {MAX_EVENTS} events a post")])
    else:
        prefixes = [f"events[{position}]." for position in range(len(parsed))]
    faults = FaultCount()
    events = [_parse_event(value, prefix, faults) for value, prefix in zip(parsed, prefixes, strict=True)]
    if faults.total:
        raise FieldError(faults.named, total=faults.total)
    _parse_json(body, _see_repeats)
    return [NewEvent(**event.model_dump()) for event in events if event is not None], prefixes


def _parse_json(body: bytes, parse: Callable[[bytes], Any]) -> Any:
    try:
        return parse(body)
    except ValueError as error:
        raise FieldError([Fault.of("body", body[:1000].decode(errors="replace"), f"JSON ({error})")], 400) from None


def _see_repeats(body: bytes) -> None:
    """Refuse names that repeat in an object: pydantic's parser takes the last value, other parsers the first."""
    json.loads(body, object_pairs_hook=_once)


def _once(pairs: list[tuple[str, Any]]) -> None:
    names: set[str] = set()
    for name, value in pairs:
        if name in names:
            raise FieldError([Fault.of(name, value, "each name once in an object", "given twice")])
        names.add(name)


def _parse_event(value: Any, prefix: str, faults: FaultCount) -> EventBody | None:
    """Return the event, or None if something is wrong with it; its faults are added then."""
    unknown: list[str] = []
    known, fields = value, EventBody.model_fields
    if isinstance(value, dict):
        # Pydantic would make an error for each of a hundred thousand unknown fields: they are only counted here.
        unknown = [name for name in value if name not in fields]
        known = {name: found for name, found in value.items() if name in fields}
        context = known.get("context")
        if isinstance(context, dict) and len(context) > MAX_REPEATED:
            allowed = str(fields["context"].description)
            faults.add(1, lambda _: [Fault.of(f"{prefix}context", context, allowed)])
            del known["context"]
    event = None
    try:
        event = EventBody.model_validate(known)
    except ValidationError as error:
        found = error.errors(include_url=False, include_context=False)
        faults.add(len(found), lambda number: model_faults(found[:number], EventBody, prefix))
    faults.add(len(unknown), lambda n: [unknown_field(prefix + name, value[name], EventBody) for name in unknown[:n]])
    return event

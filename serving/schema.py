"""What comes in over HTTP; a field's description says what it allows and is quoted in errors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError
from pydantic_core import from_json

from serving.errors import Fault, FieldError, model_faults
from serving.funnel import MAX_ID_LENGTH
from serving.service import NewEvent
from stages.contracts.item_filter import ItemFilter

MAX_BODY_BYTES = 1 << 20
MAX_EVENTS = 1000


class RecommendQuery(BaseModel):
    """Query of ``GET /v1/recommendations``."""

    model_config = ConfigDict(extra="forbid")

    user_id: str = Field(
        min_length=1, max_length=MAX_ID_LENGTH, description=f"a string of 1 to {MAX_ID_LENGTH} characters"
    )
    k: int = Field(default=10, description="an integer from 1 to the release's max_k")
    explain: bool = Field(default=False, description="true or false")
    context: list[str] = Field(default=[], description="name:value of a context column, such as device:mobile")
    category: list[str] = Field(default=[], description="a category of the release; repeated: any of them")
    max_age_days: float | None = Field(
        default=None, gt=0, allow_inf_nan=False, description="a number of days above 0: created at most so long ago"
    )

    def wanted(self) -> ItemFilter:
        """Return which items may be answered with."""
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
    context: dict[str, str] = Field(default={}, description="an object of strings by the release's context columns")
    event_id: str | None = Field(
        default=None, min_length=1, max_length=128, description="a string of 1 to 128 characters, or null"
    )


def parse_context(pairs: Sequence[str]) -> dict[str, str]:
    """Parse ``name:value`` pairs of a query.

    Raises:
        FieldError: naming every pair that is none, or whose name repeats.
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


EVENTS_SCHEMA: dict[str, Any] = {
    "required": True,
    "content": {"application/json": {"schema": TypeAdapter(EventBody | list[EventBody]).json_schema()}},
}
"""For the OpenAPI description: one event or a list."""


def parse_events(body: bytes) -> tuple[list[NewEvent], list[str]]:
    """Parse a posted body: one event or a list.

    Returns:
        The events, and what to call each of them in an error.

    Raises:
        FieldError: naming every fault of every event, or that the body is not JSON.
    """
    try:
        parsed = from_json(body)
    except ValueError as error:
        raise FieldError([Fault.of("body", body.decode(errors="replace"), f"JSON ({error})")], 400) from None
    if not isinstance(parsed, list):
        parsed, prefixes = [parsed], [""]
    elif not 1 <= len(parsed) <= MAX_EVENTS:
        raise FieldError([Fault.of("events", f"{len(parsed)} events", f"1 to {MAX_EVENTS} events a post")])
    else:
        prefixes = [f"events[{position}]." for position in range(len(parsed))]
    events: list[NewEvent] = []
    faults: list[Fault] = []
    for value, prefix in zip(parsed, prefixes, strict=True):
        try:
            events.append(NewEvent(**EventBody.model_validate(value).model_dump()))
        except ValidationError as error:
            faults += model_faults(error.errors(include_url=False, include_context=False), EventBody, prefix)
    if faults:
        raise FieldError(faults)
    return events, prefixes

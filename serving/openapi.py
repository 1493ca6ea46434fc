"""The OpenAPI description: what every route takes and sends, errors included.

The models of this file only describe answers: ``Answer.as_dict`` and ``errors.error_body`` make the bodies, and tests
check that the two agree.
"""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel, Field
from pydantic.json_schema import SkipJsonSchema

from serving.answer import AnswerPath, CandidateMixture
from serving.errors import MAX_NAMED
from serving.schema import MAX_BODY_BYTES, MAX_EVENTS, EventBody

_REF = "#/components/schemas/{model}"


class PlaceBody(BaseModel):
    """Score and rank of an item at one stage or candidate generator."""

    score: float
    rank: int = Field(ge=0)


class ItemBody(BaseModel):
    """One recommended item."""

    item_id: str
    title: str
    score: float = Field(description="of the last stage that ranked it")
    rank: int = Field(ge=0, description="position in the answer")
    source: str = Field(description="which candidate generator returned it, such as tower or popular")
    explain: dict[str, PlaceBody] | SkipJsonSchema[None] = Field(
        default=None, description="by stage; only where explain=true was asked for"
    )
    sources: dict[str, PlaceBody] | SkipJsonSchema[None] = Field(
        default=None, description="by candidate generator; only where explain=true was asked for and there are several"
    )


class NewcomersBody(BaseModel):
    """The list for users without history."""

    list: str = Field(description="all_time, half_life_<days>d, or the candidate generator's name")
    reason: str = Field(description="why it is this one, with the figures of all lists")


class ExplanationBody(BaseModel):
    """How an answer came about."""

    counts: dict[str, int] = Field(description="how many items were cut where")
    timings_ms: dict[str, float] = Field(description="wall-clock milliseconds by stage, and total")
    mixture: CandidateMixture = Field(
        description="what the scores of the stage candidate are: similarity in the index, fused ranks of several lists "
        "by quotas, or the log-probability of a learned mixture"
    )
    bypassed: dict[str, str] = Field(description="why each ranking stage that the release does not use is bypassed")
    newcomers: NewcomersBody | SkipJsonSchema[None] = Field(
        default=None, description="the list that answered; only for a user without history"
    )


class RecommendationBody(BaseModel):
    """An answer, made by exactly one release."""

    release_id: str
    request_id: str
    user_id: str
    path: AnswerPath = Field(description="popular for a user without history")
    time_ms: int = Field(description="the moment that the answer is for, ms UTC since 1970")
    items: list[ItemBody] = Field(description="best first")
    explain: ExplanationBody | SkipJsonSchema[None] = Field(
        default=None, description="only where explain=true was asked for"
    )


class AliveBody(BaseModel):
    """The process is alive."""

    alive: bool


class FaultBody(BaseModel):
    """One thing that is wrong; ``field`` is empty where no field is to blame."""

    field: str = Field(description="a query parameter, or a field of the body such as events[2].item_id")
    value: Any = Field(description="what was found, cut short")
    allowed: str
    message: str


class ErrorDetail(FaultBody):
    """The first fault, and the list of faults."""

    faults: list[FaultBody] = Field(
        min_length=1,
        max_length=MAX_NAMED + 1,
        description=f"the first {MAX_NAMED} at most; where there are more, a last entry has their number as its value",
    )


class ErrorBody(BaseModel):
    """What every error looks like."""

    error: ErrorDetail


def _error(description: str, **more: Any) -> dict[str, Any]:
    return {"model": ErrorBody, "description": description, **more}


def _header(name: str, description: str, kind: str) -> dict[str, Any]:
    return {name: {"description": description, "schema": {"type": kind}}}


UNAVAILABLE: dict[int | str, dict[str, Any]] = {
    503: _error(
        "This cannot be done now; nothing of the request was kept", headers=_header("retry-after", "seconds", "integer")
    )
}
ANY_ROUTE: dict[int | str, dict[str, Any]] = {
    404: _error("There is no such path"),
    405: _error("The path takes another method", headers=_header("allow", "that method", "string")),
    422: _error("The request was read and refused: each fault names a field, its value and what is allowed"),
    500: _error("An unexpected fault; the server's log has the details"),
}
EVENTS: dict[int | str, dict[str, Any]] = {
    400: _error("The body is not JSON"),
    413: _error(f"The body is longer than {MAX_BODY_BYTES} bytes"),
    **UNAVAILABLE,
}

METRICS: dict[int | str, dict[str, Any]] = {
    200: {"description": "The metrics", "content": {"text/plain": {"schema": {"type": "string"}}}}
}

EVENTS_REQUEST: dict[str, Any] = {
    "required": True,
    "content": {
        "application/json": {
            "schema": {
                "title": "One event or a list",
                "anyOf": [
                    {"$ref": _REF.format(model="EventBody")},
                    {
                        "type": "array",
                        "items": {"$ref": _REF.format(model="EventBody")},
                        "minItems": 1,
                        "maxItems": MAX_EVENTS,
                    },
                ],
            }
        }
    },
}


def describe(app: FastAPI) -> None:
    """Add the posted event to the description that FastAPI makes of ``app``."""

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            schema = get_openapi(title=app.title, version=app.version, summary=app.summary, routes=app.routes)
            schema["components"]["schemas"]["EventBody"] = EventBody.model_json_schema(ref_template=_REF)
            app.openapi_schema = schema
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]

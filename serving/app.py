"""The HTTP interface: four routes and the metrics, one shape for every error.

An error is ``{"error": {"field", "value", "allowed", "message", "faults"}}``: the first fault, and the
list of faults. No answer carries a traceback, an address or a path of the server.
"""

from __future__ import annotations

import logging
from collections import Counter
from dataclasses import asdict
from typing import Annotated

from fastapi import FastAPI, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException

from serving import openapi
from serving.edge import ROUTES, Edge, json_answer
from serving.errors import Fault, FieldError, error_body, model_faults, plain_error
from serving.schema import MAX_BODY_BYTES, RecommendQuery, parse_context, parse_events
from serving.service import Readiness, Receipt, Service
from stages import __version__
from stages.contracts.errors import RequestError, TransientError

_logger = logging.getLogger("sluice")
_RETRY = {"retry-after": "1"}


def create_app(service: Service) -> FastAPI:
    """Return the application that answers for ``service``, which the caller starts and stops."""
    # The interactive documentation pages would load scripts from the network: only the schema is served.
    app = FastAPI(
        title="Sluice",
        version=__version__,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        generate_unique_id_function=lambda route: route.name,
        responses=openapi.ANY_ROUTE,
    )
    app.add_middleware(Edge, metrics=service.metrics)
    _add_recommendations(app, service)
    _add_events(app, service)
    _add_probes(app, service)
    _add_error_handlers(app)
    openapi.describe(app)
    return app


def _add_recommendations(app: FastAPI, service: Service) -> None:
    @app.get("/v1/recommendations", response_model=openapi.RecommendationBody, responses=openapi.UNAVAILABLE)
    def recommendations(query: Annotated[RecommendQuery, Query()], request: Request) -> Response:
        """Recommend k items to a user; ``explain=true`` adds score and rank at every stage.

        ``category`` (any of several) and ``max_age_days`` filter the items that may be returned.
        """
        _check_repeats(request)
        context = parse_context(query.context)
        return json_answer(service.recommend(query.user_id, query.k, query.explain, context, query.wanted()).as_dict())


def _check_repeats(request: Request) -> None:
    counts = Counter(name for name, _ in request.query_params.multi_items())
    repeated = sorted(name for name, count in counts.items() if count > 1 and name not in {"context", "category"})
    if repeated:
        values = request.query_params.getlist
        raise FieldError([Fault.of(name, ", ".join(values(name)), "one value") for name in repeated])


def _add_events(app: FastAPI, service: Service) -> None:
    @app.post(
        "/v1/events",
        response_model=Receipt,
        responses=openapi.EVENTS,
        openapi_extra={"requestBody": openapi.EVENTS_REQUEST},
    )
    async def events(request: Request) -> Response:
        """Take one event or a list; the users' next answers take them into account.

        The answer is sent when the events are on the disk. A repeated ``event_id`` changes nothing.
        If one event is wrong, the whole list is refused.
        """
        if request.query_params:
            name, value = request.query_params.multi_items()[0]
            raise FieldError([Fault.of(name, value, "no query parameter")])
        return await run_in_threadpool(_take, service, await _body(request))


def _take(service: Service, body: bytes) -> Response:
    try:
        parsed, prefixes = parse_events(body)
    except FieldError:
        service.metrics.refused_posts.inc()
        raise
    return json_answer(asdict(service.post(parsed, prefixes)))


def _add_probes(app: FastAPI, service: Service) -> None:
    @app.get("/healthz", response_model=openapi.AliveBody)
    async def healthz() -> Response:
        """Say that the process is alive."""
        return json_answer({"alive": True})

    @app.get(
        "/readyz",
        response_model=Readiness,
        responses={503: {"model": Readiness, "description": "Requests cannot be answered; the reason is given"}},
    )
    def readyz() -> Response:
        """Say whether a release is loaded and a sampled request of a known user was answered."""
        found = service.readiness()
        return json_answer(asdict(found), 200 if found.ready else 503)

    @app.get("/metrics", response_class=Response, responses=openapi.METRICS)
    def metrics() -> Response:
        """Return the metrics in Prometheus' text format."""
        return Response(generate_latest(service.metrics.registry), media_type=CONTENT_TYPE_LATEST)


async def _body(request: Request) -> bytes:
    """Read the body, but no more than is allowed."""
    chunks, size = [], 0
    async for chunk in request.stream():
        chunks.append(chunk)
        size += len(chunk)
        if size > MAX_BODY_BYTES:
            raise FieldError([Fault.of("body", "a longer body", f"at most {MAX_BODY_BYTES} bytes")], 413)
    return b"".join(chunks)


def _add_error_handlers(app: FastAPI) -> None:
    @app.exception_handler(RequestError)
    async def refused(_: Request, error: RequestError) -> Response:
        if isinstance(error, FieldError):
            return json_answer(error_body(error.faults, error.total), error.status)
        return json_answer(plain_error(str(error)), error.status, _RETRY if error.status == 503 else None)

    @app.exception_handler(RequestValidationError)
    async def malformed(_: Request, error: RequestValidationError) -> Response:
        return json_answer(error_body(model_faults(error.errors(), RecommendQuery)), 422)

    @app.exception_handler(HTTPException)
    async def no_route(request: Request, error: HTTPException) -> Response:
        path = request.url.path
        if error.status_code == 405:
            fault = Fault.of("method", request.method, f"{ROUTES.get(path, 'another one')} for {path}")
        else:
            fault = Fault.of("path", path, ", ".join(ROUTES))
        return json_answer(error_body([fault]), error.status_code, dict(error.headers or {}))

    @app.exception_handler(TransientError)
    async def unavailable(request: Request, error: TransientError) -> Response:
        _logger.warning("%s %s: 503: %s", request.method, request.url.path, error)
        message = "this cannot be done now, and nothing of it was kept; try again"
        return json_answer(plain_error(message), 503, _RETRY)

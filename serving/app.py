"""The HTTP surface: four routes and the metrics, one shape for every error.

An error is ``{"error": {"field", "value", "allowed", "message", "faults"}}``: the first fault, and the
list of all of them. No answer carries a traceback.
"""

from __future__ import annotations

import json
import logging
import time
from typing import Annotated, Any

from fastapi import FastAPI, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serving.errors import Fault, FieldError, error_body, model_faults
from serving.metrics import Metrics
from serving.schema import EVENTS_SCHEMA, MAX_BODY_BYTES, RecommendQuery, parse_context, parse_events
from serving.service import Service
from stages import __version__
from stages.contracts.errors import RequestError, TransientError

_logger = logging.getLogger("sluice")

ROUTES = {
    "/v1/recommendations": "GET",
    "/v1/events": "POST",
    "/healthz": "GET",
    "/readyz": "GET",
    "/metrics": "GET",
    "/openapi.json": "GET",
}


def create_app(service: Service) -> FastAPI:
    """Return the application that answers for ``service``, which the caller starts and stops."""
    # The interactive documentation pages would load scripts from the network: only the schema is served.
    app = FastAPI(title="Sluice", version=__version__, docs_url=None, redoc_url=None, redirect_slashes=False)
    app.add_middleware(_Edge, metrics=service.metrics)
    _add_recommendations(app, service)
    _add_events(app, service)
    _add_probes(app, service)
    _add_error_handlers(app)
    return app


def _add_recommendations(app: FastAPI, service: Service) -> None:
    @app.get("/v1/recommendations")
    def recommendations(query: Annotated[RecommendQuery, Query()], request: Request) -> Response:
        """Recommend k items to a user; ``explain=true`` adds score and rank at every stage.

        ``category`` (any of several) and ``max_age_days`` filter what may be answered with.
        """
        names = [name for name, _ in request.query_params.multi_items()]
        repeated = sorted({name for name in names if names.count(name) > 1} - {"context", "category"})
        if repeated:
            values = request.query_params.getlist
            raise FieldError([Fault.of(name, ", ".join(values(name)), "one value") for name in repeated])
        context = parse_context(query.context)
        return _json(service.recommend(query.user_id, query.k, query.explain, context, query.wanted()).as_dict())


def _add_events(app: FastAPI, service: Service) -> None:
    @app.post("/v1/events", openapi_extra={"requestBody": EVENTS_SCHEMA})
    async def events(request: Request) -> Response:
        """Take one event or a list; the users' next answers take them into account.

        The answer is sent when the events are on the disk. A repeated ``event_id`` changes nothing.
        One wrong event refuses the whole list.
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
    receipt = service.post(parsed, prefixes)
    return _json(
        {
            "release_id": receipt.release_id,
            "accepted": receipt.accepted,
            "duplicates": receipt.duplicates,
            "event_ids": receipt.event_ids,
        }
    )


def _add_probes(app: FastAPI, service: Service) -> None:
    @app.get("/healthz")
    async def healthz() -> Response:
        """Say that the process is alive."""
        return _json({"alive": True})

    @app.get("/readyz")
    def readyz() -> Response:
        """Say whether a release is loaded and a sampled request of a known user was answered."""
        found = service.readiness()
        body = {
            "ready": found.ready,
            "reason": found.reason,
            "release_id": found.release_id,
            "refresh_error": found.refresh_error,
            "clock": found.clock,
            "stale": found.stale,
        }
        return _json(body, 200 if found.ready else 503)

    @app.get("/metrics")
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
            return _json(error_body(error.faults), error.status)
        return _json(_plain(str(error)), error.status)

    @app.exception_handler(RequestValidationError)
    async def malformed(_: Request, error: RequestValidationError) -> Response:
        return _json(error_body(model_faults(error.errors(), RecommendQuery)), 422)

    @app.exception_handler(HTTPException)
    async def no_route(request: Request, error: HTTPException) -> Response:
        path = request.url.path
        if error.status_code == 405:
            fault = Fault.of("method", request.method, f"{ROUTES.get(path, 'another one')} for {path}")
        else:
            fault = Fault.of("path", path, ", ".join(ROUTES))
        return _json(error_body([fault]), error.status_code, dict(error.headers or {}))

    @app.exception_handler(TransientError)
    async def unavailable(_: Request, error: TransientError) -> Response:
        return _json(_plain(str(error)), 503, {"retry-after": "1"})


def _plain(message: str) -> dict[str, Any]:
    return error_body([Fault(field="", value=None, allowed="", message=message)])


def _json(body: dict[str, Any], status: int = 200, headers: dict[str, str] | None = None) -> Response:
    content = json.dumps(body, allow_nan=False, separators=(",", ":"))
    return Response(content, status, headers, media_type="application/json")


class _Edge:
    """Counts and times requests, and answers for faults that nobody expected.

    Paths that do not exist share one label.
    """

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        path = scope["path"] if scope["path"] in ROUTES else "other"
        status = 500
        answering = False
        started = time.perf_counter()

        async def counted_send(message: Message) -> None:
            nonlocal answering, status
            if message["type"] == "http.response.start":
                answering, status = True, message["status"]
            await send(message)

        try:
            await self._app(scope, receive, counted_send)
        except Exception:
            # Answered here and not by Starlette, after whose answer uvicorn cuts the connection.
            _logger.exception("%s %s failed", scope["method"], path)
            if answering:
                raise
            await _json(_plain("internal error; the server's log has the details"), 500)(scope, receive, counted_send)
        finally:
            self._metrics.requests.labels(path, str(status)).inc()
            self._metrics.request_seconds.labels(path).observe(time.perf_counter() - started)

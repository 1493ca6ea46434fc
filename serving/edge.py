"""The outermost layer over HTTP: counts, times and limits requests, and answers unexpected errors."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Mapping
from typing import Any

from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serving.errors import FieldError, error_body, plain_error
from serving.metrics import CLIENT_GONE, Metrics
from serving.schema import check_query

_logger = logging.getLogger("sluice")

ROUTES = {
    "/v1/recommendations": "GET",
    "/v1/events": "POST",
    "/healthz": "GET",
    "/readyz": "GET",
    "/metrics": "GET",
    "/openapi.json": "GET",
}


def json_answer(body: Mapping[str, Any], status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """Return ``body`` as a response in JSON."""
    content = json.dumps(body, allow_nan=False, separators=(",", ":"))
    return Response(content, status, headers, media_type="application/json")


class Edge:
    """Counts and times requests, and answers unexpected errors.

    Paths that do not exist share one label. A client that hangs up is no fault: such a request is counted
    under ``CLIENT_GONE``.
    """

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        path = scope["path"] if scope["path"] in ROUTES else "other"
        answer = _Sending(send)
        started = time.perf_counter()
        try:
            await self._answer(scope, receive, answer, path)
        except ClientDisconnect:
            answer.status = CLIENT_GONE
            _logger.debug("%s %s: the client hung up", scope["method"], path)
        finally:
            self._metrics.requests.labels(path, str(answer.status)).inc()
            self._metrics.request_seconds.labels(path).observe(time.perf_counter() - started)

    async def _answer(self, scope: Scope, receive: Receive, answer: _Sending, path: str) -> None:
        try:
            check_query(scope["query_string"])
            await self._app(scope, receive, answer)
        except FieldError as error:
            await json_answer(error_body(error.faults), error.status)(scope, receive, answer)
        except ClientDisconnect:
            raise
        except Exception:
            # Answered here: after Starlette's own answer uvicorn would cut the connection.
            _logger.exception("%s %s failed", scope["method"], path)
            if answer.begun:
                raise
            words = plain_error("internal error; the server's log has the details")
            await json_answer(words, 500)(scope, receive, answer)


class _Sending:
    """Sends an answer and remembers its status."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self.status = 500
        self.begun = False

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.begun, self.status = True, message["status"]
        try:
            await self._send(message)
        except OSError:  # what ASGI servers raise when the client is gone; uvicorn is silent
            raise ClientDisconnect from None

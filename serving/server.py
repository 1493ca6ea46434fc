"""Runs the application with uvicorn on uvloop and httptools: one process, graceful stop, no access log."""

from __future__ import annotations

import logging
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from importlib.metadata import version
from typing import Any, Literal

import uvicorn
from fastapi import FastAPI

from serving.app import create_app
from serving.config import ServeConfig
from serving.events import EventLog
from serving.release_source import ReleaseSource
from serving.service import Service
from stages.contracts.errors import ConfigError
from stages.contracts.redacted_errors import redact_logs

GRACE_SECONDS = 10
Loop = Literal["uvloop", "asyncio"]
_logger = logging.getLogger("sluice")

__all__ = ["ServeConfig", "configure", "listen", "open_service", "serve"]


def open_service(source: ReleaseSource, config: ServeConfig) -> Service:
    """Open the event log, load the release and return the service, ready to answer.

    Raises:
        SluiceError: if the log or the release cannot be used; nothing is left open then.
    """
    redact_logs()
    service = Service(source, EventLog(config.data_dir), config)
    try:
        service.start()
    except BaseException:
        service.stop()
        raise
    return service


def serve(
    service: Service, host: str, port: int, announce: Callable[[str], None] | None = None, loop: Loop = "uvloop"
) -> None:
    """Answer over HTTP until SIGINT or SIGTERM; requests under way are finished.

    Args:
        service: started by the caller, and stopped by it afterwards.
        host: address to listen on.
        port: port to listen on; 0 takes a free one.
        announce: called with the base URL once the port is bound.
        loop: the event loop to run on.

    Raises:
        ConfigError: if the address cannot be bound, or a package that HTTP is read with is missing.
    """
    config = configure(create_app(service), loop)
    listener = listen(host, port)
    if announce is not None:
        shown = f"[{host}]" if ":" in host else host
        announce(f"http://{shown}:{listener.getsockname()[1]}")
    with listener, _quiet_signals():
        uvicorn.Server(config).run(sockets=[listener])


def configure(app: FastAPI, loop: Loop = "uvloop") -> uvicorn.Config:
    """Return how uvicorn runs ``app``, and redact what this process logs.

    Where a package is missing, no slower one is used silently in its place.

    Raises:
        ConfigError: if one is missing.
    """
    redact_logs()
    try:
        from serving.protocol import BoundedHttp

        packages = ("uvicorn", "httptools", *(("uvloop",) if loop == "uvloop" else ()))
        for name in packages:
            import_module(name)
        found = ", ".join(f"{name} {version(name)}" for name in packages)
    except ImportError as error:
        raise ConfigError(f"{error.name} is not installed: the server needs the set requirements/serve.txt") from None
    _logger.info("HTTP by %s on the event loop of %s", found, loop)
    return uvicorn.Config(
        app,
        loop=loop,
        http=BoundedHttp,
        ws="none",
        log_config=None,
        access_log=False,
        lifespan="off",
        timeout_graceful_shutdown=GRACE_SECONDS,
    )


def listen(host: str, port: int) -> socket.socket:
    """Return a socket that listens; what it accepts sends small packets at once (TCP_NODELAY).

    Head and body of an answer are two writes: without TCP_NODELAY the second waits for the client's delayed
    acknowledgement, 40 ms.

    Raises:
        ConfigError: if the address cannot be bound.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        bound = socket.create_server((host, port), family=family, backlog=2048)
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ConfigError(f"host = {host!r}, port = {port}: {reason}; allowed is a free port of this machine") from None
    bound.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # Linux passes it on to accepted sockets
    # asyncio sets it itself, but only where a socket knows its protocol, which ``create_server`` leaves at 0
    return socket.socket(fileno=bound.detach())


@contextmanager
def _quiet_signals() -> Iterator[None]:
    """Let the process end with code 0: uvicorn raises the signal that stopped it once more at the end."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous: dict[signal.Signals, Any] = {}
    for number in (signal.SIGINT, signal.SIGTERM):
        previous[number] = signal.signal(number, lambda *_: None)
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)

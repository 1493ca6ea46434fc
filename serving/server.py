"""Runs the application with uvicorn: one process, graceful stop, no access log."""

from __future__ import annotations

import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import uvicorn

from serving.app import create_app
from serving.config import ServeConfig
from serving.events import EventLog
from serving.service import Service
from serving.source import ReleaseSource
from stages.contracts.errors import ConfigError

GRACE_SECONDS = 10

__all__ = ["ServeConfig", "open_service", "serve"]


def open_service(source: ReleaseSource, config: ServeConfig) -> Service:
    """Open the event log, load the release and return the service, ready to answer.

    Raises:
        SluiceError: if the log or the release cannot be used; nothing is left open then.
    """
    service = Service(source, EventLog(config.data_dir), config)
    try:
        service.start()
    except BaseException:
        service.stop()
        raise
    return service


def serve(service: Service, host: str, port: int, announce: Callable[[str], None] | None = None) -> None:
    """Answer over HTTP until SIGINT or SIGTERM; requests under way are finished.

    Args:
        service: started by the caller, and stopped by it afterwards.
        host: address to listen on.
        port: port to listen on; 0 takes a free one.
        announce: called with the base URL once the port is bound.

    Raises:
        ConfigError: if the address cannot be bound.
    """
    listener = _bind(host, port)
    config = uvicorn.Config(
        create_app(service),
        log_config=None,
        access_log=False,
        lifespan="off",
        timeout_graceful_shutdown=GRACE_SECONDS,
    )
    if announce is not None:
        shown = f"[{host}]" if ":" in host else host
        announce(f"http://{shown}:{listener.getsockname()[1]}")
    with listener, _quiet_signals():
        uvicorn.Server(config).run(sockets=[listener])


def _bind(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=2048)
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ConfigError(f"host = {host!r}, port = {port}: {reason}; allowed is a free port of this machine") from None


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

"""What only a socket shows: TCP_NODELAY on what is accepted, clients that hang up, heads without end."""

import json
import logging
import os
import socket
import struct
import sys
import time
from pathlib import Path

import pytest

from serving.protocol import MAX_HEAD_BYTES
from serving.server import configure
from stages.contracts.errors import ConfigError

GONE = 'sluice_requests_total{path="/v1/events",status="499"}'


def connected(client):
    return socket.create_connection((client.base_url.host, client.base_url.port), timeout=10)


def ends_of(peer):
    """Return this process' own sockets whose other end is ``peer``."""
    found = []
    for entry in Path("/proc/self/fd").iterdir():
        try:
            end = socket.socket(fileno=os.dup(int(entry.name)))
        except OSError:
            continue
        try:
            if end.getpeername() == peer:
                found.append(end)
                continue
        except OSError:
            pass
        end.close()
    return found


@pytest.mark.parametrize("loop", ["uvloop", "asyncio"])
@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_accepted_connections_send_at_once(service, over_http, host, loop):
    client = over_http(service, host, loop)
    with connected(client) as connection:
        connection.sendall(b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n")
        assert connection.recv(100).startswith(b"HTTP/1.1 200")
        (accepted,) = ends_of(connection.getsockname())
        with accepted:
            assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) == 1


@pytest.mark.parametrize("package", ["uvloop", "httptools"])
def test_a_missing_package_is_named_and_nothing_slower_is_taken(monkeypatch, package):
    monkeypatch.setitem(sys.modules, package, None)
    for name in ("serving.protocol", "uvicorn.protocols.http.httptools_impl"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    with pytest.raises(ConfigError, match=f"{package} is not installed: .* requirements/serve.txt"):
        configure(None)


def test_the_start_says_what_http_runs_on(caplog):
    with caplog.at_level(logging.INFO, logger="sluice"):
        configure(None)
    (line,) = (record.getMessage() for record in caplog.records)
    assert line.startswith("HTTP by uvicorn ") and ", httptools " in line and line.endswith(" of uvloop")


def counted(client, line, number=1.0):
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        text = client.get("/metrics").text
        if f"{line} {number}" in text:
            return text
        time.sleep(0.02)
    raise AssertionError(text)


@pytest.mark.parametrize("reset", [False, True])
def test_a_client_that_hangs_up_in_a_body_is_no_fault_of_the_server(client, caplog, reset):
    with connected(client) as connection, caplog.at_level(logging.DEBUG, logger="sluice"):
        connection.sendall(b"POST /v1/events HTTP/1.1\r\nhost: x\r\ncontent-length: 1000\r\n\r\n[{")
        counted(client, 'sluice_requests_total{path="/metrics",status="200"}')
        if reset:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        connection.close()
        text = counted(client, GONE)
    assert 'status="500"' not in text
    lines = [(record.levelname, record.getMessage()) for record in caplog.records if record.name != "asyncio"]
    assert lines == [("DEBUG", "POST /v1/events: the client hung up")]


def test_a_client_that_hangs_up_while_the_answer_is_sent_is_no_fault_either(client, caplog):
    asked = b"GET /v1/recommendations?user_id=u1&k=50&explain=true HTTP/1.1\r\nhost: x\r\n\r\n"
    for _ in range(20):
        with connected(client) as connection:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            connection.sendall(asked * 5)
    text = client.get("/metrics").text
    assert 'status="500"' not in text
    assert [record for record in caplog.records if record.levelno > logging.INFO] == []


EVENT = json.dumps({"user_id": "u", "item_id": "i1", "signal": "click"}).encode()
POST = b"POST /v1/events HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n"
POST += b"%x\r\n%s\r\n0\r\n" % (len(EVENT), EVENT)


@pytest.mark.parametrize(
    ("begin", "more"),
    [
        (b"GET /", b"x" * 60_000),
        (b"GET /healthz HTTP/1.1\r\nx-long: ", b"x" * 60_000),
        (b"GET /healthz HTTP/1.1\r\n", b"x-many: yyyy\r\n" * 5000),
        (POST + b"x-trailer: ", b"x" * 60_000),
        (POST, b"x-trailer: yyyy\r\n" * 5000),
    ],
)
def test_what_is_kept_of_a_request_without_an_end_is_limited(client, begin, more):
    """Twenty megabytes are offered; the connection is cut long before."""
    with connected(client) as connection:
        answer = b""
        try:
            connection.sendall(begin)
            for _ in range(20_000_000 // len(more)):
                connection.sendall(more)
            answer = connection.recv(1000)
        except ConnectionError:
            answer = b"cut"
        assert answer == b"cut" or (answer.startswith(b"HTTP/1.1 400") and str(MAX_HEAD_BYTES).encode() in answer)
    assert client.get("/healthz", headers={"x-fits": "x" * (MAX_HEAD_BYTES // 2)}).status_code == 200

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest

from cli.demo import _answer, _free_port, _point_to, _recommend, _wait_ready
from stages.contracts.errors import TransientError


class Served(ThreadingHTTPServer):
    """Answers ``/readyz`` with the given status codes, the last one ever after, and anything else with its path."""

    def __init__(self, *statuses: int) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.statuses = list(statuses)
        self.asked: list[str] = []


class Handler(BaseHTTPRequestHandler):
    server: Served

    def do_GET(self) -> None:
        self.server.asked.append(self.path)
        statuses = self.server.statuses
        status = (statuses.pop(0) if len(statuses) > 1 else statuses[0]) if self.path == "/readyz" else 200
        self.send_response(status)
        self.end_headers()
        self.wfile.write(json.dumps({"path": self.path}).encode())

    def log_message(self, *words: Any) -> None:
        """Say nothing."""


@pytest.fixture
def process() -> Iterator[subprocess.Popen[bytes]]:
    sleeping = subprocess.Popen([sys.executable, "-c", "import sys; sys.stdin.read()"], stdin=subprocess.PIPE)
    yield sleeping
    sleeping.communicate()


def serve(server: Served) -> threading.Thread:
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    return thread


def test_it_waits_until_the_server_is_ready(process: subprocess.Popen[bytes], tmp_path: Path) -> None:
    with Served(503, 503, 200) as server, httpx.Client(base_url=f"http://127.0.0.1:{server.server_port}") as client:
        thread = serve(server)
        _wait_ready(client, process, tmp_path / "serving.log")
        assert server.asked == ["/readyz"] * 3
        assert _recommend(client, "a user & more", 3) == {
            "path": "/v1/recommendations?user_id=a+user+%26+more&k=3&explain=true"
        }
        server.shutdown()
        thread.join()


def test_a_server_that_stopped_is_named_with_its_last_words(tmp_path: Path) -> None:
    log = tmp_path / "serving.log"
    log.write_text("error: one\nerror: SLUICE_RELEASE names no release\n")
    stopped = subprocess.Popen([sys.executable, "-c", ""])
    stopped.wait()
    with (
        httpx.Client(base_url=f"http://127.0.0.1:{_free_port()}") as client,
        pytest.raises(TransientError, match="the server stopped: error: SLUICE_RELEASE names no release") as caught,
    ):
        _wait_ready(client, stopped, log)
    assert str(log) in str(caught.value)


def test_a_port_where_nobody_answers_is_waited_for(
    process: subprocess.Popen[bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cli.demo.START_SECONDS", 0.1)
    with (
        httpx.Client(base_url=f"http://127.0.0.1:{_free_port()}") as client,
        pytest.raises(TransientError, match=r"not ready after 0\.1 s"),
    ):
        _wait_ready(client, process, tmp_path / "serving.log")


def test_an_error_is_no_answer() -> None:
    response = httpx.Response(422, json={"error": "k"}, request=httpx.Request("GET", "http://127.0.0.1/v1"))
    with pytest.raises(httpx.HTTPStatusError, match="422"):
        _answer(response)


def test_latest_names_the_home_that_ran_last(tmp_path: Path) -> None:
    for name in ("demo-world", "demo-ml-100k"):
        (tmp_path / name).mkdir()
        _point_to(tmp_path / name)
    assert (tmp_path / "latest").readlink() == Path("demo-ml-100k")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["demo-ml-100k", "demo-world", "latest"]

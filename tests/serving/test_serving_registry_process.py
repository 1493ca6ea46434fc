"""The command with a registry that accepts connections and never answers: it starts, and it ends when it is told to."""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time

import httpx
import pytest

from serving.events import EventLog
from serving.server import GRACE_SECONDS
from stages.release.cache import AliasKey, remember_alias

RELEASE_ID = "20231114-0123456789ab"


@pytest.fixture
def silent():
    """The address of a server that accepts and says nothing."""
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.create_server(("127.0.0.1", 0)))

        def accept():
            while True:
                try:
                    stack.enter_context(listener.accept()[0])
                except OSError:
                    return

        thread = threading.Thread(target=accept)
        thread.start()
        stack.callback(thread.join)
        stack.callback(listener.shutdown, socket.SHUT_RDWR)
        yield f"http://user:hunter2@127.0.0.1:{listener.getsockname()[1]}"


@pytest.fixture
def home(releases, reseal, tmp_path):
    """A home whose cache holds the champion."""
    cache = tmp_path / "home" / "serving" / "releases"
    reseal(shutil.copytree(releases["alpha"], cache / RELEASE_ID), RELEASE_ID)
    remember_alias(cache, AliasKey("champion", "sluice-funnel", "registry"), RELEASE_ID, 1)
    return tmp_path / "home"


@pytest.fixture
def run(home, silent):
    """Return a function that starts ``sluice`` in that home."""
    with contextlib.ExitStack() as stack:

        def start(*words):
            environ = {**os.environ, "SLUICE_HOME": str(home), "SLUICE_MLFLOW_URI": silent}
            command = [sys.executable, "-W", "ignore", "-m", "cli", *words]
            pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
            process = stack.enter_context(subprocess.Popen(command, env=environ, **pipes))
            stack.callback(process.kill)
            return process

        yield start


def test_a_server_whose_registry_hangs_serves_and_ends_within_its_grace(run, home, silent):
    process = run("serve", "--port", "0", "--poll-seconds", "0.1")
    line = process.stdout.readline()
    assert line.startswith(f"serving {RELEASE_ID} on http://")
    base = line.split()[-1]
    with httpx.Client(base_url=base, trust_env=False, timeout=10) as client:
        answer = client.get("/readyz")
        assert (answer.status_code, answer.json()["stale"], answer.json()["release_id"]) == (200, True, RELEASE_ID)
        assert not any(word in answer.text for word in ("hunter2", "127.0.0.1", silent))
        assert len(client.get("/v1/recommendations", params={"user_id": "u1", "k": 5}).json()["items"]) == 5
        event = {"user_id": "u1", "item_id": "i290", "signal": "click", "event_id": "kept"}
        assert client.post("/v1/events", json=event).json()["accepted"] == 1
        time.sleep(0.5)  # a poll is under way, and hangs
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=GRACE_SECONDS) == 0
    errors = process.stderr.read()
    assert "the registry cannot be asked" in errors
    assert "hunter2" not in errors
    assert "Traceback" not in errors
    log = EventLog(home / "serving")
    assert (len(log), log.torn_bytes) == (1, 0)
    log.close()


def test_an_answer_on_the_command_line_comes_from_the_cache(run):
    process = run("recommend", "u1", "-k", "3")
    answer, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    assert answer.startswith(f"release {RELEASE_ID}, path funnel")
    assert "the registry cannot be asked" in errors
    assert "hunter2" not in errors

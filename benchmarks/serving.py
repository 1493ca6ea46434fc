"""Latency of the funnel in process and over HTTP, in one run on one release.

    python -m benchmarks.serving --release var/latest/serving/releases/<id> --requests 500

The client is one thread that waits for each answer; the server is ``sluice serve`` in a process of
its own. Users are drawn from those of the release. The benchmark needs only the packages of the serving
image. Run it with exactly those, because the event loop and the HTTP parser decide what a request costs.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import random
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from urllib.parse import quote

import numpy as np

from benchmarks.environment import describe
from serving.funnel import Funnel
from serving.release import LoadedRelease, load_release

WARM_UP = 20
HTTP_SET = ("uvicorn", "uvloop", "httptools", "h11")
"""Packages that decide how a request is read and answered; ``none`` where one is not installed."""


def main() -> None:
    """Measure and print one JSON object as the last line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--release", type=Path, required=True, help="a release directory")
    parser.add_argument("--requests", type=int, default=500)
    parser.add_argument("-k", type=int, default=20)
    options = parser.parse_args()
    release = load_release(options.release)
    k = min(options.k, release.manifest.funnel.max_k)
    users = random.Random(42).choices(sorted(release.user_index), k=options.requests + WARM_UP)
    report = {
        "benchmark": "serving",
        "release": release.manifest.release_id,
        "items": len(release.items),
        "funnel": release.manifest.funnel.model_dump(mode="json"),
        "k": k,
        "http_set": {name: _version(name) for name in HTTP_SET},
        "in_process_ms": _in_process(release, users, k),
        **_over_http(options.release, users, k),
        **describe("faiss-cpu", "lightgbm", "onnxruntime", "numpy"),
    }
    for name in ("http_set", *(name for name in report if name.endswith("_ms"))):
        print(name, report[name])
    print(json.dumps(report))


def _in_process(release: LoadedRelease, users: list[str], k: int) -> dict[str, float]:
    funnel = Funnel(release)
    return _measure(lambda user: funnel.recommend(user, k), users)


def _over_http(release: Path, users: list[str], k: int) -> dict[str, dict[str, float]]:
    """Measure the cheapest and the usual request, each over one kept connection and over new connections."""
    with _server(release) as port, closing(http.client.HTTPConnection("127.0.0.1", port, timeout=30)) as kept:

        def anew(path: str) -> None:
            with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=30)) as connection:
                _get(connection, path)

        def wanted(user: str) -> str:
            return f"/v1/recommendations?user_id={quote(user)}&k={k}"

        return {
            "healthz_kept_ms": _measure(lambda _: _get(kept, "/healthz"), users),
            "healthz_new_ms": _measure(lambda _: anew("/healthz"), users),
            "http_ms": _measure(lambda user: _get(kept, wanted(user)), users),
            "http_new_ms": _measure(lambda user: anew(wanted(user)), users),
        }


def _get(connection: http.client.HTTPConnection, path: str) -> None:
    connection.request("GET", path)
    response = connection.getresponse()
    response.read()
    if response.status != 200:
        raise RuntimeError(f"{path}: status {response.status}")


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "none"


def _measure(ask: Callable[[str], object], users: list[str]) -> dict[str, float]:
    for user in users[:WARM_UP]:
        ask(user)
    taken = []
    for user in users[WARM_UP:]:
        started = time.perf_counter()
        ask(user)
        taken.append((time.perf_counter() - started) * 1000)
    shares = {"p50": 50, "p90": 90, "p99": 99}
    figures = {name: round(float(np.percentile(taken, share)), 3) for name, share in shares.items()}
    return {**figures, "requests": len(taken)}


@contextmanager
def _server(release: Path) -> Iterator[int]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    with tempfile.TemporaryDirectory() as home:
        command = [sys.executable, "-m", "cli", "serve", "--port", str(port), "--release", str(release.resolve())]
        process = subprocess.Popen(command, env={**os.environ, "SLUICE_HOME": home}, stdout=subprocess.DEVNULL)
        try:
            _wait(port, process)
            yield port
        finally:
            process.terminate()
            process.wait(timeout=30)


def _wait(port: int, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and process.poll() is None:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except OSError:
            time.sleep(0.1)
        else:
            return
    raise RuntimeError("the server did not start")


if __name__ == "__main__":
    main()

"""The server as a process: kill -9, SIGTERM, bad starts, and what it imports."""

import contextlib
import signal
import socket
import subprocess
import sys
import textwrap

import httpx
import pytest

from serving.server import serve
from stages.contracts.errors import ConfigError

SERVE = """
import sys
from pathlib import Path
from serving.server import ServeConfig, open_service, serve
from serving.release_source import DirectorySource
from stages.contracts.errors import SluiceError

try:
    config = ServeConfig(data_dir=Path(sys.argv[2]), poll_seconds=0.05, clock="data", ready_users=2)
    service = open_service(DirectorySource(Path(sys.argv[1])), config)
    try:
        serve(service, "127.0.0.1", int(sys.argv[3]), announce=lambda url: print(url, flush=True))
    finally:
        service.stop()
except SluiceError as error:
    sys.exit(f"error: {error}")
"""

IMPORTS = """
import sys
from importlib.abc import MetaPathFinder

class Blocker(MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {"torch", "torchrec", "airflow"}:
            raise ImportError(f"{name} must not be imported by the server")

sys.meta_path.insert(0, Blocker())
import serving.app, serving.server, serving.release_source
from pathlib import Path
from serving.config import ServeConfig
from starlette.testclient import TestClient

service = serving.server.open_service(
    serving.release_source.DirectorySource(Path(sys.argv[1])), ServeConfig(data_dir=Path(sys.argv[2]), poll_seconds=0)
)
client = TestClient(serving.app.create_app(service))
for user in ("u1", "nobody"):
    assert client.get(f"/v1/recommendations?user_id={user}&k=5&explain=true").status_code == 200
assert client.post("/v1/events", json={"user_id": "u1", "item_id": "i9", "signal": "click"}).status_code == 200
heavy = {"torch", "torchrec", "airflow", "mlflow", "sqlalchemy", "duckdb", "matplotlib"}
print(sorted(heavy & {name.partition(".")[0] for name in sys.modules}))
service.stop()
"""


@pytest.fixture
def spawn(releases, tmp_path):
    """Return a function that starts a server process and returns (process, client)."""
    with contextlib.ExitStack() as stack:

        def start(release=None, port=0):
            command = [
                sys.executable,
                "-c",
                SERVE,
                str(release or releases["alpha"]),
                str(tmp_path / "data"),
                str(port),
            ]
            process = stack.enter_context(
                subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
            )
            stack.callback(process.kill)
            url = process.stdout.readline().strip()
            if not url:
                return process, None
            return process, stack.enter_context(httpx.Client(base_url=url, trust_env=False, timeout=10))

        yield start


def recommend(client, user):
    response = client.get("/v1/recommendations", params={"user_id": user, "k": 20})
    return response.json()


def ends_well(process, client, number):
    client.close()
    process.send_signal(number)
    _, errors = process.communicate(timeout=30)
    assert (process.returncode, errors) == (0, "")


def refused(process):
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 1
    assert len(errors.strip().splitlines()) == 1
    return errors


def test_an_acknowledged_event_survives_kill_9(spawn, tmp_path):
    process, client = spawn()
    events = [{"user_id": "new", "item_id": f"i{n}", "signal": "click", "event_id": f"e{n}"} for n in (8, 9)]
    assert client.post("/v1/events", json=events).json()["accepted"] == 2
    before = recommend(client, "new")
    second, nothing = spawn()
    assert nothing is None
    assert "another server holds events.jsonl" in refused(second)
    process.kill()
    process.wait()
    with (tmp_path / "data" / "events.jsonl").open("ab") as stream:
        stream.write(b'{"release_id": "2023-11-14-alpha", "events": [{"event_id": "half')
    process, client = spawn()
    after = recommend(client, "new")
    assert before["path"] == after["path"] == "funnel"
    assert {item["item_id"] for item in after["items"]} & {"i8", "i9"} == set()
    assert client.post("/v1/events", json=events).json()["duplicates"] == 2
    assert "sluice_event_log_torn_bytes 64.0" in client.get("/metrics").text
    client.close()
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=30) == 0


def point(link, target):
    """Switch a link in one step."""
    temporary = link.with_name("next")
    temporary.symlink_to(target)
    temporary.replace(link)


def serves_only(answer, tag):
    assert answer["release_id"] == f"2023-11-14-{tag}"
    assert {item["title"].split()[0] for item in answer["items"]} == {tag}


def test_killing_during_a_promotion_serves_one_whole_release(spawn, releases, tmp_path):
    """The link is the pointer: whenever the server dies, the next one serves what it points at."""
    link = tmp_path / "champion"
    link.symlink_to(releases["alpha"])
    process, client = spawn(link)
    point(link, releases["beta"])
    answer = recommend(client, "u1")
    process.kill()
    process.wait()
    serves_only(answer, answer["release_id"][11:])
    process, client = spawn(link)
    serves_only(recommend(client, "u1"), "beta")
    point(link, releases["alpha"])
    while (answer := recommend(client, "u1"))["release_id"].endswith("beta"):
        serves_only(answer, "beta")
    serves_only(answer, "alpha")
    ends_well(process, client, signal.SIGTERM)


def test_a_corrupt_release_does_not_start(spawn, make_release, tmp_path):
    broken = make_release(tmp_path / "broken", "broken", 0)
    (broken / "user_tower.onnx").write_bytes(b"?")
    process, client = spawn(broken)
    assert client is None
    assert "user_tower.onnx: sha256" in refused(process)


@pytest.mark.parametrize("host", ["127.0.0.1", "no such host"])
def test_an_address_that_cannot_be_had(releases, start, host):
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(ConfigError, match=r"host = .*, port = \d+: "):
        serve(start(releases["alpha"]), host, taken.getsockname()[1])


def test_the_server_imports_no_training_code(releases, tmp_path):
    command = [sys.executable, "-W", "ignore", "-c", textwrap.dedent(IMPORTS), str(releases["alpha"]), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"

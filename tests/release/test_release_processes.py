"""What other processes see: pulls at the same time, and a promotion that is killed."""

import random
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from stages.contracts.manifest import verify_release
from stages.release.config import RegistryConfig
from stages.release.registry import ReleaseRegistry

ROOT = Path(__file__).parents[2]

PROMOTE = """
import sys
from stages.release.config import RegistryConfig
from stages.release.registry import ReleaseRegistry

registry = ReleaseRegistry(RegistryConfig(tracking_uri=sys.argv[1], model_name="killed"))
if sys.argv[2] == "between":  # stop after the alias "previous", before "champion"
    point = registry._point
    def stop_before_champion(alias, version):
        if alias == "champion":
            print("ready", flush=True)
            sys.stdin.readline()
        point(alias, version)
    registry._point = stop_before_champion
    registry.promote(2)
else:
    print("ready", flush=True)
    while True:
        registry.promote(1)
        registry.promote(2)
"""


@pytest.fixture(scope="module")
def registry(store, tmp_path_factory, make_release):
    registry = ReleaseRegistry(RegistryConfig(**store, model_name="killed", experiment="killed"))
    for salt in ("old", "new"):
        registry.register(make_release(tmp_path_factory.mktemp("release"), salt=salt))
    return registry


def start(script, *arguments):
    process = subprocess.Popen(
        [sys.executable, "-c", script, *arguments], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "ready\n"
    return process


def end(process):
    process.stdin.close()
    process.stdout.close()
    process.wait(timeout=60)


@pytest.mark.parametrize("where", ["between", "anywhere"])
def test_a_killed_promotion_leaves_one_whole_champion(registry, tmp_path, where):
    registry.promote(1)
    process = start(PROMOTE, registry.config.tracking_uri, where)
    time.sleep(0 if where == "between" else random.Random(3).uniform(0.1, 0.6))
    process.send_signal(signal.SIGKILL)
    end(process)
    champion = registry.resolve("champion")
    assert champion.version in ((1,) if where == "between" else (1, 2))
    assert [one.version for one in registry.list() if "champion" in one.aliases] == [champion.version]
    assert verify_release(registry.pull("champion", tmp_path)).release_id == champion.release_id
    assert "champion" in registry.promote(2).aliases  # the next promotion is not hindered


def test_pulls_at_the_same_time_share_one_whole_copy(registry, tmp_path):
    # the lock belongs to the open file, so threads meet it exactly as processes do
    champion = registry.promote(1)
    together = threading.Barrier(4)

    def pull(_number):
        together.wait(timeout=30)
        return registry.pull("champion", tmp_path)

    with ThreadPoolExecutor(max_workers=4) as pool:
        assert set(pool.map(pull, range(4))) == {tmp_path / champion.release_id}
    verify_release(tmp_path / champion.release_id)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".lock", champion.release_id, "alias-champion.json"]

"""A released funnel behind a real server: offline scores, and never a mixed release."""

from __future__ import annotations

import json
import shutil
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from serving.funnel import Funnel
from serving.release import load_release
from stages.contracts.manifest import read_manifest
from stages.contracts.snapshot import Snapshot
from stages.contracts.tables import PART_EVALUATION, RankedTable
from stages.release.registry import ReleaseRegistry
from stages.settings import release_cache
from tests.time_limits import finished

ROOT = Path(__file__).resolve().parents[2]


def _answer(base: str, user_id: str, k: int = 10) -> dict[str, Any]:
    params = {"user_id": user_id, "k": k, "explain": "true"}
    response = httpx.get(f"{base}/v1/recommendations", params=params, timeout=30)
    assert response.status_code == 200, response.text
    return response.json()


def test_online_answers_equal_offline_rankings(job) -> None:
    """The release's state is at its end; a fresh one, replayed, stands where it stood at each request."""
    from stages.features.config import FeatureConfig
    from stages.features.state import FunnelState
    from tests.features.plain.replay import replay

    release = load_release(job.release)
    snapshot = Snapshot(job.results["dataset"].directory)
    requests = snapshot.requests()
    ranked = RankedTable.read(job.results["rank_held_out"].directory / "heavy.parquet")
    wanted = set(np.flatnonzero(requests.part == PART_EVALUATION)[::25].tolist())
    config = FeatureConfig.model_validate(job.settings.recipe.get("features", {}))
    state = FunnelState.empty(release.items, config, release.meta.signals, release.meta.tasks)
    object.__setattr__(release, "state", state)
    funnel = Funnel(release)
    user_ids = snapshot.user_ids()
    compared = 0
    for request in replay(snapshot.events(), requests, state):
        if request not in wanted:
            continue
        time_ms = int(requests.request_time_ms[request])
        answer = funnel.recommend(str(user_ids[requests.user_index[request]]), 10, time_ms=time_ms)
        offline = (ranked.request_id == request) & (ranked.rank < 10)
        ids = [str(release.items.item_id[item]) for item in ranked.item_index[offline]]
        assert [item.item_id for item in answer.items] == ids
        if answer.path == "funnel":
            np.testing.assert_allclose([item.score for item in answer.items], ranked.score[offline], rtol=1e-5)
        compared += 1
    assert compared == len(wanted) > 10


def test_the_champion_answers_and_learns_from_three_events(job, start_server: Callable[..., Any]) -> None:
    with start_server(job.environ) as (base, _):
        before = _answer(base, "somebody new")
        assert (before["path"], len(before["items"])) == ("popular", 10)
        chosen = [item["item_id"] for item in before["items"][3:6]]
        events = [{"user_id": "somebody new", "item_id": item_id, "signal": "click"} for item_id in chosen]
        assert httpx.post(f"{base}/v1/events", json=events, timeout=30).status_code < 300
        after = _answer(base, "somebody new")
        assert after["path"] == "funnel"
        shown = [item["item_id"] for item in after["items"]]
        assert len(set(shown)) == 10
        assert not set(chosen) & set(shown)
        assert shown != [item["item_id"] for item in before["items"]]
        assert set(after["items"][0]["explain"]) == {"candidate", "light", "heavy"}
        counts = after["explain"]["counts"]
        assert counts["retrieved"] >= counts["after_light"] >= counts["returned"] == 10


def test_killing_the_server_during_promotions_never_serves_a_mixed_release(
    job, second_release: int, start_server: Callable[..., Any]
) -> None:
    """Promote to and fro while servers start, answer and are killed: each answer is one release's own."""
    registry = ReleaseRegistry(job.settings.registry)
    versions = [int(job.results["register"].info["version"]), second_release]
    sizes = {}
    for version in versions:
        manifest = read_manifest(registry.pull(version, release_cache(job.environ)))
        sizes[manifest.release_id] = manifest.funnel.light_k
    assert len(set(sizes.values())) == 2
    user = next(iter(sorted(load_release(job.release).user_index)))
    stop, swaps = threading.Event(), []

    def promote() -> None:
        while not stop.is_set():
            registry.promote(versions[len(swaps) % 2])
            swaps.append(time.monotonic())
            time.sleep(0.05)

    promoter = threading.Thread(target=promote)
    promoter.start()
    seen: set[str] = set()
    try:
        for _ in range(2):
            with start_server(job.environ, "--poll-seconds", "0.2") as (base, process):
                until = time.monotonic() + 2
                while time.monotonic() < until:
                    answer = _answer(base, user)
                    assert answer["explain"]["counts"]["after_light"] == sizes[answer["release_id"]]
                    seen.add(answer["release_id"])
                process.kill()
    finally:
        stop.set()
        promoter.join()
        registry.promote(versions[0])
    assert len(swaps) > 5
    assert seen <= set(sizes)
    assert seen


@pytest.mark.parametrize("part", ["item_vectors.npy", "heavy_ranker.onnx", "state/state.json"])
def test_a_damaged_part_stops_the_server_with_one_line(job, tmp_path, part: str) -> None:
    release = tmp_path / "release"
    shutil.copytree(job.release, release)
    damaged = release / part
    content = bytearray(damaged.read_bytes())
    content[len(content) // 2] ^= 1
    damaged.write_bytes(bytes(content))
    command = [sys.executable, "-m", "cli", "serve", "--port", "0", "--release", str(release)]
    ended = finished(command, env=job.environ)
    assert ended.returncode == 4
    assert f"{part}: sha256" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_the_serving_benchmark_ends_with_one_json_object(job) -> None:
    command = [sys.executable, "-m", "benchmarks.serving", "--release", str(job.release), "--requests", "20"]
    done = finished(command, env=job.environ, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout.splitlines()[-1])
    assert report["release"] == read_manifest(job.release).release_id
    for where in ("in_process_ms", "http_ms"):
        assert 0 < report[where]["p50"] <= report[where]["p99"]
        assert report[where]["requests"] == 20

"""A source that tells about the moment: its device reaches features, and serving computes the same ones."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from cli.main import main
from serving.errors import FieldError
from serving.events import Event
from serving.funnel import Funnel
from serving.release import load_release
from stages.candidate.onnx_towers import ranker_query
from stages.contracts.examples import ExamplesFile
from stages.contracts.snapshot import Snapshot
from stages.features.history import Moment, tower_inputs
from stages.features.ranking import ranking_features
from stages.features.state import FunnelState
from tests.features.plain.replay import replay

RECIPE = """
dataset:
  signals: [click]
  tasks: [{name: click, signals: [click], relevance: 1}]
  activity: {min_events: 5, window_days: 30}
  context: {columns: [device]}
candidate:
  model: {dimension: 16, category_dimension: 8, hidden: [32], context: true, user_id: true}
  training: {epochs: 1, batch_size: 256}
light_ranker: {max_rounds: 10, folds: 2}
heavy_ranker: {max_epochs: 1, ensemble: 1}
funnel: {candidate_k: 60, light_k: 20, max_k: 10, objective: {click: 1.0}}
"""
DEVICES = ("phone", "tv", "")


@pytest.fixture(scope="module")
def run(job, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Any]:
    """The small world's clicks with a device and the length that their session is going to have."""
    home = tmp_path_factory.mktemp("context")
    world = next((Path(job.settings.home) / "world").iterdir())
    events = pq.read_table(world / "events.parquet", filters=[("signal", "=", "click")])
    columns = [events[name].to_pylist() for name in ("user_id", "item_id", "event_time_ms")]
    with (home / "clicks.csv").open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow(["user", "item", "at", "device", "session_size"])
        for user, item, at in zip(*columns, strict=True):
            writer.writerow([user, item, at, DEVICES[at // 1000 % 3], at % 5])
    mapping = {
        "user_id": "user",
        "item_id": "item",
        "event_time": "at",
        "time_unit": "ms",
        "signal": "click",
        "context": ["device", "session_size"],
        "known_later": ["session_size"],
    }
    (home / "mapping.yaml").write_text(json.dumps({"mapping": {"table": "interactions", **mapping}}))
    (home / "recipe.yaml").write_text(RECIPE)

    def sluice(*arguments: str) -> Any:
        options = ["--data", "clicks.csv", "--mapping", "mapping.yaml", "--config", "recipe.yaml"]
        options = [str(home / option) if "." in option else option for option in options]
        return CliRunner().invoke(main, [*arguments, *options], env={"SLUICE_HOME": str(home / "home")})

    sluice.home = home / "home"  # type: ignore[attr-defined]
    return sluice


def test_a_column_that_is_known_later_stops_the_dataset_step(run: Callable[..., Any]) -> None:
    refused = run("run", "--until", "dataset", "--set", "dataset.context.columns=[device, session_size]")
    assert refused.exit_code == 2, refused.output
    assert "'session_size'" in refused.output and "only after the event" in refused.output
    assert "Traceback" not in refused.output


def test_the_moment_reaches_features_offline_and_online(here: None, run: Callable[..., Any]) -> None:
    done = run("run", "--until", "assemble")
    assert done.exit_code == 0, done.output
    runs = Path(run.home) / "runs"  # type: ignore[attr-defined]
    snapshot = Snapshot(next(runs.rglob("events.parquet")).parent)
    examples = ExamplesFile(next(runs.rglob("examples.parquet")).parent)
    learned = examples.read()
    assert [(column.name, set(column.values)) for column in snapshot.meta.context] == [("device", {"phone", "tv"})]
    contexts, requests, events = snapshot.contexts(), snapshot.requests(), snapshot.events()
    assert not any("session_size" in name for name in examples.feature_names)

    # A request has the context of the event that begins it.
    first = {}
    for user, at, row in zip(events.user_index, events.event_time_ms, events.context, strict=True):
        first.setdefault((user, at), row)
    wanted = [first[key] for key in zip(requests.user_index, requests.request_time_ms, strict=True)]
    assert requests.context.tolist() == wanted
    assert len(set(wanted)) == 3

    # The released state of that moment and the live funnel's context give the offline features.
    release = load_release(next(runs.rglob("manifest.json")).parent)
    state = FunnelState.empty(
        release.items, release.config, release.meta.signals, release.meta.tasks, context=release.meta.context
    )
    column = examples.feature_names.index("item_context_device")
    names = snapshot.meta.context[0].values
    queries = np.load(next(runs.rglob("queries.npy")))
    by_context = set()
    compared = 0
    for request in replay(events, requests, state, contexts):
        rows = learned.take(learned.request_id == request)
        code = int(contexts[requests.context[request], 0])
        if not len(rows) or request % 20:
            continue
        moment = {"device": names[code - 1]} if code else {}
        online = ranking_features(
            state,
            int(requests.user_index[request]),
            int(requests.request_time_ms[request]),
            rows.item_index,
            rows.score,
            rows.rank,
            release.candidate.item_vectors,
            state.context_codes(moment),
        )
        np.testing.assert_array_equal(online, rows.features)
        user, at = int(requests.user_index[request]), int(requests.request_time_ms[request])
        inputs = [
            tower_inputs([state.history(user)], [Moment(at, user, codes)], release.config, len(release.items))
            for codes in (state.context_codes(moment), (0,))
        ]
        embedded = [ranker_query(release.candidate.embed(each))[0] for each in inputs]
        np.testing.assert_allclose(embedded[0], queries[request], atol=1e-6)
        by_context.add((bool(code), bool(np.abs(embedded[0] - embedded[1]).max() > 1e-4)))
        assert bool(np.any(online[:, column])) == bool(code)
        compared += 1
    assert compared >= 5
    assert by_context == {(False, False), (True, True)}, "the tower reads what is known, and nothing else"

    funnel = Funnel(release)
    user = funnel.known_users(1)[0]
    scores = {
        device: [item.score for item in funnel.recommend(user, 5, context=context).items]
        for device, context in (("", None), ("tv", {"device": "tv"}), ("fridge", {"device": "fridge"}))
    }
    assert scores[""] == scores["fridge"], "an unknown value is unknown"
    with pytest.raises(FieldError, match=r"context\.region"):
        funnel.recommend(user, 5, context={"region": "n"})
    totals = release.state.context_totals.copy()
    item = str(release.items.item_id[0])
    event = Event("e", "somebody new", item, "click", 1.0, release.manifest.as_of_ms, {"device": "tv"})
    funnel.apply_event(event)
    assert (release.state.context_totals - totals).tolist() == [int(value == "tv") for value in names]
    with pytest.raises(FieldError, match=r"context\.region"):
        funnel.apply_event(Event("f", "u", item, "click", 1.0, release.manifest.as_of_ms, {"region": "n"}))

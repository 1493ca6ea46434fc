"""A posted value is held to what its signal has in training; what a log holds from before is not applied."""

import json
import shutil

import numpy as np
import pytest

from cli.showcase import choose
from serving.errors import FieldError
from serving.events import LOG_FILE
from serving.release import load_release
from serving.service import NewEvent
from stages.contracts.files import read_json, write_json
from stages.contracts.value_ranges import ValueRange

RANGES = {"click": (1.0, 1.0), "like": (1.0, 5.0)}
HUGE = [1e9, -1e9, 1e29, -1e29, 0.0, 5.01, float(np.nextafter(np.float32(5), np.float32(6)))]


@pytest.fixture(scope="module")
def rated(build_once, seal_once, tmp_path_factory):
    """A release whose likes are ratings from 1 to 5."""
    directory = build_once(tmp_path_factory.mktemp("rated") / "release", "rated", 0)
    with_ranges(directory, RANGES)
    seal_once(directory, "2023-11-14-rated")
    return directory


def with_ranges(directory, ranges):
    meta = read_json(directory / "snapshot.json")
    meta["value_ranges"] = [{"signal": name, "low": low, "high": high} for name, (low, high) in ranges.items()]
    write_json(directory / "snapshot.json", meta)


def rating(value, user="u1", **fields):
    return {"user_id": user, "item_id": "i290", "signal": "like", "value": value, **fields}


def popular(client):
    answer = client.get("/v1/recommendations", params={"user_id": "nobody", "k": 20}).json()
    return [item["item_id"] for item in answer["items"]]


def test_a_value_out_of_range_is_refused_by_field_value_and_range(rated, start, over_http, tmp_path):
    client = over_http(start(rated))
    before = popular(client)
    for value in HUGE:
        answer = client.post("/v1/events", json=rating(value))
        assert answer.status_code == 422
        error = answer.json()["error"]
        assert (error["field"], error["value"], error["allowed"]) == ("value", value, "1 to 5 for signal 'like'")
    for text in ("NaN", "Infinity", "1e400", "true", '"5"', "null"):
        body = json.dumps(rating(0)).replace(": 0", f": {text}")
        answer = client.post("/v1/events", content=body, headers={"content-type": "application/json"})
        assert answer.status_code in (400, 422), text
    mixed = client.post("/v1/events", json=[rating(3), rating(7), {**rating(2), "signal": "click"}])
    assert [fault["field"] for fault in mixed.json()["error"]["faults"]] == ["events[1].value", "events[2].value"]
    assert popular(client) == before
    assert (tmp_path / "data" / LOG_FILE).read_bytes() == b""
    for value in (1, 5, 3.5):
        assert client.post("/v1/events", json=rating(value, f"fan {value}")).json()["accepted"] == 1
    shown = client.post("/v1/events", json={**rating(1e6), "signal": "impression"})
    assert shown.json()["accepted"] == 1, "nothing reads the value of an exposure"


def test_poison_in_an_old_log_is_not_replayed(rated, start, tmp_path):
    clean = start(rated, tmp_path / "clean")
    rows = [rating(value, event_id=str(place), event_time_ms=1_699_999_999_000) for place, value in enumerate(HUGE)]
    data = tmp_path / "poisoned"
    data.mkdir()
    post = {"release_id": "2023-11-14-rated", "events": rows}
    (data / LOG_FILE).write_text(json.dumps(post) + '\n{"release_id":"x","events":[' + json.dumps(rows[0])[:-1] + "\n")
    service = start(rated, data)
    registry = service.metrics.registry
    assert registry.get_sample_value("sluice_events_replayed_total", {"result": "unknown"}) == len(HUGE)
    assert registry.get_sample_value("sluice_event_log_damaged_lines") == 1
    state, untouched = service.funnel.release.state, clean.funnel.release.state
    np.testing.assert_array_equal(state.item_value_sum, untouched.item_value_sum)


def test_a_release_without_ranges_takes_them_from_its_histories(releases, start):
    """Releases of older versions; in this one every click and like has the value 1."""
    release = load_release(releases["alpha"])
    assert release.meta.value_ranges == ()
    one = {name: ValueRange(signal=name, low=1, high=1) for name in ("click", "like")}
    assert release.value_ranges == one
    service = start(releases["alpha"])
    with pytest.raises(FieldError, match="value = 1000000000"):
        service.post([NewEvent("u1", "i290", "like", 1e9)])
    assert service.post([NewEvent("u1", "i290", "like", 1.0)]).accepted == 1


@pytest.mark.parametrize(
    ("value_range", "value"),
    [((1.0, 5.0), 5.0), ((0.0, 900.0), 1.0), ((1.0, 1.0), 1.0), ((0.0, 0.5), 0.5)],
)
def test_the_demonstration_posts_a_value_that_is_allowed(releases, reseal, tmp_path, value_range, value):
    directory = shutil.copytree(releases["alpha"], tmp_path / "release")
    with_ranges(directory, {"click": value_range})
    reseal(directory, "2023-11-14-alpha")
    assert choose(load_release(directory)).value == value

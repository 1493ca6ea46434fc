"""The HTTP surface over a real server: answers, errors in one shape, hot swap under load."""

import json
import threading

import httpx
import pytest

from serving.config import ServeConfig
from serving.service import Service

AS_OF_MS = 1_700_000_000_000


class Link:
    """A source whose target is switched while the server runs."""

    def __init__(self, releases):
        self.releases, self.tag = releases, "alpha"

    def wanted(self):
        return f"2023-11-14-{self.tag}"

    def fetch(self):
        return self.releases[self.tag]


def recommend(client, user, k=10, **params):
    response = client.get("/v1/recommendations", params={"user_id": user, "k": k, **params})
    assert response.status_code == 200, response.text
    return response.json()


def click(user, item, **fields):
    return {"user_id": user, "item_id": item, "signal": "click", **fields}


def test_an_unknown_user_then_three_events(client):
    before = recommend(client, "somebody new")
    assert (before["path"], before["release_id"]) == ("popular", "2023-11-14-alpha")
    assert "explain" not in before and "explain" not in before["items"][0]
    response = client.post("/v1/events", json=[click("somebody new", f"i{n}") for n in (200, 210, 220)])
    assert response.status_code == 200
    assert {key: response.json()[key] for key in ("accepted", "duplicates")} == {"accepted": 3, "duplicates": 0}
    after = recommend(client, "somebody new")
    assert after["path"] == "funnel"
    assert [item["item_id"] for item in after["items"]] != [item["item_id"] for item in before["items"]]
    assert after["request_id"] != before["request_id"]


def test_the_explanation_is_data(client, service):
    body = recommend(client, "u2", 7, explain="true")
    assert [item["rank"] for item in body["items"]] == list(range(7))
    for item in body["items"]:
        assert list(item["explain"]) == ["candidate", "light", "heavy"]
        assert item["explain"]["heavy"] == {"score": item["score"], "rank": item["rank"]}
    counts = body["explain"]["counts"]
    assert (counts["retrieved"], counts["after_light"], counts["returned"]) == (60, 20, 7)
    assert counts["seen_excluded"] == len(service.funnel.release.state.touched(2))
    assert body["explain"]["timings_ms"]["total"] > 0


def test_one_event_alone_and_a_retry(client):
    event = click("u1", "i150", event_id="once", value=1, event_time_ms=AS_OF_MS)
    first, second = (client.post("/v1/events", json=event).json() for _ in range(2))
    assert (first["accepted"], first["duplicates"]) == (1, 0)
    assert (second["accepted"], second["duplicates"]) == (0, 1)
    assert first["event_ids"] == second["event_ids"] == ["once"]
    assert "i150" not in {item["item_id"] for item in recommend(client, "u1", 50)["items"]}


def error_of(response):
    error = response.json()["error"]
    assert set(error) == {"field", "value", "allowed", "message", "faults"}
    assert {key: error["faults"][0][key] for key in error["faults"][0]} == {
        k: v for k, v in error.items() if k != "faults"
    }
    assert "Traceback" not in response.text
    return error


@pytest.mark.parametrize(
    ("query", "field", "value", "allowed"),
    [
        ("k=5", "user_id", None, "a string of 1 to 256 characters"),
        ("user_id=", "user_id", "", "a string of 1 to 256 characters"),
        ("user_id=" + "x" * 257, "user_id", "x" * 120 + "…", "a string of 1 to 256 characters"),
        ("user_id=u&k=0", "k", 0, "an integer from 1 to 50"),
        ("user_id=u&k=51", "k", 51, "an integer from 1 to 50"),
        ("user_id=u&k=ten", "k", "ten", "an integer from 1 to the release's max_k"),
        ("user_id=u&k=" + "9" * 5000, "k", "9" * 120 + "…", "an integer from 1 to the release's max_k"),
        ("user_id=u&explain=perhaps", "explain", "perhaps", "true or false"),
        ("user_id=u&limit=3", "limit", "3", "one of the fields user_id, k, explain, context, category, max_age_days"),
        ("user_id=u&k=3&k=4", "k", "3, 4", "one value"),
        (
            "user_id=u&category=c1&category=c9",
            "category",
            "c9",
            "one of the release's 5 categories: c0, c1, c2, c3, c4",
        ),
        ("user_id=u&max_age_days=0", "max_age_days", "0", "a number of days above 0: created at most so long ago"),
        ("user_id=u&max_age_days=nan", "max_age_days", "nan", "a number of days above 0: created at most so long ago"),
        ("user_id=u&max_age_days=1&max_age_days=2", "max_age_days", "1, 2", "one value"),
    ],
)
def test_a_wrong_query(client, query, field, value, allowed):
    response = client.get(f"/v1/recommendations?{query}")
    error = error_of(response)
    assert response.status_code == 422
    assert (error["field"], error["value"], error["allowed"]) == (field, value, allowed)
    assert field in error["message"]


@pytest.mark.parametrize(
    ("event", "field", "value", "allowed"),
    [
        ({"user_id": "u", "signal": "click"}, "item_id", None, "an item id of the catalogue, a string"),
        (click(7, "i1"), "user_id", 7, "a string of 1 to 256 characters"),
        (click("u", "i1", value="1"), "value", "1", "a finite number"),
        (click("u", "i1", value=True), "value", True, "a finite number"),
        (click("u", "i1", value=float("nan")), "value", "nan", "a finite number"),
        (click("u", "i1", event_time_ms=1.5), "event_time_ms", 1.5, "an integer, ms UTC since 1970, or null for now"),
        (click("u", "i1", event_time_ms=-1), "event_time_ms", -1, "an integer, ms UTC since 1970, or null for now"),
        (click("u", "i1", event_time_ms=10**400), "event_time_ms", "an integer of 1329 bits", "int ms UTC from 0"),
        (click("u", "i1", event_time_ms=AS_OF_MS * 2), "event_time_ms", AS_OF_MS * 2, "int ms UTC from 0 (1970) to "),
        (click("u", "i1", event_id=""), "event_id", "", "a string of 1 to 128 characters, or null"),
        (click("u", "i1", note="x"), "note", "x", "one of the fields user_id, item_id, signal"),
        (click("u", "i1") | {"signal": "stare"}, "signal", "stare", "one of impression, click, like"),
        (click("u", "gone"), "item_id", "gone", "an item id of release 2023-11-14-alpha (300 items)"),
        ("text", "body", "text", "an object"),
        (None, "body", None, "an object"),
    ],
)
def test_a_wrong_event(client, event, field, value, allowed):
    for body, name in ((event, field), ([click("u", "i2"), event], f"events[1].{field}".replace(".body", ""))):
        response = client.post("/v1/events", content=json.dumps(body))
        error = error_of(response)
        assert response.status_code == 422
        assert (error["field"], error["value"]) == (name, value)
        assert error["allowed"].startswith(allowed)
    assert recommend(client, "u")["path"] == "popular"


def test_all_faults_of_a_list_are_named(client):
    body = [click("u", "i1", value="x", extra=1), click("u", "i2"), {"item_id": "i3", "signal": "click"}]
    error = error_of(client.post("/v1/events", json=body))
    assert [fault["field"] for fault in error["faults"]] == ["events[0].value", "events[0].extra", "events[2].user_id"]
    error = error_of(client.post("/v1/events", json=[click("u", "x"), click("u", "i2"), click("u", "y")]))
    assert [fault["field"] for fault in error["faults"]] == ["events[0].item_id", "events[2].item_id"]
    assert recommend(client, "u")["path"] == "popular"


@pytest.mark.parametrize(
    ("body", "status", "field"),
    [
        (b"", 400, "body"),
        (b"{", 400, "body"),
        (b'{"user_id": "\xff"}', 400, "body"),
        (b'{"user_id": "\\ud800"}', 400, "body"),
        (b"[" * 100_000, 400, "body"),
        (b"[]", 422, "events"),
        (json.dumps([click("u", "i1")] * 1001).encode(), 422, "events"),
        (b" " * ((1 << 20) + 1), 413, "body"),
    ],
)
def test_a_body_that_is_no_post(client, body, status, field):
    response = client.post("/v1/events", content=body)
    assert (response.status_code, error_of(response)["field"]) == (status, field)


def test_a_query_on_a_post(client):
    response = client.post("/v1/events?dry_run=1", json=click("u", "i1"))
    assert (response.status_code, error_of(response)["field"]) == (422, "dry_run")


@pytest.mark.parametrize(
    ("method", "path", "status", "field", "allowed"),
    [
        ("GET", "/", 404, "path", "/v1/recommendations, "),
        ("GET", "/healthz/", 404, "path", "/v1/recommendations, "),
        ("GET", "/docs", 404, "path", "/v1/recommendations, "),
        ("GET", "/redoc", 404, "path", "/v1/recommendations, "),
        ("POST", "/v1/recommendations", 405, "method", "GET for /v1/recommendations"),
        ("GET", "/v1/events", 405, "method", "POST for /v1/events"),
    ],
)
def test_a_wrong_path_or_method(client, method, path, status, field, allowed):
    response = client.request(method, path)
    error = error_of(response)
    assert (response.status_code, error["field"]) == (status, field)
    assert error["allowed"].startswith(allowed)


def test_probes_and_metrics(client):
    assert client.get("/healthz").json() == {"alive": True}
    ready = client.get("/readyz")
    assert (ready.status_code, ready.json()["ready"], ready.json()["refresh_error"]) == (200, True, None)
    recommend(client, "u1")
    client.post("/v1/events", json=click("u1", "i150"))
    client.get("/secret/12345")
    text = client.get("/metrics").text
    assert 'sluice_requests_total{path="/v1/recommendations",status="200"} 1.0' in text
    assert 'sluice_requests_total{path="other",status="404"} 1.0' in text
    assert 'sluice_release_info{release_id="2023-11-14-alpha"} 1.0' in text
    assert 'sluice_answers_total{path="funnel"} 1.0' in text
    assert 'sluice_events_total{result="accepted"} 1.0' in text
    assert 'sluice_stage_seconds_count{stage="heavy"} 1.0' in text
    assert "12345" not in text


def test_the_openapi_description(client):
    paths = client.get("/openapi.json").json()["paths"]
    assert set(paths) == {"/v1/recommendations", "/v1/events", "/healthz", "/readyz", "/metrics"}
    names = {entry["name"] for entry in paths["/v1/recommendations"]["get"]["parameters"]}
    assert names == {"user_id", "k", "explain", "context", "category", "max_age_days"}


def test_without_a_release_the_server_is_alive_but_not_ready(over_http):
    client = over_http(Service(None, None))
    assert client.get("/healthz").status_code == 200
    assert (client.get("/readyz").status_code, client.get("/readyz").json()["reason"]) == (503, "no release is loaded")
    response = client.get("/v1/recommendations?user_id=u")
    assert (response.status_code, "no release" in error_of(response)["message"]) == (503, True)


def test_a_funnel_that_breaks_shows_no_traceback(service, client, monkeypatch):
    def broken(*args):
        raise ZeroDivisionError("secret detail")

    monkeypatch.setattr(service.funnel.release.candidate, "search", broken)
    response = client.get("/v1/recommendations?user_id=u1")
    assert (response.status_code, "internal error" in error_of(response)["message"]) == (500, True)
    assert "secret" not in response.text
    ready = client.get("/readyz")
    assert (ready.status_code, ready.json()["reason"].split(";")[0]) == (503, "a sampled request failed")
    assert "secret" not in ready.text


def test_a_swap_under_load_never_mixes_releases(releases, start, over_http):
    link = Link(releases)
    service = start(link, config=ServeConfig(poll_seconds=0, clock="data", ready_users=2))
    base = over_http(service).base_url
    stop, answers, faults = threading.Event(), [], []

    def ask(user):
        with httpx.Client(base_url=base, trust_env=False, timeout=10) as client:
            posted = 0
            while not stop.is_set():
                response = client.get("/v1/recommendations", params={"user_id": user, "k": 20, "explain": "true"})
                (answers if response.status_code == 200 else faults).append(response.json())
                if posted < 100:
                    response = client.post("/v1/events", json=click(user, f"i{posted}"))
                    posted += response.json()["accepted"]

    askers = [threading.Thread(target=ask, args=(user,)) for user in ("u1", "new")]
    for asker in askers:
        asker.start()
    for turn in range(4):
        link.tag = ("beta", "alpha")[turn % 2]
        assert service.refresh() is True
        stop.wait(0.2)
    stop.set()
    for asker in askers:
        asker.join()
    assert faults == []
    assert {answer["release_id"][11:] for answer in answers} == {"alpha", "beta"}
    for answer in answers:
        assert {item["title"].split()[0] for item in answer["items"]} == {answer["release_id"][11:]}
    seen = {
        user: [a["explain"]["counts"]["seen_excluded"] for a in answers if a["user_id"] == user] for user in ("new",)
    }
    assert seen["new"] == sorted(seen["new"]), "an event that was acknowledged got lost in a swap"

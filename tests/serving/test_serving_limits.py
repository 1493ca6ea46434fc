"""Requests that ask for long answers: few faults are named, all are counted, and nothing is taken."""

import json

import pytest

from serving.errors import MAX_NAMED

FEW_KB = 12_000
FACE = "\N{GRINNING FACE}"
GOOD = {"user_id": "u", "item_id": "i1", "signal": "click"}
MANY = {f"f{number:05d}": 0 for number in range(70_000)}
ALL_WRONG = {"user_id": 1, "item_id": 2, "signal": 3, "value": "x", "event_id": 4, "context": 5, "more": 6}


@pytest.fixture
def client(releases, start, over_http):
    return over_http(start(releases["alpha"]))


def faults_of(response, status=422):
    assert response.status_code == status, response.text[:500]
    assert len(response.content) < FEW_KB
    error = response.json()["error"]
    faults = error.pop("faults")
    assert error == faults[0]
    return faults


@pytest.mark.parametrize(
    ("body", "total", "first"),
    [
        (GOOD | MANY, 70_000, "f00000"),
        ([GOOD | {"a": 1}] * 1000, 1000, "events[0].a"),
        ([ALL_WRONG] * 1000, 7000, "events[0].user_id"),
        ([None] * 1000, 1000, "events[0]"),
        ([{}] * 1000, 3000, "events[0].user_id"),
        ([GOOD | {"item_id": "x" * 900}] * 1000, 1000, "events[0].item_id"),
        ([GOOD | {"context": {f"c{number}": "x" for number in range(32)}}] * 500, 16_000, "events[0].context.c0"),
        (
            [{FACE * 90 + str(number): FACE * 200} for number in range(99)],
            396,
            "events[0]",
        ),
    ],
)
def test_many_faults_of_a_post_are_counted_and_few_are_named(client, body, total, first):
    faults = faults_of(client.post("/v1/events", content=json.dumps(body)))
    assert faults[0]["field"].startswith(first)
    assert 1 < len(faults) <= MAX_NAMED + 1
    assert (faults[-1]["field"], faults[-1]["value"]) == ("", total)
    assert faults[-1]["message"] == f"{total} faults in all, of which the first {len(faults) - 1} are named"
    assert client.get("/v1/recommendations?user_id=u").json()["path"] == "popular"


@pytest.mark.parametrize(
    ("body", "field", "value"),
    [
        (json.dumps(GOOD | {"context": MANY}), "context", "an object of 70000 fields"),
        (json.dumps(GOOD | {"user_id": MANY}), "user_id", "an object of 70000 fields"),
        (json.dumps(GOOD | {"user_id": [0] * 300_000}), "user_id", "a list of 300000 values"),
        (json.dumps(GOOD | {"x" * 900_000: 0}), "x" * 120 + "…", 0),
        (json.dumps(GOOD | {"signal": "s" * 900_000}), "signal", "s" * 120 + "…"),
        ('{"user_id": [' + "9" * 4000 + "]}", "user_id", "a list of 1 values"),
        ('{"user_id": ' + "[" * 190 + "]" * 190 + "}", "user_id", "a list of 1 values"),
        ('{"user_id": "a", "user_id": "b", "item_id": "i1", "signal": "click"}', "user_id", "b"),
        (json.dumps([GOOD])[:-2] + ', "context": {"a": "1", "a": "2"}}]', "a", "2"),
    ],
)
def test_long_deep_and_repeated_fields_are_cut_short(client, body, field, value):
    fault = faults_of(client.post("/v1/events", content=body))[0]
    assert (fault["field"], fault["value"]) == (field, value)
    assert client.get("/v1/recommendations?user_id=u").json()["path"] == "popular"


@pytest.mark.parametrize("body", [b'{"user_id": ' + b"9" * 900_000 + b"}", b"{" + b"x" * 900_000, b"[" * 900_000])
def test_a_long_body_that_is_no_json_is_not_sent_back(client, body):
    assert faults_of(client.post("/v1/events", content=body), 400)[0]["field"] == "body"


@pytest.mark.parametrize("name", ["context", "category"])
def test_a_parameter_may_be_repeated_a_limited_number_of_times(client, name):
    pairs = [f"{name}=n{number}:x" for number in range(33)]
    faults = faults_of(client.get("/v1/recommendations?user_id=u&" + "&".join(pairs)))
    assert [(fault["field"], fault["value"]) for fault in faults] == [(name, "a list of 33 values")]
    assert "at most 32 times" in faults[0]["allowed"]
    faults = faults_of(client.get("/v1/recommendations?user_id=u&" + "&".join(pairs[:32])))
    assert faults[0]["field"].startswith(name) and faults[-1]["value"] == 32  # none of them exists


@pytest.mark.parametrize("query", ["&".join(["category=x"] * 5400), "&".join(f"p{n}=1" for n in range(101)), "&" * 100])
@pytest.mark.parametrize("path", ["/v1/recommendations", "/healthz", "/nowhere"])
def test_the_number_of_parameters_is_limited_before_they_are_read(client, path, query):
    (fault,) = faults_of(client.get(f"{path}?{query}"))
    assert (fault["field"], fault["allowed"]) == ("query", "at most 16384 bytes and 100 parameters")


def test_the_length_of_a_query_is_limited(client):
    assert faults_of(client.get("/v1/recommendations?user_id=" + "x" * 16_000))[0]["field"] == "user_id"
    (fault,) = faults_of(client.get("/v1/recommendations?user_id=" + "x" * 16_384))
    assert (fault["field"], fault["value"]) == ("query", "16392 bytes, 1 parameters")


def test_a_long_path_is_cut_short(client):
    assert faults_of(client.get("/" + "x" * 30_000), 404)[0]["value"] == "/" + "x" * 119 + "…"

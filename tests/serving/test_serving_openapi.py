"""The OpenAPI description: valid, complete, and true of a real server's answers.

Schemathesis makes requests from the description, right and wrong ones, and holds every answer against it. One of
its checks is left out: that a request which fits the description is never refused, for what an id, a category
or a signal may be depends on the release.
"""

import copy

import httpx
import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, given, settings
from jsonschema import Draft202012Validator
from openapi_spec_validator import OpenAPIV31SpecValidator
from schemathesis import GenerationMode
from schemathesis.specs.openapi.checks import positive_data_acceptance

from serving.config import ServeConfig
from serving.events import EventLog
from serving.release_source import DirectorySource
from serving.schema import MAX_BODY_BYTES
from serving.service import Service
from stages.candidate.generators.config import SourcesConfig
from stages.contracts.errors import TransientError

GOOD = {"user_id": "u", "item_id": "i1", "signal": "click"}
ASK, POST = "/v1/recommendations", "/v1/events"


@pytest.fixture
def described(client):
    return client.get("/openapi.json").json()


def closed(schema):
    """Return the schema with no room for properties that it does not name."""
    if isinstance(schema, dict):
        schema = {key: closed(value) for key, value in schema.items()}
        if "properties" in schema:
            schema.setdefault("additionalProperties", False)
    elif isinstance(schema, list):
        schema = [closed(value) for value in schema]
    return schema


def is_as_described(described, response):
    """Hold one answer of the server against the description of its operation."""
    request = response.request
    told = described["paths"][request.url.path][request.method.lower()]["responses"][str(response.status_code)]
    kind = response.headers["content-type"].partition(";")[0]
    schema = copy.deepcopy(told["content"][kind]["schema"])
    body = response.json() if kind == "application/json" else response.text
    Draft202012Validator(closed({**schema, "components": described["components"]})).validate(body)
    for name in told.get("headers", {}):
        assert name in response.headers
    return told


def raising(error):
    def fails(*_):
        raise error

    return fails


def test_the_description_is_valid_and_every_reference_leads_somewhere(described):
    assert described["openapi"].startswith("3.1")
    assert list(OpenAPIV31SpecValidator(described).iter_errors()) == []
    names, text = set(described["components"]["schemas"]), str(described)
    assert {part.split("'")[0] for part in text.split("#/components/schemas/")[1:]} == names
    assert "$defs" not in text and "HTTPValidationError" not in text


def test_what_is_sent_in_usual_cases_is_described(described, client):
    for query in ({"user_id": "u1"}, {"user_id": "nobody"}, {"user_id": "u1", "explain": "true", "category": "c1"}):
        is_as_described(described, client.get(ASK, params=query))
    for body in (GOOD, [GOOD | {"event_id": "e", "value": 2}, GOOD | {"event_time_ms": 5, "context": {}}]):
        is_as_described(described, client.post(POST, json=body))
    for path in ("/healthz", "/readyz", "/metrics"):
        is_as_described(described, client.get(path))


def test_the_explanation_of_several_sources_is_described(described, tmp_path, make_release, start, over_http):
    sources = SourcesConfig(names=("tower", "covisitation", "content"))
    client = over_http(start(make_release(tmp_path / "blend", "blend", 0, sources), tmp_path / "blended"))
    response = client.get(ASK, params={"user_id": "u1", "explain": "true"})
    is_as_described(described, response)
    assert all("sources" in item for item in response.json()["items"])


def test_errors_are_described(described, client, service, monkeypatch):
    posts = {400: b"{", 413: b" " * (MAX_BODY_BYTES + 1), 422: b"[]"}
    for status, content in posts.items():
        response = client.post(POST, content=content)
        assert response.status_code == status
        is_as_described(described, response)
    for path in described["paths"]:
        (method,) = described["paths"][path]
        assert {"404", "405", "422", "500"} <= set(described["paths"][path][method]["responses"])
        response = client.request(method, path + "?" + "a&" * 200)
        assert response.status_code == 422
        is_as_described(described, response)

    for kind, status in ((TransientError, 503), (RuntimeError, 500)):
        monkeypatch.setattr(service.funnel.release.candidate, "search", raising(kind("no")))
        monkeypatch.setattr(EventLog, "append", raising(kind("no")))
        for response in (client.get(ASK, params={"user_id": "u1"}), client.post(POST, json=GOOD)):
            assert response.status_code == status
            is_as_described(described, response)
    assert client.get("/readyz").status_code == 503
    is_as_described(described, client.get("/readyz"))


@pytest.mark.parametrize("method", ["get", "post", "put", "delete", "patch", "head", "options"])
def test_paths_and_methods_that_do_not_exist_get_the_described_error(described, client, method):
    error = {"$ref": "#/components/schemas/ErrorBody", "components": described["components"]}
    for path in (*described["paths"], "/nowhere"):
        if method in described["paths"].get(path, {}):
            continue
        response = client.request(method, path)
        assert response.status_code == (404 if path == "/nowhere" else 405)
        if method != "head":
            Draft202012Validator(closed(error)).validate(response.json())


def test_a_server_without_a_release_answers_as_described(described, over_http):
    client = over_http(Service(None, None))
    for path in ("/readyz", f"{ASK}?user_id=u"):
        response = client.get(path)
        assert response.status_code == 503
        is_as_described(described, response)


@pytest.fixture(scope="module")
def schema(releases, tmp_path_factory, serve_once):
    """What Schemathesis loads from a server of its own: its events must not disturb other tests."""
    config = ServeConfig(poll_seconds=0, clock="data", ready_users=3)
    service = Service(DirectorySource(releases["alpha"]), EventLog(tmp_path_factory.mktemp("data")), config)
    service.start()
    with serve_once(service) as client:
        yield schemathesis.openapi.from_url(str(client.base_url.join("/openapi.json")))
    service.stop()


@pytest.mark.parametrize("mode", GenerationMode)
@pytest.mark.parametrize(("path", "method"), [(ASK, "GET"), (POST, "POST")])
def test_requests_made_from_the_description(schema, path, method, mode):
    session = requests.Session()
    session.trust_env = False

    @settings(max_examples=50, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
    @given(case=schema[path][method].as_strategy(generation_mode=mode))
    def answers_are_as_described(case):
        case.call_and_validate(excluded_checks=[positive_data_acceptance], session=session)

    with session:
        answers_are_as_described()


def test_posts_change_the_answers_and_all_are_as_described(schema):
    """A history that the description cannot make by itself: real items, repeated ids, the answers in between."""
    described = schema.raw_schema
    with httpx.Client(base_url=schema.get_base_url(), trust_env=False, timeout=10) as client:
        for number in range(20):
            event = GOOD | {"user_id": "historic", "item_id": f"i{number}", "event_id": f"h{number // 2}"}
            response = client.post(POST, json=event)
            assert response.json()["accepted"] == 1 - number % 2
            is_as_described(described, response)
            response = client.get(ASK, params={"user_id": "historic", "k": 50, "explain": "true"})
            is_as_described(described, response)
            assert response.json()["path"] == "funnel"

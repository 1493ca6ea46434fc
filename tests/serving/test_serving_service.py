"""Restart, hot swap and refusal: nothing posted is lost, the old release serves until the new one can."""

import json
import shutil
from types import SimpleNamespace

import pytest

import serving.service
from serving.clock import wall_clock_ms
from serving.config import ServeConfig
from serving.errors import FieldError
from serving.events import LOG_FILE
from serving.release import load_release
from serving.release_source import RegistrySource
from serving.service import NewEvent
from stages.contracts.errors import ReleaseError, RequestError, TransientError
from stages.contracts.files import read_json, write_json

AS_OF_MS = 1_700_000_000_000


class Switch:
    """A registry of two releases with one alias."""

    def __init__(self, releases):
        self.releases = releases
        self.champion = "alpha"

    def resolve(self, alias):
        assert alias == "champion"
        return SimpleNamespace(release_id=f"2023-11-14-{self.champion}")

    def pull_verified(self, alias, cache_dir):
        return self.releases[self.champion]

    def last_pulled(self, alias, cache_dir):
        return None


@pytest.fixture
def switch(releases):
    return Switch(dict(releases))


def source_of(switch, tmp_path):
    return RegistrySource(switch, "champion", tmp_path)


def items_of(answer):
    return [(item.item_id, item.score) for item in answer.items]


def metric(service, name, **labels):
    return service.metrics.registry.get_sample_value(name, labels) or 0.0


def post(service, user, *items, **fields):
    return service.post([NewEvent(user_id=user, item_id=item, signal="click", **fields) for item in items])


def test_events_survive_a_restart(releases, start, tmp_path):
    first = start(releases["alpha"], tmp_path / "one")
    before = first.funnel.clock()
    post(first, "new", "i8", "i9")
    post(first, "u3", "i250", event_time_ms=AS_OF_MS - 10_000)  # late, and older than the release
    moment = first.funnel.clock()
    wanted = [items_of(first.funnel.recommend(user, 20, moment)) for user in ("new", "u3", "u4")]
    first.stop()
    second = start(releases["alpha"], tmp_path / "one")
    assert [items_of(second.funnel.recommend(user, 20, moment)) for user in ("new", "u3", "u4")] == wanted
    assert metric(second, "sluice_events_replayed_total", result="applied") == 3
    assert second.funnel.clock() >= before, "the clock of old data goes on from the newest event"


def test_a_repeated_event_id_changes_nothing(releases, start, tmp_path):
    service = start(releases["alpha"])
    first = post(service, "new", "i8", event_id="once")
    length = (tmp_path / "data" / LOG_FILE).stat().st_size
    moment = service.funnel.clock()
    answer = items_of(service.funnel.recommend("new", 10, moment))
    again = service.post(
        [NewEvent("new", "i9", "click", event_id="once"), NewEvent("new", "gone", "click", event_id="once")]
    )
    assert (first.accepted, first.duplicates, first.event_ids) == (1, 0, ("once",))
    assert (again.accepted, again.duplicates) == (0, 2)
    assert (tmp_path / "data" / LOG_FILE).stat().st_size == length
    assert items_of(service.funnel.recommend("new", 10, moment)) == answer


def test_an_id_twice_in_one_post_counts_once(releases, start):
    receipt = start(releases["alpha"]).post([NewEvent("new", "i8", "click", event_id="x")] * 2)
    assert (receipt.accepted, receipt.duplicates) == (1, 1)


def test_an_event_id_is_the_users_own(releases, start, tmp_path):
    service = start(releases["alpha"])
    receipts = [post(service, user, "i8", event_id="1") for user in ("anna", "ben", "anna")]
    assert [(one.accepted, one.duplicates) for one in receipts] == [(1, 0), (1, 0), (0, 1)]
    both = service.post([NewEvent(user, "i9", "click", event_id="2") for user in ("anna", "ben", "anna")])
    assert (both.accepted, both.duplicates) == (2, 1)
    service.stop()
    again = start(releases["alpha"])
    assert [post(again, user, "i8", event_id="1").accepted for user in ("anna", "ben", "cleo")] == [0, 0, 1]
    for user in ("anna", "ben"):
        assert not {"i8", "i9"} & {item.item_id for item in again.recommend(user, 50).items}


def test_one_wrong_event_refuses_the_post(releases, start, tmp_path):
    service = start(releases["alpha"])
    events = [NewEvent("new", "i8", "click"), NewEvent("new", "gone", "click"), NewEvent("new", "i9", "stare")]
    with pytest.raises(FieldError) as caught:
        service.post(events, ["events[0].", "events[1].", "events[2]."])
    assert [fault.field for fault in caught.value.faults] == ["events[1].item_id", "events[2].signal"]
    assert (tmp_path / "data" / LOG_FILE).read_bytes() == b""
    assert service.recommend("new", 5).path == "popular"
    assert metric(service, "sluice_event_posts_refused_total") == 1


def test_a_failing_log_applies_nothing(releases, start, monkeypatch):
    service = start(releases["alpha"])

    def full(file):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("serving.events.os.fsync", full)
        with pytest.raises(TransientError, match="No space left"):
            post(service, "new", "i8")
    assert service.recommend("new", 5).path == "popular"
    assert post(service, "new", "i8").accepted == 1


def test_a_promotion_swaps_and_keeps_what_was_posted(switch, start, tmp_path):
    service = start(source_of(switch, tmp_path))
    post(service, "new", "i8", "i9")
    assert service.refresh() is False
    switch.champion = "beta"
    assert service.refresh() is True
    answer = service.recommend("new", 20)
    assert (answer.release_id, answer.path) == ("2023-11-14-beta", "funnel")
    assert all(item.title.startswith("beta ") for item in answer.items)
    assert not {"i8", "i9"} & {item.item_id for item in answer.items}
    assert metric(service, "sluice_release_info", release_id="2023-11-14-beta") == 1
    assert metric(service, "sluice_release_info", release_id="2023-11-14-alpha") == 0
    switch.champion = "alpha"
    assert service.refresh() is True
    assert not {"i8", "i9"} & {item.item_id for item in service.recommend("new", 20).items}


def test_an_event_posted_while_a_release_loads_is_in_both(switch, start, tmp_path, monkeypatch):
    service = start(source_of(switch, tmp_path))

    def load_slowly(directory):
        release = load_release(directory)
        post(service, "early", "i8")
        return release

    known_users = serving.service.Funnel.known_users

    def known_users_slowly(self, limit):
        post(service, "late", "i8")  # the log was replayed already, the reference not yet swapped
        return known_users(self, limit)

    monkeypatch.setattr(serving.service, "load_release", load_slowly)
    monkeypatch.setattr(serving.service.Funnel, "known_users", known_users_slowly)
    switch.champion = "beta"
    assert service.refresh() is True
    for user in ("early", "late"):
        answer = service.recommend(user, 5, explain=True)
        assert (answer.release_id, answer.path, answer.counts["seen_excluded"]) == ("2023-11-14-beta", "funnel", 1)


@pytest.mark.parametrize("fault", ["corrupt", "gone", "code", "registry"])
def test_a_release_that_cannot_be_loaded_leaves_the_old_one(switch, start, reseal, tmp_path, fault, caplog):
    service = start(source_of(switch, tmp_path))
    switch.champion = "beta"
    if fault == "registry":
        switch.resolve = lambda alias: (_ for _ in ()).throw(ConnectionError("registry is away"))
    else:
        switch.releases["beta"] = shutil.copytree(switch.releases["beta"], tmp_path / "broken")
        if fault == "corrupt":
            (tmp_path / "broken" / "light_ranker.txt").write_text("tree")
        elif fault == "code":
            path = tmp_path / "broken" / "feature_schema.json"
            write_json(path, {**read_json(path), "code": "0" * 64})
            reseal(tmp_path / "broken", "2023-11-14-beta")
        else:
            (tmp_path / "broken" / "manifest.json").unlink()
    assert service.refresh() is False
    found = service.readiness()
    assert found.ready and found.release_id == "2023-11-14-alpha"
    words = {"corrupt": "light_ranker.txt: sha256", "gone": "without a manifest", "registry": "registry is away"}
    words["code"] = "its features were computed by other code (000000000000…)"
    assert words[fault] in caplog.text
    said = "does not answer" if fault == "registry" else "not whole"
    assert said in found.refresh_error and words[fault] not in found.refresh_error
    assert str(tmp_path) not in found.refresh_error
    assert metric(service, "sluice_reload_failures_total") == 1
    assert service.recommend("u1", 5).release_id == "2023-11-14-alpha"
    switch.champion = "alpha"
    if fault != "registry":
        assert service.refresh() is False
        assert service.readiness().refresh_error is None


def test_a_corrupt_release_is_never_started(releases, start, tmp_path):
    broken = shutil.copytree(releases["alpha"], tmp_path / "broken")
    (broken / "heavy_ranker.onnx").write_bytes(b"")
    with pytest.raises(ReleaseError, match=r"heavy_ranker\.onnx: sha256"):
        start(broken)


def test_before_the_start_there_is_no_answer(releases, start, tmp_path):
    service = serving.service.Service(None, None)
    assert (service.readiness().ready, service.readiness().reason) == (False, "no release is loaded")
    with pytest.raises(RequestError) as caught:
        service.recommend("u1", 5)
    assert caught.value.status == 503


def test_only_new_knowledge_of_another_release_is_replayed(releases, start, tmp_path):
    """Events before the as-of time: a pair that the state holds is left out, another one is taken."""
    held = load_release(releases["alpha"]).state.touched(0)[0]
    fields = {"user_id": "u0", "value": 1.0, "event_time_ms": AS_OF_MS - 5}
    rows = [
        {"event_id": "held", "item_id": f"i{held}", "signal": "click", **fields},
        {"event_id": "late", "item_id": "i298", "signal": "click", **fields},
        {"event_id": "shown", "item_id": "i297", "signal": "impression", **fields},
        {"event_id": "gone", "item_id": "withdrawn", "signal": "click", **fields},
        {"event_id": "new", "item_id": "i296", "signal": "impression", **fields, "event_time_ms": AS_OF_MS},
    ]
    data = tmp_path / "data"
    data.mkdir()
    (data / LOG_FILE).write_text(json.dumps({"release_id": "older", "events": rows}) + "\n")
    service = start(releases["alpha"])
    results = {
        name: metric(service, "sluice_events_replayed_total", result=name)
        for name in ("applied", "contained", "unknown")
    }
    assert results == {"applied": 2, "contained": 2, "unknown": 1}
    assert 298 in service.funnel.release.state.touched(0)


def test_old_data_is_served_by_its_own_clock(releases, start, tmp_path):
    config = ServeConfig(poll_seconds=0, ready_users=2)
    data = start(releases["alpha"], tmp_path / "a", config)
    assert data.readiness().clock == "data"
    assert 0 <= data.funnel.clock() - AS_OF_MS < 600_000
    wall = start(releases["alpha"], tmp_path / "b", config.model_copy(update={"clock": "wall"}))
    assert wall.readiness().clock == "wall"
    assert abs(wall.funnel.clock() - wall_clock_ms()) < 60_000


def test_the_data_clock_does_not_go_back_behind_the_log(releases, start, tmp_path):
    first = start(releases["alpha"], tmp_path / "one")
    post(first, "new", "i8", event_time_ms=first.funnel.clock() + 50_000)
    newest = max(event.event_time_ms for logged in first._log.posts() for event in logged.events)
    first.stop()
    assert start(releases["alpha"], tmp_path / "one").funnel.clock() >= newest


@pytest.fixture
def fresh(make_release, reseal, tmp_path):
    """A release whose as-of time is a minute ago."""
    directory = make_release(tmp_path / "fresh", "fresh", 1)
    as_of_ms = wall_clock_ms() - 60_000
    meta = read_json(directory / "snapshot.json")
    meta["borders"]["as_of_ms"] = as_of_ms
    write_json(directory / "snapshot.json", meta)
    reseal(directory, "2023-11-14-fresh", as_of_ms=as_of_ms)
    return directory


def test_the_clock_is_chosen_for_each_release(switch, fresh, start, tmp_path):
    switch.releases["fresh"] = fresh
    service = start(source_of(switch, tmp_path), config=ServeConfig(poll_seconds=0, ready_users=2))
    assert service.readiness().clock == "data"
    post(service, "early", "i8")
    switch.champion = "fresh"
    assert service.refresh() is True
    assert service.readiness().clock == "wall"
    assert post(service, "new", "i9", event_time_ms=wall_clock_ms()).accepted == 1
    assert abs(service.recommend("new", 5).time_ms - wall_clock_ms()) < 60_000
    switch.champion = "alpha"
    assert service.refresh() is True
    assert service.readiness().clock == "data"
    assert service.funnel.clock() >= wall_clock_ms() - 60_000, "time does not go back behind the log"


def test_a_release_that_cannot_be_loaded_leaves_the_clock(switch, start, tmp_path):
    service = start(source_of(switch, tmp_path), config=ServeConfig(poll_seconds=0, clock="data", ready_users=2))
    before = service.funnel.clock()
    switch.releases["beta"] = shutil.copytree(switch.releases["beta"], tmp_path / "broken")
    (tmp_path / "broken" / "light_ranker.txt").write_text("tree")
    switch.champion = "beta"
    assert service.refresh() is False
    assert before <= service.funnel.clock() < before + 600_000


def test_polling_finds_a_promotion(switch, start, tmp_path):
    service = start(source_of(switch, tmp_path), config=ServeConfig(poll_seconds=0.01, clock="data", ready_users=1))
    switch.champion = "beta"
    for _ in range(3000):
        if service.funnel.release_id.endswith("beta"):
            break
        service._stopping.wait(0.01)
    assert service.recommend("u1", 3).release_id == "2023-11-14-beta"

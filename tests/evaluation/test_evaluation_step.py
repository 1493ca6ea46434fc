"""The step on a hand-made snapshot: items 0 and 1 are popular, each user wants item 2 + user % 6."""

import json
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from stages.contracts.config import parse_config
from stages.contracts.errors import ConfigError, DataError, EmptyDatasetError
from stages.contracts.files import write_json
from stages.contracts.ledger import JudgedRequests, request_key
from stages.contracts.ranking_stages import RANKING_STAGES
from stages.contracts.snapshot import Task
from stages.contracts.tables import PART_EVALUATION, PART_RANKER, CandidateTable, RankedTable
from stages.evaluation.evaluate import EvaluationConfig, evaluate, history_slices
from stages.evaluation.report import render_ledger, write_html
from tests.builders.snapshots import catalogue, event_table, request_table, write_snapshot

N_USERS, N_ITEMS, N_OLD = 40, 8, 30
CONFIG = EvaluationConfig(ks=(2, 4), candidate_k=6, bootstrap_samples=200, seed=1, half_life_days=1.0)


def wanted_item(user: int) -> int:
    return 2 + user % 6


def write_world(directory, with_targets=True):
    rows = [(user, item, 10 * user + item) for user in range(N_OLD) for item in (0, 1)]
    rows += [(user, wanted_item(user), 700) for user in range(N_USERS)]
    user, item, time = np.array(sorted(rows, key=lambda row: row[2])).T
    # the first request belongs to the rankers, the last one has no target
    users = [0, *range(N_USERS), 0]
    part = [PART_RANKER, *[PART_EVALUATION] * (N_USERS + 1)]
    requests = np.arange(N_USERS + 1 if with_targets else 1)
    return write_snapshot(
        directory,
        (0, 400, 500, 1000),
        signals=["view"],
        tasks=[Task(name="view", signals=("view",), relevance=1.0)],
        categories=["none"],
        events=event_table(user, item, time, np.where(time < 500, 0, PART_EVALUATION)),
        requests=request_table(users, [450, *[600] * N_USERS, 900], part),
        targets={"request_id": requests, "item_index": [wanted_item(users[request]) for request in requests]},
        items=catalogue(N_ITEMS, categories=[[0]] * N_ITEMS, duration_s=np.ones(N_ITEMS)),
        users=[f"u{user}" for user in range(N_USERS)],
    )


def write_ranking(directory, name, order_for, kind=RankedTable):
    directory.mkdir(exist_ok=True)
    rows = [(request, item, rank) for request in range(N_USERS + 1) for rank, item in enumerate(order_for(request - 1))]
    request, item, rank = np.array(rows, dtype=np.int64).T
    columns = {
        "request_id": request.copy(),
        "item_index": item.copy(),
        "score": -rank.astype(np.float32),
        "rank": rank.astype(np.int32),
    }
    if kind is CandidateTable:
        columns["source"] = np.zeros(len(rows), dtype=np.int8)
    kind(**columns).write(directory / name)
    return directory


def write_rankings(directory, **order_for):
    """Write what the step ``rank_held_out`` would."""
    for name, order in order_for.items():
        write_ranking(directory, f"{name}.parquet", order)
    return directory


def second_place(user):
    others = [item for item in range(2, N_ITEMS) if item != wanted_item(user)]
    return [others[0], wanted_item(user), *others[1:]]


def first_place(user):
    return [wanted_item(user)]


@pytest.fixture
def inputs(tmp_path):
    return {
        "snapshot": write_world(tmp_path / "snapshot"),
        "retrieve": write_ranking(tmp_path / "retrieve", "candidates.parquet", second_place, CandidateTable),
        "held_out": write_rankings(tmp_path / "held_out", light=first_place, heavy=second_place),
        "light": tmp_path / "light",
        "heavy": tmp_path / "heavy",
    }


@pytest.fixture
def ledger(inputs, tmp_path):
    (tmp_path / "out").mkdir()
    evaluate(CONFIG, inputs, tmp_path / "out")
    return json.loads((tmp_path / "out" / "ledger.json").read_text())


def row_of(ledger, name):
    return next(row for row in ledger["rows"] if row["name"] == name)


def test_every_row_has_its_known_answer(ledger):
    second = 1 / np.log2(3)
    assert [row["name"] for row in ledger["rows"]] == ["popularity", "trending", "candidates", "light", "heavy"]
    assert row_of(ledger, "candidates")["metrics"]["ndcg@2"] == pytest.approx(second)
    assert row_of(ledger, "light")["metrics"]["ndcg@2"] == 1.0
    assert row_of(ledger, "light")["metrics"]["mrr@2"] == 1.0
    assert row_of(ledger, "heavy")["metrics"]["mrr@2"] == 0.5
    assert row_of(ledger, "candidates")["metrics"]["recall@6"] == 1.0
    # old users have seen 0 and 1 and are left with 2..7 by index: users that want 2 or 3 are served
    served = sum(wanted_item(user) in (2, 3) for user in range(N_OLD)) / N_USERS
    assert row_of(ledger, "popularity")["metrics"]["recall@2"] == pytest.approx(served)
    assert ledger["counts"] == {
        "requests": 40,
        "requests_without_targets": 1,
        "users": 40,
        "targets": 40,
        "items": 8,
        "head_items": 1,
    }


def test_the_ledger_says_where_a_stage_loses(ledger):
    assert {row["name"]: row["verdict"] for row in ledger["rows"]}["light"] == "gains"
    heavy = row_of(ledger, "heavy")
    assert (heavy["verdict"], heavy["against"]) == ("loses", "light")
    assert heavy["gain"]["high"] < 0
    assert heavy["gain"]["value"] == pytest.approx(1 / np.log2(3) - 1)
    assert heavy["gain_over_popularity"]["verdict"] == "gains"
    assert row_of(ledger, "candidates")["against"] == "popularity"
    assert "loses to light" in render_ledger(ledger)


def test_slices_divide_the_requests(ledger):
    slices = {part["name"]: part["requests"] for part in ledger["slices"]}
    assert (slices["warm users"], slices["new users"]) == (N_OLD, N_USERS - N_OLD)
    assert (slices["history 0"], slices["history 2-5"]) == (N_USERS - N_OLD, N_OLD)
    assert sum(count for name, count in slices.items() if name.startswith("history")) == N_USERS
    by_name = {part["name"]: part for part in ledger["slices"]}
    assert by_name["history >20"]["rows"] == {}
    assert by_name["new users"]["rows"]["light"]["ndcg@2"] == 1.0
    assert by_name["new users"]["rows"]["popularity"]["recall@2"] == 0.0


@pytest.fixture
def with_baselines(inputs, tmp_path):
    """The linear baselines' answers as well: EASE is always right, iALS second; nothing is left out."""
    inputs["baselines"] = write_ranking(tmp_path / "baselines", "ease.parquet", first_place)
    write_ranking(tmp_path / "ials", "ials.parquet", second_place)
    (tmp_path / "ials" / "ials.parquet").rename(tmp_path / "baselines" / "ials.parquet")
    write_json(inputs["baselines"] / "baselines.json", {"rows": ["ease", "ials"], "left_out": {}})
    (tmp_path / "out").mkdir()
    return inputs


def test_linear_baselines_are_rows_like_the_others(with_baselines, tmp_path):
    evaluate(CONFIG, with_baselines, tmp_path / "out")
    ledger = json.loads((tmp_path / "out" / "ledger.json").read_text())
    names = ["popularity", "trending", "ease", "ials", "candidates", "light", "heavy"]
    assert [row["name"] for row in ledger["rows"]] == names
    assert row_of(ledger, "ease")["metrics"]["ndcg@2"] == 1.0
    ials = row_of(ledger, "ials")
    assert ials["metrics"] == row_of(ledger, "candidates")["metrics"]
    assert (ials["against"], ials["verdict"]) == ("popularity", "gains")
    assert ials["gain"]["value"] == pytest.approx(1 / np.log2(3) - row_of(ledger, "popularity")["metrics"]["ndcg@2"])
    assert row_of(ledger, "candidates")["against"] == "popularity"
    by_name = {part["name"]: part for part in ledger["slices"]}
    assert by_name["new users"]["rows"]["ease"]["ndcg@2"] == 1.0
    assert ledger["left_out"] == {}
    assert "Without a row" not in render_ledger(ledger)


def test_a_baseline_that_was_left_out_has_a_reason_in_every_report(with_baselines, tmp_path):
    reason = "90,000 items need 97.2 GB, baselines.memory_gb = 4"
    write_json(with_baselines["baselines"] / "baselines.json", {"rows": ["ials"], "left_out": {"ease": reason}})
    evaluate(CONFIG, with_baselines, tmp_path / "out")
    ledger = json.loads((tmp_path / "out" / "ledger.json").read_text())
    assert "ease" not in [row["name"] for row in ledger["rows"]]
    write_html(ledger, tmp_path / "ledger.html")
    pages = (tmp_path / "out" / "ledger.md").read_text(), render_ledger(ledger), (tmp_path / "ledger.html").read_text()
    for page in pages:
        assert f"Without a row: ease, for {reason}." in page
    del ledger["left_out"]  # a release from before there were such rows
    assert "Without a row" not in render_ledger(ledger)


def test_histories_are_sliced_by_length():
    lengths = np.array([0, 1, 2, 5, 6, 20, 21, 10**6])
    slices = {name: lengths[mask].tolist() for name, mask in history_slices(lengths).items()}
    assert slices == {
        "history 0": [0],
        "history 1": [1],
        "history 2-5": [2, 5],
        "history 6-20": [6, 20],
        "history >20": [21, 10**6],
    }


def test_the_popular_head_is_that_of_the_training_parts(ledger):
    # item 0 alone; only the ten users who have not seen it are shown it, in one of two slots
    assert row_of(ledger, "popularity")["metrics"]["popularity_share@2"] == pytest.approx(10 / 80)
    assert row_of(ledger, "light")["metrics"]["popularity_share@2"] == 0.0
    assert ledger["target_head_share"] == 0.0


def test_a_bypassed_stage_leaves_its_row_out(inputs, tmp_path):
    del inputs["light"]
    (tmp_path / "out").mkdir()
    metrics, verdicts = evaluate(CONFIG, inputs, tmp_path / "out")
    assert "light/ndcg@2" not in metrics
    assert verdicts["heavy"] == "no difference"
    assert row_of(json.loads((tmp_path / "out" / "ledger.json").read_text()), "heavy")["against"] == "candidates"


def test_two_runs_write_the_same_bytes(inputs, tmp_path):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        evaluate(CONFIG, inputs, tmp_path / name)
    for name in ("ledger.json", "ledger.md", "held_out.parquet"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def test_the_html_report_loads_nothing_and_escapes(ledger, tmp_path):
    ledger["data_fingerprint"] = "<script>"
    write_html(ledger, tmp_path / "ledger.html")
    page = (tmp_path / "ledger.html").read_text()
    assert "http" not in page
    assert "<script" not in page
    assert "src=" not in page
    assert "loses to light" in page
    assert [path.name for path in tmp_path.glob("*.tmp")] == []


def test_no_held_out_target_is_an_error_that_says_so(inputs, tmp_path):
    inputs["snapshot"] = write_world(tmp_path / "bare", with_targets=False)
    with pytest.raises(EmptyDatasetError, match="41 requests of the evaluation part, none of them with a target"):
        evaluate(CONFIG, inputs, tmp_path)


def test_a_ranking_of_other_requests_is_refused(inputs, tmp_path):
    path = inputs["held_out"] / "light.parquet"
    ranked = RankedTable.read(path)
    ranked.take(ranked.request_id == 0).write(path)
    with pytest.raises(DataError, match=r"light\.parquet: 1 rows, none for the 40 held-out requests"):
        evaluate(CONFIG, inputs, tmp_path)
    path.unlink()
    with pytest.raises(DataError, match=r"light\.parquet is not a readable Parquet file"):
        evaluate(CONFIG, inputs, tmp_path)


def test_a_ranking_out_of_order_is_refused(inputs, tmp_path):
    path = inputs["held_out"] / "heavy.parquet"
    ranked = RankedTable.read(path)
    ranked.take(np.arange(len(ranked))[::-1]).write(path)
    with pytest.raises(DataError, match=r"heavy\.parquet must be sorted by request_id"):
        evaluate(CONFIG, inputs, tmp_path)


def test_row_groups_change_nothing(inputs, tmp_path):
    """Row groups of any length, of part of a request, of none of the requests' rows."""
    (tmp_path / "one").mkdir()
    evaluate(CONFIG, inputs, tmp_path / "one")
    paths = [inputs["held_out"] / "light.parquet", inputs["held_out"] / "heavy.parquet"]
    for rows, path in zip((1, 4, 7), [*paths, inputs["retrieve"] / "candidates.parquet"], strict=True):
        pq.write_table(pq.read_table(path), path, row_group_size=rows)
    (tmp_path / "two").mkdir()
    evaluate(CONFIG, inputs, tmp_path / "two")
    for name in ("ledger.json", "ledger.md", "held_out.parquet"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


@pytest.mark.parametrize("ks", [[], [0, 5], [10, 10], [20, 10]])
def test_cut_offs_must_increase(ks):
    with pytest.raises(ConfigError, match=r"ks = .*increasing numbers from 1"):
        parse_config(EvaluationConfig, {"ks": ks}, "test")


def test_what_loses_is_bypassed_and_every_report_says_so(ledger, tmp_path):
    served = ledger["served"]
    assert (served["row"], served["stages"]) == ("light", ["light"])
    assert served["metrics"] == row_of(ledger, "light")["metrics"]
    gain = row_of(ledger, "heavy")["gain"]
    reason = f"loses to light: {gain['value']:+.4f} [{gain['low']:+.4f}, {gain['high']:+.4f}] in ndcg@2"
    assert served["bypassed"] == {"heavy": reason}
    write_html(ledger, tmp_path / "ledger.html")
    pages = (tmp_path / "out" / "ledger.md").read_text(), render_ledger(ledger), (tmp_path / "ledger.html").read_text()
    for page in pages:
        assert "Served: the row light, NDCG@2 1.0000." in page
        assert f"Bypassed: heavy ({reason})." in page
        assert "loses to light, bypassed" in page
    del ledger["served"]  # a release from before anything was bypassed
    assert "erved" not in render_ledger(ledger)


def test_the_heavy_ranker_alone_is_compared_with_the_candidates(inputs, tmp_path):
    (tmp_path / "out").mkdir()
    config = CONFIG.model_copy(update={"stages": ("heavy",)})
    _, info = evaluate(config, inputs, tmp_path / "out")
    ledger = json.loads((tmp_path / "out" / "ledger.json").read_text())
    assert (row_of(ledger, "heavy")["against"], info["heavy"]) == ("candidates", "no difference")
    assert (info["served"], ledger["served"]["stages"]) == ("candidates", [])
    assert ledger["served"]["bypassed"]["light"] == "left out by the recipe: funnel.stages is ['heavy']"


def test_a_heavy_ranker_without_an_epoch_is_bypassed_with_its_number(inputs, tmp_path):
    write_rankings(inputs["held_out"], heavy=first_place, light=lambda user: second_place(user)[:2])
    inputs["heavy"].mkdir()
    described = {"feature_schema_hash": "abc", "input_width": 2, "tasks": ["click"], "objective": {"click": 1.0}}
    described["metrics"] = {"epochs": 0.0, "validation_light_ndcg@10": 0.25}
    write_json(inputs["heavy"] / "heavy_ranker.json", described)
    (tmp_path / "out").mkdir()
    evaluate(CONFIG, inputs, tmp_path / "out")
    light = json.loads((tmp_path / "out" / "ledger.json").read_text())["served"]
    assert light["row"] == "candidates", "the light ranker makes no difference here"
    inputs["retrieve"] = write_ranking(tmp_path / "missed", "candidates.parquet", lambda user: [0, 1], CandidateTable)
    evaluate(CONFIG, inputs, tmp_path / "out")
    served = json.loads((tmp_path / "out" / "ledger.json").read_text())["served"]
    assert (served["row"], list(served["bypassed"])) == ("light", ["heavy"])
    assert "chose 0 epochs: no epoch of training did better" in served["bypassed"]["heavy"]
    assert "0.2500 NDCG@10" in served["bypassed"]["heavy"]


def test_the_served_rows_results_are_kept_by_request_without_user_ids(inputs, ledger, tmp_path):
    path = tmp_path / "out" / "held_out.parquet"
    judged = JudgedRequests.read(path)
    known = {request_key(f"u{user}", 600, [(f"i{wanted_item(user)}", 1.0)]) for user in range(N_USERS)}
    assert (judged.metric, set(judged.key.tolist())) == ("ndcg@2", known)
    assert judged.value.tolist() == [1.0] * N_USERS
    assert pq.read_table(path).column_names == ["request_key", "value"]
    # another release numbers users and items otherwise, and still knows the requests
    users = pq.read_table(inputs["snapshot"] / "users.parquet")
    shifted = users.set_column(1, "user_id", pa.array([f"u{(user + 1) % N_USERS}" for user in range(N_USERS)]))
    pq.write_table(shifted, inputs["snapshot"] / "users.parquet")
    items = pq.read_table(inputs["snapshot"] / "items.parquet")
    names = [f"i{wanted_item((user + 1) % N_USERS)}" for user in range(6)]
    moved = items.set_column(1, "item_id", pa.array(["i0", "i1", *names]))
    pq.write_table(moved, inputs["snapshot"] / "items.parquet")
    (tmp_path / "other").mkdir()
    evaluate(CONFIG, inputs, tmp_path / "other")
    other = JudgedRequests.read(tmp_path / "other" / "held_out.parquet")
    assert len(set(other.key.tolist()) & known) == N_USERS - 1  # all but the one whose item differs


@pytest.fixture
def third(monkeypatch):
    """A row of the table that only these tests know: it reads what the heavy ranker says."""
    row = replace(RANKING_STAGES["heavy"], name="third", summary_file="third.json", reads=("heavy",))
    monkeypatch.setitem(RANKING_STAGES, "third", row)


@pytest.mark.parametrize(
    ("stages", "against", "served"),
    [
        (("light", "heavy", "third"), "heavy", "light"),
        (("light", "third"), "light", "light"),
        (("third",), "candidates", "third"),
    ],
)
def test_a_third_stage_is_a_row_like_any_other(inputs, tmp_path, third, stages, against, served):
    write_rankings(inputs["held_out"], third=first_place)
    inputs["third"] = tmp_path / "third"
    inputs["retrieve"] = write_ranking(tmp_path / "missed", "candidates.parquet", lambda user: [0, 1], CandidateTable)
    (tmp_path / "out").mkdir()
    _, info = evaluate(CONFIG.model_copy(update={"stages": stages}), inputs, tmp_path / "out")
    ledger = json.loads((tmp_path / "out" / "ledger.json").read_text())
    assert [row["name"] for row in ledger["rows"]][-3:] == ["light", "heavy", "third"]
    assert (row_of(ledger, "third")["against"], info["served"]) == (against, served)
    if stages == ("light", "heavy", "third"):
        assert ledger["served"]["bypassed"]["third"] == "reads the scores of the heavy ranker, which is bypassed"

"""A released tower and a grown catalogue, without training."""

import dataclasses
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from stages.candidate.config import IndexConfig, RefreshVectorsConfig, TrainCandidateConfig
from stages.candidate.index.step import build_index
from stages.candidate.onnx_towers import PortableItemTower, UserTower
from stages.candidate.refresh.vectors import refresh_vectors
from stages.candidate.scorer import CandidateScorer
from stages.candidate.training.step import train_candidate
from stages.candidate.training.warm_start import warm_start_version
from stages.contracts.config import merged
from stages.contracts.errors import DataError, ReleaseError
from stages.contracts.files import read_json, sha256_file, write_json
from stages.contracts.snapshot import Snapshot
from stages.features.history import UNKNOWN_USER
from tests.candidate.one_rank import in_this_process

NEW, AS_OF_MS = 4, 40_000


def rewrite(path, **columns):
    """Replace columns of a Parquet file."""
    table = pq.read_table(path)
    for name, values in columns.items():
        place = table.schema.get_field_index(name)
        table = table.set_column(place, table.schema.field(place), pa.array(values, table.schema.field(place).type))
    pq.write_table(table, path)


def change_meta(directory, **changes):
    write_json(directory / "snapshot.json", {**read_json(directory / "snapshot.json"), **changes})


def grow(snapshot, directory):
    """Copy a planted snapshot with one new item a block behind its own, as of a later moment."""
    shutil.copytree(snapshot, directory)
    table = pq.read_table(directory / "items.parquet")
    more = table.slice(0, NEW).to_pydict()
    more |= {
        "item_index": list(range(60, 60 + NEW)),
        "item_id": [f"new{block}" for block in range(NEW)],
        "title": [f"topic{block} unheard of" for block in range(NEW)],
        "categories": [[block] for block in range(NEW)],
    }
    pq.write_table(pa.concat_tables([table, pa.table(more, schema=table.schema)]), directory / "items.parquet")
    meta = read_json(directory / "snapshot.json")
    change_meta(directory, borders={**meta["borders"], "as_of_ms": AS_OF_MS})
    return directory


def refresh(champion, snapshot, directory, **fold_in):
    directory.mkdir()
    config = RefreshVectorsConfig.model_validate({"fold_in": fold_in})
    return refresh_vectors(config, {"champion": champion, "snapshot": snapshot}, directory)


@pytest.fixture
def champion(planted, trained, tmp_path):
    """What a refresh reads of a release."""
    for source in (planted, trained):
        shutil.copytree(source, tmp_path / "champion", dirs_exist_ok=True)
    return tmp_path / "champion"


@pytest.fixture
def grown(planted, tmp_path):
    return grow(planted, tmp_path / "grown")


@pytest.fixture
def refreshed(champion, grown, tmp_path):
    metrics, _ = refresh(champion, grown, tmp_path / "refreshed")
    return tmp_path / "refreshed", metrics


def test_the_parts_are_bound_to_each_other_and_serve(trained, grown, refreshed, tmp_path):
    directory, metrics = refreshed
    assert metrics == {"items": 64.0, "new_items": 4.0, "changed_items": 0.0, "folded_items": 0.0}
    tower, before = read_json(directory / "tower.json"), read_json(trained / "tower.json")
    assert tower["tower_version"] == sha256_file(directory / "user_tower.onnx") != before["tower_version"]
    assert (tower["refreshed_from"], tower["n_items"]) == (before["tower_version"], 64)
    assert tower["n_cold_items"] == before["n_cold_items"] + NEW
    assert (before["vectors_as_of_ms"], tower["vectors_as_of_ms"]) == (10_000, AS_OF_MS)
    assert sha256_file(directory / "item_tower.onnx") == before["item_tower_sha256"] == tower["item_tower_sha256"]
    assert sha256_file(directory / "item_vectors.npy") == tower["item_vectors_sha256"]
    (tmp_path / "index").mkdir()
    build_index(IndexConfig(), {"snapshot": grown, "candidate": directory}, tmp_path / "index")
    scorer = CandidateScorer.load(directory, tmp_path / "index")
    assert scorer.indexed.tolist() == list(range(64))
    with pytest.raises(ReleaseError, match="tower_version"):
        CandidateScorer.load(trained, tmp_path / "index")


def test_a_warm_start_finds_what_was_trained(trained, refreshed, grown, tmp_path):
    directory, _ = refreshed
    shutil.copytree(grown, directory, dirs_exist_ok=True)
    refresh(directory, grown, tmp_path / "again")
    assert warm_start_version(str(tmp_path / "again")) == read_json(trained / "tower.json")["tower_version"]


def with_items(inputs, n_items):
    """Put the padding of a catalogue of 60 where a larger one has it."""
    return dataclasses.replace(inputs, items=np.where(inputs.items == 60, n_items, inputs.items))


def test_known_histories_keep_their_vectors_and_new_items_speak_through_their_category(
    trained, refreshed, single_items
):
    directory, _ = refreshed
    old, new = UserTower(trained / "user_tower.onnx"), UserTower(directory / "user_tower.onnx")
    known = single_items([1, 16, 31, 46])
    np.testing.assert_allclose(new.embed(with_items(known, 64)), old.embed(known), atol=1e-6)
    born = with_items(known, 64)
    born.items[:, 0] = range(60, 64)  # the new item of each block
    nearest = np.argsort(-(new.embed(born) @ np.load(trained / "item_vectors.npy").T), axis=1)[:, :8]
    assert (nearest // 15 == np.arange(4)[:, None]).mean() > 0.7


def test_without_new_items_nothing_changes(trained, planted, champion, tmp_path):
    metrics, info = refresh(champion, planted, tmp_path / "same")
    assert metrics == {"items": 60.0, "new_items": 0.0, "changed_items": 0.0, "folded_items": 0.0}
    np.testing.assert_array_equal(
        np.load(tmp_path / "same" / "item_vectors.npy"), np.load(trained / "item_vectors.npy")
    )
    assert info["tower_version"] == read_json(trained / "tower.json")["tower_version"]


def test_a_second_refresh_grows_the_refreshed_release(refreshed, grown, tmp_path):
    directory, _ = refreshed
    shutil.copytree(grown, directory, dirs_exist_ok=True)
    metrics, info = refresh(directory, grown, tmp_path / "again")
    assert metrics == {"items": 64.0, "new_items": 0.0, "changed_items": 0.0, "folded_items": 0.0}
    assert info["tower_version"] == read_json(directory / "tower.json")["tower_version"], "nothing changed"


def test_a_known_item_whose_category_changed_speaks_anew_in_both_towers(champion, grown, tmp_path, single_items):
    """Item 7 has no training rows: all that both towers know of it is its category."""
    categories = pq.read_table(grown / "items.parquet")["categories"].to_pylist()
    rewrite(grown / "items.parquet", categories=[[3] if item == 7 else own for item, own in enumerate(categories)])
    metrics, _ = refresh(champion, grown, tmp_path / "out")
    assert metrics["changed_items"] == 1
    vectors, tower = np.load(tmp_path / "out" / "item_vectors.npy"), UserTower(tmp_path / "out" / "user_tower.onnx")
    np.testing.assert_allclose(vectors[7], vectors[63], atol=1e-5)
    changed, other = tower.embed(with_items(single_items([7, 63]), 64))
    np.testing.assert_allclose(changed, other, atol=1e-5)


RICH = {
    "model": {
        "encoder": "tastes",
        "tastes": 3,
        "normalisation": "dot",
        "word_buckets": 512,
        "word_dimension": 8,
        "item_age": True,
        "user_id": True,
    },
    "loss": {"temperature": 1.0},
    "training": {"item_id_dropout": 0.3},
}


@pytest.fixture(scope="module")
def rich(planted, trained, one_rank, tmp_path_factory):
    """A champion of several tastes that reads words, ages and users, with dot products; its refresh; the snapshot."""
    root = tmp_path_factory.mktemp("rich")
    shutil.copytree(planted, root / "champion")
    titles = [f"topic{item // 15} number{item}" for item in range(60)]
    rewrite(root / "champion" / "items.parquet", title=titles)
    grown = grow(root / "champion", root / "grown")
    values = read_json(trained / "tower.json")["config"]
    config = TrainCandidateConfig.model_validate(merged(values, {"candidate": RICH}))
    with in_this_process():
        metrics, _ = train_candidate(config, {"snapshot": root / "champion"}, root / "champion")
    assert metrics["item_tower_deviation"] < 1e-5
    metrics, _ = refresh(root / "champion", grown, root / "refreshed")
    return root / "champion", root / "refreshed", grown, metrics


def test_words_and_ages_at_the_new_moment_make_the_vectors(rich):
    champion, refreshed, grown, metrics = rich
    assert (metrics["items"], metrics["new_items"]) == (64, 4)
    tower, items = PortableItemTower(champion / "item_tower.onnx"), Snapshot(grown).items()
    vectors, old = (np.load(place / "item_vectors.npy") for place in (refreshed, champion))
    np.testing.assert_allclose(vectors, tower.embed(items, AS_OF_MS)[0], atol=2e-5 * np.abs(vectors).max())
    np.testing.assert_allclose(old, tower.embed(items, 10_000)[0][:60], atol=2e-5 * np.abs(old).max())
    # All of the planted items are born at 0, but one: they were 10 seconds old, now they are 40.
    assert metrics["changed_items"] >= 59
    assert np.ptp(np.linalg.norm(vectors, axis=1)) > 0.1, "dot products keep the length"
    nearest = np.argsort(-(vectors[60:] @ vectors[:60].T), axis=1)[:, :8]
    assert (nearest // 15 == np.arange(4)[:, None]).mean() > 0.7


def test_a_new_item_in_a_history_is_read_by_every_taste(rich, single_items):
    champion, refreshed, _, _ = rich
    old, new = UserTower(champion / "user_tower.onnx"), UserTower(refreshed / "user_tower.onnx")
    known = single_items([1, 16, 31, 46])
    np.testing.assert_allclose(new.embed(with_items(known, 64)), old.embed(known), atol=1e-5)
    born, empty = with_items(known, 64), with_items(known, 64)
    born.items[:, 0], empty.items[:, 0], empty.ages[:] = range(60, 64), 64, 0
    queries = new.embed(born)
    assert queries.shape == (4, 3, 16)
    assert np.abs(queries - new.embed(empty)).max(axis=(1, 2)).min() > 0.05
    scores = (queries @ np.load(refreshed / "item_vectors.npy")[:60].T).max(axis=1)
    assert (np.argsort(-scores, axis=1)[:, :8] // 15 == np.arange(4)[:, None]).mean() > 0.7


def test_a_new_user_is_nobody(rich, single_items):
    """The table of users does not grow: whoever came after the training is served by the history alone."""
    _, refreshed, _, _ = rich
    inputs = with_items(single_items([5] * 4), 64)
    users = np.array([UNKNOWN_USER, 160, 10**6, 3])
    queries = UserTower(refreshed / "user_tower.onnx").embed(dataclasses.replace(inputs, users=users))
    np.testing.assert_array_equal(queries[1:3], queries[[0, 0]])
    assert np.abs(queries[3] - queries[0]).max() > 0.01


def test_a_snapshot_that_does_not_extend_the_release_is_refused_with_every_reason(rich, tmp_path):
    champion, _, grown, _ = rich
    other = shutil.copytree(grown, tmp_path / "other")
    names = pq.read_table(other / "items.parquet")["item_id"].to_pylist()
    rewrite(other / "items.parquet", item_id=[*names[1::-1], *names[2:]])
    rewrite(other / "users.parquet", user_id=[f"u{user}" for user in range(160)])
    change_meta(other, signals=["click"], categories=["c1", "c0", "c2", "c3"])
    with pytest.raises(DataError) as caught:
        refresh(champion, other, tmp_path / "out")
    assert str(caught.value) == (
        "the snapshot's 64 items do not begin with the release's 60; its users do not begin with the release's 160; "
        "its categories do not begin with the release's 4; its signals are ['click'], the release's "
        "['click', 'impression']"
    )


def touch(snapshot, item, users, at_ms=30_000):
    """Let users touch an item, one after another, after all other events."""
    events = pq.read_table(snapshot / "events.parquet")
    more = events.slice(len(events) - 1, 1).to_pydict()
    rows = [
        {**{name: values[0] for name, values in more.items()}, "user_index": user, "item_index": item} for user in users
    ]
    for number, row in enumerate(rows):
        row["event_time_ms"] = at_ms + number
    pq.write_table(pa.concat_tables([events, pa.Table.from_pylist(rows, events.schema)]), snapshot / "events.parquet")


def nearest_blocks(directory, item):
    """Return the blocks of the known items nearest to an item."""
    vectors = np.load(directory / "item_vectors.npy")
    return np.argsort(-(vectors[:60] @ vectors[item]))[:8] // 15


@pytest.fixture(scope="module")
def alike(planted, trained, one_rank, tmp_path_factory):
    """A champion of items that all have one category, and the grown snapshot: only touches tell items apart."""
    root = tmp_path_factory.mktemp("alike")
    shutil.copytree(planted, root / "champion")
    rewrite(root / "champion" / "items.parquet", categories=[[0]] * 60)
    grown = grow(root / "champion", root / "grown")
    rewrite(grown / "items.parquet", categories=[[0]] * 64)
    config = TrainCandidateConfig.model_validate(read_json(trained / "tower.json")["config"])
    with in_this_process():
        train_candidate(config, {"snapshot": root / "champion"}, root / "champion")
    return root / "champion", grown


def test_a_touched_item_is_where_its_users_are(alike, tmp_path):
    """New items 60 and 61 are touched by ten users of block 2 and by one of block 1, 62 and 63 by nobody."""
    champion, grown = alike[0], shutil.copytree(alike[1], tmp_path / "grown")
    touch(grown, 60, range(2, 42, 4))
    touch(grown, 61, [1])
    metrics, _ = refresh(champion, grown, tmp_path / "folded")
    assert (metrics["folded_items"], metrics["changed_items"]) == (2, 0)
    assert metrics["fold_in_cosine"] > metrics["content_cosine"] + 0.1
    assert (nearest_blocks(tmp_path / "folded", 60) == 2).all()
    assert (nearest_blocks(tmp_path / "folded", 61) == 1).all()
    again, _ = refresh(champion, grown, tmp_path / "again")
    plain, _ = refresh(champion, grown, tmp_path / "plain", touches=0)
    assert (again, plain["folded_items"]) == (metrics, 0)
    folded, same, content = (np.load(tmp_path / name / "item_vectors.npy") for name in ("folded", "again", "plain"))
    np.testing.assert_array_equal(same, folded)
    np.testing.assert_allclose(content[60:], np.broadcast_to(content[60], (4, 16)), atol=1e-6)
    np.testing.assert_array_equal(np.any(folded != content, axis=1), np.isin(np.arange(64), [60, 61]))
    np.testing.assert_allclose(np.linalg.norm(folded, axis=1), 1.0, atol=1e-5)
    for name in ("user_tower.onnx", "item_tower.onnx"):
        assert sha256_file(tmp_path / "folded" / name) == sha256_file(tmp_path / "plain" / name)
    shutil.copytree(grown, tmp_path / "folded", dirs_exist_ok=True)
    repeated, _ = refresh(tmp_path / "folded", grown, tmp_path / "repeated")
    assert (repeated["folded_items"], repeated["changed_items"]) == (2, 0), "from all touches anew, and nothing is new"


def test_exposures_and_touches_without_a_history_fold_nothing(champion, grown, tmp_path):
    touch(grown, 60, [2])
    events = pq.read_table(grown / "events.parquet")
    signals = events["signal"].to_numpy().copy()
    signals[-1] = 1  # impression
    rewrite(grown / "events.parquet", signal=signals)
    assert refresh(champion, grown, tmp_path / "out")[0]["folded_items"] == 0


def context(**columns):
    return [{"name": name, "values": values} for name, values in columns.items()]


@pytest.mark.parametrize(
    ("columns", "words"),
    [
        ({"device": ["tv"]}, r"its context columns are \['device'\], the release's \['device', 'os'\]; train a new"),
        (
            {"device": ["tv", "phone"], "os": ["x"]},
            r"of the release, its 1 values of the context column 'device' are not the first of the snapshot's 2; build",
        ),
        ({"device": ["phone", "tv"], "os": ["x"]}, "the release's user tower, of an older version, does not tell them"),
    ],
)
def test_another_context_is_refused_only_where_the_tower_reads_it(champion, grown, tmp_path, columns, words):
    """Also of a tower that would take a new value for another column's, as those of older versions do."""
    change_meta(champion, context=context(device=["phone"], os=["x"]))
    change_meta(grown, context=context(**columns))
    refresh(champion, grown, tmp_path / "unread")
    summary = read_json(champion / "tower.json")
    write_json(champion / "tower.json", {**summary, "inputs": [*summary["inputs"], "context"]})
    with pytest.raises(DataError, match=words):
        refresh(champion, grown, tmp_path / "read")


def test_a_new_value_of_a_context_column_counts_as_unknown(planted, trained, one_rank, tmp_path, single_items):
    """Values have the codes of the grown snapshot; so has one that was known before the training but never trained."""
    champion = shutil.copytree(planted, tmp_path / "champion")
    of_events = np.arange(pq.read_metadata(champion / "events.parquet").num_rows) % 3
    rewrite(champion / "events.parquet", context=of_events)
    codes = {"device": [0, 1, 2, 0], "os": [0, 1, 0, 2]}
    pq.write_table(
        pa.table({name: pa.array(of, pa.int32()) for name, of in codes.items()}), champion / "contexts.parquet"
    )
    change_meta(champion, context=context(device=["tv", "phone"], os=["x", "untrained"]))
    values = merged(read_json(trained / "tower.json")["config"], {"candidate": {"model": {"context": True}}})
    with in_this_process():
        train_candidate(TrainCandidateConfig.model_validate(values), {"snapshot": champion}, champion)
    snapshot = grow(champion, tmp_path / "grown")
    change_meta(snapshot, context=context(device=["tv", "phone", "car"], os=["x", "untrained", "y"]))
    refresh(champion, snapshot, tmp_path / "refreshed")
    known = [[0, 0], [1, 1], [2, 0], [0, 1], [3, 0], [0, 2], [0, 3], [2, 3]]
    inputs = dataclasses.replace(with_items(single_items([5] * 8), 64), context=np.array(known))
    nothing, both, phone, os, *new, phone_again = UserTower(tmp_path / "refreshed" / "user_tower.onnx").embed(inputs)
    assert all(np.abs(other - nothing).max() > 0.01 for other in (both, phone, os))
    np.testing.assert_array_equal(new, [nothing] * 3)
    np.testing.assert_array_equal(phone_again, phone)


def test_a_release_without_an_item_tower_or_with_another_one_is_refused(champion, grown, tmp_path):
    summary = read_json(champion / "tower.json")
    write_json(champion / "tower.json", {**summary, "item_tower_sha256": "0" * 64})
    with pytest.raises(ReleaseError, match=r"item_tower_sha256 is '\w+…' in item_tower.onnx, '0{12}…' in tower.json"):
        refresh(champion, grown, tmp_path / "out")
    del summary["item_tower_sha256"]
    write_json(champion / "tower.json", summary)
    with pytest.raises(
        ReleaseError, match=r"tower.json lacks the key 'item_tower_sha256' .* \(train the two-tower model again\)"
    ):
        refresh(champion, grown, tmp_path / "out2")

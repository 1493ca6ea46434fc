"""The portable item tower against the vectors that training exports."""

import dataclasses

import numpy as np
import onnx
import pytest

from stages.candidate import onnx_towers as item_tower
from stages.candidate.data.item_features import Catalogue
from stages.candidate.data.words import hashed_words
from stages.candidate.export import item_tower as item_tower_export
from stages.candidate.export.item_tower import write_item_tower
from stages.candidate.export.user_tower import item_content, item_vectors
from stages.candidate.onnx_towers import PortableItemTower, blocks, item_tower_deviation, padded_codes
from stages.candidate.training import step as train
from stages.contracts.errors import DataError, ReleaseError
from stages.contracts.files import read_json, sha256_file
from stages.contracts.snapshot import ItemTable, Snapshot
from tests.candidate.grown import BUCKETS, LATER_MS, UNHEARD, N, grow, grown_catalogue, models
from tests.late_clock import show_everything

OPTIONS = [
    {},
    {"model": {"word_buckets": BUCKETS}},
    {"model": {"item_age": True}},
    {"model": {"normalisation": "dot", "hidden": ()}},
    {"model": {"word_buckets": BUCKETS, "item_age": True, "normalisation": "dot", "shared_item_table": False}},
]


@pytest.fixture(scope="module")
def written(small_world, tmp_path_factory):
    """Return a function that writes the item tower of a kind of model, once; it returns its path and what it is of."""
    made = {}

    def write(**changes):
        key = repr(changes)
        if key not in made:
            path = tmp_path_factory.mktemp("towers") / "item_tower.onnx"
            settings, items, catalogue, state, _, _ = models(small_world, **changes)
            write_item_tower(state, catalogue, settings, path)
            made[key] = path, settings, items, catalogue, state
        return made[key]

    return write


@pytest.mark.parametrize("changes", OPTIONS, ids=str)
def test_it_gives_the_exported_vectors_and_content(written, changes):
    path, settings, items, catalogue, state = written(**changes)
    tower = PortableItemTower(path)
    read = changes.get("model", {})
    optional = [name for name, key in (("word_codes", "word_buckets"), ("age_s", "item_age")) if read.get(key)]
    assert tower.inputs == ("item_rows", "category_codes", "duration_s", *optional)
    assert (tower.n_rows, tower.n_words) == (N, settings.candidate.model.word_buckets)
    assert tower.n_categories == catalogue.codes.max() + 1
    vectors, content = tower.embed(items, 6000)
    known = item_content(state, catalogue, settings)
    np.testing.assert_allclose(content, known, atol=1e-6)
    np.testing.assert_allclose(vectors, item_vectors(state, known, catalogue, settings), atol=1e-5, rtol=1e-5)
    if settings.candidate.model.normalisation == "cosine":
        np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1.0, atol=1e-5)
    else:
        assert np.ptp(np.linalg.norm(vectors, axis=1)) > 0.1
    assert str(path.parent.parent).encode() not in path.read_bytes()


@pytest.mark.parametrize("changes", OPTIONS, ids=str)
def test_new_items_are_embedded_as_training_would_without_an_id(written, changes):
    """Against ``item_vectors`` of a catalogue that has the new items, with ages at a later moment."""
    path, settings, items, catalogue, state = written(**changes)
    vectors, content = PortableItemTower(path).embed(grow(items), LATER_MS)
    larger = grown_catalogue(catalogue, grow(items), settings.candidate)
    key = "embeddings.embedding_bags.item.weight"
    grown_state = {**state, key: np.concatenate([state[key], np.ones((2, 8), np.float32)])}
    known = item_content(grown_state, larger, settings)
    np.testing.assert_allclose(content, known, atol=1e-6)
    wanted = item_vectors(grown_state, known, larger, settings)
    np.testing.assert_allclose(vectors, wanted, atol=1e-5, rtol=1e-5)
    assert np.abs(content[N]).max() > 0 and not content[N + 1].any()


def test_ages_are_those_of_the_moment(written):
    path, _, items, _, _ = written(model={"item_age": True})
    tower = PortableItemTower(path)
    now, later = tower.embed(items, 6000)[0], tower.embed(items, 6000 + 10**10)[0]
    assert np.abs(later - now).max(axis=1).min() > 1e-3
    np.testing.assert_array_equal(tower.embed(items, 6000)[0], now)


def test_words_that_no_item_of_the_training_had_say_nothing(written):
    """Their buckets were never trained; among known words they must not even count."""
    path, _, items, catalogue, _ = written(model={"word_buckets": BUCKETS})
    assert not set(hashed_words(np.array([UNHEARD], object), BUCKETS)[1]) & set(catalogue.word_codes)
    tower = PortableItemTower(path)
    titles = ["w1 common", f"w1 {UNHEARD} common", UNHEARD, ""]
    same = {name: np.repeat(getattr(items, name)[:1], 4) for name in ("item_id", "created_at_ms", "duration_s")}
    table = dataclasses.replace(
        items,
        **same,
        title=np.array(titles, object),
        category_offsets=np.zeros(5, np.int64),
        category_codes=np.zeros(0, np.int32),
        eligible=np.full(4, 7, np.int8),
    )
    content = tower.embed(table, 0)[1]
    np.testing.assert_allclose(content[1], content[0], atol=1e-7)
    assert np.abs(content[0]).max() > 0.01 and not content[2:].any()


def test_durations_that_do_not_differ_say_nothing_of_a_new_one(small_world, tmp_path):
    settings, items, catalogue, state, _, _ = models(small_world)
    equal = dataclasses.replace(items, duration_s=np.full(N, 90.0, np.float32))
    described = Catalogue.of(equal, *_examples(small_world), 4, 6000)
    assert described.duration_scale.tolist() == [0.0, np.inf] and not described.log_duration.any()
    catalogue = dataclasses.replace(
        catalogue, log_duration=described.log_duration, duration_scale=described.duration_scale
    )
    write_item_tower(state, catalogue, settings, tmp_path / "item_tower.onnx")
    tower = PortableItemTower(tmp_path / "item_tower.onnx")
    other = dataclasses.replace(items, duration_s=np.full(N, 7200.0, np.float32))
    np.testing.assert_array_equal(tower.embed(other, 0)[0], tower.embed(equal, 0)[0])


def _examples(small_world):
    examples, _ = small_world
    return examples, examples.usable(False)


def test_training_publishes_it_with_its_hash(planted, trained):
    summary, items = read_json(trained / "tower.json"), Snapshot(planted).items()
    assert summary["item_tower_sha256"] == sha256_file(trained / "item_tower.onnx")
    vectors = np.load(trained / "item_vectors.npy")
    path, zeros = trained / "item_tower.onnx", np.zeros_like(vectors)
    assert item_tower_deviation(path, items, vectors, summary["vectors_as_of_ms"]) < 1e-5
    assert item_tower_deviation(path, items, 3 * vectors, 0) == pytest.approx(2 / 3, abs=1e-4), "relative"
    assert item_tower_deviation(path, items, zeros, 0) == pytest.approx(np.abs(vectors).max())


def test_training_does_not_publish_one_that_differs(planted, trained, tmp_path, monkeypatch, here):
    from stages.candidate.config import TrainCandidateConfig

    values = read_json(trained / "tower.json")["config"]
    values["candidate"]["training"]["epochs"] = 1
    monkeypatch.setattr(train, "item_tower_deviation", lambda *arguments: float("nan"))
    with pytest.raises(DataError, match=r"item_tower.onnx: differs by nan from item_vectors.npy, allowed is 0.0001"):
        train.train_candidate(TrainCandidateConfig.model_validate(values), {"snapshot": planted}, tmp_path)


def test_a_new_item_lies_among_those_of_its_category(planted, trained):
    """Items of the planted world differ in their block, which is their category."""
    items = Snapshot(planted).items()
    joined = ItemTable(
        item_id=np.append(items.item_id, ["new0", "new1"]),
        title=np.append(items.title, ["", ""]),
        created_at_ms=np.append(items.created_at_ms, [0, 0]),
        duration_s=np.append(items.duration_s, np.array([np.nan, -1.0], np.float32)),
        category_offsets=np.append(items.category_offsets, items.category_offsets[-1] + np.array([1, 3])),
        category_codes=np.append(items.category_codes, np.array([2, 2, 4], np.int32)),
        n_categories=5,
    )
    vectors, _ = PortableItemTower(trained / "item_tower.onnx").embed(joined, 0)
    nearest = np.argsort(-(vectors[:60] @ vectors[60]))[:8]
    assert (nearest // 15 == 2).mean() > 0.7
    np.testing.assert_allclose(vectors[61], vectors[60], atol=1e-6, err_msg="a category unknown to the tower")


def test_codes_are_padded_by_the_number_of_categories():
    offsets, codes = np.array([0, 1, 1, 4]), np.array([2, 1, 9, 3])
    assert padded_codes(offsets, codes, 4, slice(0, 3)).tolist() == [[2, 4, 4], [4, 4, 4], [1, 4, 3]]
    assert padded_codes(offsets, codes, 4, slice(1, 2)).tolist() == [[4]]


def test_blocks_cover_all_items_and_bound_the_padding(monkeypatch):
    monkeypatch.setattr(item_tower, "_BLOCK", 4)
    monkeypatch.setattr(item_tower, "_ENTRIES", 12)
    widths = np.array([0, 0, 0, 0, 0, 3, 1, 5, 1, 30, 2, 2])
    found = list(blocks(widths))
    assert [row for rows in found for row in range(rows.start, rows.stop)] == list(range(12))
    assert [rows.stop for rows in found] == [4, 7, 9, 10, 12]


def test_narrow_blocks_give_the_same_vectors(written, monkeypatch):
    path, _, items, _, _ = written(model={"word_buckets": BUCKETS})
    tower = PortableItemTower(path)
    whole = tower.embed(items, 0)[0]
    monkeypatch.setattr(item_tower, "_ENTRIES", 5)
    np.testing.assert_allclose(tower.embed(items, 0)[0], whole, atol=1e-6)


def test_more_than_one_file_holds_is_refused(small_world, tmp_path, monkeypatch):
    settings, _, catalogue, state, _, _ = models(small_world)
    monkeypatch.setattr(item_tower_export, "PROTOBUF_LIMIT", 100)
    with pytest.raises(DataError, match=r"tables of 12 items make \d+ bytes, one file holds 100; lower"):
        write_item_tower(state, catalogue, settings, tmp_path / "item_tower.onnx")


def test_another_model_is_refused(trained, tmp_path):
    with pytest.raises(ReleaseError, match=r"inputs \['history_items', .*expected \['item_rows', "):
        PortableItemTower(trained / "user_tower.onnx")
    model = onnx.load_model(str(trained / "item_tower.onnx"))
    del model.metadata_props[:]
    onnx.save_model(model, str(tmp_path / "item_tower.onnx"))
    with pytest.raises(ReleaseError, match=r"metadata lack \['n_rows', 'n_categories', 'n_words'\], found \[\]"):
        PortableItemTower(tmp_path / "item_tower.onnx")
    (tmp_path / "item_tower.onnx").write_bytes(b"no model")
    with pytest.raises(ReleaseError, match="is not a loadable ONNX model"):
        PortableItemTower(tmp_path / "item_tower.onnx")


def test_embedding_shows_how_many_items_are_done(written, monkeypatch, caplog):
    path, settings, items, catalogue, state = written()
    show_everything(monkeypatch, caplog)
    PortableItemTower(path).embed(items, 0)
    item_vectors(state, item_content(state, catalogue, settings), catalogue, settings)
    shown = [line for line in caplog.messages if line.startswith(f"[sluice] embed items: {N} of {N} items, ")]
    assert len(shown) == 2

"""Training goes on from an earlier model whose tables have grown: two months of a planted world."""

import json
import shutil
import warnings

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from stages.candidate.config import CandidateConfig, TrainCandidateConfig
from stages.candidate.onnx_towers import UserTower
from stages.candidate.training import worker
from stages.candidate.training.step import train_candidate
from stages.candidate.training.warm_start import warm_start_version
from stages.contracts.config import merged
from stages.contracts.errors import ConfigError
from stages.contracts.files import read_json, write_json
from stages.contracts.id_map import IdMap
from stages.features.config import FeatureConfig
from stages.features.history import UNKNOWN_USER, TowerInputs
from tests.candidate.one_rank import in_this_process
from tests.candidate.test_candidate_sharding import run_ranks
from tests.candidate.towers import joined

pytestmark = pytest.mark.usefixtures("one_rank")

FEATURES = FeatureConfig(history_length=8, history_decay=4.0)
SETTINGS = {
    "model": {"dimension": 16, "category_dimension": 4, "hidden": (16,)},
    "loss": {"temperature": 0.2},
    "negatives": {"shared": 32},
    "training": {"epochs": 12, "batch_size": 64},
    "optimizer": {"sparse_learning_rate": 0.2, "dense_learning_rate": 5e-3},
    "distributed": {"device": "cpu", "timeout_s": 60},
}
BLOCK, OLD, NEW = 12, 4, 5  # items a block; blocks of the first month; a fifth comes with the second
USERS = 40  # a block
TABLE = "embeddings.embedding_bags.{}"


def train(snapshot, out, **changes):
    out.mkdir(parents=True)
    candidate = CandidateConfig(**merged(SETTINGS, changes))
    start = candidate.warm_start.path
    version = warm_start_version(start) if start else ""
    config = TrainCandidateConfig(candidate=candidate, features=FEATURES, warm_start_version=version)
    with in_this_process():
        return train_candidate(config, {"snapshot": snapshot}, out)


def month(n_blocks, seed):
    """Sequences of each user's block: users and items are numbered by block, so that old rows come first."""
    rng = np.random.default_rng(seed)
    weights = 1.0 / np.arange(2, BLOCK + 2)
    return [
        (user, (user // USERS) * BLOCK + rng.permutation(BLOCK)[np.argsort(rng.random(BLOCK) ** (1 / weights))[::-1]])
        for user in range(USERS * n_blocks)
    ]


def snapshot_of(directory, writer, event_table, request_table, n_blocks, months):
    """Write the snapshot of all months so far; each user's two last items of the newest month are the ranker part."""
    rows, held = [], []
    for number, sequences in enumerate(months):
        last = number == len(months) - 1
        for user, items in sequences:
            times = 1000 * number + np.arange(len(items))
            for step, (item, time_ms) in enumerate(zip(items.tolist(), times.tolist(), strict=True)):
                ranker = last and step >= len(items) - 2
                rows.append((user, item, 10_000 + step if ranker else time_ms, int(ranker)))
                if ranker and step == len(items) - 2:
                    held.append((user, item))
    events = event_table(*np.array(sorted(rows, key=lambda row: row[2])).T)
    user, item = np.array(held).T
    requests = request_table(
        request_id=np.arange(len(user)),
        user_index=user,
        request_time_ms=np.full(len(user), 10_000),
        part=np.ones(len(user), np.int8),
    )
    categories = [[i // BLOCK % 4] for i in range(BLOCK * n_blocks)]
    created = np.zeros(BLOCK * n_blocks, np.int64)
    writer(directory, events, requests, (np.arange(len(user)), item), created, categories)
    return directory, held


@pytest.fixture(scope="module")
def months(tmp_path_factory, snapshot_writer, event_table, request_table):
    root = tmp_path_factory.mktemp("months")
    first, second = month(OLD, 1), month(NEW, 2)
    one, _ = snapshot_of(root / "one", snapshot_writer, event_table, request_table, OLD, [first])
    two, held = snapshot_of(root / "two", snapshot_writer, event_table, request_table, NEW, [first, second])
    return one, two, held


@pytest.fixture(scope="module")
def champion(months, tmp_path_factory):
    out = tmp_path_factory.mktemp("champion") / "step"
    train(months[0], out)
    return out


def recall(out, snapshot, held, k=3):
    """Share of the ranker part's held items that are among the k best of the whole catalogue."""
    tower, vectors = UserTower(out / "user_tower.onnx"), np.load(out / "item_vectors.npy")
    from stages.contracts.snapshot import Snapshot

    events = Snapshot(snapshot).events()
    found = []
    for user, item in held:
        seen = events.item_index[(events.user_index == user) & (events.part == 0)]
        padding = len(vectors)
        history = np.full((1, 8), padding, np.int64)
        newest = seen[::-1][:8]
        history[0, : len(newest)] = newest
        nothing = np.zeros((1, 8), np.int64)
        inputs = TowerInputs(history, nothing, nothing, np.array([UNKNOWN_USER]), np.zeros((1, 0), np.int64))
        scores = (tower.embed(inputs) @ vectors.T)[0]
        found.append(item in np.argsort(-scores)[:k])
    return float(np.mean(found))


@pytest.fixture(scope="module")
def both(months, champion, tmp_path_factory):
    """The second month trained anew with all epochs, and warm-started with two of them."""
    root = tmp_path_factory.mktemp("second")
    scratch, _ = train(months[1], root / "scratch")
    warm, _ = train(months[1], root / "warm", warm_start={"path": str(champion), "epochs": 2})
    return root, scratch, warm


def test_a_few_epochs_reach_what_scratch_does(months, both):
    """Judged on the ranker part: at least the quality of scratch, for a sixth of its steps."""
    root, scratch, warm = both
    assert warm["steps"] * 6 == scratch["steps"]
    for k in (3, BLOCK):  # as many as a block has: every item of the own one, the fifth block's included
        found = {name: recall(root / name, months[1], months[2], k) for name in ("scratch", "warm")}
        assert found["warm"] >= found["scratch"]
    assert found["warm"] > 0.95
    assert warm["loss_first"] < scratch["loss_first"]


def test_old_rows_are_kept_and_new_ones_begin_as_from_scratch(months, champion, tmp_path, one_rank):
    """Before the first step: weights and sums of old rows are the champion's, new rows a fresh run's."""
    from stages.candidate.distributed.training_state import read_arrays, training_state
    from stages.candidate.towers.table_parts import part_of
    from stages.candidate.training.step import prepare
    from stages.contracts.snapshot import Snapshot

    config = TrainCandidateConfig(candidate=CandidateConfig(**SETTINGS), features=FEATURES)
    prepare(config, Snapshot(months[1]), tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TorchRec's own deprecations
        _, loss_of, optimizer = worker.build(tmp_path, 0, 1)
        state = training_state(loss_of.model, optimizer)
    weight, sums = (
        "weights/embeddings.embedding_bags.item.weight",
        "optimizer/embeddings.embedding_bags.item.weight/sum",
    )

    def tables():
        shards = {name: value.local_shards() for name, value in state.items() if part_of(name)[0] in (weight, sums)}
        return joined({name: own.tensor.numpy().copy() for name, (own,) in shards.items()})

    fresh = tables()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        read_arrays(state, champion / "state")
    for name, found in tables().items():
        old = np.load(champion / "state" / f"{name}.npy")
        assert len(old) == OLD * BLOCK
        np.testing.assert_array_equal(found[: len(old)].reshape(old.shape), old)
        np.testing.assert_array_equal(found[len(old) :], fresh[name][len(old) :])
    assert np.load(champion / "state" / f"{sums}.npy").max() > 0
    assert float(state["optimizer/query_tower.correction.mlp.0.bias/step"]) > 0
    query = "optimizer/query_tower.correction.mlp.0.weight/exp_avg"
    np.testing.assert_array_equal(state[query].numpy(), np.load(champion / "state" / f"{query}.npy"))


RICH = {"model": {"user_id": True, "context": True}, "optimizer": {"sparse": "adagrad"}}
CONTEXTS = {"device": ["tv", "phone"], "os": ["x"]}, {"device": ["tv", "phone", "car"], "os": ["x", "y"], "hour": ["0"]}
KEPT = {"user": range(OLD * USERS), "item": range(OLD * BLOCK), "category": range(4), "context": [0, 1, 3]}
"""Rows of the second month's tables that were trained in the first one. The values of ``os`` follow those of
``device``, so that they move when ``device`` gets a value."""


def with_contexts(snapshot, directory, columns):
    """Copy a snapshot and give its events contexts, among them each value of each column."""
    shutil.copytree(snapshot, directory)
    events = pq.read_table(directory / "events.parquet")
    place, sizes = events.schema.get_field_index("context"), [len(values) for values in columns.values()]
    of_events = pa.array(np.arange(len(events)) % (max(sizes) + 1), events.schema.field(place).type)
    pq.write_table(events.set_column(place, events.schema.field(place), of_events), directory / "events.parquet")
    codes = {name: pa.array(np.minimum(np.arange(max(sizes) + 1), len(of)), pa.int32()) for name, of in columns.items()}
    pq.write_table(pa.table(codes), directory / "contexts.parquet")
    meta = read_json(directory / "snapshot.json")
    write_json(
        directory / "snapshot.json", {**meta, "context": [{"name": name, "values": of} for name, of in columns.items()]}
    )
    return directory


@pytest.fixture(scope="module")
def rich(months, tmp_path_factory, one_rank):
    """Both months with contexts, and a model of the first one that reads them and the user's id."""
    root = tmp_path_factory.mktemp("rich")
    snapshots = [
        with_contexts(snapshot, root / f"month{number}", columns)
        for number, (snapshot, columns) in enumerate(zip(months, CONTEXTS, strict=False))
    ]
    train(snapshots[0], root / "champion", **merged(RICH, {"training": {"epochs": 1}}))
    return snapshots, root / "champion"


def grown(rich, root, *kinds, warm):
    """Prepare a training of the second month for each kind of sharding that ends before its first step."""
    from stages.candidate.training.step import prepare
    from stages.contracts.snapshot import Snapshot

    (_, second), champion = rich
    for kind in kinds:
        changes = merged(RICH, {"distributed": {"sharding": kind}, "model": {"item_parts": 3}})
        config = TrainCandidateConfig(candidate=CandidateConfig(**merged(SETTINGS, changes)), features=FEATURES)
        (root / kind).mkdir(parents=True)
        prepare(config, Snapshot(second), root / kind, warm=champion / "state" if warm else None, until=0)
    return [root / kind for kind in kinds]


def test_users_items_and_context_values_get_rows_on_any_number_of_ranks(rich, tmp_path):
    """Rows of the first month and their sums keep every bit; new rows and sums are those of a training from scratch."""
    (fresh,) = grown(rich, tmp_path / "fresh", "table_wise", warm=False)
    (alone,) = grown(rich, tmp_path / "alone", "table_wise", warm=True)
    shared = grown(rich, tmp_path / "shared", "row_wise", "column_wise", "data_parallel", warm=True)
    done = run_ranks(2, *shared)
    assert done.returncode == 0, done.stderr[-3000:]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TorchRec's own deprecations
        for work in (fresh, alone):
            worker.train(work, progress=False)
    for work in (alone, *shared):
        for table, rows in KEPT.items():
            for name in (f"weights/{TABLE}.weight", f"optimizer/{TABLE}.weight/sum"):
                path = f"state/{name.format(table)}.npy"
                found, old, new = (np.load(place / path) for place in (work, rich[1], fresh))
                assert len(old) == len(rows) and np.abs(old).max() > 0
                np.testing.assert_array_equal(found[rows], old)
                is_new = ~np.isin(np.arange(len(found)), rows)
                np.testing.assert_array_equal(found[is_new], new[is_new])
                if name.endswith("sum"):
                    assert not found[is_new].any()
                else:
                    assert table == "category" or np.abs(found[is_new]).max(axis=1).min() > 0
    assert len(np.load(alone / f"state/weights/{TABLE.format('context')}.weight.npy")) == 6


def test_training_goes_on_with_new_users_and_context_values(rich, tmp_path):
    """A training on more months from the first one's model; a new user and a new value speak afterwards."""
    (_, second), champion = rich
    changes = merged(RICH, {"warm_start": {"path": str(champion), "epochs": 1}})
    train(second, tmp_path / "out", **changes)
    user, nobody, context = OLD * USERS + 3, UNKNOWN_USER, [[0, 0, 0], [0, 0, 0], [3, 0, 0], [0, 2, 0], [0, 0, 1]]
    history = np.zeros((5, 8), np.int64)
    inputs = TowerInputs(
        history + 50, history, history, np.array([nobody, user, nobody, nobody, nobody]), np.array(context)
    )
    queries = UserTower(tmp_path / "out" / "user_tower.onnx").embed(inputs)
    assert np.abs(queries[1:] - queries[0]).max(axis=1).min() > 0.01


@pytest.mark.parametrize(
    ("columns", "words"),
    [
        (
            {"device": ["tv", "phone", "car"]},
            r"its context column 'os' is none of the snapshot's, which are \['device'\]",
        ),
        (
            {"device": ["phone", "tv"], "os": ["x"]},
            "its 2 values of the context column 'device' are not the first of the snapshot's 2; build the snapshot",
        ),
    ],
)
def test_a_context_column_that_is_gone_or_whose_values_moved_is_refused(rich, months, tmp_path, columns, words):
    other = with_contexts(months[1], tmp_path / "other", columns)
    with pytest.raises(ConfigError, match=words):
        train(other, tmp_path / "out", **merged(RICH, {"warm_start": {"path": str(rich[1])}}))


def test_a_category_that_no_item_has_any_more_keeps_its_row(months, champion, tmp_path):
    """As when the only item of a category is retired: its row must not be missed by the tables that grow."""
    other = shutil.copytree(months[1], tmp_path / "other")
    items = pq.read_table(other / "items.parquet")
    place = items.schema.get_field_index("categories")
    fewer = pa.array(
        [[code for code in of if code < 3] for of in items["categories"].to_pylist()], items.schema.types[place]
    )
    pq.write_table(items.set_column(place, items.schema.field(place), fewer), other / "items.parquet")
    metrics, _ = train(other, tmp_path / "out", warm_start={"path": str(champion), "epochs": 1})
    assert metrics["loss_first"] < 3.0


@pytest.mark.parametrize("refreshed", [False, True])
def test_a_release_is_traced_to_its_step(months, champion, tmp_path, refreshed):
    """A release carries no training state: it is found by the tower's version among the finished steps.

    A release's own ``state`` is that of serving; a refreshed one has the version that was trained beside its own.
    """
    release, steps = tmp_path / "release", tmp_path / "train_candidate"
    (release / "state").mkdir(parents=True)
    write_json(release / "state" / "state.json", {"format_version": 1, "config": {}, "n_items": 48})
    tower = read_json(champion / "tower.json")
    if refreshed:
        tower |= {"trained_version": tower["tower_version"], "tower_version": "0" * 64}
    write_json(release / "tower.json", tower)
    shutil.copytree(champion, steps / "0123456789abcdef")
    metrics, _ = train(months[1], steps / ".next.tmp", warm_start={"path": str(release), "epochs": 1})
    assert metrics["loss_first"] < 3.0
    shutil.rmtree(steps / "0123456789abcdef")
    with pytest.raises(ConfigError, match=r"holds no training state, and no finished step below .* has its tower"):
        train(months[1], steps / ".other.tmp", warm_start={"path": str(release)})


def test_a_model_of_another_shape_is_refused(months, champion, tmp_path):
    with pytest.raises(
        ConfigError, match=r"candidate.model.dimension = 8, the model there has 16; candidate.model.hidden = \[4\]"
    ):
        train(months[1], tmp_path / "out", model={"dimension": 8, "hidden": (4,)}, warm_start={"path": str(champion)})


def test_what_is_no_model_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"warm_start.path = .*nowhere': has no tower.json; allowed is the directory"):
        warm_start_version(str(tmp_path / "nowhere"))


def test_rows_that_moved_are_refused(months, champion, tmp_path):
    """Users and items that are not the first rows of the snapshot: their vectors would be somebody else's."""
    moved = tmp_path / "moved"
    shutil.copytree(months[1], moved)
    items = pq.read_table(moved / "items.parquet")
    names = items["item_id"].to_pylist()
    names[0], names[1] = names[1], names[0]
    pq.write_table(
        items.set_column(items.schema.get_field_index("item_id"), "item_id", pa.array(names)), moved / "items.parquet"
    )
    with pytest.raises(
        ConfigError, match=r"its 48 rows of items .* are not the first rows of this snapshot, which has 60"
    ):
        train(moved, tmp_path / "out", warm_start={"path": str(champion)})


def test_versions_of_the_maps_are_believed(months, champion, tmp_path):
    """A snapshot that was built with a base says so in its versions; another one's versions are refused."""
    from stages.contracts.snapshot import Snapshot

    grown = tmp_path / "grown"
    shutil.copytree(months[1], grown)
    maps = {}
    for kind, n_old in (("users", OLD * USERS), ("items", OLD * BLOCK)):
        ids = Snapshot(grown).user_ids() if kind == "users" else Snapshot(grown).items().item_id
        known = IdMap.empty(kind).extend(pa.array(ids[:n_old], pa.string())).extend(pa.array(ids[n_old:], pa.string()))
        maps[kind] = [version.model_dump() for version in known.versions]
    meta = {**read_json(grown / "snapshot.json"), "ids": maps}
    write_json(grown / "snapshot.json", meta)
    metrics, _ = train(grown, tmp_path / "out", warm_start={"path": str(champion), "epochs": 1})
    assert metrics["loss_first"] < 3.0
    state = json.loads((tmp_path / "out" / "state" / "state.json").read_text())
    assert [version["size"] for version in state["ids"]["items"]] == [OLD * BLOCK, NEW * BLOCK]


def test_damaged_files_are_named(champion, tmp_path, months):
    copy = tmp_path / "copy"
    shutil.copytree(champion, copy)
    (copy / "state/weights/query_tower.correction.mlp.0.bias.npy").unlink()
    with pytest.raises(ConfigError, match=r"query_tower\.correction\.mlp\.0\.bias\.npy is missing"):
        train(months[1], tmp_path / "out", warm_start={"path": str(copy)})


@pytest.mark.parametrize(
    ("file", "field", "words"),
    [
        ("tower.json", "tower_version", "tower_version: missing or not readable"),
        ("state/state.json", "shape", "shape: Field required"),
        ("state/state.json", None, "not readable"),
    ],
)
def test_files_of_another_version_are_named_with_what_to_do(champion, tmp_path, months, file, field, words):
    copy = tmp_path / "copy"
    shutil.copytree(champion, copy)
    if field is None:
        (copy / file).write_text("{")
    else:
        write_json(copy / file, {name: value for name, value in read_json(copy / file).items() if name != field})
    with pytest.raises(ConfigError) as caught:
        train(months[1], tmp_path / "out", warm_start={"path": str(copy)})
    assert f"{copy / file}: {words}" in str(caught.value)
    assert "train anew, or name another train_candidate step" in str(caught.value)

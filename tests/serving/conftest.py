"""A small real release: ONNX tower, Faiss index, LightGBM, ONNX heavy ranker, state by replay."""

import contextlib
import logging
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import faiss
import httpx
import lightgbm as lgb
import numpy as np
import onnx
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import uvicorn
from onnx import TensorProto, helper, numpy_helper

from serving.app import create_app
from serving.config import ServeConfig
from serving.events import EventLog
from serving.release_source import DirectorySource
from serving.server import configure, listen
from serving.service import Service
from stages.candidate.generators.config import SourcesConfig
from stages.candidate.generators.files import (
    MIXTURE_FILE,
    MixtureSummary,
    SourcesSummary,
    write_arrays,
    write_summary,
)
from stages.candidate.generators.pools import ITEM_FEATURES, mixture_features
from stages.candidate.generators.table import generator_class
from stages.contracts.files import read_json, sha256_file, write_json
from stages.contracts.manifest import FunnelSpec, ReleaseManifest
from stages.contracts.newcomers import NewcomerList
from stages.contracts.release_code import shared_code
from stages.contracts.snapshot import SnapshotMeta, Task, TimeBorders, read_items
from stages.contracts.tables import DAY_MS
from stages.contracts.tower_code import tower_code
from stages.features.config import FeatureConfig, TrendsConfig
from stages.features.ranking import feature_schema
from stages.features.state import FunnelState
from tests.builders.mixtures import write_linear_mixture
from tests.trees import sha256_tree

N_ITEMS, N_USERS, DIM, N_CATEGORIES = 300, 40, 8, 5
AS_OF_MS = 1_700_000_000_000
SIGNALS = ("impression", "click", "like")
TASKS = (
    Task(name="click", signals=("click", "like"), relevance=1.0),
    Task(name="like", signals=("like",), relevance=2.0),
)
FEATURES = FeatureConfig(history_length=6, history_decay=3.0, covisitation_neighbours=20)
OBJECTIVE = {"click": 0.25, "like": 2.0}
FUTURE_ITEM = N_ITEMS - 1  # born one day after the as-of time
WITHHELD = (3, 17, N_ITEMS - 2)  # by the item policy; the last one was never recommendable, so it is not indexed


def eligible_mask() -> np.ndarray:
    mask = np.full(N_ITEMS, 7, dtype=np.int8)
    mask[list(WITHHELD)] = (0b011, 0b001, 0)
    return mask


def _write_catalogue(directory: Path, tag: str, seed: int) -> None:
    rng = np.random.default_rng(seed)
    categories = [rng.choice(N_CATEGORIES, size=2, replace=False).tolist() for _ in range(N_ITEMS)]
    born = np.full(N_ITEMS, AS_OF_MS - 60 * DAY_MS)
    born[FUTURE_ITEM] = AS_OF_MS + DAY_MS
    items = {
        "item_index": pa.array(range(N_ITEMS), pa.int64()),
        "item_id": [f"i{index}" for index in range(N_ITEMS)],
        "title": [f"{tag} title {index}" for index in range(N_ITEMS)],
        "categories": pa.array(categories, pa.list_(pa.int32())),
        "created_at_ms": pa.array(born, pa.int64()),
        "duration_s": pa.array(rng.uniform(30, 600, N_ITEMS), pa.float32()),
        "eligible": eligible_mask(),
    }
    pq.write_table(pa.table(items), directory / "items.parquet")
    users = {"user_index": pa.array(range(N_USERS), pa.int64()), "user_id": [f"u{index}" for index in range(N_USERS)]}
    pq.write_table(pa.table(users), directory / "users.parquet")
    blocked = {"item_id": ["banned"], "reason": ["weapons"]}
    pq.write_table(pa.table(blocked), directory / "blocked.parquet")
    aliases = {"item_id": ["copy-of-i5"], "item_index": pa.array([5], pa.int64())}
    pq.write_table(pa.table(aliases), directory / "aliases.parquet")


def _write_state(directory: Path, seed: int, trending: TrendsConfig | None) -> None:
    """Every user but the last clicks some items; popularity falls with the item index."""
    rng = np.random.default_rng(seed)
    items = read_items(directory / "items.parquet", N_CATEGORIES)
    state = FunnelState.empty(items, FEATURES, SIGNALS, TASKS, N_USERS, trending=trending)
    times = np.sort(rng.integers(AS_OF_MS - 20 * DAY_MS, AS_OF_MS, 1200))
    skew = 1.0 / np.arange(1, N_ITEMS)
    chosen = rng.choice(N_ITEMS - 1, size=len(times), p=skew / skew.sum())
    for moment, item in zip(times, chosen, strict=True):
        state.apply(int(rng.integers(N_USERS - 1)), int(item), int(rng.integers(3)), 1.0, int(moment))
    (directory / "state").mkdir()
    state.save(directory / "state")


def _graph(nodes: list, name: str, inputs: list, output: tuple, constants: dict) -> onnx.ModelProto:
    values = [numpy_helper.from_array(value, key) for key, value in constants.items()]
    results = [helper.make_tensor_value_info(*output)]
    graph = helper.make_graph(nodes, name, [helper.make_tensor_value_info(*entry) for entry in inputs], results, values)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


def _write_tower(directory: Path, seed: int) -> None:
    """Write a tower that weighs each event by its signal and its age."""
    rng = np.random.default_rng(seed)
    vectors = rng.normal(size=(N_ITEMS, DIM)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    nodes = [
        helper.make_node("Gather", ["table", "history_items"], ["rows"]),
        helper.make_node("Add", ["history_ages", "second"], ["since"]),
        helper.make_node("Cast", ["since"], ["seconds"], to=TensorProto.FLOAT),
        helper.make_node("Log", ["seconds"], ["logs"]),
        helper.make_node("Gather", ["by_signal", "history_signals"], ["factors"]),
        helper.make_node("Div", ["factors", "logs"], ["strengths"]),
        helper.make_node("Unsqueeze", ["strengths", "last"], ["weights"]),
        helper.make_node("Mul", ["rows", "weights"], ["weighted"]),
        helper.make_node("ReduceSum", ["weighted", "one"], ["pooled"], keepdims=0),
        helper.make_node("LpNormalization", ["pooled"], ["query"], axis=-1, p=2),
    ]
    constants = {
        "table": np.concatenate([vectors, np.zeros((1, DIM), np.float32)]),
        "last": np.array([-1]),
        "second": np.array([2]),
        "by_signal": np.array([1.0, 2.0, 0.5], np.float32),
        "one": np.array([1]),
    }
    shape = ["batch", FEATURES.history_length]
    names = ("history_items", "history_signals", "history_ages")
    inputs = [(name, TensorProto.INT64, shape) for name in names]
    model = _graph(nodes, "tower", inputs, ("query", TensorProto.FLOAT, ["batch", DIM]), constants)
    onnx.save(model, directory / "user_tower.onnx")
    np.save(directory / "item_vectors.npy", vectors)
    indexed = np.flatnonzero(eligible_mask())
    index = faiss.IndexIDMap2(faiss.IndexFlatIP(DIM))
    index.add_with_ids(vectors[indexed], indexed)
    faiss.write_index(index, str(directory / "index.faiss"))
    tower = {
        "code": tower_code(),
        "tower_version": sha256_file(directory / "user_tower.onnx"),
        "item_vectors_sha256": sha256_file(directory / "item_vectors.npy"),
        "n_items": N_ITEMS,
        "dim": DIM,
        "config": {"features": FEATURES.model_dump(mode="json")},
    }
    write_json(directory / "tower.json", tower)
    described = {"tower_version": tower["tower_version"], "index_sha256": sha256_file(directory / "index.faiss")}
    described |= {"n_indexed": len(indexed), "item_vectors_sha256": tower["item_vectors_sha256"], "recall": 1.0}
    write_json(directory / "index.json", described)


def _write_rankers(directory: Path, seed: int, sources: tuple[str, ...]) -> None:
    rng = np.random.default_rng(seed)
    schema = feature_schema(FEATURES, TASKS, (), sources)
    width = len(schema.names)
    rows = rng.normal(size=(400, width))
    data = lgb.Dataset(rows, label=rows @ rng.normal(size=width))
    booster = lgb.train({"verbosity": -1, "num_threads": 1, "num_leaves": 7, "seed": seed}, data, num_boost_round=10)
    booster.save_model(directory / "light_ranker.txt")
    write_json(directory / "light_ranker.json", {"feature_schema_hash": schema.hash, "n_features": width})
    inputs = width + 2 + 3 * DIM
    nodes = [
        helper.make_node("Gemm", ["features", "weight"], ["logits"]),
        helper.make_node("Sigmoid", ["logits"], ["probabilities"]),
    ]
    constants = {"weight": (rng.normal(size=(inputs, 2)) * 0.05).astype(np.float32)}
    entry, output = ("features", TensorProto.FLOAT, ["rows", inputs]), ("probabilities", TensorProto.FLOAT, ["rows", 2])
    onnx.save(_graph(nodes, "heavy", [entry], output, constants), directory / "heavy_ranker.onnx")
    description = {
        "feature_schema_hash": schema.hash,
        "input_width": inputs,
        "tasks": [task.name for task in TASKS],
        "objective": OBJECTIVE,
    }
    write_json(directory / "heavy_ranker.json", description)
    described = {"names": list(schema.names), "hash": schema.hash, "code": shared_code()}
    write_json(directory / "feature_schema.json", described)


def _write_sources(directory: Path, seed: int, config: SourcesConfig, newcomers: NewcomerList | None) -> None:
    """Neighbours by chance; each source names an equal part of the 60 candidates."""
    rng = np.random.default_rng(seed)
    target = directory / "sources"
    target.mkdir()
    files = {}
    for name in set(config.names) & {"ease", "ials", "content", "directed_ridge"}:
        lists = [rng.choice(N_ITEMS, 30, replace=False) for _ in range(N_ITEMS)]
        arrays = {"offsets": np.arange(0, 30 * N_ITEMS + 1, 30), "items": np.concatenate(lists)}
        arrays["weights"] = rng.random(30 * N_ITEMS)
        files |= write_arrays(target, generator_class(name), arrays)
    mixture = None
    if config.mixture.kind == "learned":
        weights = {f"{name}_{feature}": rng.random() for name in config.names for feature in ITEM_FEATURES}
        write_linear_mixture(target / MIXTURE_FILE, config.names, weights)
        files[MIXTURE_FILE] = sha256_file(target / MIXTURE_FILE)
        features = mixture_features(config.names)
        mixture = MixtureSummary(features=features, pool=config.mixture.length(60), deviation=0.0)
    summary = SourcesSummary(
        names=config.names,
        quotas=config.counts(60),
        learned=False,
        candidate_k=60,
        n_items=N_ITEMS,
        tower_version=sha256_file(directory / "user_tower.onnx"),
        data_fingerprint="f" * 64,
        config=config,
        files=files,
        mixture=mixture,
        newcomers=newcomers,
    )
    write_summary(target, summary)


def write_manifest(directory: Path, release_id: str, **changes) -> None:
    """Seal a release directory; ``changes`` override fields of the manifest."""
    (directory / "manifest.json").unlink(missing_ok=True)
    fields = {
        "release_id": release_id,
        "as_of_ms": AS_OF_MS,
        "parts": sha256_tree(directory),
        "feature_schema_hash": read_json(directory / "feature_schema.json")["hash"],
        "tower_version": sha256_file(directory / "user_tower.onnx"),
        "data_fingerprint": "f" * 64,
        "funnel": FunnelSpec(candidate_k=60, light_k=20, max_k=50, objective=OBJECTIVE),
        "metrics": {},
    }
    manifest = ReleaseManifest(**{**fields, **changes})
    write_json(directory / "manifest.json", manifest.model_dump(mode="json"))


def build_release(
    directory: Path,
    tag: str,
    seed: int,
    sources: SourcesConfig | None = None,
    newcomers: NewcomerList | None = None,
    **changes,
) -> Path:
    """Write a whole release; titles start with ``tag``, which is also the end of its id."""
    directory.mkdir(parents=True)
    borders = TimeBorders(
        start_ms=AS_OF_MS - 60 * DAY_MS,
        candidate_end_ms=AS_OF_MS - 10 * DAY_MS,
        ranker_end_ms=AS_OF_MS - 5 * DAY_MS,
        as_of_ms=AS_OF_MS,
    )
    meta = SnapshotMeta(
        signals=SIGNALS,
        categories=tuple(f"c{code}" for code in range(N_CATEGORIES)),
        tasks=TASKS,
        borders=borders,
        counts={},
        fingerprint="f" * 64,
    )
    write_json(directory / "snapshot.json", meta.model_dump(mode="json"))
    write_json(directory / "config.json", {"features": FEATURES.model_dump(mode="json"), "seed": seed})
    write_json(directory / "ledger.json", {})
    _write_catalogue(directory, tag, seed)
    _write_state(directory, seed, None if sources is None else sources.counted)
    _write_tower(directory, seed)
    _write_rankers(directory, seed, () if sources is None else sources.read_names)
    if sources is not None:
        _write_sources(directory, seed, sources, newcomers)
    write_json(directory / "fallback.json", [{"item_id": f"i{index}", "score": 50.0 - index} for index in range(50)])
    write_manifest(directory, f"2023-11-14-{tag}", **changes)
    return directory


@pytest.fixture(scope="session")
def releases(tmp_path_factory):
    """Two releases of the same catalogue with different models; never change their files."""
    root = tmp_path_factory.mktemp("releases")
    return {tag: build_release(root / tag, tag, seed) for seed, tag in enumerate(("alpha", "beta"))}


@pytest.fixture(scope="session")
def build_once():
    """``make_release`` for fixtures of a wider scope."""
    return build_release


@pytest.fixture(scope="session")
def seal_once():
    """``reseal`` for fixtures of a wider scope."""
    return write_manifest


@pytest.fixture
def make_release():
    """Return the function that builds a release of one's own."""
    return build_release


@pytest.fixture
def reseal():
    """Return the function that writes a new manifest over changed parts."""
    return write_manifest


CONFIG = ServeConfig(poll_seconds=0, clock="data", ready_users=3)


@pytest.fixture
def start(tmp_path):
    """Return a function that starts a service on a release directory or source; stopped at the end."""
    with contextlib.ExitStack() as stack:

        def start_service(source, data_dir: Path | None = None, config: ServeConfig = CONFIG) -> Service:
            if isinstance(source, Path):
                source = DirectorySource(source)
            service = Service(source, EventLog(data_dir or tmp_path / "data"), config)
            stack.callback(service.stop)
            service.start()
            return service

        yield start_service


@contextlib.contextmanager
def served(service: Service, host: str = "127.0.0.1", loop: str = "uvloop") -> Iterator[httpx.Client]:
    """Serve ``service`` over HTTP on a free port, as ``serving.server`` does; yields a client."""
    factory = logging.getLogRecordFactory()
    server = uvicorn.Server(configure(create_app(service), loop))
    with listen(host, 0) as listener:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            while not server.started:
                time.sleep(0.005)
            base = f"http://{f'[{host}]' if ':' in host else host}:{listener.getsockname()[1]}"
            with httpx.Client(base_url=base, trust_env=False, timeout=10) as client:
                yield client
        finally:
            server.should_exit = True
            thread.join()
            logging.setLogRecordFactory(factory)


@pytest.fixture(scope="session")
def serve_once():
    """``served``, for fixtures of a wider scope."""
    return served


@pytest.fixture
def over_http():
    """Return a function that serves a service over HTTP on a free port and returns a client."""
    with contextlib.ExitStack() as stack:
        yield lambda *args: stack.enter_context(served(*args))


@pytest.fixture
def service(releases, start):
    """A service on the first release."""
    return start(releases["alpha"])


@pytest.fixture
def client(service, over_http):
    """A client of that service."""
    return over_http(service)

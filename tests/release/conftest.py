"""A tiny but whole set of finished steps, with bytes in place of models."""

from pathlib import Path

import numpy as np
import pytest

from stages.contracts.files import read_json, sha256_file, write_json
from stages.contracts.ledger import JudgedRequests
from stages.contracts.manifest import FunnelSpec
from stages.contracts.release_code import shared_code
from stages.contracts.snapshot import Task
from stages.contracts.tables import DAY_MS
from stages.contracts.tower_code import tower_code
from stages.release.assemble import AssembleConfig, assemble
from tests.builders.snapshots import catalogue, event_table, write_snapshot

N_ITEMS, DIM = 5, 3
AS_OF_MS = 1_700_000_000_000  # 2023-11-14T22:13:20Z


def write_inputs(root: Path, salt: str = "", as_of_ms: int = AS_OF_MS) -> dict[str, Path]:
    """Write every input of ``assemble``; another ``salt`` makes another light ranker."""
    names = ("snapshot", "candidate", "index", "examples", "light", "heavy", "evaluate")
    inputs = {name: root / name for name in names}
    for path in inputs.values():
        path.mkdir(parents=True)
    _write_snapshot(inputs["snapshot"], as_of_ms)
    candidate, index = inputs["candidate"], inputs["index"]
    (candidate / "user_tower.onnx").write_bytes(b"tower")
    (candidate / "item_tower.onnx").write_bytes(b"item tower")
    np.save(candidate / "item_vectors.npy", np.ones((N_ITEMS, DIM), dtype=np.float32))
    version = sha256_file(candidate / "user_tower.onnx")
    vectors = sha256_file(candidate / "item_vectors.npy")
    tower = {"tower_version": version, "item_vectors_sha256": vectors, "n_items": N_ITEMS, "dim": DIM}
    tower |= {"code": tower_code(), "config": {"features": {}}}
    tower["item_tower_sha256"] = sha256_file(candidate / "item_tower.onnx")
    write_json(candidate / "tower.json", tower)
    (index / "index.faiss").write_bytes(b"index")
    described = {"tower_version": version, "index_sha256": sha256_file(index / "index.faiss"), "n_items": N_ITEMS}
    described |= {"item_vectors_sha256": vectors, "recall": 0.97, "n_indexed": N_ITEMS}
    write_json(index / "index.json", described)
    schema = {"names": ["age"], "hash": "schema-1", "code": shared_code()}
    write_json(inputs["examples"] / "feature_schema.json", schema)
    (inputs["examples"] / "state").mkdir()
    write_json(inputs["examples"] / "state" / "state.json", {"n_items": N_ITEMS})
    np.save(inputs["examples"] / "state" / "counts.npy", np.zeros(N_ITEMS))
    (inputs["examples"] / "examples.parquet").write_bytes(b"stays behind")
    (inputs["light"] / "light_ranker.txt").write_text(f"tree{salt}")
    write_json(inputs["light"] / "light_ranker.json", {"feature_schema_hash": "schema-1", "n_features": 1})
    (inputs["heavy"] / "heavy_ranker.onnx").write_bytes(b"cross")
    meta = {
        "feature_schema_hash": "schema-1",
        "input_width": 3 + 3 * DIM,
        "vector_dim": DIM,
        "tasks": ["click", "like"],
        "objective": {"click": 1.0},
    }
    write_json(inputs["heavy"] / "heavy_ranker.json", meta)
    rows = {"popularity": 0.10, "candidates": 0.15, "light": 0.20, "heavy": 0.25}
    ledger = {"rows": [{"name": name, "metrics": {"ndcg@10": value}} for name, value in rows.items()]}
    write_json(inputs["evaluate"] / "ledger.json", ledger)
    return inputs


def serve_row(inputs: dict[str, Path], row: str, stages: list[str], **bypassed: str) -> None:
    """Let the ledger name what is served, as the evaluation of this version does."""
    ledger = read_json(inputs["evaluate"] / "ledger.json")
    metrics = next(entry["metrics"] for entry in ledger["rows"] if entry["name"] == row)
    served = {"row": row, "stages": stages, "bypassed": bypassed, "metrics": metrics}
    write_json(inputs["evaluate"] / "ledger.json", ledger | {"served": served})


def _write_snapshot(directory: Path, as_of_ms: int) -> None:
    # item 1: three users long ago, one of them twice; item 2: two users of late; item 4 not yet born
    rows = [(0, 1, 100), (0, 1, 100), (1, 1, 100), (2, 1, 100), (0, 2, 1), (1, 2, 1)]
    user, item, days = np.array(rows).T
    items = catalogue(
        N_ITEMS,
        item_id=[f"item-{i}" for i in range(N_ITEMS)],
        title=[f"Title {i}" for i in range(N_ITEMS)],
        categories=[[0]] * N_ITEMS,
        created_at_ms=[0, 0, 0, 0, as_of_ms + 1],
        duration_s=np.ones(N_ITEMS),
    )
    write_snapshot(
        directory,
        (0, 1, 2, as_of_ms),
        categories=["none"],
        tasks=[Task(name="click", signals=("click",))],
        events=event_table(user, item, as_of_ms - days * DAY_MS),
        items=items,
        users=["a", "b", "c"],
        aliases={"item-x": 1},
        blocked={"item-y": "illegal"},
    )


@pytest.fixture
def inputs(tmp_path):
    return write_inputs(tmp_path / "steps")


@pytest.fixture(scope="session")
def make_release():
    """Return a function that writes a release below a directory and returns where it lies."""

    def make(root: Path, salt: str = "", **funnel: object) -> Path:
        out = root / "assembled"
        out.mkdir(parents=True)
        config = AssembleConfig(funnel=FunnelSpec.model_validate(funnel), resolved={"seed": 1}, fallback_k=3)
        assemble(config, write_inputs(root / "steps", salt), out)
        return out / "release"

    return make


@pytest.fixture(scope="session")
def make_judged():
    """Return a function that writes a release whose served row had these values, by the keys of its requests."""

    def make(root: Path, judged: dict[int, float], as_of_ms: int = AS_OF_MS, metric: str = "ndcg@10") -> Path:
        inputs = write_inputs(root / "steps", str(root), as_of_ms)
        serve_row(inputs, "heavy", ["light", "heavy"])
        keys, values = np.array(list(judged), dtype=np.int64), np.array(list(judged.values()))
        JudgedRequests.make(metric, keys, values).write(inputs["evaluate"] / "held_out.parquet")
        out = root / "assembled"
        out.mkdir(parents=True)
        assemble(AssembleConfig(resolved={"gate": {}}, fallback_k=3), inputs, out)
        return out / "release"

    return make


@pytest.fixture(scope="session")
def serve():
    """``serve_row`` for tests."""
    return serve_row


@pytest.fixture(scope="session")
def store(tmp_path_factory):
    """One MLflow store for all tests: making its tables takes longer than the tests."""
    root = tmp_path_factory.mktemp("mlflow")
    return {"tracking_uri": f"sqlite:///{root}/db/mlflow.db", "artifact_root": str(root / "artifacts")}

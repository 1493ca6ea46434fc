"""The candidate section: every former key is refused with what it is now; what was written with one is read or refused.

Also that marks at fields say what they must: which of them give tensors their shape, and which are no part of a result.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from benchmarks.retrieval.registry import STATIC, configure, read_recipe
from cli.run import parse_overrides
from stages.candidate.config import CandidateConfig, ModelConfig, TrainCandidateConfig
from stages.candidate.towers.encoders import Sizes
from stages.candidate.towers.two_tower import TwoTower
from stages.candidate.training import worker
from stages.candidate.training.checkpoint import Checkpoints, Progress
from stages.candidate.training.warm_start import STATE, STATE_JSON, identity, warm_state
from stages.contracts.config import merged
from stages.contracts.errors import ConfigError, ReleaseError
from stages.contracts.files import read_json, write_json
from stages.contracts.results import StageResult
from stages.contracts.snapshot import Snapshot
from stages.recipe import Recipe
from stages.refresh import run_refresh_step
from stages.run_recipe import load_recipe
from stages.settings import load_settings
from tests.candidate.towers import joined

REPOSITORY = Path(__file__).resolve().parents[2]
FORMER: dict[str, Any] = {
    "encoder": "mean",
    "training": "examples",
    "dimension": 64,
    "normalisation": "cosine",
    "tastes": 4,
    "blocks": 2,
    "heads": 2,
    "dropout": 0.2,
    "time_bias": True,
    "distance_bias": "decay",
    "input_scale": 1.0,
    "user_id": False,
    "user_id_dropout": 0.5,
    "context": False,
    "category_dimension": 16,
    "word_buckets": 0,
    "word_dimension": 16,
    "item_age": False,
    "hidden": [128],
    "shared_item_table": True,
    "initial_deviation": None,
    "temperature": 0.15,
    "item_id_dropout": 0.1,
    "history_dropout": 0.1,
    "use_empty_histories": False,
    "loss": "softmax",
    "logq_correction": True,
    "correction": "mixture",
    "in_batch_negatives": True,
    "uniform_negatives": 1024,
    "negative_sampling": "uniform",
    "popularity_power": 0.75,
    "mask_history": True,
    "ccl_margin": 0.4,
    "ccl_negative_weight": 150.0,
    "gbce_calibration": 0.75,
    "epochs": 8,
    "batch_size": 512,
    "windows_by_length": False,
    "sparse_optimizer": "rowwise_adagrad",
    "sparse_learning_rate": 0.1,
    "dense_learning_rate": 0.001,
    "dense_beta2": 0.999,
    "weight_decay": 0.0,
    "clip_norm": None,
    "schedule": "constant",
    "warmup_steps": 0,
    "final_rate": 0.0,
    "average": "none",
    "average_decay": 0.995,
    "sharding": "auto",
    "item_parts": 4,
    "n_processes": 1,
    "device": "auto",
    "threads": 1,
    "timeout_s": 300,
    "seed": 42,
    "precision": "float32",
    "prefetch": 2,
    "checkpoint_every_steps": 0,
    "keep_checkpoints": 2,
    "warm_start": None,
    "warm_start_epochs": 2,
}
"""The keys of when the section was flat, and the defaults that they had."""
LATER = {
    "loss": ("learned_temperature", "temperature_bounds"),
    "training": ("early_stopping", "histories"),
}
"""Fields by section that came after the section was nested."""
GONE = ("correction", "ccl_margin", "ccl_negative_weight")


def at(values: Any, key: str) -> Any:
    for name in key.split("."):
        values = values[name]
    return values


def told(key: str, value: Any) -> str:
    """What an error says of a former key."""
    if key in GONE:
        return f"candidate.{key} = {value!r}: this key is gone; "
    return f"candidate.{key} = {value!r}: this key is now candidate.{CandidateConfig.renamed[key]}"


@pytest.fixture
def recipe(tmp_path: Path) -> Any:
    """Write the demo's recipe with changes, and return its path."""

    def write(**changes: Any) -> Path:
        path = tmp_path / "own.yaml"
        values = yaml.safe_load((REPOSITORY / "configs" / "demo.yaml").read_text(encoding="utf-8"))
        path.write_text(yaml.safe_dump(merged(values, changes)), encoding="utf-8")
        return path

    return write


def test_every_former_key_has_a_new_one_of_the_same_default_or_is_gone() -> None:
    assert {*CandidateConfig.renamed, *CandidateConfig.removed} == {*FORMER}
    assert {*CandidateConfig.removed} == {*GONE}
    now = CandidateConfig().model_dump(mode="json")
    assert {key: at(now, CandidateConfig.renamed[key]) for key in FORMER if key not in GONE} == {
        key: value for key, value in FORMER.items() if key not in GONE
    }
    known = {CandidateConfig.renamed[key] for key in FORMER if key not in GONE}
    later = {f"{section}.{name}" for section, names in LATER.items() for name in names}
    assert known | later == {f"{section}.{name}" for section in now for name in now[section]} and not known & later


@pytest.mark.parametrize("key", FORMER)
def test_a_former_key_is_refused_with_the_new_one(recipe: Any, tmp_path: Path, key: str) -> None:
    value = FORMER[key]
    path = recipe(candidate={key: value})
    with pytest.raises(ConfigError) as found:
        load_recipe(load_settings({}, config=str(path)))
    assert str(found.value).startswith(f"{path}: {told(key, value)}")

    overrides = parse_overrides((f"candidate.{key}={yaml.safe_dump(value, default_flow_style=True)}",))
    with pytest.raises(ConfigError) as found:
        load_recipe(load_settings({}, config=str(recipe()), overrides=overrides))
    assert str(found.value).startswith(f"overrides (--set): {told(key, value)}")

    own = tmp_path / "towers.yaml"
    own.write_text(yaml.safe_dump({"two_tower": {"candidate": {key: value}}}), encoding="utf-8")
    with pytest.raises(ConfigError) as found:
        configure(STATIC, ["two_tower"], read_recipe(own, "ml-100k", STATIC), [], str(own))
    assert str(found.value).startswith(f"{own}: two_tower: {told(key, value)}")
    with pytest.raises(ConfigError) as found:
        configure(STATIC, ["two_tower"], {}, [f"two_tower.candidate.{key}={value!r}"])
    assert str(found.value).startswith(f"--set two_tower: candidate.{key} = ")


def test_a_former_key_under_a_new_section_is_not_lost(recipe: Any) -> None:
    """``training`` was a value and is a section now: laying one over the other would forget the value."""
    path = recipe(candidate={"training": "sequences"})
    with pytest.raises(ConfigError) as found:
        load_recipe(load_settings({}, config=str(path), overrides={"candidate": {"training": {"epochs": 3}}}))
    assert str(found.value) == f"{path}: {told('training', 'sequences')}"
    settings = {"two_tower": {"candidate": {"training": "sequences"}}}
    with pytest.raises(ConfigError, match=r"^settings: two_tower: candidate\.training = 'sequences': this key is now"):
        configure(STATIC, ["two_tower"], settings, ["two_tower.candidate.training.epochs=3"])


@pytest.mark.parametrize("section", ["training", "loss", "schedule", "average"])
def test_an_empty_section_is_not_taken_for_a_former_key(recipe: Any, section: str) -> None:
    with pytest.raises(ConfigError, match=rf"candidate\.{section} = None: Input should be") as found:
        load_recipe(load_settings({}, config=str(recipe(candidate={section: None}))))
    assert "this key is now" not in str(found.value)


def test_unknown_keys_still_list_the_known_ones(recipe: Any) -> None:
    for section, known in (({"dim": 3}, "average, checkpoints, distributed"), ({"loss": {"kid": 1}}, "gbce_calib")):
        with pytest.raises(ConfigError, match=rf"unknown key, allowed are {known}"):
            load_recipe(load_settings({}, config=str(recipe(candidate=section))))


# --- what was written before ------------------------------------------------------------------------------------------


def flat(config: CandidateConfig) -> dict[str, Any]:
    """The section as it was written when it was flat."""
    values = config.model_dump(mode="json")
    gone = {key: FORMER[key] for key in GONE}
    return {**{key: at(values, new) for key, new in CandidateConfig.renamed.items()}, **gone}


def test_a_release_of_before_is_not_refreshed_and_says_what_to_do(tmp_path: Path) -> None:
    release = tmp_path / "2024-01-01-0123456789ab"
    release.mkdir()
    values = yaml.safe_load((REPOSITORY / "configs" / "demo.yaml").read_text(encoding="utf-8"))
    resolved = Recipe.model_validate(values)
    write_json(release / "config.json", {**resolved.model_dump(mode="json"), "candidate": flat(resolved.candidate)})
    champion = StageResult(step="champion", path=str(release), fingerprint="f", info={})
    settings = load_settings({"SLUICE_HOME": str(tmp_path)}, needs_recipe=False)
    with pytest.raises(ReleaseError) as found:
        run_refresh_step("ingest", settings, {"champion": champion})
    message = str(found.value)
    assert message.startswith(
        f"the champion cannot be refreshed by this version: {release / 'config.json'}: candidate."
    )
    assert message.count("this key is now candidate.") == 3
    assert "; and 60 more; train again with this version, or refresh the release with the version" in message


@pytest.fixture(scope="module")
def before(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of a finished ``train_candidate`` step of when the section was flat."""
    step = tmp_path_factory.mktemp("before") / "0123456789abcdef"
    shutil.copytree(trained, step)
    summary = read_json(step / "tower.json")
    section = flat(CandidateConfig.model_validate(summary["config"]["candidate"]))
    summary["config"]["candidate"] = section
    write_json(step / "tower.json", summary)
    state = read_json(step / STATE / STATE_JSON)
    former = {f"candidate.{new}": f"candidate.{old}" for old, new in CandidateConfig.renamed.items()}
    write_json(
        step / STATE / STATE_JSON,
        {**state, "shape": {former[key]: v for key, v in state["shape"].items() if key in former}},
    )
    assert len(state["shape"]) == 18 and {*state["shape"]} - {*former} == {"candidate.loss.learned_temperature"}
    return step


def own(trained: Path, **changes: Any) -> TrainCandidateConfig:
    values = read_json(trained / "tower.json")["config"]
    return TrainCandidateConfig.model_validate(merged(values, {"candidate": changes}))


def test_a_warm_start_goes_on_from_a_model_of_before(planted: Path, trained: Path, before: Path) -> None:
    state = warm_state(own(trained, warm_start={"path": str(before)}), Snapshot(planted), before.parent)
    assert state == before / STATE


def test_a_model_of_before_and_of_another_shape_is_refused_by_the_new_name(
    planted: Path, trained: Path, before: Path
) -> None:
    config = own(trained, model={"dimension": 8}, warm_start={"path": str(before)})
    with pytest.raises(ConfigError, match=r"candidate\.model\.dimension = 8, the model there has 16$"):
        warm_state(config, Snapshot(planted), before.parent)


def test_a_checkpoint_of_before_is_refused_by_what_differs(
    one_rank: None, planted: Path, trained: Path, tmp_path: Path
) -> None:
    """Former names that mean the same are no difference; the code is, and says so with what to do."""
    run = identity(own(trained), Snapshot(planted))
    former = {f"candidate.{new}": f"candidate.{old}" for old, new in CandidateConfig.renamed.items()}
    old = {former.get(key, key): value for key, value in run.items()}
    assert "candidate.epochs" in old and "candidate.n_processes" not in old
    weights = {"weights/a": torch.ones(2)}
    Checkpoints(tmp_path, 2, {**old, "code": "0" * 64}).save(3, Progress(step=3), weights)
    with pytest.raises(ConfigError) as found:
        Checkpoints(tmp_path, 2, run).resume({"weights/a": torch.zeros(2)})
    where = tmp_path / "step-000000000003"
    assert str(found.value) == (
        f"{where} is of another run: code is {'0' * 64!r} there, expected {run['code']!r}; remove it to start anew"
    )
    (tmp_path / "same").mkdir()
    Checkpoints(tmp_path / "same", 2, old).save(3, Progress(step=3), weights)
    assert Checkpoints(tmp_path / "same", 2, run).resume({"weights/a": torch.zeros(2)}).step == 3


def test_a_job_of_before_is_refused_naming_file_and_keys(tmp_path: Path) -> None:
    write_json(tmp_path / "job.json", {"candidate": {"epochs": 8, "loss": "softmax"}})
    with pytest.raises(ConfigError) as found:
        worker.job(tmp_path)
    assert str(found.value) == f"{tmp_path / 'job.json'}: {told('loss', 'softmax')}; {told('epochs', 8)}"


# --- marks ------------------------------------------------------------------------------------------------------------

SIZES = Sizes(
    items=9,
    item_parts=2,
    categories=5,
    words=0,
    users=0,
    context_values=0,
    signals=2,
    history_length=4,
    history_decay=2.0,
)
FREE = {"dropout": 0.4, "distance_bias": "logarithm", "initial_deviation": 0.02, "item_parts": 3}


@pytest.mark.parametrize("encoder", ["mean", "tastes", "attention"])
def test_what_a_warm_start_may_change_changes_no_shape(encoder: str) -> None:
    def shapes(config: ModelConfig) -> dict[str, Any]:
        model = TwoTower(SIZES, config)
        return {
            name: value.shape for name, value in joined({k: v.numpy() for k, v in model.state_dict().items()}).items()
        }

    config = ModelConfig(encoder=encoder)
    for name, value in FREE.items():
        assert shapes(config.changed(**{name: value})) == shapes(config)


def test_a_run_is_identified_by_all_but_where_it_runs(planted: Path, trained: Path) -> None:
    """So is the list of what a warm start must share: one list of names by hand, against the marks at the fields."""
    config, snapshot = own(trained), Snapshot(planted)
    run = identity(config, snapshot)
    there = {"sharding": "row_wise", "n_processes": 2, "device": "auto", "threads": 2, "timeout_s": 9, "prefetch": 0}
    moved = own(trained, distributed=there, checkpoints={"every_steps": 7, "keep": 9})
    assert identity(moved, snapshot) == run
    assert {*there} == {*config.candidate.distributed.model_dump()}
    sections = config.candidate.model_dump(exclude={"distributed", "checkpoints"})
    named = {f"candidate.{section}.{name}" for section, values in sections.items() for name in values}
    assert {name for name in run if name.startswith("candidate.")} == named
    described = {*read_json(trained / STATE / STATE_JSON)["shape"]}
    free = {f"candidate.model.{name}" for name in FREE}
    assert described == {name for name in named if name.startswith("candidate.model.")} - free | {
        "candidate.optimizer.sparse",
        "candidate.loss.learned_temperature",
    }

"""What ``auto`` counts and chooses."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages import pipeline, run_recipe
from stages.auto.config import AutoConfig, ChooseSettingsConfig
from stages.auto.counts import Counts, counts_of
from stages.auto.rules import Choice, choose
from stages.auto.step import CHOICES_FILE, choose_settings, with_choices
from stages.candidate.config import ModelConfig
from stages.candidate.towers.encoders import ENCODERS
from stages.contracts.config import parse_config
from stages.contracts.snapshot import Snapshot
from stages.contracts.tables import PART_CANDIDATE, PART_EVALUATION, PART_RANKER
from stages.recipe import Recipe
from stages.settings import load_settings
from tests.builders.snapshots import catalogue, event_table, request_table, write_snapshot

BASE: dict[str, Any] = {
    "dataset": {"signals": ["click"], "tasks": [{"name": "click", "signals": ["click"], "relevance": 1}]},
    "funnel": {"objective": {"click": 1.0}},
}
LOG = Counts(users=1000, items=2000, touches=40_000, ordered=True, timed=True, described=1.0, requests=2000)


def values_of(choices: tuple[Choice, ...]) -> dict[str, Any]:
    return {choice.key: choice.value for choice in choices}


def recipe_of(choices: tuple[Choice, ...], given: dict[str, Any] | None = None) -> Recipe:
    told = {choice.key: {"value": choice.value, "reason": choice.reason} for choice in choices}
    return parse_config(Recipe, with_choices({**BASE, **(given or {})}, told), "chosen")


@given(
    counts=st.builds(
        Counts,
        users=st.integers(0, 10**8),
        items=st.integers(0, 10**8),
        touches=st.integers(0, 10**10),
        ordered=st.booleans(),
        timed=st.booleans(),
        newborn=st.floats(0, 1),
        described=st.floats(0, 1),
        requests=st.integers(0, 10**7),
    ),
    encoder=st.sampled_from([None, *ENCODERS]),
)
def test_every_choice_is_a_recipe_that_can_run_and_has_one_reason(counts: Counts, encoder: str | None) -> None:
    choices = choose(counts, encoder)
    chosen = recipe_of(choices, {"candidate": {"model": {"encoder": encoder}}} if encoder else None)
    assert chosen.candidate.model.encoder == (encoder or values_of(choices)["candidate.model.encoder"])
    assert len({choice.key for choice in choices}) == len(choices) == len(chosen.auto.chosen)
    assert all(choice.reason for choice in choices)


def test_each_kind_of_data_gets_its_own_encoder_and_generators() -> None:
    log = recipe_of(choose(LOG))
    news = recipe_of(choose(replace(LOG, newborn=0.6)))
    pairs = recipe_of(choose(replace(LOG, timed=False)))
    baskets = recipe_of(choose(replace(LOG, timed=False, ordered=False, described=0.0)))
    assert (log.candidate.model.encoder, pairs.candidate.model.encoder) == ("mean", "attention")
    assert news.candidate.training.epochs == 2 < log.candidate.training.epochs
    assert set(news.sources.names) == {"tower", "covisitation", "trending", "content"}
    assert set(log.sources.names) == {*news.sources.names, "ease", "ials"}
    assert set(pairs.sources.names) == {"tower", "ease", "item_knn", "directed_ridge", "content"}
    assert set(baskets.sources.names) == {"tower", "ease", "item_knn"}
    assert baskets.candidate.training.histories == "others"
    assert baskets.candidate.training.item_id_dropout == 0.0
    assert baskets.sources.history_length == 200


def test_few_requests_teach_no_mixture() -> None:
    assert recipe_of(choose(LOG)).sources.mixture.kind == "learned"
    assert recipe_of(choose(replace(LOG, requests=499))).sources.mixture.kind == "quotas"


def test_what_the_recipe_gives_stays_and_the_rest_follows_it() -> None:
    given = {
        "candidate": {"model": {"encoder": "mean", "dimension": 32}, "loss": {"temperature": 0.3}},
        "sources": {"names": ["tower"]},
    }
    found = recipe_of(choose(replace(LOG, timed=False), "mean", ("tower",)), given)
    assert (found.candidate.model.encoder, found.candidate.model.dimension) == ("mean", 32)
    assert found.candidate.loss.temperature == 0.3
    assert found.sources.names == ("tower",)
    assert found.sources.mixture.kind == "quotas"
    assert "candidate.loss.temperature" not in found.auto.chosen
    assert found.candidate.training.batch_size == 512
    assert found.auto.chosen["candidate.training.batch_size"]


def test_the_counts_of_a_log_with_a_known_answer(tmp_path: Path) -> None:
    events = event_table(
        # user 0 touches item 0 twice; item 3 is born in the last tenth; the rest is not of the candidate part, an
        # exposure, or of a user who is not active.
        [0, 0, 1, 1, 0, 2, 0, 3],
        [0, 0, 0, 1, 3, 3, 2, 2],
        [0, 10, 20, 30, 95, 96, 99, 50],
        [PART_CANDIDATE] * 6 + [PART_RANKER, PART_CANDIDATE],
        signal=[0, 0, 0, 0, 0, 0, 0, 1],
    )
    later = event_table([1], [1], [97])
    requests = request_table([0, 1, 2], [100, 101, 150], [PART_RANKER, PART_RANKER, PART_EVALUATION])
    items = catalogue(5, title=["i0", "", "i2", "A title", "i4"], categories=[[0], [], [], [], []])
    directory = write_snapshot(
        tmp_path / "snapshot",
        [0, 100, 140, 200],
        signals=("click", "impression"),
        categories=("one",),
        events=type(events).concatenate([events, later]),
        requests=requests,
        items=items,
    )
    counts = counts_of(Snapshot(directory), ("impression",))
    assert counts == Counts(
        users=3,
        items=3,
        touches=5,
        ordered=True,
        timed=True,
        newborn=pytest.approx(2 / 3),  # type: ignore[arg-type]
        described=pytest.approx(2 / 3),  # type: ignore[arg-type]
        requests=2,
    )
    assert not counts_of(Snapshot(directory), ("impression",), ordered=False).ordered


def test_a_given_split_has_no_order_unless_the_recipe_says_so(tmp_path: Path) -> None:
    events = event_table([0, 0, 1], [0, 1, 1], [0, 1, 2])
    directory = write_snapshot(
        tmp_path / "snapshot",
        [0, 10, 10, 10],
        events=events,
        requests=request_table([0], [10], [PART_RANKER]),
        items=catalogue(2),
        split="given",
    )
    found = counts_of(Snapshot(directory), ())
    assert (found.ordered, found.timed, found.newborn) == (False, False, 0.0)
    assert counts_of(Snapshot(directory), (), ordered=True).ordered


def test_the_step_keeps_values_counts_and_reasons(tmp_path: Path) -> None:
    events = event_table(np.arange(50) % 5, np.arange(50) % 7, np.arange(50))
    directory = write_snapshot(
        tmp_path / "snapshot",
        [0, 50, 60, 70],
        events=events,
        requests=request_table([0], [55], [PART_RANKER]),
        items=catalogue(7),
    )
    off, on = tmp_path / "off", tmp_path / "on"
    for made in (off, on):
        made.mkdir()
    inputs = {"snapshot": directory}
    assert choose_settings(ChooseSettingsConfig(auto=AutoConfig()), inputs, off) == ({}, {"choices": {}})
    metrics, info = choose_settings(ChooseSettingsConfig(auto=AutoConfig(choose=True)), inputs, on)
    kept = json.loads((on / CHOICES_FILE).read_text(encoding="utf-8"))
    assert kept["choices"] == info["choices"] != {}
    assert metrics["items"] == kept["counts"]["items"] == 7
    assert all(set(choice) == {"value", "reason"} for choice in info["choices"].values())


def test_a_run_trains_and_keeps_what_was_chosen(job: Any, tiny: dict[str, Any]) -> None:
    overrides = {**tiny, "auto": {"choose": True}, "features": {**tiny.get("features", {}), "history_decay": 7.0}}
    settings = load_settings(job.environ, data="synthetic", overrides=overrides)
    results = pipeline.run_all(settings, until="check_memory")
    choices = results["choose_settings"].info["choices"]
    assert choices["candidate.training.batch_size"]["value"] == 512
    found = run_recipe.found_recipe(settings, results)
    given = run_recipe.checked_recipe(settings)
    assert found.features.history_decay == 7.0
    assert found.sources.names == tuple(choices["sources.names"]["value"]) != given.sources.names
    assert set(results["check_memory"].metrics) > {f"{name}_gigabytes" for name in ("ease", "ials")}
    assert set(found.auto.chosen) <= set(choices)
    # A later run from the kept recipe has nothing left to choose.
    kept = settings.model_copy(update={"recipe": found.model_dump(mode="json")})
    assert run_recipe.found_recipe(kept, results).model_copy(update={"auto": found.auto}) == found


def test_the_default_encoder_is_the_one_that_is_chosen_for_a_log() -> None:
    assert values_of(choose(LOG))["candidate.model.encoder"] == ModelConfig().encoder

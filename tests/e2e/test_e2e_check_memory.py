"""A generator that cannot be fitted stops the run before anything trains."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from stages import pipeline
from stages.candidate.training import step as training
from stages.contracts.errors import ConfigError
from stages.settings import load_settings


def test_nothing_trains_for_a_generator_that_does_not_fit(
    job: Any, tiny: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*arguments: object) -> None:
        raise AssertionError("the towers were trained")

    monkeypatch.setattr(training, "train_candidate", never)
    trained = set((Path(job.settings.home) / "runs" / "train_candidate").iterdir())
    epochs = tiny["candidate"]["training"]["epochs"] + 1
    changed = {**tiny, "candidate": {**tiny["candidate"], "training": {"epochs": epochs}}}
    begun: list[str] = []

    def run(sources: dict[str, Any]) -> None:
        begun.clear()
        overrides = {**changed, "sources": sources}
        pipeline.run_all(load_settings(job.environ, data="synthetic", overrides=overrides), progress=begun.append)

    with pytest.raises(ConfigError, match=r"ease needs 0\.\d+ GB, sources\.ease\.memory_gb = 1e-05: allow more"):
        run({"names": ["tower", "ease"], "ease": {"memory_gb": 1e-5}})
    assert begun[-1] == "check_memory"
    assert set((Path(job.settings.home) / "runs" / "train_candidate").iterdir()) == trained
    with pytest.raises(AssertionError, match="the towers were trained"):
        run({"names": ["tower", "ease"]})
    assert begun[-1] == "train_candidate"


def test_it_is_before_every_step_that_trains() -> None:
    steps = list(pipeline.STEPS)
    assert steps.index("check_memory") == steps.index("train_candidate") - 1
    assert "check_memory" in pipeline.UPSTREAM["train_candidate"]

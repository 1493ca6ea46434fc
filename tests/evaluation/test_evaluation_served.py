"""Which row is served: a ranking stage that does not gain is bypassed, and every report says so."""

from __future__ import annotations

from typing import Any

import pytest

from stages.contracts.config import parse_config
from stages.contracts.errors import ConfigError
from stages.evaluation.evaluate import EvaluationConfig
from stages.evaluation.served import choose_served

BOTH = ("light", "heavy")
GAINS, LOSES, NOTHING = (0.01, 0.005, 0.015), (-0.0146, -0.0155, -0.0137), (0.0, -0.001, 0.001)
READS = "reads the scores of the light ranker, which is bypassed"


def row(name: str, against: str | None = None, gain: Any = (0.0, 0.0, 0.0), few: bool = False) -> Any:
    value, low, high = gain
    verdict = "too few users" if few else "gains" if low > 0 else "loses" if high < 0 else "no difference"
    words = {"metric": "ndcg@10", "value": value, "low": low, "high": high, "users": 9}
    said = {"against": against, "gain": words, "verdict": verdict} if against else {"against": None, "verdict": ""}
    return {"name": name, "metrics": {"ndcg@10": 0.3 + value}, **said}


def rows(light: Any, heavy: Any, heavy_against: str = "light", **more: Any) -> list[Any]:
    ranked = [row("light", "candidates", light, **more), row("heavy", heavy_against, heavy, **more)]
    return [row("popularity"), row("candidates", "popularity", GAINS), *ranked]


@pytest.mark.parametrize(
    ("light", "heavy", "served", "stages", "bypassed"),
    [
        (GAINS, GAINS, "heavy", ["light", "heavy"], {}),
        (GAINS, LOSES, "light", ["light"], {"heavy": "loses to light: -0.0146 [-0.0155, -0.0137] in ndcg@10"}),
        (
            GAINS,
            NOTHING,
            "light",
            ["light"],
            {"heavy": "no difference to light: +0.0000 [-0.0010, +0.0010] in ndcg@10"},
        ),
        (
            LOSES,
            GAINS,
            "candidates",
            [],
            {"light": "loses to candidates: -0.0146 [-0.0155, -0.0137] in ndcg@10", "heavy": READS},
        ),
        (
            (0.1, 0.0, 0.2),
            LOSES,
            "candidates",
            [],
            {"light": "no difference to candidates: +0.1000 [+0.0000, +0.2000] in ndcg@10", "heavy": READS},
        ),
    ],
)
def test_a_stage_stays_only_if_its_interval_lies_above_zero(light, heavy, served, stages, bypassed) -> None:
    found = choose_served(rows(light, heavy), BOTH, {}, bypass=True)
    assert (found["row"], found["stages"], found["bypassed"]) == (served, stages, bypassed)
    assert found["metrics"] == next(row["metrics"] for row in rows(light, heavy) if row["name"] == served)
    never = choose_served(rows(light, heavy), BOTH, {"heavy": "chose 0 epochs"}, bypass=False)
    assert (never["row"], never["stages"], never["bypassed"]) == ("heavy", ["light", "heavy"], {})


def test_too_few_users_and_no_epochs_are_reasons_too() -> None:
    few = choose_served(rows(GAINS, GAINS, few=True), BOTH, {}, bypass=True)
    assert few["row"] == "candidates"
    assert few["bypassed"]["light"] == "too few users to tell from candidates: +0.0100 [+0.0050, +0.0150] in ndcg@10"
    untrained = choose_served(rows(GAINS, GAINS), BOTH, {"heavy": "chose 0 epochs: none did better"}, bypass=True)
    assert (untrained["row"], untrained["bypassed"]) == ("light", {"heavy": "chose 0 epochs: none did better"})


def test_a_recipe_may_ask_for_fewer_stages() -> None:
    alone = choose_served(rows(LOSES, GAINS, "candidates"), ("heavy",), {}, bypass=True)
    assert (alone["row"], alone["stages"]) == ("heavy", ["heavy"])
    assert alone["bypassed"] == {"light": "left out by the recipe: funnel.stages is ['heavy']"}
    nothing = choose_served(rows(GAINS, GAINS), (), {}, bypass=True)
    assert (nothing["row"], nothing["stages"], sorted(nothing["bypassed"])) == ("candidates", [], ["heavy", "light"])


def test_the_switch_is_called_bypass_and_knows_two_values() -> None:
    assert EvaluationConfig().bypass == "not_gaining"
    assert parse_config(EvaluationConfig, {"bypass": "never"}, "test").bypass == "never"
    with pytest.raises(ConfigError, match=r"bypass = 'always'.*'not_gaining' or 'never'"):
        parse_config(EvaluationConfig, {"bypass": "always"}, "test")

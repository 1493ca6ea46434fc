"""Quality against window length on snapshots whose answer is known."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from stages.contracts.snapshot import Snapshot
from stages.sufficiency.config import ReportConfig
from stages.sufficiency.quality import quality_by_window
from stages.sufficiency.words import quality_sentence

DAYS = 32
Make = Callable[..., Snapshot]


def test_an_old_taste_does_not_pay(make_snapshot: Make) -> None:
    curve = quality_by_window(ReportConfig(), make_snapshot(stable_days=8))
    assert [round(window.days, 3) for window in curve.windows] == pytest.approx([1, 2, 4, 8, 16, 32], rel=0.01)
    assert [window.events for window in curve.windows] == sorted(window.events for window in curve.windows)
    best = max(curve.windows, key=lambda window: window.ndcg)
    assert best.days == pytest.approx(8, rel=0.01)
    assert best.loss is None
    assert curve.enough_days == pytest.approx(8, rel=0.01)
    assert curve.windows[-1].loss is not None and curve.windows[-1].loss.verdict == "gains"
    assert quality_sentence(curve).startswith(
        "More data stops paying at 8 of 32 days: what is older makes it clearly worse"
    )


def test_where_every_day_tells_something_more_data_pays(make_snapshot: Make) -> None:
    curve = quality_by_window(ReportConfig(), make_snapshot(stable_days=DAYS))
    assert curve.enough_days == curve.windows[-1].days
    assert [window.ndcg for window in curve.windows[:4]] == sorted(window.ndcg for window in curve.windows[:4])
    assert quality_sentence(curve).startswith("More data still pays")


def test_too_little_to_measure_is_said(make_snapshot: Make) -> None:
    few = quality_by_window(ReportConfig(), make_snapshot(stable_days=8, ask=7))
    assert few.windows == ()
    assert "7 requests" in quality_sentence(few) and "at least 20 are needed" in quality_sentence(few)
    dealt = quality_by_window(ReportConfig(), make_snapshot(stable_days=8, split="users"))
    assert "split by users" in quality_sentence(dealt)


def test_requests_and_users_are_sampled_down_to_the_limits(make_snapshot: Make) -> None:
    snapshot = make_snapshot(stable_days=8)
    curve = quality_by_window(ReportConfig(max_requests=50, max_users=100), snapshot)
    assert curve.requests == 50
    assert curve.windows[-1].events < quality_by_window(ReportConfig(), snapshot).windows[-1].events


@pytest.mark.parametrize("fields", [{"thresholds": (3, 2)}, {"thresholds": ()}, {"windows_days": (7, 7)}, {"days": 0}])
def test_a_wrong_section_is_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"ascending|at least 1|greater than or equal"):
        ReportConfig.model_validate(fields)

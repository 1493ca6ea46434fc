"""What several models of a command are made of is solved once, and kept within a bound."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from scipy import sparse

from benchmarks.retrieval.__main__ import main
from benchmarks.retrieval.solved import Kept, solve_ease, solved_once, weight_bytes
from benchmarks.retrieval.static.models import EaseModel, RecencyEase
from stages.candidate.linear.config import EaseSettings, LimitedEase
from stages.candidate.linear.models import Ease


@pytest.fixture
def solving(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The closed forms that are solved, in their order."""
    found: list[str] = []
    fit = Ease.fit

    def counted(*given: object) -> object:
        found.append("Ease")
        return fit(*given)

    monkeypatch.setattr(Ease, "fit", counted)
    return found


def history(seed: int = 0) -> sparse.csr_matrix:
    return sparse.csr_matrix((np.random.default_rng(seed).random((20, 6)) < 0.4).astype(float))


def test_the_same_rows_and_settings_are_solved_once(solving: list[str]) -> None:
    with solved_once():
        first = solve_ease(history(), EaseModel(regularisation=3), 4.0)
        assert solve_ease(history(), RecencyEase(regularisation=3, decay=2), 4.0) is first
        assert solve_ease(history(), LimitedEase(regularisation=4), 4.0) is not first
        assert solve_ease(history(), EaseSettings(regularisation=3, method="sparse"), 4.0).method == "sparse"
        assert solve_ease(history(1), EaseModel(regularisation=3), 4.0) is not first
        assert solving == ["Ease"] * 4
    assert solve_ease(history(), EaseModel(regularisation=3), 4.0) is not first, "outside of a command nothing is kept"


def test_what_is_kept_is_bounded() -> None:
    dense = Ease(np.ones((5, 5), dtype=np.float32))
    few = Ease(sparse.csr_matrix(np.eye(5, dtype=np.float32)), "sparse")
    assert (weight_bytes(dense), weight_bytes(few)) == (100, 5 * (4 + 4) + 6 * 4)
    kept = Kept(most_bytes=250)
    first, second = (kept.get(key, lambda: Ease(np.ones((5, 5), np.float32))) for key in (1, 2))
    assert kept.get(1, lambda: dense) is first and kept.bytes == 200
    kept.get(3, lambda: dense)
    assert kept.bytes == 200
    assert kept.get(1, lambda: dense) is first, "the second one was used least recently"
    assert kept.get(2, lambda: dense) is dense is not second
    kept.make_room(needed_gb=1.0, free_gb=None)
    assert kept.bytes == 200
    kept.make_room(needed_gb=1.0, free_gb=1.0 + 150e-9)
    assert kept.bytes == 100
    kept.make_room(needed_gb=1.0, free_gb=0.5)
    assert kept.bytes == 0
    large = Ease(np.ones((9, 9), np.float32))
    assert kept.get("large", lambda: large) is large and kept.bytes == 0


def test_a_command_solves_what_its_models_share_once(tmp_path: Path, solving, monkeypatch, capsys) -> None:
    rng = np.random.default_rng(0)
    lines = [" ".join(map(str, [user, *rng.choice(20, 8, replace=False)])) for user in range(25)]
    (tmp_path / "Beauty.txt").write_text("\n".join(lines) + "\n")
    command = ["--protocol", "beauty", "--data", str(tmp_path), "--models", "ease,ease_recency,popularity"]
    assert main([*command, "--seeds", "1,2"]) == 0
    assert solving == ["Ease"]
    assert list(json.loads(capsys.readouterr().out.splitlines()[-1])["models"]) == command[-1].split(",")
    monkeypatch.setattr(Kept, "get", lambda self, key, solve: solve())
    solving.clear()
    assert main([*command, "--seeds", "1"]) == 0
    assert solving == ["Ease", "Ease"], "the test can tell"

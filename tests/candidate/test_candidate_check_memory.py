"""The step ``check_memory``: what cannot be fitted is refused before anything trains."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from stages.candidate.data.examples import touch_matrix, training_examples
from stages.candidate.generators.config import CheckMemoryConfig, SourcesConfig
from stages.candidate.generators.generator import FitSize
from stages.candidate.generators.table import TOWER, generator_class, generator_names
from stages.candidate.linear.config import BaselinesConfig
from stages.candidate.linear.models import ease_gigabytes
from stages.candidate.retrieval import check_memory as step
from stages.candidate.retrieval.check_memory import check_memory, fit_size
from stages.contracts.errors import ConfigError
from stages.contracts.memory import require_memory
from stages.contracts.snapshot import Snapshot
from stages.features.config import FeatureConfig

CLOSED_FORMS = ("ease", "directed_ridge")
LARGE = FitSize(items=100_000, users=1_000_000, touches=20_000_000, longest=500)


def test_sizes_are_those_of_the_touches(planted: Path) -> None:
    snapshot = Snapshot(planted)
    touched = touch_matrix(training_examples(snapshot.events(), snapshot.meta, FeatureConfig()), snapshot.n_items())
    found = fit_size(snapshot, FeatureConfig().exposure_signals)
    longest = int(np.diff(touched.indptr).max())
    assert found == FitSize(touched.shape[1], touched.shape[0], touched.nnz, longest)
    assert found.touches > 100


def run(planted: Path, directory: Path, **config) -> tuple[dict[str, float], dict]:
    return check_memory(CheckMemoryConfig(**config), {"snapshot": planted}, directory)


def test_what_fits_passes(planted: Path, tmp_path: Path) -> None:
    names = ("tower", "covisitation", "ease", "ials", "content", "directed_ridge", "item_knn")
    metrics, info = run(planted, tmp_path, sources=SourcesConfig(names=names), baselines=BaselinesConfig(memory_gb=1))
    assert info == {"baselines_left_out": {}}
    assert metrics["covisitation_gigabytes"] == 0
    for name in ("ease", "ials", "content", "directed_ridge", "item_knn"):
        assert 0 < metrics[f"{name}_gigabytes"] < 1
    assert run(planted, tmp_path)[0].keys() == {"touches"}, "the index alone needs nothing"


def test_every_generator_that_does_not_fit_is_named(planted: Path, tmp_path: Path) -> None:
    sources = SourcesConfig(
        names=("tower", "ease", "ials"), ease={"memory_gb": 1e-6}, ials={"memory_gb": 1e-5}, neighbours=20
    )
    size = fit_size(Snapshot(planted), FeatureConfig().exposure_signals)
    needed = generator_class("ease").needs(sources, size)
    assert needed >= ease_gigabytes(size.items, size.touches)
    message = (
        rf"sources\.names: with 60 items, .* users and .* touches ease needs {needed:.3g} GB, "
        r"sources\.ease\.memory_gb = 1e-06; ials needs 0\.\d+ GB, sources\.ials\.memory_gb = 1e-05: allow more, select "
        r"fewer items, or change sources\.names, such as for content \(.* GB\) or directed_ridge \(.* GB\) or "
        r"item_knn \(.* GB\)"
    )
    with pytest.raises(ConfigError, match=message):
        run(planted, tmp_path, sources=sources)


def test_what_is_not_available_is_refused(planted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc" / "meminfo").write_text("MemAvailable: 1000 kB\n")
    monkeypatch.setattr(step, "require_memory", lambda *arguments: require_memory(*arguments, root=tmp_path))
    run(planted, tmp_path)
    with pytest.raises(ConfigError, match=r"sources: fitting ease needs about .* bytes of memory, 1,024,000 are avail"):
        run(planted, tmp_path, sources=SourcesConfig(names=("tower", "ease")))


def test_baselines_are_left_out_as_they_will_be(planted: Path, tmp_path: Path) -> None:
    _, info = run(planted, tmp_path, baselines=BaselinesConfig(memory_gb=1e-3))
    assert set(info["baselines_left_out"]) == {"ease", "ials"}
    assert "60 items need 0.03" in info["baselines_left_out"]["ease"]


@pytest.mark.parametrize("name", CLOSED_FORMS)
def test_a_closed_form_needs_what_its_method_takes(name: str) -> None:
    """``auto`` needs what is taken in the end: the dense method where it fits ``memory_gb``, else the sparse one."""
    kind = generator_class(name)

    def needed(method: str, memory_gb: float = 4.0) -> float:
        return kind.needs(SourcesConfig(**{name: {"method": method, "memory_gb": memory_gb}}), LARGE)

    assert needed("dense") > 100 > needed("sparse")
    assert needed("auto") == needed("sparse")
    assert needed("auto", 300) == needed("dense", 300) == needed("dense")


@pytest.mark.parametrize("name", [name for name in generator_names() if name != TOWER])
def test_needs_grow_with_the_sizes(name: str) -> None:
    """A generator that keeps arrays says what they take."""
    own = {each: {"method": "sparse"} for each in CLOSED_FORMS}
    kind, settings = generator_class(name), SourcesConfig(**own)
    small = kind.needs(settings, FitSize(LARGE.items // 10, LARGE.users // 10, LARGE.touches // 10, LARGE.longest))
    large = kind.needs(settings, LARGE)
    assert (large > 2 * small > 0) if kind.arrays else (large == 0.0)
    held = sum(dtype.itemsize for dtype in kind.arrays.values()) * LARGE.items
    assert large * 1e9 >= held
    assert np.isfinite(large)

"""The candidate generators of a release, and a catalogue that has grown."""

import numpy as np
import pytest

from stages.candidate.generators.blend import Blend
from stages.candidate.generators.config import SourcesConfig
from stages.candidate.generators.files import (
    MIXTURE_FILE,
    MixtureSummary,
    SourcesSummary,
    load_arrays,
    read_summary,
    write_arrays,
    write_summary,
)
from stages.candidate.generators.neighbour_lists import content_neighbours
from stages.candidate.generators.pools import mixture_features
from stages.candidate.generators.table import generator_class
from stages.candidate.refresh.generators import RefreshSourcesConfig, refresh_sources
from stages.contracts.errors import ReleaseError
from stages.contracts.files import sha256_file, write_json
from stages.contracts.snapshot import Snapshot
from tests.builders.mixtures import write_linear_mixture
from tests.candidate.test_candidate_refresh import grow

RELEASED, NEW = 60, 4
TOWER = {"item_vectors_sha256": "v", "n_items": 64, "dim": 2, "config": {"features": {}}}
RING = {
    "offsets": np.arange(RELEASED + 1),
    "items": (np.arange(RELEASED) + 1) % RELEASED,
    "weights": np.linspace(1, 2, RELEASED),
}


@pytest.fixture
def inputs(planted, tmp_path):
    """What a refresh reads: a release's snapshot, the grown one, and the refreshed tower."""
    grown, champion = grow(planted, tmp_path / "grown"), grow(planted, tmp_path / "champion")
    (champion / "items.parquet").write_bytes((planted / "items.parquet").read_bytes())
    (tmp_path / "candidate").mkdir()
    write_json(tmp_path / "candidate" / "tower.json", {"tower_version": "refreshed", **TOWER})
    return {"champion": champion, "snapshot": grown, "candidate": tmp_path / "candidate"}


def release_sources(champion, *names):
    """Give a release sources whose neighbours are a ring of items."""
    directory = champion / "sources"
    directory.mkdir()
    files = {}
    for name in {"ease", "content"} & set(names):
        files |= write_arrays(directory, generator_class(name), RING)
    summary = SourcesSummary(
        names=names,
        quotas=dict.fromkeys(names, 5),
        learned=True,
        candidate_k=20,
        n_items=RELEASED,
        tower_version="trained",
        data_fingerprint="before",
        config=SourcesConfig(names=names, quotas="learned"),
        files=files,
    )
    write_summary(directory, summary)
    return summary


def run(inputs, directory):
    directory.mkdir()
    metrics, info = refresh_sources(RefreshSourcesConfig(), inputs, directory)
    return metrics, info, directory / "sources"


def test_what_was_fitted_stays_and_content_is_found_anew(inputs, tmp_path):
    before = release_sources(inputs["champion"], "tower", "ease", "content")
    metrics, info, target = run(inputs, tmp_path / "out")
    assert (metrics, info) == ({"sources": 3.0}, {"names": ["tower", "ease", "content"]})
    snapshot, summary = Snapshot(inputs["snapshot"]), read_summary(target, RELEASED + NEW)
    assert summary.tower_version == "refreshed" and summary.data_fingerprint == snapshot.meta.fingerprint
    assert (summary.quotas, summary.learned, summary.config) == (before.quotas, True, before.config)
    ease = load_arrays(target, generator_class("ease"), summary)
    np.testing.assert_array_equal(ease["offsets"], [*RING["offsets"], *[RELEASED] * NEW])
    np.testing.assert_array_equal(ease["items"], RING["items"])
    np.testing.assert_allclose(ease["weights"], RING["weights"], rtol=1e-6)
    content, grown = load_arrays(target, generator_class("content"), summary), snapshot.items()
    wanted = content_neighbours(grown, 100, grown.recommendable())
    for name in ("offsets", "items", "weights"):
        np.testing.assert_array_equal(content[name], wanted[name])
    offsets, items = content["offsets"], content["items"]
    # New item 0 has its block's category and most of its title's words.
    assert RELEASED in items[offsets[0] : offsets[1]]
    assert all(offsets[RELEASED + new + 1] > offsets[RELEASED + new] for new in range(NEW))
    assert Blend.load(target, RELEASED + NEW).names == ("tower", "ease", "content")


def test_a_learned_mixture_stays(inputs, tmp_path):
    before, directory = release_sources(inputs["champion"], "tower", "ease"), inputs["champion"] / "sources"
    write_linear_mixture(directory / MIXTURE_FILE, before.names, {"ease_share": 1.0})
    described = MixtureSummary(features=mixture_features(before.names), pool=25, deviation=0.0)
    files = {**before.files, MIXTURE_FILE: sha256_file(directory / MIXTURE_FILE)}
    write_summary(directory, before.model_copy(update={"mixture": described, "files": files}))
    _, _, target = run(inputs, tmp_path / "out")
    assert read_summary(target, RELEASED + NEW).mixture == described
    assert (target / MIXTURE_FILE).read_bytes() == (directory / MIXTURE_FILE).read_bytes()
    assert Blend.load(target, RELEASED + NEW).list_length(20) == 25


def test_the_tower_alone_stays_the_only_source(inputs, tmp_path):
    release_sources(inputs["champion"], "tower")
    metrics, _, target = run(inputs, tmp_path / "out")
    assert metrics == {"sources": 1.0}
    assert sorted(path.name for path in target.iterdir()) == ["sources.json"]
    assert read_summary(target, RELEASED + NEW).names == ("tower",)


def test_a_release_of_an_earlier_version_has_no_sources(inputs, tmp_path):
    metrics, info, target = run(inputs, tmp_path / "out")
    assert (metrics, info) == ({"sources": 1.0}, {"names": []})
    assert not target.exists()


def test_a_changed_file_and_a_smaller_catalogue_are_refused(inputs, tmp_path):
    release_sources(inputs["champion"], "tower", "ease")
    release_sources(inputs["snapshot"], "tower")
    exchanged = {**inputs, "champion": inputs["snapshot"], "snapshot": inputs["champion"]}
    with pytest.raises(ReleaseError, match="of 64 items, the snapshot has 60; it must extend the release"):
        run(exchanged, tmp_path / "less")
    path = inputs["champion"] / "sources" / "ease_items.npy"
    np.save(path, RING["items"][::-1].astype(np.int32))
    with pytest.raises(ReleaseError, match=r"ease_items.npy: sha256 \w{12}…, sources.json says"):
        run(inputs, tmp_path / "changed")

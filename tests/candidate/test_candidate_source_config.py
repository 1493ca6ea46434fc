"""The recipe's section ``sources``: quotas, the sections of generators, and what is refused."""

import subprocess
import sys
from typing import Any

import pytest
from pydantic import ValidationError

from stages.candidate.generators import trending
from stages.candidate.generators.config import SourcesConfig
from stages.candidate.generators.table import generator_class
from stages.candidate.generators.trending import Trending
from stages.candidate.linear.config import LimitedEase
from stages.contracts.config import parse_config
from stages.contracts.errors import ConfigError
from stages.contracts.sources import GENERATORS, GeneratorRow
from stages.features.config import TrendingConfig
from stages.recipe import Recipe

ALL = ("tower", "covisitation", "trending", "ease", "ials", "content", "directed_ridge")
WINDOWS = ("10m", "1h", "6h", "1d", "7d")


def recipe(**sections: Any) -> Recipe:
    dataset = {"signals": ["click"], "tasks": [{"name": "click", "signals": ["click"], "relevance": 1}]}
    values = {"dataset": {**dataset, "context": {"columns": ["device"]}}, "funnel": {"candidate_k": 300}, **sections}
    return Recipe.model_validate(values)


def test_by_default_there_is_the_tower_alone():
    sources = recipe().sources
    assert (sources.names, sources.blends, sources.read_names, sources.counted) == (("tower",), False, (), None)


@pytest.mark.parametrize(
    ("quotas", "counts"),
    [
        ({}, [42] * 7),
        ({"tower": 0.5}, [150, 25, 25, 25, 25, 25, 25]),
        ({"tower": 200, "trending": 0.1, "content": 0}, [200, 17, 30, 17, 17, 0, 17]),
        ({name: 40 for name in ALL}, [40] * 7),
        ({"ease": 1}, [49, 49, 49, 1, 49, 49, 49]),
    ],
)
def test_quotas_are_shares_or_counts_and_the_others_share_the_rest(quotas, counts):
    sources = recipe(sources={"names": ALL, "quotas": quotas}).sources
    assert list(sources.counts(300).items()) == list(zip(ALL, counts, strict=True))


@pytest.mark.parametrize(
    ("sources", "message"),
    [
        ({"names": ["ease"]}, "allowed are different generators, one of them 'tower'"),
        ({"names": ["tower", "tower"]}, "allowed are different generators"),
        (
            {"names": ["tower", "magic"]},
            "unknown candidate generator, allowed are tower, covisitation, trending, ease, ials, content, directed",
        ),
        ({"names": ["tower", "ease"], "quotas": {"ials": 5}}, r"quotas names \['ials'\], the generators in use are"),
        ({"names": ["tower", "ease"], "quotas": {"ease": 5.5}}, "allowed are shares below 1 and whole numbers from 1"),
        ({"names": ["tower", "ease"], "quotas": {"ease": -1}}, "greater than or equal to 0"),
        ({"names": ["tower", "ease"], "quotas": "guessed"}, "Input should be 'learned'"),
        ({"names": ["tower", "ease"], "quotas": {"ease": 301}}, "are 301 items, allowed are candidate_k = 300"),
        ({"names": ["tower", "ease"], "quotas": {"tower": 0.8, "ease": 90}}, "are 330 items, allowed are"),
        ({"quotas": {"magic": 5}}, r"quotas names \['magic'\], the generators in use are \['tower'\]"),
        ({"quota": {}}, "Extra inputs are not permitted"),
        (
            {"mixture": {"kind": "learned"}},
            r"mixes the lists of several generators, names = \['tower'\]: allowed are two",
        ),
        ({"names": ["tower", "ease"], "mixture": {"kind": "guessed"}}, "Input should be 'quotas' or 'learned'"),
        (
            {"names": ["tower", "ease"], "mixture": {"kind": "learned", "pool": 299}},
            "sources.mixture.pool = 299: allowed are candidate_k = 300 or more",
        ),
        ({"names": ["tower", "ease"], "mixture": {"validation_share": 1}}, "less than 1"),
        ({"names": ["tower", "ease"], "mixture": {"learning_rate": 0}}, "greater than 0"),
        ({"covisitation": {}}, "Extra inputs are not permitted"),  # a generator without settings has no section
        (
            {"names": ["tower", "trending"], "trending": {"segment": "region"}},
            r"sources.trending.segment = 'region' must be one of dataset.context.columns = \['device'\]",
        ),
    ],
)
def test_what_makes_no_sense_is_refused(sources, message):
    with pytest.raises(ValidationError, match=message):
        recipe(sources=sources)


def test_a_segment_of_a_source_that_is_off_is_nobodys_matter():
    assert recipe(sources={"trending": {"segment": "region"}}).sources.counted is None
    on = recipe(sources={"names": ["tower", "trending"], "trending": {"segment": "device"}})
    assert on.sources.counted is not None and on.sources.counted.segment == "device"


def test_each_window_is_a_list_of_its_own_and_all_are_counted_once():
    names = ["tower", "trending", "trending_10m", "trending_7d", "segment_trending_1h"]
    counted = recipe(sources={"names": names, "trending": {"segment": "device"}}).sources.counted
    assert counted is not None and list(counted.lists) == names[1:]
    assert counted.windows_minutes == (10, 60, 1440, 10080)
    segments = {name: each.segment for name, each in counted.lists.items()}
    assert segments == dict(zip(names[1:], ("device", None, None, "device"), strict=True))
    with pytest.raises(ConfigError, match=r"segment = None: the generator 'segment_trending_1h' .*use 'trending_1h'"):
        SourcesConfig(names=("tower", "segment_trending_1h")).counted  # noqa: B018


def test_every_fault_of_a_section_and_of_the_keys_beside_it_is_named():
    values = {"history_length": 0, "ease": {"regularisation": 0, "lambda": 3}, "magic": {}, "ials": 5}
    with pytest.raises(ConfigError) as caught:
        parse_config(SourcesConfig, values, "f.yaml")
    faults = str(caught.value).removeprefix("f.yaml: ").split("; ")
    assert sorted(faults) == [
        "ease.lambda: unknown key, allowed are memory_gb, method, neighbours, regularisation",
        "ease.regularisation = 0: Input should be greater than 0",
        "history_length = 0: Input should be greater than or equal to 1",
        "ials = 5: Input should be a valid dictionary or instance of LimitedAls",
        "magic: unknown key, allowed are covisitation_smoothing, directed_ridge, ease, history_decay, history_length, "
        "ials, item_knn, learned_from, learning, mixture, names, neighbours, newcomers, quotas, trending",
    ]


def test_sections_go_to_json_and_back():
    config = SourcesConfig(names=ALL, ease={"regularisation": 7}, trending=TrendingConfig(segment="device"))
    values = config.model_dump(mode="json")
    assert values["ease"] == {"regularisation": 7.0, "memory_gb": 4.0, "method": "auto", "neighbours": 200}
    assert (values["trending"]["segment"], values["ials"]["factors"]) == ("device", 64)
    assert SourcesConfig.model_validate(values) == config != SourcesConfig(names=ALL)
    assert config.section("ease", LimitedEase).regularisation == 7
    with pytest.raises(ConfigError, match=r"sources\.content = None: allowed is a LimitedEase"):
        config.section("content", LimitedEase)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (
            GeneratorRow(30, "nowhere.at.all:Magic"),
            "candidate generator 'magic': nowhere.at.all:Magic cannot be imported",
        ),
        (GeneratorRow(30, "stages.candidate.generators.ease:Magic"), "cannot be imported: .* has no attribute 'Magic'"),
        (GeneratorRow(30, "stages.candidate.generators.ease:EaseNeighbours"), "is no CandidateGenerator of that name"),
        (GeneratorRow(30, "stages.candidate.generators.config:SourcesConfig"), "is no CandidateGenerator of that name"),
        (
            GeneratorRow(6, "nowhere:Magic"),
            "'content': code = 6: allowed are codes from 0 to 30 that no other generator has; 'magic' has it",
        ),
        (GeneratorRow(31, "nowhere:Magic"), "code = 31: allowed are codes from 0 to 30 that no other generator has$"),
    ],
)
def test_a_row_that_leads_to_no_generator_is_named(monkeypatch, row, message):
    monkeypatch.setitem(GENERATORS, "magic", row)
    with pytest.raises(ConfigError, match=message):
        SourcesConfig(names=("tower", "magic"))


def test_a_section_is_not_named_like_another_key(monkeypatch):
    class Learning(Trending):
        name = "learning"

    monkeypatch.setattr(trending, "Learning", Learning, raising=False)
    monkeypatch.setitem(GENERATORS, "learning", GeneratorRow(30, f"{trending.__name__}:Learning"))
    with pytest.raises(ConfigError, match=r"generators \['learning'\] are named like other keys"):
        SourcesConfig()


@pytest.mark.parametrize("name", ["tower", "popular", "magic"])
def test_what_has_no_class_is_refused_with_the_names_that_have(name):
    with pytest.raises(ConfigError, match="unknown, allowed are covisitation, trending, ease, ials, content, directed"):
        generator_class(name)


def test_serving_needs_neither_torch_nor_scipy_for_any_generator():
    """Apart from scipy's version, which numba reads."""
    program = (
        "import sys; from stages.candidate.generators import blend, table; "
        "print([table.generator_class(name).name for name in table.generator_names() if name != 'tower']); "
        "print([name for name in ('torch', 'scipy.sparse', 'scipy.linalg', 'pandas') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    windows = [f"{kind}_{window}" for kind in ("trending", "segment_trending") for window in WINDOWS]
    assert done.stdout.splitlines() == [str([*ALL[1:], "item_knn", *windows]), "[]"]


def test_learned_quotas_are_not_known_beforehand():
    with pytest.raises(ConfigError, match="known only after the step train_sources"):
        recipe(sources={"names": ["tower", "ease"], "quotas": "learned"}).sources.counts(300)

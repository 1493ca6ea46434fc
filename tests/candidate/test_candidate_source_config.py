"""The recipe's section ``sources``: quotas, and what is refused."""

from typing import Any

import pytest
from pydantic import ValidationError

from stages.contracts.errors import ConfigError
from stages.recipe import Recipe

ALL = ("tower", "covisitation", "trending", "ease", "ials", "content")


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
        ({}, [50, 50, 50, 50, 50, 50]),
        ({"tower": 0.5}, [150, 30, 30, 30, 30, 30]),
        ({"tower": 200, "trending": 0.1, "content": 0}, [200, 23, 30, 23, 23, 0]),
        ({name: 50 for name in ALL}, [50] * 6),
        ({"ease": 1}, [59, 59, 59, 1, 59, 59]),
    ],
)
def test_quotas_are_shares_or_counts_and_the_others_share_the_rest(quotas, counts):
    sources = recipe(sources={"names": ALL, "quotas": quotas}).sources
    assert list(sources.counts(300).items()) == list(zip(ALL, counts, strict=True))


@pytest.mark.parametrize(
    ("sources", "message"),
    [
        ({"names": ["ease"]}, "allowed are different sources, one of them 'tower'"),
        ({"names": ["tower", "tower"]}, "allowed are different sources"),
        (
            {"names": ["tower", "magic"]},
            "Input should be 'tower', 'covisitation', 'trending', 'ease', 'ials' or 'content'",
        ),
        ({"names": ["tower", "ease"], "quotas": {"ials": 5}}, r"quotas names \['ials'\], the sources in use are"),
        ({"names": ["tower", "ease"], "quotas": {"ease": 5.5}}, "allowed are shares below 1 and whole numbers from 1"),
        ({"names": ["tower", "ease"], "quotas": {"ease": -1}}, "greater than or equal to 0"),
        ({"names": ["tower", "ease"], "quotas": "guessed"}, "Input should be 'learned'"),
        ({"names": ["tower", "ease"], "quotas": {"ease": 301}}, "are 301 items, allowed are candidate_k = 300"),
        ({"names": ["tower", "ease"], "quotas": {"tower": 0.8, "ease": 90}}, "are 330 items, allowed are"),
        ({"quota": {}}, "Extra inputs are not permitted"),
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


def test_learned_quotas_are_not_known_beforehand():
    with pytest.raises(ConfigError, match="known only after the step train_sources"):
        recipe(sources={"names": ["tower", "ease"], "quotas": "learned"}).sources.counts(300)

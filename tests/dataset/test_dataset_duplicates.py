from __future__ import annotations

import itertools
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages.contracts.errors import ConfigError
from stages.dataset.items.duplicates import Items, Known, normalise_title
from stages.dataset.items.duplicates import find_duplicates as find
from stages.dataset.items_config import DuplicatesConfig
from stages.simulator import World, WorldConfig

NONE: frozenset[str] = frozenset()


def find_duplicates(ids: Any, titles: Any, categories: Any, times: Any, **changes: Any) -> dict[str, str]:
    known, texts = changes.pop("known", None), changes.pop("texts", ())
    return find(Items(ids, titles, categories, times, texts), DuplicatesConfig(**changes), known).aliases


@pytest.mark.parametrize(
    "same",
    [
        ("Café Noir", "CAFE NOIR", "cafe\u0301  noir!", " Café—Noir ", "cafe_noir", "Ｃａｆé Noir"),
        ("Straße", "STRASSE"),
        ("Ωμέγα", "ωμεγα"),
        ("Toy Story (1995)", "toy story 1995"),
        ("ﬁlm", "FILM"),
    ],
)
def test_titles_that_differ_in_writing_only_are_equal(same: tuple[str, ...]) -> None:
    assert len({normalise_title(title) for title in same}) == 1


@pytest.mark.parametrize(
    "titles", [("C++ Primer", "C Primer"), ("か", "が"), ("कि", "का"), ("Part 1", "Part 2"), ("и", "й")]
)
def test_titles_that_mean_different_things_stay_different(titles: tuple[str, str]) -> None:
    assert normalise_title(titles[0]) != normalise_title(titles[1])


@pytest.mark.parametrize("title", ["", "  ", "...", "?!", "\u200b"])
def test_titles_without_letters_are_empty(title: str) -> None:
    assert normalise_title(title) == ""


@given(st.text(max_size=30))
def test_normalising_twice_changes_nothing_and_ascii_takes_no_other_way(title: str) -> None:
    once = normalise_title(title)
    assert normalise_title(once) == once
    if title.isascii():  # the same letters in full width take the slow path
        wide = "".join(chr(ord(c) + 0xFEE0) if 0x21 <= ord(c) <= 0x7E else c for c in title)
        assert normalise_title(wide) == once or any(c in title for c in "`^~")


def test_the_earliest_then_the_lowest_id_stands_for_the_others() -> None:
    found = find_duplicates(["d", "c", "b", "a", "e"], ["X"] * 5, [NONE] * 5, [None, 5, 3, 3, 1])
    assert found == {"d": "e", "c": "e", "b": "e", "a": "e"}
    assert find_duplicates(["c", "b", "a"], ["X"] * 3, [NONE] * 3, [3, 3, None]) == {"c": "b", "a": "b"}


def test_empty_titles_are_never_duplicates() -> None:
    assert find_duplicates(["a", "b", "c", "d"], ["", "", "!", "?"], [NONE] * 4, [1] * 4) == {}


def test_contradicting_categories_keep_items_apart_even_through_one_without() -> None:
    x, y, xy = frozenset("x"), frozenset("y"), frozenset("xy")
    assert find_duplicates(["a", "b"], ["T", "T"], [x, y], [1, 2]) == {}
    assert find_duplicates(["a", "b"], ["T", "T"], [x, xy], [1, 2]) == {"b": "a"}
    assert find_duplicates(["a", "b", "c"], ["T"] * 3, [NONE, x, y], [1, 2, 3]) == {"b": "a"}


@given(st.permutations(range(6)))
def test_the_order_of_the_catalogue_does_not_matter(order: list[int]) -> None:
    ids, titles = list("abcdef"), ["T", "t", "t!", "U", "u", "V"]
    categories = [frozenset("x"), NONE, frozenset("y"), NONE, NONE, NONE]
    times = [3, None, 1, 2, 2, 0]
    shuffled = ([column[row] for row in order] for column in (ids, titles, categories, times))
    assert find_duplicates(*shuffled) == find_duplicates(ids, titles, categories, times)


def test_planted_exact_copies_are_found_and_near_ones_left() -> None:
    world = World(WorldConfig(n_items=800, n_users=10, n_events=1_000, duplicate_share=0.2))
    items = world.items().to_pydict()
    categories = [frozenset(text.split("|")) for text in items["categories"]]
    found = find_duplicates(items["item_id"], items["title"], categories, items["created_at_ms"])
    assert found == world.duplicates("exact")


def test_a_canonical_item_is_never_a_duplicate() -> None:
    ids = [f"{n}" for n in range(27)]
    categories = [frozenset(c) for c in itertools.product("xy ", repeat=3)]
    found = find_duplicates(ids, ["T"] * 27, [c - {" "} for c in categories], [None] * 27)
    assert found and not set(found) & set(found.values())


def test_planted_near_copies_are_found() -> None:
    world = World(WorldConfig(n_items=3_000, n_users=10, n_events=1_000, duplicate_share=0.2))
    items = world.items().to_pydict()
    categories = [frozenset(text.split("|")) for text in items["categories"]]
    found = find_duplicates(items["item_id"], items["title"], categories, items["created_at_ms"], method="near")
    planted = world.duplicates()
    assert len(found.keys() & planted.keys()) / len(planted) > 0.95
    assert sum(planted.get(copy) == original for copy, original in found.items()) / len(found) > 0.95


NEAR: dict[str, Any] = {"method": "near", "threshold": 0.6}


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("The Quiet Island Journey", "The Quiet Island Journey Remastered", True),
        ("Quiet Island Journey Home", "Island Quiet Journey Home", True),
        ("The Quiet Island, Part 2", "The Quiet Island, Part 3", False),
        ("Rocky II the Movie", "Rocky III the Movie", False),
        ("Election Night 1984 Live", "Election Night 1985 Live", False),
        ("Quiet Island Journey", "Loud City Weekend", False),
    ],
)
def test_near_titles(one: str, other: str, same: bool) -> None:
    found = find_duplicates(["a", "b"], [one, other], [NONE] * 2, [1, 2], **NEAR)
    assert found == ({"b": "a"} if same else {})


def test_groups_do_not_chain_away_from_their_canonical_item() -> None:
    titles = ["a b c d", "b c d e", "c d e f"]
    found = find_duplicates(["1", "2", "3"], titles, [NONE] * 3, [1, 2, 3], **NEAR)
    assert found == {"2": "1"}, "the third is like the second, but not like the first"


def test_texts_are_compared_with_titles() -> None:
    texts = ["one two three four five six", "one two three four five six", "other words entirely in this one"]
    found = find_duplicates(list("abc"), ["Alpha", "Beta", "Gamma"], [NONE] * 3, [1, 2, 3], texts=texts, **NEAR)
    assert found == {"b": "a"}
    titles_only = find_duplicates(
        list("abc"), ["Alpha", "Beta", "Gamma"], [NONE] * 3, [1, 2, 3], texts=texts, fields=("title",), **NEAR
    )
    assert titles_only == {}


def test_verdicts_stand_above_similarity_and_contradictions_are_refused() -> None:
    ids, titles, times = list("abc"), ["Same Title Here", "same title here", "Nothing Alike"], [1, 2, 3]
    apart = Known(different=[(0, 1)])
    assert find_duplicates(ids, titles, [NONE] * 3, times, known=apart) == {}
    joined = Known(same=[(1, 2)])
    assert find_duplicates(ids, titles, [NONE] * 3, times, known=joined) == {"b": "a", "c": "a"}
    with pytest.raises(ConfigError, match="verdicts contradict: 'a' and 'c' are different, but 'a' = 'b' = 'c'"):
        find_duplicates(ids, titles, [NONE] * 3, times, known=Known(same=[(0, 1), (1, 2)], different=[(0, 2)]))


def test_similarities_from_elsewhere_count() -> None:
    known = Known(similarity={(0, 1): 0.9, (1, 2): 0.5})
    found = find_duplicates(list("abc"), ["One", "Two", "Three"], [NONE] * 3, [1, 2, 3], known=known, threshold=0.8)
    assert found == {"b": "a"}

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages.dataset.duplicates import find_duplicates, normalise_title
from stages.simulator import World, WorldConfig

NONE: frozenset[str] = frozenset()


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
    assert find_duplicates(*shuffled) == find_duplicates(ids, titles, categories, times)  # type: ignore[arg-type]


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

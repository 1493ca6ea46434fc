import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from stages.contracts.errors import ConfigError
from stages.contracts.item_filter import FilterIndex, ItemFilter
from stages.contracts.snapshot import ItemTable
from stages.contracts.tables import DAY_MS, SERVING

NAMES = ("news", "sport", "empty")
NOW_MS = 100 * DAY_MS


def catalogue(categories, age_days, eligible):
    return ItemTable(
        item_id=np.array([str(i) for i in range(len(categories))], dtype=object),
        title=np.array([""] * len(categories), dtype=object),
        created_at_ms=np.array([NOW_MS - round(days * DAY_MS) for days in age_days], np.int64),
        duration_s=np.full(len(categories), np.nan, np.float32),
        category_offsets=np.cumsum([0, *map(len, categories)]),
        category_codes=np.array([code for codes in categories for code in codes], np.int32),
        n_categories=len(NAMES),
        eligible=np.array(eligible, np.int8),
    )


items = st.lists(st.tuples(st.sets(st.integers(0, 1)), st.floats(-5, 50), st.integers(0, 7)), min_size=1, max_size=20)


@given(items, st.sets(st.sampled_from(NAMES)), st.none() | st.floats(0.1, 40), st.sampled_from([None, 1, 2, SERVING]))
def test_a_mask_is_what_looking_at_each_item_gives(rows, categories, days, part):
    codes, ages, eligible = zip(*[(sorted(row[0]), row[1], row[2]) for row in rows], strict=True)
    table = catalogue(codes, ages, eligible)
    wanted = ItemFilter(categories=tuple(sorted(categories)), max_age_days=days, eligible_for=part)
    expected = [
        (not categories or any(NAMES[code] in categories for code in own))
        and (days is None or NOW_MS - created <= days * DAY_MS)
        and (part is None or bool(bits >> (part - 1) & 1))
        for own, created, bits in zip(codes, table.created_at_ms.tolist(), eligible, strict=True)
    ]
    assert FilterIndex(table, NAMES).mask(wanted, NOW_MS).tolist() == expected


def test_an_empty_filter_is_none_at_all():
    assert not ItemFilter() and ItemFilter(max_age_days=1) and ItemFilter(categories=("news",))


def test_an_unknown_category_is_named_with_what_there_is():
    index = FilterIndex(catalogue([[0]], [1], [7]), NAMES)
    with pytest.raises(ConfigError, match=r"\['weather'\]: unknown, allowed are \['news', 'sport', 'empty'\]"):
        index.mask(ItemFilter(categories=("news", "weather")), NOW_MS)


@pytest.mark.parametrize("days", [0, -1, float("nan"), float("inf")])
def test_an_age_must_be_a_positive_number(days):
    with pytest.raises(ValidationError):
        ItemFilter(max_age_days=days)

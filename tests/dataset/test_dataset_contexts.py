"""The context of events: coded, given to requests, and refused where it is known later only."""

from __future__ import annotations

import json
from typing import Any

import pyarrow as pa
import pytest

from stages.contracts.errors import ConfigError
from stages.dataset.contexts import ContextConfig, index_contexts
from stages.warehouse.mapping import InteractionColumns


def found(*moments: dict[str, str]) -> pa.Table:
    """Contexts in the order of their first appearance, listed backwards."""
    texts = [json.dumps(moment) for moment in reversed(moments)]
    return pa.table({"id": texts, "first_ms": pa.array(range(len(moments), 0, -1), pa.int64())})


MOMENTS = found(
    {"device": "tv", "region": "n"},
    {"device": "phone", "later:session_size": "7"},
    {"region": "s"},
    {"device": "tv", "region": "n", "later:session_size": "2"},
    {"device": "web", "region": "n"},
)


def test_values_are_coded_by_first_appearance_and_equal_combinations_share_a_row() -> None:
    contexts = index_contexts(ContextConfig(columns=("device", "region")), MOMENTS)
    assert [(column.name, column.values) for column in contexts.columns] == [
        ("device", ("tv", "phone", "web")),
        ("region", ("n", "s")),
    ]
    assert contexts.codes.tolist() == [[0, 0], [1, 1], [2, 0], [0, 2], [3, 1]]
    rows = {tuple(json.loads(row["context"]).items()): row["context_index"] for row in contexts.rows.to_pylist()}
    assert rows[("device", "tv"), ("region", "n")] == 1
    assert rows[("device", "tv"), ("region", "n"), ("later:session_size", "2")] == 1
    assert list(rows.values()).count(1) == 2


def test_values_beyond_the_limit_count_as_unknown() -> None:
    contexts = index_contexts(ContextConfig(columns=("device",), max_values=2), MOMENTS)
    assert contexts.columns[0].values == ("tv", "phone")
    assert contexts.codes.tolist() == [[0], [1], [2]]
    assert contexts.n_other == 1


def test_a_column_that_is_known_later_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"'session_size'.*only after the event.*allowed are .'device', 'region'."):
        index_contexts(ContextConfig(columns=("device", "session_size")), MOMENTS)


def test_a_column_that_no_event_has_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"'browser', which no selected event has; allowed are .'device', 'region'."):
        index_contexts(ContextConfig(columns=("browser",)), MOMENTS)


@pytest.mark.parametrize("columns", [("device", "device"), ("device type",), ("later:session_size",)])
def test_column_names_are_checked(columns: tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match="allowed are different names"):
        ContextConfig(columns=columns)


def mapping(**changes: Any) -> InteractionColumns:
    columns = {"user_id": "u", "item_id": "i", "event_time": "t", "context": ("a", "b")}
    return InteractionColumns.model_validate({**columns, **changes})


def test_a_mapping_declares_what_is_known_later() -> None:
    assert mapping(known_later=("b",)).kept_context() == ["a", "later:b"]
    assert mapping(context_names=("x", "y"), known_later=("x",)).kept_context() == ["later:x", "y"]
    for wrong in ({"known_later": ("c",)}, {"context_names": ("x", "later:y")}):
        with pytest.raises(ValueError, match="known_later"):
            mapping(**wrong)

"""The tables of ``user_tower.onnx`` that have one row per item; new items are appended to them.

They are found by the names of their initializers. Shapes do not identify them: there may be as many users
as items, or as many context values.

Shapes: D dimensions, K content dimensions, N items of the tower, M items of the grown catalogue.
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import numpy_helper

from stages.contracts.errors import DataError, ReleaseError
from stages.contracts.summaries import TOWER_FILE

IDS, CONTENT, IS_ITEM = "ids", "content", "is_item"
"""Names of the id embeddings ``[N + 1, D]``, the content ``[N + 1, K]``, and a column of ones ``[N + 1, 1]``. The last
row of each is for padding, and zero."""
CONTEXT_SIZES = "context_sizes"
"""Name of the numbers of values ``[X]`` that the tower knows of each context column."""
PROTOBUF_LIMIT = 2**31 - 2**20
"""Bytes of tables that one ONNX file holds: protobuf ends at 2 GiB, and the rest of the model needs room."""


def item_tables(model: onnx.ModelProto, n_items: int) -> dict[str, onnx.TensorProto]:
    """Return the three tables by name.

    Args:
        model: the user tower.
        n_items: N.

    Raises:
        ReleaseError: if one is missing, or does not have N + 1 rows.
    """
    found = {entry.name: entry for entry in model.graph.initializer}
    tables = {name: found[name] for name in (IDS, CONTENT, IS_ITEM) if name in found}
    shapes = {name: list(table.dims) for name, table in tables.items()}
    if len(shapes) < 3 or any(len(shape) != 2 or shape[0] != n_items + 1 for shape in shapes.values()):
        raise ReleaseError(
            f"{TOWER_FILE}: tables {IDS}, {CONTENT} and {IS_ITEM} of {n_items + 1} rows are expected, found {shapes}; "
            "a tower of another version cannot be refreshed, train a new one"
        )
    return tables


def table_of(model: onnx.ModelProto, name: str) -> np.ndarray:
    """Return a table of a tower.

    Raises:
        ReleaseError: if the tower has none of this name.
    """
    for entry in model.graph.initializer:
        if entry.name == name:
            table: np.ndarray = numpy_helper.to_array(entry)
            return table
    raise ReleaseError(f"table {name}: not in the tower; one of another version cannot be refreshed, train a new one")


def reads_new_values(model: onnx.ModelProto) -> bool:
    """Return whether the tower takes a context value that came after its training for an unknown one.

    One of an older version takes it for a value of the next column.
    """
    return any(entry.name == CONTEXT_SIZES for entry in model.graph.initializer)


def content_of(model: onnx.ModelProto, n_items: int) -> np.ndarray:
    """Return float32 ``[N, K]``, what the tower knows of its items beside their ids."""
    content: np.ndarray = numpy_helper.to_array(item_tables(model, n_items)[CONTENT])[:-1]
    return content


def extended(model: onnx.ModelProto, n_items: int, content_MK: np.ndarray) -> onnx.ModelProto:
    """Give the tower the items of a grown catalogue; it is changed in place and returned.

    A new item has no id embedding: it is represented by its content.

    Args:
        model: the user tower of N items.
        n_items: N.
        content_MK: float32, of all items, the first N of them those of the tower.

    Raises:
        ReleaseError: if the tower's tables are not as expected.
        DataError: if they grow too large for one ONNX file.
    """
    tables = item_tables(model, n_items)
    ids_ND = numpy_helper.to_array(tables[IDS])[:-1]
    grown = {
        IDS: np.zeros((len(content_MK) + 1, ids_ND.shape[1]), dtype=np.float32),
        CONTENT: np.zeros((len(content_MK) + 1, content_MK.shape[1]), dtype=np.float32),
        IS_ITEM: np.ones((len(content_MK) + 1, 1), dtype=np.float32),
    }
    grown[IDS][:n_items], grown[CONTENT][:-1], grown[IS_ITEM][-1] = ids_ND, content_MK, 0.0
    size = model.ByteSize() + sum(array.nbytes - tables[name].ByteSize() for name, array in grown.items())
    if size > PROTOBUF_LIMIT:
        raise DataError(
            f"{TOWER_FILE}: {len(content_MK)} items make {size} bytes, one ONNX file holds {PROTOBUF_LIMIT}; "
            "train a new release with a lower candidate.model.dimension"
        )
    for name, array in grown.items():
        tables[name].dims[0] = len(array)
        tables[name].ClearField("float_data")
        tables[name].raw_data = numpy_helper.from_array(array).raw_data
    for value in model.graph.value_info:
        if value.name in grown:
            value.type.tensor_type.shape.dim[0].dim_value = len(content_MK) + 1
    return model

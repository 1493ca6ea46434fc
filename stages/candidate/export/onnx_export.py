"""What the exports of both towers share: un-sharded weights in, ONNX models out.

Shapes: D dimensions, N rows.
"""

from __future__ import annotations

import contextlib
import functools
import io
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
import onnx
import torch
from torch import nn

ModuleT = TypeVar("ModuleT", bound=nn.Module)
State = Mapping[str, np.ndarray]
"""Weights by the parameter's name, un-sharded."""


def table_of(state: State, name: str) -> np.ndarray:
    """Return the embedding table ``name``, float32 ``[N, D]``."""
    return state[f"embeddings.embedding_bags.{name}.weight"]


def closed(table: np.ndarray, known: np.ndarray | None = None) -> np.ndarray:
    """Return ``table`` with zeros in the rows that are not ``known`` and in a new last row."""
    rows = np.zeros((len(table) + 1, table.shape[1]), dtype=np.float32)
    rows[:-1] = table if known is None else table * known.astype(np.float32)[:, None]
    return rows


def loaded(module: ModuleT, state: State, name: str) -> ModuleT:
    """Fill ``module`` with the weights below ``name``, and set it to evaluation."""
    own = {key: value for key, value in state.items() if key.startswith(f"{name}.")}
    module.load_state_dict({key.removeprefix(f"{name}."): torch.from_numpy(value) for key, value in own.items()})
    module.eval()
    return module


def onnx_model(
    module: nn.Module,
    values: Mapping[str, torch.Tensor],
    outputs: Sequence[str],
    dynamic: Mapping[str, Mapping[int, str]],
) -> onnx.ModelProto:
    """Return ``module`` as an ONNX model whose initializers have the names of its buffers and parameters.

    The exporter on ``torch.export`` is used. It takes some seconds; the older tracing exporter takes a
    tenth of that, but is deprecated. The exporter's notes on the source of each node are removed, so
    that equal weights give equal bytes on every machine.

    Args:
        module: in evaluation mode.
        values: an example of each input, by name, in order.
        outputs: names of the outputs.
        dynamic: names of each input's dimensions of any size, by their position.
    """
    _list_functions_once()
    with _quiet():
        program = torch.onnx.export(
            module,
            kwargs=dict(values),
            input_names=list(values),
            output_names=list(outputs),
            dynamic_shapes={name: dict(sizes) for name, sizes in dynamic.items()},
            dynamo=True,
            verbose=False,
        )
    model: onnx.ModelProto = program.model_proto
    _strip(model)
    return model


def _list_functions_once() -> None:
    """Cache the exporter's list of its functions, which it would otherwise make anew for each model.

    Making the list takes a quarter of the exporter's time. Fits torch 2.13 and onnxscript 0.7.2, which translate a
    thousand functions for it. If another version has the list elsewhere, nothing is cached.
    """
    with contextlib.suppress(ImportError, AttributeError):
        from torch.onnx._internal.exporter import _registration

        library = _registration.onnxscript_apis
        if not hasattr(library.get_torchlib_ops, "cache_info"):
            library.get_torchlib_ops = functools.cache(library.get_torchlib_ops)


def _strip(model: Any) -> None:
    del model.metadata_props[:]
    del model.graph.metadata_props[:]
    model.doc_string = model.graph.doc_string = ""
    graph = model.graph
    for value in (*graph.node, *graph.input, *graph.output, *graph.value_info, *graph.initializer):
        del value.metadata_props[:]
        value.doc_string = ""


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence the exporter's progress lines and its notes on other packages' deprecations."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)

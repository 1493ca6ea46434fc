"""A mixture without training: the log-softmax of a weighted sum of the features."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from stages.candidate.generators.pools import mixture_features


def write_linear_mixture(path: Path, names: Sequence[str], weights: Mapping[str, float]) -> None:
    """Write ``mixture.onnx`` for some generators; a feature without a weight has none."""
    features = mixture_features(names)
    column = np.array([[weights.get(feature, 0.0)] for feature in features], dtype=np.float32)
    nodes = [
        helper.make_node("MatMul", ["features", "weights"], ["sums"]),
        helper.make_node("Squeeze", ["sums", "last"], ["logits"]),
        helper.make_node("LogSoftmax", ["logits"], ["log_probability"], axis=0),
    ]
    graph = helper.make_graph(
        nodes,
        "mixture",
        [helper.make_tensor_value_info("features", TensorProto.FLOAT, ["items", len(features)])],
        [helper.make_tensor_value_info("log_probability", TensorProto.FLOAT, ["items"])],
        [numpy_helper.from_array(column, "weights"), numpy_helper.from_array(np.array([1]), "last")],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), path)

"""Export the heavy ranker to ONNX.

The ``torch.export`` based exporter is used: the TorchScript one is deprecated since torch 2.9. The exporter's records
of the source code (stack traces with file names) are removed, so that the file's hash does not depend on where the code
lies.
"""

from __future__ import annotations

import logging
import warnings
from pathlib import Path

import onnx
import torch

from stages.heavy_ranker.model import HeavyRanker
from stages.heavy_ranker.scorer import INPUT_NAME, OUTPUT_NAME


def export_onnx(model: HeavyRanker, path: Path) -> None:
    """Write ``model`` as one ONNX file: ``features`` float32 ``[rows, W]`` → ``probabilities`` ``[rows, T]``."""
    model = model.to("cpu").eval()
    example = torch.zeros(3, len(model.mean))
    registry = logging.getLogger("torch.onnx._internal.exporter._registration")
    level = registry.level
    registry.setLevel(logging.ERROR)  # it warns that torchvision is not installed
    try:
        with warnings.catch_warnings():
            # torch 2.13 calls its own deprecated pytree interface while exporting.
            warnings.filterwarnings("ignore", message=".*LeafSpec", category=FutureWarning)
            torch.onnx.export(
                model,
                (example,),
                str(path),
                dynamo=True,
                external_data=False,
                dynamic_shapes={"inputs": {0: "rows"}},
                input_names=[INPUT_NAME],
                output_names=[OUTPUT_NAME],
                verbose=False,
            )
    finally:
        registry.setLevel(level)
    _strip_source(path)


def _strip_source(path: Path) -> None:
    proto = onnx.load(str(path))
    del proto.metadata_props[:]
    del proto.graph.metadata_props[:]
    values = [*proto.graph.value_info, *proto.graph.input, *proto.graph.output, *proto.graph.initializer]
    for part in [*proto.graph.node, *values, *proto.functions]:
        del part.metadata_props[:]
        part.doc_string = ""
    onnx.save(proto, str(path))

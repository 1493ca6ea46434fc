"""Opening an ONNX model for inference on a CPU, the same way for every model of a release."""

from __future__ import annotations

from pathlib import Path

import onnxruntime
from onnxruntime import InferenceSession

from stages.contracts.errors import ReleaseError


def open_onnx(path: Path, threads: int | None = 1) -> InferenceSession:
    """Return a session of the model in a file; telemetry is switched off.

    Args:
        path: of the ``.onnx`` file.
        threads: threads that one call may use; None leaves the number to ONNX Runtime.

    Raises:
        ReleaseError: if the file is missing, or is not a model that can be loaded.
    """
    if not path.is_file():
        raise ReleaseError(f"{path}: missing")
    onnxruntime.disable_telemetry_events()
    options = onnxruntime.SessionOptions()
    if threads is not None:
        options.intra_op_num_threads = options.inter_op_num_threads = threads
    try:
        return InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # noqa: BLE001 - ONNX Runtime raises a class of its own for each kind of fault
        raise ReleaseError(f"{path} is not a loadable ONNX model: {error}") from None

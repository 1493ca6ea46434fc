from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from stages.contracts.errors import ReleaseError
from stages.contracts.onnx_session import open_onnx


@pytest.fixture
def model(tmp_path: Path) -> Path:
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n"]) for name in "xy")
    graph = helper.make_graph([helper.make_node("Neg", ["x"], ["y"])], "negative", [x], [y])
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.save(made, tmp_path / "model.onnx")
    return tmp_path / "model.onnx"


@pytest.mark.parametrize(("threads", "set_to"), [(1, 1), (2, 2), (None, 0)])
def test_a_model_runs_on_so_many_threads(model: Path, threads: int | None, set_to: int) -> None:
    session = open_onnx(model, threads)
    assert session.run(["y"], {"x": np.array([1.0, -2.0], np.float32)})[0].tolist() == [-1.0, 2.0]
    options = session.get_session_options()
    assert (options.intra_op_num_threads, options.inter_op_num_threads) == (set_to, set_to)
    assert session.get_providers() == ["CPUExecutionProvider"]


def test_one_thread_is_the_default(model: Path) -> None:
    assert open_onnx(model).get_session_options().intra_op_num_threads == 1


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ReleaseError, match=r"model\.onnx: missing"):
        open_onnx(tmp_path / "model.onnx")
    with pytest.raises(ReleaseError, match=r"\w+: missing"):
        open_onnx(tmp_path)


@pytest.mark.parametrize("broken", ["empty", "noise", "cut", "other opset"])
def test_what_is_no_model_is_named(model: Path, broken: str) -> None:
    whole = model.read_bytes()
    if broken == "other opset":
        made = onnx.load(model)
        made.opset_import[0].version = 9_999
        onnx.save(made, model)
    else:
        model.write_bytes({"empty": b"", "noise": b"\xff\x00" * 100, "cut": whole[: len(whole) // 2]}[broken])
    with pytest.raises(ReleaseError, match=r"model\.onnx is not a loadable ONNX model: "):
        open_onnx(model)

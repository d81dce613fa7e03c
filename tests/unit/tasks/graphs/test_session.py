"""int8 answers the same on other kinds of CPU: the interpreter runs on an emulated one if QEMU is installed."""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from tasks.graphs.session import choose_providers, exact_options

QEMU = shutil.which("qemu-x86_64")
ROOT = Path(__file__).parents[4]
# AVX2 without VNNI, as most servers bought before 2019 have it.
CPU = "Haswell"
RUN = """
import sys, numpy, onnxruntime
from tasks.graphs import session as sessions
graph, rows, answers, exact = sys.argv[1:]
sessions.adds_int8_exactly = lambda: False  # /proc/cpuinfo is the real CPU's
options = sessions.exact_options() if exact == "exact" else None
session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
numpy.save(answers, session.run(None, {"x": numpy.load(rows)})[0])
"""


def write_int8_matmul(folder: Path) -> Path:
    """Write a MatMul in static int8 whose sums of two products overflow 16 bits."""
    draw = np.random.default_rng(115)
    weight = draw.integers(-127, 128, (48, 40), dtype=np.int8)
    constants = {"scale": np.float32(0.02), "zero": np.int8(0), "w": weight}
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["d"]),
        helper.make_node("DequantizeLinear", ["w", "scale", "zero"], ["dw"]),
        helper.make_node("MatMul", ["d", "dw"], ["y"]),
    ]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["rows", n]) for name, n in (("x", 48), ("y", 40))]
    stored = [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()]
    graph = helper.make_graph(nodes, "int8", ends[:1], ends[1:], stored)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    onnx.save(model, folder / "int8.onnx")
    return folder / "int8.onnx"


def distance(graph: Path, rows: Path, answers: Any) -> float:
    """Return the relative distance of answers from those of ONNX's reference implementation."""
    outputs: Any = ReferenceEvaluator(onnx.load(graph)).run(None, {"x": np.load(rows)})
    exact = outputs[0]
    return float(np.linalg.norm(answers - exact) / np.linalg.norm(exact))


@pytest.fixture
def case(tmp_path: Path) -> tuple[Path, Path]:
    rows = np.abs(np.random.default_rng(7).standard_normal((36, 48))).astype(np.float32)
    np.save(tmp_path / "rows.npy", rows)
    return write_int8_matmul(tmp_path), tmp_path / "rows.npy"


def test_static_int8_is_exact_on_this_cpu(case: tuple[Path, Path]) -> None:
    graph, rows = case
    session = onnxruntime.InferenceSession(graph, exact_options(), providers=["CPUExecutionProvider"])
    assert distance(graph, rows, session.run(None, {"x": np.load(rows)})[0]) < 1e-5


@pytest.mark.skipif(QEMU is None, reason="no qemu-x86_64 (Debian: qemu-user)")
@pytest.mark.parametrize(("options", "is_exact"), [("exact", True), ("default", False)])
def test_static_int8_is_exact_without_vnni_only_by_its_option(
    case: tuple[Path, Path], tmp_path: Path, options: str, is_exact: bool
) -> None:
    graph, rows = case
    answers = tmp_path / "answers.npy"
    command = [str(QEMU), "-cpu", CPU, sys.executable, "-c", RUN, str(graph), str(rows), str(answers), options]
    finished = subprocess.run(
        command, cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, check=False
    )
    assert finished.returncode == 0, finished.stderr.decode()
    assert (distance(graph, rows, np.load(answers)) < 1e-5) is is_exact


def test_cuda_scores_in_full_float32_if_present(monkeypatch: pytest.MonkeyPatch) -> None:
    assert choose_providers()[-1] == "CPUExecutionProvider"
    both = ["CUDAExecutionProvider", "CPUExecutionProvider"]
    monkeypatch.setattr("onnxruntime.get_available_providers", lambda: both)
    assert choose_providers() == [("CUDAExecutionProvider", {"use_tf32": "0"}), "CPUExecutionProvider"]

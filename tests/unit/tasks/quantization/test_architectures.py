"""Windows, frames and patches in the batch: every precision of such networks is near fp32, and is what it is called."""

from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
from numpy.typing import NDArray

from registry.errors import BadInput
from registry.records import AxisRange, Backend, GpuTarget, OnnxArtifact, Precision, ShapeProfile
from tasks.backends.build import build_engine
from tasks.backends.contract import BuildInputs
from tasks.calibration.rows import Feed
from tasks.execution.progress import ignore_progress
from tasks.graphs.session import choose_providers, exact_options
from tasks.quantization.quantize import quantize
from tests.support.architectures import ARCHITECTURES, export_architecture

pytestmark = pytest.mark.slow

# Random weights: relu6 behind depthwise convolutions loses most, 20 % in int8 and 41 % in fp8; all others 15 % at most.
CLOSE = {Precision.INT8: 0.25, Precision.INT8_WEIGHT_ONLY: 0.1, Precision.INT8_DYNAMIC: 0.05}
# ONNX Runtime quantizes MatMuls alone dynamically.
REFUSED = [("mobilenet", Precision.INT8_DYNAMIC)]
RTX_4090 = GpuTarget("rtx-4090", Backend.TENSORRT_RTX, "8.9", "NVIDIA GeForce RTX 4090")


def draw_rows(source: OnnxArtifact) -> list[Feed]:
    """Draw rows of several scales, four per batch."""
    random, shape = np.random.default_rng(0), [size for size in source.inputs[0].shape if isinstance(size, int)]
    return [
        {"row": (random.normal(size=(4, *shape)) * (1 + at % 3) + random.normal()).astype(np.float32)}
        for at in range(6)
    ]


def run(graph: OnnxArtifact, feed: Feed) -> list[NDArray[np.float32]]:
    session = ort.InferenceSession(str(graph.path), exact_options(), providers=choose_providers())
    return [np.asarray(output) for output in session.run(None, feed)]


@pytest.mark.parametrize("name", sorted(ARCHITECTURES))
def test_each_precision_is_near_fp32(name: str, tmp_path: Path) -> None:
    source = export_architecture(name, tmp_path)
    rows = draw_rows(source)
    exact = run(source, rows[0])
    for precision, close in CLOSE.items():
        if (name, precision) in REFUSED:
            continue
        graph = quantize(source, precision, rows, calibration_set_digest="c" * 64, into=tmp_path / precision.value)
        for before, after in zip(exact, run(graph, rows[0]), strict=True):
            assert np.linalg.norm(after - before) <= close * np.linalg.norm(before), precision
        assert graph.macs_share is not None
        assert graph.macs_share > (0.4 if precision is Precision.INT8_DYNAMIC else 0.99)


@pytest.mark.parametrize(("name", "precision"), REFUSED)
def test_convolutions_without_a_matmul_have_no_dynamic_int8(name: str, precision: Precision, tmp_path: Path) -> None:
    source = export_architecture(name, tmp_path)
    with pytest.raises(BadInput, match="of the multiply-adds"):
        quantize(source, precision, draw_rows(source), calibration_set_digest="c" * 64, into=tmp_path / "int8")


@pytest.mark.parametrize("name", ["swin", "timesformer"])
def test_int8_with_windows_or_frames_in_the_batch_builds(name: str, tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx")
    source = export_architecture(name, tmp_path)
    graph = quantize(source, Precision.INT8, draw_rows(source), calibration_set_digest="c" * 64, into=tmp_path / "int8")
    inputs = BuildInputs(graph, RTX_4090, (ShapeProfile.of(batch=AxisRange(1, 2, 4)),), 64 * 2**20)
    assert build_engine(inputs, into=tmp_path / "engine", on_progress=ignore_progress).size_bytes > 0

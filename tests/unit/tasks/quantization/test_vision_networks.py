"""Operators of vision networks are quantized right or left in float, and the share of MACs counts them."""

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from registry.errors import BadInput
from registry.records import AxisRange, OnnxArtifact, Precision, ShapeProfile
from tasks.backends.build import build_engine
from tasks.backends.contract import BuildInputs
from tasks.execution.progress import ignore_progress
from tasks.quantization.blocks import count_macs
from tasks.quantization.quantize import quantize
from tests.support.vision_networks import EDGE, NETWORKS, OnlyTransposes, Upsampler, export_network
from tests.unit.tasks.quantization.test_architectures import RTX_4090, draw_rows, run

CLOSE = {Precision.FP16: 0.005, Precision.INT8: 0.1, Precision.INT8_WEIGHT_ONLY: 0.05, Precision.FP8: 0.15}


def make(precision: Precision, source: OnnxArtifact, folder: Path) -> tuple[OnnxArtifact, float]:
    """Quantize a graph, check it in full, and measure how far its answers are from fp32's."""
    rows = draw_rows(source)
    graph = quantize(source, precision, rows, calibration_set_digest="c" * 64, into=folder / precision.value)
    onnx.checker.check_model(str(graph.path), full_check=True)
    (exact,), (answers,) = run(source, rows[0]), run(graph, rows[0])
    return graph, float(np.linalg.norm(answers - exact) / np.linalg.norm(exact))


@pytest.mark.parametrize("precision", CLOSE)
@pytest.mark.parametrize("name", NETWORKS)
def test_every_precision_is_near_fp32_and_whole(name: str, precision: Precision, tmp_path: Path) -> None:
    torch.manual_seed(0)
    graph, distance = make(precision, export_network(NETWORKS[name](), tmp_path), tmp_path)
    assert distance <= CLOSE[precision]
    assert graph.macs_share == pytest.approx(1.0)


@pytest.mark.parametrize("groups", [1, 4])
def test_a_transposed_convolution_stays_float_and_is_counted(groups: int, tmp_path: Path) -> None:
    torch.manual_seed(0)
    source = export_network(Upsampler(groups), tmp_path)
    wide = 2 * EDGE - 2
    macs = {
        "down": EDGE * EDGE * 8 * 3 * 9,
        "up": EDGE * EDGE * 8 * (8 // groups) * 4,
        "last": wide * wide * 4 * 8 * 9,
    }
    counted = count_macs(source.path, {"row": np.zeros((2, 3, EDGE, EDGE), dtype=np.float32)})
    assert sorted(counted.values()) == sorted(macs.values())
    share = 1 - macs["up"] / sum(macs.values())
    for precision in CLOSE:
        graph, distance = make(precision, source, tmp_path)
        assert distance <= CLOSE[precision]
        assert graph.macs_share == pytest.approx(1.0 if precision is Precision.FP16 else share)


@pytest.mark.slow
@pytest.mark.parametrize("name", [*NETWORKS, "upsampler"])
def test_tensorrt_for_rtx_builds_the_int8_graph(name: str, tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx")
    torch.manual_seed(0)
    source = export_network(Upsampler(4) if name == "upsampler" else NETWORKS[name](), tmp_path)
    graph, _ = make(Precision.INT8, source, tmp_path)
    inputs = BuildInputs(graph, RTX_4090, (ShapeProfile.of(batch=AxisRange(1, 2, 4)),), 64 * 2**20)
    assert build_engine(inputs, into=tmp_path / "engine", on_progress=ignore_progress).size_bytes > 0


def test_a_network_of_transposed_convolutions_has_fp16_and_no_int8(tmp_path: Path) -> None:
    torch.manual_seed(0)
    source = export_network(OnlyTransposes(), tmp_path)
    graph, distance = make(Precision.FP16, source, tmp_path)
    assert (graph.macs_share, distance < CLOSE[Precision.FP16]) == (1.0, True)
    with pytest.raises(BadInput, match="no MatMul, Gemm or Conv"):
        make(Precision.INT8, source, tmp_path)

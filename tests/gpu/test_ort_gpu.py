"""ONNX Runtime on this machine's GPU: every precision, with and without CUDA graphs, agrees with the CPU's fp32."""

from pathlib import Path

import numpy as np
import pytest

from registry.errors import BadInput
from registry.records import AxisRange, Backend, EngineBuild, GpuTarget, OnnxArtifact, Precision, ShapeProfile
from tasks.backends import BuildInputs, open_engine
from tasks.backends.build import build_engine
from tasks.backends.ort import cuda
from tests.support.onnx_graphs import save_graph

TARGET = GpuTarget("cuda", Backend.ONNXRUNTIME_CUDA)
PROFILE = ShapeProfile.of(batch=AxisRange(1, 2, 8), sequence=AxisRange(1, 16, 32))
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(cuda.can_run(TARGET) is not None, reason=f"target cuda {cuda.can_run(TARGET)}"),
]


def build(graph: OnnxArtifact, target: GpuTarget, into: Path) -> EngineBuild:
    return build_engine(BuildInputs(graph, target, (PROFILE,), 0), into=into, on_progress=lambda *_: True)


def open_session(built: EngineBuild, cuda_graph_of: dict[str, int] | None = None) -> cuda.OrtCudaSession:
    return cuda.open_session(
        built.path, built.digest, target=TARGET, backend_version=built.backend_version, cuda_graph_of=cuda_graph_of
    )


@pytest.mark.parametrize("precision", list(Precision))
def test_engine_on_the_gpu_agrees_with_the_cpu(precision: Precision, tmp_path: Path) -> None:
    if reason := cuda.supports(precision, TARGET):
        pytest.skip(reason)
    cpu = GpuTarget("cpu", Backend.ONNXRUNTIME)
    reference = open_engine(build(save_graph(tmp_path / "fp32", Precision.FP32), cpu, tmp_path / "reference"))
    graph = save_graph(tmp_path / "onnx", precision)
    session = open_session(build(graph, TARGET, tmp_path / "engine"))
    for shape in [(1, 8, 64), (8, 32, 64), (1, 8, 64)]:
        x = np.random.default_rng(shape[0]).uniform(-1, 1, shape).astype(np.float32)
        (expected,) = reference.run({"x": x})
        (actual,) = session.run({"x": x.astype(graph.inputs[0].dtype)})
        assert actual.shape == shape
        assert np.corrcoef(expected.ravel(), actual.astype(np.float32).ravel())[0, 1] > 0.99


@pytest.mark.parametrize("precision", [Precision.FP32, Precision.FP16, Precision.INT8])
def test_replayed_cuda_graph_answers_each_feed_as_the_plain_session(precision: Precision, tmp_path: Path) -> None:
    graph = save_graph(tmp_path / "onnx", precision)
    built = build(graph, TARGET, tmp_path / "engine")
    plain, captured = open_session(built), open_session(built, {"batch": 4, "sequence": 8})
    for seed in range(4):  # learns the outputs, captures, and replays
        x = np.random.default_rng(seed).uniform(-1, 1, (4, 8, 64)).astype(graph.inputs[0].dtype)
        (expected,) = plain.run({"x": x})
        (actual,) = captured.run({"x": x})
        assert np.allclose(expected.astype(np.float32), actual.astype(np.float32), rtol=1e-3, atol=1e-3)
    with pytest.raises(BadInput, match=r"takes x \[4, 8, 64\] and nothing else"):
        captured.run({"x": x[:2]})


def test_answers_of_an_earlier_call_stay(tmp_path: Path) -> None:
    session = open_session(build(save_graph(tmp_path / "onnx", Precision.FP32), TARGET, tmp_path / "engine"))
    (first,) = session.run({"x": np.zeros((2, 3, 64), np.float32)})
    session.run({"x": np.ones((2, 3, 64), np.float32)})
    assert np.all(first == 0.5)


def test_phases_are_timed_by_the_gpu(tmp_path: Path) -> None:
    session = open_session(build(save_graph(tmp_path / "onnx", Precision.FP32), TARGET, tmp_path / "engine"))
    session.run({"x": np.zeros((8, 32, 64), np.float32)})
    times = session.phase_times()
    assert min(times.upload_seconds, times.compute_seconds, times.download_seconds) > 0


def test_feed_of_another_type_is_refused(tmp_path: Path) -> None:
    session = open_session(build(save_graph(tmp_path / "onnx", Precision.FP32), TARGET, tmp_path / "engine"))
    with pytest.raises(BadInput, match="ONNX Runtime refused the feed"):
        session.run({"x": np.zeros((1, 1, 64), np.float64)})

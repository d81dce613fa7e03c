"""Build, load and run on this machine's GPU with whichever TensorRT package is installed."""

from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from registry.errors import BadInput
from registry.host.gpu import local_compute_capability
from registry.records import AxisRange, Backend, GpuTarget, OnnxArtifact, Precision, ShapeProfile
from tasks.backends import BACKENDS, BuildInputs, Session, open_engine
from tasks.backends.build import build_engine
from tests.support.onnx_graphs import save_graph

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(local_compute_capability() is None, reason="this machine has no CUDA GPU"),
]
PROFILES = (
    ShapeProfile.of(batch=AxisRange(1, 1, 1), sequence=AxisRange(1, 8, 16)),
    ShapeProfile.of(batch=AxisRange(1, 4, 8), sequence=AxisRange(1, 16, 32)),
)


@pytest.fixture(params=[Backend.TENSORRT, Backend.TENSORRT_RTX])
def target(request: pytest.FixtureRequest) -> GpuTarget:
    backend: Backend = request.param
    if not find_spec(backend):
        pytest.skip(f"the {backend} package is not installed")
    here = GpuTarget("here", backend, local_compute_capability())
    if reason := BACKENDS[backend].supports(Precision.FP16, here):
        pytest.skip(reason)
    return here


@pytest.mark.parametrize("precision", list(Precision))
def test_engine_on_the_gpu_agrees_with_onnxruntime(precision: Precision, target: GpuTarget, tmp_path: Path) -> None:
    if reason := BACKENDS[target.backend].supports(precision, target):
        pytest.skip(reason)
    graph = save_graph(tmp_path / "onnx", precision)
    cpu = GpuTarget("cpu", Backend.ONNXRUNTIME)
    reference = _open(save_graph(tmp_path / "fp32", Precision.FP32), cpu, tmp_path / "reference")
    session = _open(graph, target, tmp_path / "engine")
    for shape in [(1, 8, 64), (8, 32, 64), (1, 3, 64)]:  # both profiles, and back
        x = np.random.default_rng(1).uniform(-1, 1, shape).astype(np.float32)
        (expected,) = reference.run({"x": x})
        (actual,) = session.run({"x": x})
        assert actual.shape == shape
        assert np.corrcoef(expected.ravel(), actual.astype(np.float32).ravel())[0, 1] > 0.99


def test_shape_outside_of_every_profile_is_refused(target: GpuTarget, tmp_path: Path) -> None:
    session = _open(save_graph(tmp_path / "onnx", Precision.FP16), target, tmp_path / "engine")
    with pytest.raises(BadInput, match="no optimization profile"):
        session.run({"x": np.zeros((9, 1, 64), np.float16)})


def _open(graph: OnnxArtifact, target: GpuTarget, into: Path) -> Session:
    built = build_engine(BuildInputs(graph, target, PROFILES, 2**28), into=into, on_progress=lambda *_: True)
    return open_engine(built)

"""The engine of a reduced piece is built and measured where this machine runs the target's engines."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from registry.records import Backend, GpuTarget, Precision
from tasks.backends import BACKENDS
from tasks.execution.progress import ignore_progress
from tasks.reduction.engine import describe_engine_of
from tasks.reduction.pair import GraphPair, OneGraph
from tasks.reduction.search import reduce_pair
from tests.support.onnx_graphs import make_model

CUDA = GpuTarget("cuda", Backend.ONNXRUNTIME_CUDA)


@pytest.mark.gpu
@pytest.mark.skipif(BACKENDS[CUDA.backend].can_run(CUDA) is not None, reason="no ONNX Runtime for this GPU")
@pytest.mark.parametrize("precision", [Precision.FP16, Precision.INT8])
def test_the_engine_of_a_piece_is_as_far_from_fp32_as_its_graph(precision: Precision, tmp_path: Path) -> None:
    made = make_model(precision)
    (bias,) = (each for each in made.graph.initializer if each.name == "b")
    bias.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(bias) * 10, "b"))
    rows = [{"x": np.random.default_rng(0).uniform(-1, 1, (1, 8, 64)).astype(np.float32)}]
    reduced = reduce_pair(GraphPair(OneGraph(make_model(Precision.FP32)), OneGraph(made)), rows).reduced
    assert reduced is not None
    words = describe_engine_of(reduced, precision, CUDA, 0, ignore_progress)
    assert words.startswith("the engine of this piece on cuda (onnxruntime_cuda ")
    assert float(words.rpartition(": ")[2]) == pytest.approx(reduced.error, rel=0.02)
    onnx.checker.check_model(reduced.made)

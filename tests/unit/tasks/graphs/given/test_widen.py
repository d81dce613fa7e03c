"""A given graph with weights in float16 or bfloat16 becomes the float32 reference; what it declares stays."""

from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.transformers.float16 import convert_float_to_float16

from registry.records import OnnxArtifact, Precision, Tensor
from tasks.graphs.given.admit import admit_graph
from tasks.graphs.given.source import run_admission
from tasks.graphs.given.trial import try_graph
from tasks.graphs.layers import list_stored_weights
from tasks.model_tasks import model_task
from tasks.model_tasks.contract import Feed
from tasks.quantization.quantize import quantize
from tests.support.given_graphs import VOCABULARY, make_classifier, save_classifier
from tests.support.own_tasks import AXES, MODULE, make_series_graph, open_task
from tests.unit.tasks.graphs.given.test_own_graphs import pack_rows

TASK, LABELS = model_task("text-classification"), ("no", "yes")
DRAW = np.random.default_rng(0)
FEED: Feed = {
    "input_ids": DRAW.integers(0, VOCABULARY, (6, 5)),
    "attention_mask": (np.arange(5) < DRAW.integers(1, 6, (6, 1))).astype(np.int64),
}


def store_as_bfloat16(model: onnx.ModelProto) -> onnx.ModelProto:
    """Make a graph's float32 weights and Casts bfloat16, its answer too."""
    for tensor in model.graph.initializer:
        if tensor.data_type == TensorProto.FLOAT:
            values = numpy_helper.to_array(tensor).astype(ml_dtypes.bfloat16)
            tensor.CopyFrom(
                helper.make_tensor(tensor.name, TensorProto.BFLOAT16, values.shape, values.tobytes(), raw=True)
            )
    for node in model.graph.node:
        for attribute in node.attribute:
            if attribute.name == "to" and attribute.i == TensorProto.FLOAT:
                attribute.i = TensorProto.BFLOAT16
    model.graph.output[0].type.tensor_type.elem_type = TensorProto.BFLOAT16
    return model


def kinds_of(artifact: OnnxArtifact) -> set[int]:
    return {kind for kind, _ in list_stored_weights(onnx.load(artifact.path))}


@pytest.mark.parametrize("keep_io_types", [True, False])
def test_a_float16_graph_becomes_float32_and_answers_alike(tmp_path: Path, *, keep_io_types: bool) -> None:
    halved = convert_float_to_float16(make_classifier(), keep_io_types=keep_io_types)
    graph = save_classifier(tmp_path / "net.onnx", halved)
    made = admit_graph(graph, TASK, {}, into=tmp_path / "made")
    assert kinds_of(made) == {TensorProto.FLOAT}
    assert made.exporter == "float32 of weights given in float16"
    assert made.outputs == (Tensor("logits", "float32", ("batch_size", 2)),)
    (logits,) = try_graph(graph, made, TASK, FEED, LABELS)
    exact = admit_graph(save_classifier(tmp_path / "exact.onnx"), TASK, {}, into=tmp_path / "exact")
    (wanted,) = try_graph(tmp_path / "exact.onnx", exact, TASK, FEED, LABELS)
    np.testing.assert_allclose(logits, wanted, atol=0.01 * np.abs(wanted).max())
    assert exact.exporter is None


def test_a_bfloat16_graph_that_nothing_here_runs_becomes_float32(tmp_path: Path) -> None:
    graph = save_classifier(tmp_path / "net.onnx", store_as_bfloat16(make_classifier()))
    made = admit_graph(graph, TASK, {}, into=tmp_path / "made")
    assert made.exporter == "float32 of weights given in bfloat16"
    (logits,) = try_graph(graph, made, TASK, FEED, LABELS)
    assert logits.dtype == np.float32


@pytest.mark.parametrize("precision", [Precision.FP32, Precision.FP16, Precision.INT8, Precision.INT8_DYNAMIC])
def test_float16_inputs_and_outputs_of_an_own_task_stay_through_every_rewrite(
    tmp_path: Path, precision: Precision
) -> None:
    code = MODULE.replace("np.float32", "np.float16")
    trial = pack_rows(tmp_path, code)
    graph = save_classifier(tmp_path / "net.onnx", convert_float_to_float16(make_series_graph(), keep_io_types=False))
    task = open_task(tmp_path, code)
    made = run_admission(graph, task, tmp_path, trial, into=tmp_path / "made")
    assert kinds_of(made) == {TensorProto.FLOAT}
    assert [tensor.dtype for tensor in (*made.inputs, *made.outputs)] == ["float16", "int64", "float16", "float16"]
    encoder = task.open_encoder(tmp_path, made.input_names, dict.fromkeys(AXES, 12))
    feeds = [encoder.encode(trial.inputs)] * 2
    quantized = quantize(made, precision, feeds, calibration_set_digest="c" * 64, into=tmp_path / "quantized")
    assert (quantized.inputs, quantized.outputs) == (made.inputs, made.outputs)

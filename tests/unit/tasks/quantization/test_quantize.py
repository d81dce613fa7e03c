"""Quantized graphs on a one-block encoder with planted outlier channels and a NaN token."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from registry.errors import BadInput
from registry.records import OnnxArtifact, Precision
from tasks.calibration.collect import calibrate
from tasks.calibration.ranges import Method
from tasks.graphs.layers import Graph
from tasks.model_tasks.inputs.texts import FeedDict
from tasks.quantization import qdq
from tasks.quantization.int8 import make_int8_graph
from tasks.quantization.quantize import CALIBRATED, METHODS, quantize
from tasks.quantization.request import Int8Plan
from tasks.quantization.scales import choose_scales
from tasks.quantization.smoothquant import smooth_graph
from tasks.quantization.table import TABLE_FILE, from_json
from tests.support.encoder_graphs import NAN_TOKEN, WIDTH, artifact, batched, cosine, encoder, feed, run, saved, texts

SET = "c" * 64


@pytest.fixture
def source(tmp_path: Path) -> OnnxArtifact:
    return artifact(tmp_path / "source", encoder())


def quantize_to(
    source: OnnxArtifact, precision: Precision, into: Path, rows: list[FeedDict] | None = None
) -> OnnxArtifact:
    feeds = batched(texts(24), 4) if rows is None else rows
    return quantize(source, precision, feeds, calibration_set_digest=SET, into=into)


@pytest.mark.parametrize("kwargs", [{}, {"pre_norm": True}, {"transposed": True}])
def test_a_smoothed_graph_computes_the_same(kwargs: dict[str, bool], tmp_path: Path) -> None:
    exact = run(encoder(**kwargs), texts(8, seed=2))
    graph = Graph(encoder(**kwargs))
    scales = choose_scales(graph, calibrate(saved(tmp_path, graph.proto), batched(texts(24), 4)))
    smoothings = {name: scale.smoothing for name, scale in scales.items() if scale.smoothing is not None}
    assert {"normed", "normed_2"} <= smoothings.keys()
    smoothed = smooth_graph(graph, smoothings).proto
    onnx.checker.check_model(smoothed)
    np.testing.assert_allclose(run(smoothed, texts(8, seed=2)), exact, rtol=1e-3, atol=2e-3)


def test_scale_is_folded_where_nothing_else_reads_the_tensor_and_multiplied_where_a_residual_does() -> None:
    ones = np.full(WIDTH, 2.0, dtype=np.float32)
    folded = smooth_graph(Graph(encoder(pre_norm=True)), {"normed": ones}).proto
    multiplied = smooth_graph(Graph(encoder()), {"normed": ones}).proto
    nodes = len(encoder().graph.node)
    assert len(folded.graph.node) == nodes
    assert len(multiplied.graph.node) == nodes + 1


def test_int8_weights_are_int8_and_every_zero_point_is_zero(source: OnnxArtifact, tmp_path: Path) -> None:
    quantized = onnx.load(quantize_to(source, Precision.INT8, tmp_path / "int8").path)
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in quantized.graph.initializer}
    nodes = [node for node in quantized.graph.node if node.op_type in ("QuantizeLinear", "DequantizeLinear")]
    weights = [constants[node.input[0]] for node in nodes if node.input[0] in constants]
    zero_points = [constants[node.input[2]] for node in nodes]
    assert [weight.dtype for weight in weights] == [np.int8] * 6
    assert all(zero_point.dtype == np.int8 and not zero_point.any() for zero_point in zero_points)
    assert sum(node.op_type == "QuantizeLinear" for node in nodes) == 4


def test_nothing_is_quantized_but_the_inputs_of_matmuls_with_constant_weights(
    source: OnnxArtifact, tmp_path: Path
) -> None:
    graph = Graph(onnx.load(quantize_to(source, Precision.INT8, tmp_path / "int8").path))
    dequantized = [node.output[0] for node in graph.proto.graph.node if node.op_type == "DequantizeLinear"]
    assert {node.op_type for name in dequantized for node in graph.consumers[name]} == {"MatMul"}
    floats = [node for node in graph.proto.graph.node if node.op_type in ("Softmax", "LayerNormalization", "Erf")]
    assert not [name for node in floats for name in node.input if name in dequantized]


@pytest.mark.parametrize("rows", [[], [feed([[NAN_TOKEN]])]], ids=["none", "only bad ones"])
def test_no_usable_row_is_refused(source: OnnxArtifact, tmp_path: Path, rows: list[FeedDict]) -> None:
    with pytest.raises(BadInput, match="calibration rows is usable"):
        quantize(source, Precision.INT8, rows, calibration_set_digest=SET, into=tmp_path / "int8")


def test_int8_without_rows_is_refused(source: OnnxArtifact, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="needs calibration rows"):
        quantize(source, Precision.INT8, None, calibration_set_digest=None, into=tmp_path / "int8")


def test_a_quantized_graph_is_not_quantized_again(source: OnnxArtifact, tmp_path: Path) -> None:
    once = quantize_to(source, Precision.INT8_WEIGHT_ONLY, tmp_path / "once")
    with pytest.raises(BadInput, match="fp32"):
        quantize_to(once, Precision.INT8, tmp_path / "twice")


def test_a_folder_with_other_files_is_refused(source: OnnxArtifact, tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "note").write_text("mine")
    with pytest.raises(BadInput, match="not empty"):
        quantize_to(source, Precision.FP32, tmp_path / "full")


def test_every_precision_has_its_method() -> None:
    assert METHODS.keys() == set(Precision)


@pytest.mark.parametrize(
    "precision", [precision for precision in Precision if precision not in (Precision.FP16, Precision.BF16)]
)
def test_same_rows_in_any_batches_give_the_same_digest(
    source: OnnxArtifact, tmp_path: Path, precision: Precision
) -> None:
    once = quantize_to(source, precision, tmp_path / "once", batched(texts(24), 4))
    again = quantize_to(source, precision, tmp_path / "again", batched(texts(24)[::-1], 5))
    assert once == again
    assert once.quantized_from == source.digest
    assert once.calibration_set == (SET if precision in CALIBRATED else None)


@pytest.mark.parametrize("precision", [Precision.INT8, Precision.FP8])
def test_any_batch_size_and_order_give_the_same_bytes_of_the_graph(
    source: OnnxArtifact, tmp_path: Path, precision: Precision
) -> None:
    rows = texts(60)
    orders = [rows, rows[::-1], sorted(rows)]
    digests = {
        quantize(
            source, precision, batched(order, size), calibration_set_digest="c" * 64, into=tmp_path / str(size)
        ).digest
        for size, order in zip((1, 7, 60), orders, strict=True)
    }
    assert len(digests) == 1


def test_int8_on_outliers_is_nearer_than_plain_min_max(source: OnnxArtifact, tmp_path: Path) -> None:
    rows = texts(16, seed=3)
    exact = run(source.path, rows)
    ours = cosine(run(quantize_to(source, Precision.INT8, tmp_path / "int8").path, rows), exact)
    plain = cosine(run(make_min_max_int8(tmp_path), rows), exact)
    assert ours > 0.995
    assert 1 - ours < 0.6 * (1 - plain)


def make_min_max_int8(folder: Path) -> onnx.ModelProto:
    """Make the same layers int8 with amax / 127 and no smoothing."""
    graph = Graph(encoder())
    calibration = calibrate(saved(folder, graph.proto), batched(texts(24), 4))
    steps = {name: statistics.amax / 127 for name, statistics in calibration.activations.items()}
    qdq.quantize_activations(graph, steps, qdq.make_int8_zero())
    graph = Graph(graph.proto)
    qdq.quantize_weights(graph, qdq.round_int8_weight)
    return graph.proto


def test_layers_whose_tensor_has_no_scale_stay_float_and_the_rest_is_int8(tmp_path: Path) -> None:
    calibration = calibrate(saved(tmp_path, encoder()), batched(texts(24), 4))
    scales = choose_scales(Graph(encoder()), calibration)
    fp32 = next(layer.input for layer in Graph(encoder()).list_linears() if layer.node == "narrow.matmul")
    quantized = Graph(make_int8_graph(encoder(), {tensor: scale for tensor, scale in scales.items() if tensor != fp32}))
    assert {layer.node for layer in quantized.list_linears()} == {"narrow.matmul"}
    rows = texts(16, seed=3)
    assert cosine(run(quantized.proto, rows), run(encoder(), rows)) > 0.995


def test_weights_rounded_for_the_sample_give_another_graph_that_stays_near_fp32(
    source: OnnxArtifact, tmp_path: Path
) -> None:
    rows, feeds = texts(16, seed=3), batched(texts(100), 4)
    quantized = quantize(
        source,
        Precision.INT8,
        feeds,
        calibration_set_digest=SET,
        into=tmp_path / "made",
        plan=Int8Plan(compensate=True),
    )
    assert quantized.digest != quantize_to(source, Precision.INT8, tmp_path / "plain", feeds).digest
    assert cosine(run(quantized.path, rows), run(source.path, rows)) > 0.995


@pytest.mark.parametrize("method", list(Method))
def test_a_named_method_decides_every_range(source: OnnxArtifact, tmp_path: Path, method: Method) -> None:
    plan = Int8Plan(method=method, smooth=False)
    feeds = batched(texts(24), 4)
    quantized = quantize(source, Precision.INT8, feeds, calibration_set_digest=SET, into=tmp_path / "made", plan=plan)
    table = from_json((quantized.directory / TABLE_FILE).read_bytes())
    assert {entry.method for entry in table.ranges} == {method}
    assert {entry.strength for entry in table.ranges} == {None}


def test_the_table_is_beside_the_graph_and_not_part_of_the_artifact(source: OnnxArtifact, tmp_path: Path) -> None:
    quantized = quantize_to(source, Precision.INT8, tmp_path / "made")
    assert [file.path for file in quantized.files] == ["model.onnx"]
    table = from_json((quantized.directory / TABLE_FILE).read_bytes())
    assert (table.onnx_digest, table.rows, table.quarantined) == (source.digest, 24, ())
    assert [entry.tensor for entry in table.ranges] == sorted({"normed", "context", "normed_2", "gelu"})


def test_a_reused_table_gives_the_graph_of_its_calibration_without_rows(source: OnnxArtifact, tmp_path: Path) -> None:
    first = quantize(
        source,
        Precision.INT8,
        batched(texts(24), 4),
        calibration_set_digest=SET,
        into=tmp_path / "first",
    )
    plan = Int8Plan(table=from_json((first.directory / TABLE_FILE).read_bytes()))
    again = quantize(source, Precision.INT8, None, calibration_set_digest=SET, into=tmp_path / "again", plan=plan)
    assert replace(again, macs_share=first.macs_share) == first  # the share is counted on rows
    assert (again.directory / TABLE_FILE).read_bytes() == (first.directory / TABLE_FILE).read_bytes()


def test_a_table_of_another_graph_is_refused(source: OnnxArtifact, tmp_path: Path) -> None:
    plan = Int8Plan(
        table=from_json((quantize_to(source, Precision.INT8, tmp_path / "a").directory / TABLE_FILE).read_bytes())
    )
    other = artifact(tmp_path / "other", encoder(transposed=True))
    with pytest.raises(BadInput, match="of another graph"):
        quantize(other, Precision.INT8, None, calibration_set_digest=SET, into=tmp_path / "b", plan=plan)


@pytest.mark.parametrize(
    ("precision", "least"),
    [
        (Precision.INT8_WEIGHT_ONLY, 0.999),
        (Precision.INT4_WEIGHT_ONLY, 0.97),
        (Precision.FP8, 0.99),
        (Precision.INT8_DYNAMIC, 0.97),
        (Precision.FP32, 1 - 1e-6),
    ],
)
def test_other_precisions_stay_near_fp32(
    source: OnnxArtifact, tmp_path: Path, precision: Precision, least: float
) -> None:
    rows = texts(16, seed=3)
    assert cosine(run(quantize_to(source, precision, tmp_path / "made").path, rows), run(source.path, rows)) > least


@pytest.mark.slow
@pytest.mark.parametrize("precision", [Precision.FP16, Precision.BF16])
def test_casts_keep_fp32_outputs_and_are_deterministic(tmp_path: Path, precision: Precision) -> None:
    clean = encoder()
    table = next(tensor for tensor in clean.graph.initializer if tensor.name == "embedding")
    table.CopyFrom(numpy_helper.from_array(np.nan_to_num(numpy_helper.to_array(table)), "embedding"))
    source = artifact(tmp_path / "clean", clean)
    once, again = quantize_to(source, precision, tmp_path / "once"), quantize_to(source, precision, tmp_path / "again")
    assert once == again
    assert [tensor.dtype for tensor in (*once.inputs, *once.outputs)] == ["int64", "int64", "float32"]

"""Int8 of networks that nothing was tuned on: accurate, every layer int8, and built by TensorRT for RTX."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from registry.records import OnnxArtifact, Precision
from tasks.calibration.rows import Feed
from tasks.graphs.layers import Floats, Graph, group_by_input
from tasks.graphs.session import exact_options
from tasks.quantization.int8 import make_int8_graph
from tasks.quantization.quantize import quantize
from tasks.quantization.request import Int8Plan
from tasks.quantization.table import TABLE_FILE, read_table, reuse_scales
from tests.support.encoder_graphs import artifact, cosine
from tests.support.outlier_networks import NETWORKS


def quantize_network(network: str, folder: Path, plan: Int8Plan | None = None) -> tuple[OnnxArtifact, OnnxArtifact]:
    """Return the fp32 graph of a network and its int8 graph."""
    source = artifact(folder / "fp32", NETWORKS[network].make_model())
    rows = NETWORKS[network].make_rows(96, 1)
    int8 = quantize(source, Precision.INT8, rows, calibration_set_digest="c" * 64, into=folder / "int8", plan=plan)
    return source, int8


def answers(file: Path, feeds: list[Feed]) -> Floats:
    session = ort.InferenceSession(file, exact_options(), providers=["CPUExecutionProvider"])
    return np.concatenate([session.run(None, feed)[0].ravel() for feed in feeds])


@pytest.mark.parametrize("network", list(NETWORKS))
def test_int8_stays_near_fp32_on_rows_it_was_not_calibrated_on(network: str, tmp_path: Path) -> None:
    source, int8 = quantize_network(network, tmp_path)
    held_out = NETWORKS[network].make_rows(32, 2)
    assert cosine(answers(int8.path, held_out), answers(source.path, held_out)) > 0.997


@pytest.mark.parametrize("network", ["bert", "vit"])
def test_planted_outliers_break_int8_without_smoothing_only(network: str, tmp_path: Path) -> None:
    source, int8 = quantize_network(network, tmp_path / "ours")
    plan = Int8Plan(smooth=False)
    _, plain = quantize_network(network, tmp_path / "plain", plan)
    held_out = NETWORKS[network].make_rows(32, 2)
    exact = answers(source.path, held_out)
    lost, lost_plainly = (1 - cosine(answers(graph.path, held_out), exact) for graph in (int8, plain))
    assert lost < lost_plainly / 5


@pytest.mark.parametrize("network", list(NETWORKS))
def test_any_order_of_the_rows_gives_the_same_graph(network: str, tmp_path: Path) -> None:
    source = artifact(tmp_path / "fp32", NETWORKS[network].make_model())
    rows = NETWORKS[network].make_rows(40, 1)
    orders = {"one": rows, "other": rows[::-1]}
    digests = {
        quantize(source, Precision.INT8, order, calibration_set_digest="c" * 64, into=tmp_path / name).digest
        for name, order in orders.items()
    }
    assert len(digests) == 1


def test_a_residual_branch_is_int8_around_conv_and_float_around_matmul(tmp_path: Path) -> None:
    for network, int8_branches in {"conv": 1, "bert": 0, "vit": 0}.items():
        _, int8 = quantize_network(network, tmp_path / network)
        graph = onnx.load(int8.path).graph
        dequantized = {node.output[0] for node in graph.node if node.op_type == "DequantizeLinear"}
        constants = {tensor.name for tensor in graph.initializer}
        adds = [node for node in graph.node if node.op_type == "Add" and not constants & set(node.input)]
        assert len(adds) >= 1
        assert sum(bool(dequantized & set(node.input)) for node in adds) == int8_branches


@pytest.mark.parametrize("network", list(NETWORKS))
def test_the_parsed_network_has_every_layer_behind_int8(network: str, tmp_path: Path) -> None:
    trt = pytest.importorskip("tensorrt_rtx")
    _, int8 = quantize_network(network, tmp_path)
    _, parsed, _keep = parse(trt, int8.path)
    producers = {parsed.get_layer(at).get_output(0).name: parsed.get_layer(at) for at in range(parsed.num_layers)}
    layers = [parsed.get_layer(at) for at in range(parsed.num_layers)]
    products = [layer for layer in layers if layer.type in (trt.LayerType.MATRIX_MULTIPLY, trt.LayerType.CONVOLUTION)]
    quantized = [layer for layer in products if is_int8(trt, producers, layer)]
    assert len(quantized) == NETWORKS[network].weighted_layers
    # What is left float multiplies two activations: scores and values of attention.
    assert len(products) - len(quantized) == NETWORKS[network].attention_products


@pytest.mark.slow
@pytest.mark.parametrize("network", list(NETWORKS))
def test_tensorrt_for_rtx_builds_a_mix_and_its_fp32_layers_are_float(network: str, tmp_path: Path) -> None:
    trt = pytest.importorskip("tensorrt_rtx")
    source, whole = quantize_network(network, tmp_path / "whole")
    scales = reuse_scales(read_table(whole.directory / TABLE_FILE), Graph(onnx.load(source.path)))
    groups = group_by_input(Graph(onnx.load(source.path)).list_linears())
    tensor = list(groups)[1]
    mixed = make_int8_graph(onnx.load(source.path), {name: scale for name, scale in scales.items() if name != tensor})
    int8 = artifact(tmp_path / "mixed", mixed)
    _, parsed, _keep = parse(trt, int8.path)
    producers = {parsed.get_layer(at).get_output(0).name: parsed.get_layer(at) for at in range(parsed.num_layers)}
    layers = [parsed.get_layer(at) for at in range(parsed.num_layers)]
    products = [layer for layer in layers if layer.type in (trt.LayerType.MATRIX_MULTIPLY, trt.LayerType.CONVOLUTION)]
    assert sum(is_int8(trt, producers, layer) for layer in products) == NETWORKS[network].weighted_layers - len(
        groups[tensor]
    )
    assert builds(trt, int8, "SM89")


def is_int8(trt: Any, producers: dict[str, Any], layer: Any) -> bool:
    """Return whether both the input and the weight of a layer come from int8 through a DequantizeLinear."""
    return (
        all(
            dequantized_from(trt, producers, layer.get_input(at)) == trt.DataType.INT8
            for at in range(min(2, layer.num_inputs))
        )
        and layer.num_inputs >= 2
    )


def dequantized_from(trt: Any, producers: dict[str, Any], tensor: Any) -> Any:
    """Return the type that a tensor is dequantized from; None when it is not dequantized."""
    layer = producers.get(tensor.name)
    while layer is not None and layer.type == trt.LayerType.SHUFFLE:
        layer = producers.get(layer.get_input(0).name)
    if layer is None or layer.type != trt.LayerType.DEQUANTIZE:
        return None
    return layer.get_input(0).dtype


def parse(trt: Any, file: Path) -> tuple[Any, Any, Any]:
    logger = trt.Logger(trt.Logger.ERROR)
    builder = trt.Builder(logger)
    network = builder.create_network(0)
    parser = trt.OnnxParser(network, logger)
    assert parser.parse_from_file(str(file)), [parser.get_error(at).desc() for at in range(parser.num_errors)]
    return builder, network, (parser, logger)


@pytest.mark.slow
@pytest.mark.parametrize("capability", ["SM86", "SM89", "SM120"])
@pytest.mark.parametrize("network", list(NETWORKS))
def test_tensorrt_for_rtx_builds_it(network: str, capability: str, tmp_path: Path) -> None:
    trt = pytest.importorskip("tensorrt_rtx")
    assert builds(trt, quantize_network(network, tmp_path)[1], capability)


def builds(trt: Any, graph: OnnxArtifact, capability: str) -> bool:
    builder, parsed, _keep = parse(trt, graph.path)
    config = builder.create_builder_config()
    config.num_compute_capabilities = 1
    config.set_compute_capability(getattr(trt.ComputeCapability, capability), 0)
    profile = builder.create_optimization_profile()
    for tensor in graph.inputs:
        rest = [16 if isinstance(axis, str) else axis for axis in tensor.shape[1:]]
        profile.set_shape(tensor.name, (1, *rest), (2, *rest), (4, *rest))
    config.add_optimization_profile(profile)
    return builder.build_serialized_network(parsed, config) is not None

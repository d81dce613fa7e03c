"""A planted fault is found in the layer that has it, and a folder with nothing else of the model shows it."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from registry.errors import BadInput
from registry.records import Backend, GpuTarget, Precision
from tasks.calibration.rows import Feed
from tasks.execution.progress import ignore_progress
from tasks.graphs.layers import Graph
from tasks.quantization.quantize import quantize
from tasks.reduction.engine import describe_engine_of
from tasks.reduction.folder import CaseNotes, write_folder
from tasks.reduction.pair import GraphPair, OneGraph
from tasks.reduction.search import Bounds, Reduction, reduce_pair
from tests.support.encoder_graphs import artifact, encoder, feed, texts
from tests.support.quantized_networks import CalibratedNetwork, calibrate_network

Quantize = Callable[[Precision], onnx.ModelProto]


@pytest.fixture(scope="module")
def exact() -> onnx.ModelProto:
    return encoder()


@pytest.fixture(scope="module")
def quantized(exact: onnx.ModelProto, tmp_path_factory: pytest.TempPathFactory) -> Quantize:
    """The encoder in a precision, made as a release makes it."""
    folder = tmp_path_factory.mktemp("graphs")
    given = artifact(folder / "fp32", exact)
    made: dict[Precision, onnx.ModelProto] = {}

    def make(precision: Precision) -> onnx.ModelProto:
        if precision not in made:
            rows = [feed([row]) for row in texts(24)]
            into = folder / precision
            quantize(given, precision, rows, calibration_set_digest="rows", into=into)
            made[precision] = onnx.load(into / "model.onnx")
        copy = onnx.ModelProto()
        copy.CopyFrom(made[precision])
        return copy

    return make


ROWS: list[Feed] = [feed([row]) for row in texts(8, seed=5)]


def pair_of(exact: onnx.ModelProto, made: onnx.ModelProto) -> GraphPair:
    return GraphPair(OneGraph(exact), OneGraph(made))


def spoil(model: onnx.ModelProto, part: str, factor: float = 10.0) -> onnx.ModelProto:
    """Multiply the one float constant whose name has `part` in it."""
    (tensor,) = (each for each in model.graph.initializer if part in each.name and each.name.endswith("scale"))
    tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) * np.float32(factor), tensor.name))
    return model


@pytest.mark.parametrize("layer", ["value", "attended", "wide", "narrow"])
@pytest.mark.parametrize("precision", [Precision.INT8, Precision.INT8_WEIGHT_ONLY])
def test_a_spoiled_scale_is_found_in_the_one_layer_that_has_it(
    exact: onnx.ModelProto, quantized: Quantize, precision: Precision, layer: str
) -> None:
    made = spoil(quantized(precision), f"{layer}.matmul")
    found = reduce_pair(pair_of(exact, made), ROWS)
    assert found.reduced is not None
    assert found.is_one_layer
    assert found.layers[0].layer == f"{layer}.matmul"
    assert found.reduced.error == found.layers[0].error > 0.5
    assert [each.error < 0.1 for each in found.layers[1:]] == [True] * (len(found.layers) - 1)
    assert [node.op_type for node in found.reduced.exact.graph.node if node.op_type == "MatMul"] == ["MatMul"]
    assert found.tried == found.pieces == len(found.layers)


def test_the_spoiled_scale_of_an_activation_is_found_in_the_layers_that_read_it(
    exact: onnx.ModelProto, quantized: Quantize
) -> None:
    made = spoil(quantized(Precision.INT8), "gelu/quantized", 0.1)
    found = reduce_pair(pair_of(exact, made), ROWS)
    assert found.layers[0].layer == "narrow.matmul"
    assert found.layers[0].sqnr_db < 20 < found.layers[1].sqnr_db


@pytest.mark.parametrize("precision", [Precision.INT8_DYNAMIC, Precision.FP16])
def test_a_sound_graph_has_nothing_to_show(exact: onnx.ModelProto, quantized: Quantize, precision: Precision) -> None:
    found = reduce_pair(pair_of(exact, quantized(precision)), ROWS, Bounds(tolerance=0.2))
    assert found.reduced is None
    assert found.layers == ()
    assert 0 < found.error <= 0.2
    assert not found.is_one_layer


@pytest.mark.parametrize("name", ["bert", "vit", "conv"])
def test_smoothing_is_no_difference(name: str, tmp_path: Path) -> None:
    """It scales what a LayerNormalization gives, and the weights that read it; both together change nothing."""
    from tasks.quantization.int8 import make_int8_graph

    network: CalibratedNetwork = calibrate_network(name, tmp_path)
    made = make_int8_graph(network.load(), network.scales)
    found = reduce_pair(pair_of(network.load(), made), network.held_out[:2], Bounds(tolerance=0.0))
    assert len(found.layers) == found.pieces > 3
    assert found.layers[0].error < 0.2


def chain(layers: int) -> onnx.ModelProto:
    """Layers of random weights, one behind the other."""
    random = np.random.default_rng(0)
    weights = [
        numpy_helper.from_array((random.standard_normal((64, 64)) / 8).astype(np.float32), f"w{n}")
        for n in range(layers)
    ]
    nodes = [
        onnx.helper.make_node("MatMul", [f"x{n}", f"w{n}"], [f"x{n + 1}"], name=f"layer{n}") for n in range(layers)
    ]
    first, last = (onnx.helper.make_tensor_value_info(f"x{n}", 1, ["batch", 64]) for n in (0, layers))
    graph = onnx.helper.make_graph(nodes, "chain", [first], [last], weights)
    return onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=8)


def test_errors_that_only_add_up_are_shown_by_as_few_layers_as_it_takes(tmp_path: Path) -> None:
    exact = chain(8)
    given = artifact(tmp_path / "fp32", exact)
    quantize(given, Precision.INT8_WEIGHT_ONLY, None, calibration_set_digest=None, into=tmp_path / "int8")
    pair = pair_of(exact, onnx.load(tmp_path / "int8" / "model.onnx"))
    rows = [{"x0": np.random.default_rng(1).standard_normal((4, 64)).astype(np.float32)}]
    whole = reduce_pair(pair, rows, Bounds(tolerance=0.0))
    tolerance = (whole.layers[0].error + whole.error) / 2
    assert whole.layers[0].error < tolerance < whole.error
    found = reduce_pair(pair, rows, Bounds(tolerance=tolerance))
    assert found.reduced is not None
    assert not found.is_one_layer
    assert tolerance < found.reduced.error <= whole.error
    layers = [node.name for node in found.reduced.exact.graph.node]
    assert 1 < len(layers) < 8
    assert layers == [f"layer{n}" for n in range(8 - len(layers), 8)]
    shorter = pair.made.cut("x8", [f"x{9 - len(layers)}"])
    assert len([node for node in shorter.nodes if node.op_type == "MatMul"]) == len(layers) - 1


def test_the_row_that_shows_most_is_taken(exact: onnx.ModelProto, quantized: Quantize) -> None:
    pair = pair_of(exact, spoil(quantized(Precision.INT8), "wide.matmul"))
    alone = [reduce_pair(pair, [row]).error for row in ROWS]
    found = reduce_pair(pair, ROWS)
    assert (found.row, found.error, found.rows) == (int(np.argmax(alone)), max(alone), len(ROWS))


def test_a_search_ends_at_its_bounds(exact: onnx.ModelProto, quantized: Quantize) -> None:
    pair = pair_of(exact, spoil(quantized(Precision.INT8), "wide.matmul"))
    assert reduce_pair(pair, ROWS, Bounds(most=2)).tried == 2
    late = iter(range(0, 10**6, 50))
    found = reduce_pair(pair, ROWS, Bounds(seconds_max=120.0), clock=lambda: float(next(late)))
    assert found.tried == 2 < found.pieces
    assert found.reduced is not None  # by bisection, which needs few steps


NOTES = CaseNotes("int8", 0.05, 30_000, (("onnxruntime", "1"), ("enginery", "2")))


@pytest.fixture
def found(exact: onnx.ModelProto, quantized: Quantize) -> Reduction:
    return reduce_pair(pair_of(exact, spoil(quantized(Precision.INT8), "wide.matmul")), ROWS)


def show(folder: Path) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-I", str(folder / "show.py")]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)


def test_the_script_shows_the_difference_in_a_process_of_its_own(found: Reduction, tmp_path: Path) -> None:
    assert found.reduced is not None
    folder = write_folder(found.reduced, NOTES, tmp_path / "case")
    assert {file.name for file in folder.iterdir()} == {
        "README.md",
        "expected.npz",
        "input.npz",
        "show.py",
        "subgraph_fp32.onnx",
        "subgraph_int8.onnx",
    }
    shown = show(folder)
    assert shown.returncode == 1, shown.stderr
    assert shown.stdout.endswith("they differ\n")
    assert f"|int8 - fp32| / |fp32| = {found.reduced.error:.4g}" in shown.stdout
    assert "note:" not in shown.stdout
    # The same script over a sound pair agrees.
    (folder / "subgraph_int8.onnx").write_bytes((folder / "subgraph_fp32.onnx").read_bytes())
    assert show(folder).returncode == 0


@pytest.mark.parametrize("keep_names", [False, True])
def test_a_folder_has_the_weights_of_its_layer_and_no_names(found: Reduction, keep_names: bool, tmp_path: Path) -> None:
    assert found.reduced is not None
    folder = write_folder(found.reduced, NOTES, tmp_path / "case", keep_names=keep_names)
    whole = b"".join(file.read_bytes() for file in folder.iterdir())
    assert (b"wide" in whole) is keep_names
    assert (b"normed_2" in whole) is keep_names
    for name in ("fp32", "int8"):
        model = onnx.load(folder / f"subgraph_{name}.onnx")
        onnx.checker.check_model(model)
        constants = Graph(model).constants
        # The layer's own weight, its scales, and what smoothing put before it; no other layer's.
        assert [each.dims for each in constants.values() if len(each.dims) == 2] == [[64, 128]]
    text = (folder / "README.md").read_text(encoding="utf-8")
    assert "[64, 128]" in text
    assert "of its 30,000" in text
    assert "- onnxruntime 1\n" in text


def test_a_folder_that_is_there_is_left_alone(found: Reduction, tmp_path: Path) -> None:
    assert found.reduced is not None
    (tmp_path / "case").mkdir()
    (tmp_path / "case" / "mine").touch()
    with pytest.raises(BadInput, match="exists already: choose another folder with --into"):
        write_folder(found.reduced, NOTES, tmp_path / "case")
    assert [file.name for file in tmp_path.iterdir()] == ["case"]
    assert [file.name for file in (tmp_path / "case").iterdir()] == ["mine"]


def test_a_graph_that_onnxruntime_cannot_run_is_a_sentence(exact: onnx.ModelProto) -> None:
    made = onnx.ModelProto()
    made.CopyFrom(exact)
    made.graph.node[0].op_type = "NoSuchOperator"
    with pytest.raises(BadInput, match="ONNX Runtime cannot run the graph on this machine"):
        reduce_pair(pair_of(exact, made), ROWS)


def test_an_engine_is_measured_here_or_the_reason_is_said(found: Reduction) -> None:
    assert found.reduced is not None
    cpu, gpu = GpuTarget("cpu", Backend.ONNXRUNTIME), GpuTarget("rtx", Backend.TENSORRT_RTX, "8.9")
    words = describe_engine_of(found.reduced, Precision.INT8, cpu, 0, ignore_progress)
    assert words.startswith("the engine of this piece on cpu (onnxruntime ")
    assert float(words.rpartition(": ")[2]) == pytest.approx(found.reduced.error, rel=1e-3)
    assert describe_engine_of(found.reduced, Precision.INT8, gpu, 0, ignore_progress).startswith(
        "the engine of this piece was not run: "
    )
    assert "no engine of this piece was made for cpu: " in describe_engine_of(
        found.reduced, Precision.INT8, cpu, 0, refuse
    )


def refuse(_what: str, _fraction: float) -> bool:
    return False

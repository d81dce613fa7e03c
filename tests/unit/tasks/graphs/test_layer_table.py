"""The layer table says of each layer what the graph stores, and what a layer's name finds in the fp32 graph."""

from dataclasses import replace
from pathlib import Path

import onnx
import pytest

from registry.records import OnnxArtifact, Precision
from tasks.graphs.layer_table import LAYERS_FILE, LayerRow, compute_reduced_share, layers_csv, list_layers, parse_layers
from tasks.graphs.layers import Graph
from tasks.quantization.blocks import count_macs
from tasks.quantization.quantize import quantize
from tests.support.encoder_graphs import artifact, batched, encoder, texts

# Weights and activations of a layer of each precision.
TYPES = {
    Precision.FP16: ("fp16", "fp16"),
    Precision.INT8: ("int8", "int8"),
    Precision.INT8_DYNAMIC: ("int8", "uint8"),
    Precision.INT8_WEIGHT_ONLY: ("int8", "fp32"),
    Precision.FP8: ("fp8", "fp8"),
    Precision.INT4_WEIGHT_ONLY: ("int4", "fp32"),
}


@pytest.fixture
def source(tmp_path: Path) -> OnnxArtifact:
    return artifact(tmp_path / "source", encoder())


@pytest.mark.parametrize("precision", TYPES)
def test_the_table_beside_a_graph_has_its_layers_with_the_types_they_are_stored_in(
    source: OnnxArtifact, precision: Precision, tmp_path: Path
) -> None:
    rows = batched(texts(24), 4)
    written = quantize(source, precision, rows, calibration_set_digest="c" * 64, into=tmp_path / "graph")
    layers = parse_layers((written.directory / LAYERS_FILE).read_text(encoding="utf-8"))
    macs = count_macs(source.path, rows[0])
    assert len(layers) == len(macs)
    assert TYPES[precision] in {(layer.weights, layer.activations) for layer in layers}
    assert sum(layer.macs or 0 for layer in layers) == sum(macs.values())
    assert LAYERS_FILE not in {file.path for file in written.files}


def test_the_share_of_macs_in_the_table_is_that_of_the_graph(source: OnnxArtifact, tmp_path: Path) -> None:
    rows = batched(texts(24), 4)
    written = quantize(source, Precision.INT8, rows, calibration_set_digest="c" * 64, into=tmp_path / "graph")
    layers = parse_layers((written.directory / LAYERS_FILE).read_text(encoding="utf-8"))
    assert compute_reduced_share(layers) == pytest.approx(written.macs_share)
    assert compute_reduced_share([*layers, replace(layers[0], macs=None)]) is None


def test_a_layer_under_another_name_has_no_macs_rather_than_anothers(source: OnnxArtifact) -> None:
    macs = count_macs(source.path, batched(texts(4), 4)[0])
    model = onnx.load(source.path)
    renamed = next(iter(Graph(model).find_linear_nodes().values()))
    renamed.name = "another"
    by_name = {layer.name: layer.macs for layer in list_layers(model, macs)}
    assert by_name.pop("another") is None
    assert None not in by_name.values()


def test_a_name_is_no_formula_in_a_spreadsheet() -> None:
    rows = (LayerRow('=HYPERLINK("http://x"),\n"', "MatMul", "int8", "int8", "4x4", None),)
    (parsed,) = parse_layers(layers_csv(rows))
    assert parsed.name == f"'{rows[0].name}"
    assert parsed.macs is None

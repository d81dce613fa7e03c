"""The graph of each precision, made from the exported fp32 graph: precision is in the ONNX, a backend only builds."""

import logging
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import onnx

from registry.errors import BadInput, EngineryError, first_line
from registry.records import OnnxArtifact, Precision, fixed_batch
from tasks.calibration.rows import Feed
from tasks.execution.progress import OnProgress, ignore_progress
from tasks.graphs.casts import cast_graph, silence_logs
from tasks.graphs.compare import FLOAT_BUDGET, QUANTIZED_BUDGET, check_interface, check_rewrite
from tasks.graphs.files import GRAPH_FILE, list_tensors, make_artifact, save_graph, write_graph
from tasks.graphs.layer_table import LAYERS_FILE, layers_csv, list_layers
from tasks.graphs.layers import INTEGER_OPERATORS, Graph, Linear, list_stored_weights
from tasks.graphs.prepare import FP8_OPSET, INT4_OPSET, convert_to_opset, list_values, number_tensors, prepare_graph
from tasks.quantization import autopilot, qdq
from tasks.quantization.autopilot import CHOICE_FILE
from tasks.quantization.blocks import compute_share, count_macs
from tasks.quantization.gptq import make_compensating_format
from tasks.quantization.int8 import make_int8_graph
from tasks.quantization.request import Int8Plan, QuantizationRequest, QuantizedGraph
from tasks.quantization.scales import ALPHAS, ActivationScale, choose_scales
from tasks.quantization.smoothquant import smooth_graph
from tasks.quantization.table import TABLE_FILE, CalibrationTable, make_table, reuse_scales, to_json

log = logging.getLogger(__name__)


def quantize(
    artifact: OnnxArtifact,
    precision: Precision,
    rows: Iterable[Feed] | None,
    *,
    calibration_set_digest: str | None,
    into: Path,
    on_progress: OnProgress = ignore_progress,
    plan: Int8Plan | None = None,
) -> OnnxArtifact:
    """Write the graph of `precision` into the empty folder `into`.

    `rows` are feed dicts of [batch, …]; int8 and fp8 need them, and the graph of each precision is compared with fp32
    on the first of them. The same graph and rows give the same bytes, however the rows are batched or ordered. The
    table of its layers is written beside it as layers.csv, the calibration table of int8 as calibration.json, and the
    autopilot's choice as autopilot.json; none of them is part of the artifact or its digest.

    Raises:
        BadInput: `artifact` is not fp32, the precision has no usable rows, no layer can be quantized, or an output is
            more than half of itself away from fp32.
    """
    if artifact.precision is not Precision.FP32:
        raise BadInput(f"{artifact.file} is {artifact.precision}: quantize the exported fp32 graph")
    if into.exists() and any(into.iterdir()):
        raise BadInput(f"{into} is not empty: the digest covers every file in it; give the graph its own folder")
    share, macs = None, dict[Linear, int]()
    with _name_unforeseen(precision), prepare_graph(artifact.path) as graph_file:
        request = QuantizationRequest(graph_file, artifact.digest, rows, on_progress, plan or Int8Plan())
        quantized = METHODS[precision](request)
        stored = list_stored_weights(quantized.graph)
        _check_label(stored, precision)
        on_progress("write", 0.0)
        into.mkdir(parents=True, exist_ok=True)
        check_interface(
            onnx.load(artifact.path, load_external_data=False), quantized.graph, what=f"quantize {precision}"
        )
        save_graph(quantized.graph, into)
        if isinstance(rows, Sequence) and rows:
            quantized = replace(quantized, graph=onnx.ModelProto())  # its weights are not held beside those compared
            what = f"quantize {precision}"
            check_rewrite(graph_file, into / GRAPH_FILE, rows[:1], budget=QUANTIZED_BUDGET, what=what)
            if (wanted := WEIGHT_TYPES.get(precision)) is not None:
                macs = count_macs(graph_file, rows[0])
                share = compute_share(macs, graph_file, stored, wanted)
                _check_share(share, precision)
    calibration_set = calibration_set_digest if precision in CALIBRATED else None
    written = make_artifact(into, precision, quantized_from=artifact.digest, calibration_set=calibration_set)
    written = replace(written, macs_share=share)
    layers = list_layers(onnx.load(into / GRAPH_FILE, load_external_data=False), macs)
    (into / LAYERS_FILE).write_text(layers_csv(layers), encoding="utf-8")
    if quantized.table is not None:
        (into / TABLE_FILE).write_bytes(to_json(quantized.table))
    if quantized.choice is not None:
        (into / CHOICE_FILE).write_bytes(autopilot.to_json(quantized.choice))
    on_progress("write", 1.0)
    return written


def _check_label(stored: Sequence[tuple[int, int]], precision: Precision) -> None:
    """Check that at least one layer is in the precision that the graph is published as.

    Raises:
        BadInput: none is; an engine of it would be fp32 by another name.
    """
    wanted = WEIGHT_TYPES.get(precision)
    if wanted is not None and wanted not in {kind for kind, _ in stored}:
        raise BadInput(f"no layer of the graph can be made {precision}: leave the precision out of the recipe")


def _check_share(share: float, precision: Precision) -> None:
    """Check that more than a last layer has the precision, such as the classifier of a network of convolutions.

    Raises:
        BadInput: less than LEAST_SHARE of the multiply-adds do.
    """
    if share < LEAST_SHARE:
        raise BadInput(
            f"only {share:.2%} of the multiply-adds of the graph's layers would be {precision}, the rest stays float: "
            "leave the precision out of the recipe"
        )


@contextmanager
def _name_unforeseen(precision: Precision) -> Iterator[None]:
    """Turn what a quantizer's library raises on a graph that is new to it into a sentence.

    Raises:
        BadInput: in place of the library's exception.
    """
    try:
        yield
    except (EngineryError, OSError, MemoryError):
        raise
    except Exception as error:
        log.debug("the %s graph cannot be made", precision, exc_info=True)
        raise BadInput(f"its graph cannot be made ({type(error).__name__}: {first_line(error)[:300]})") from error


def keep_fp32(request: QuantizationRequest) -> QuantizedGraph:
    """Return the exported graph itself."""
    return QuantizedGraph(request.load())


def cast_to_fp16(request: QuantizationRequest) -> QuantizedGraph:
    """Cast to mixed fp16 by ModelOpt AutoCast: values that would overflow stay fp32, and so do outputs."""
    return QuantizedGraph(cast_graph(request.graph_file, "fp16"))


def cast_to_bf16(request: QuantizationRequest) -> QuantizedGraph:
    """Cast to mixed bf16 by ModelOpt AutoCast; outputs stay fp32."""
    return QuantizedGraph(cast_graph(request.graph_file, "bf16"))


def quantize_int8(request: QuantizationRequest) -> QuantizedGraph:
    """Quantize to W8A8: SmoothQuant, then int8 weights per channel and activations per tensor, all symmetric."""
    plan = request.plan
    if plan.table is not None:
        scales = reuse_scales(plan.table, Graph(request.load()))
        return _make_int8(request, scales, plan.table, {autopilot.NEAREST: qdq.round_int8_weight})
    calibration = request.calibrate()
    graph = Graph(request.load())
    request.on_progress("search scales", 0.0)
    scales = choose_scales(graph, calibration, method=plan.method, alphas=ALPHAS if plan.smooth else ())
    request.on_progress("search scales", 1.0)
    linears = graph.list_linears()
    del graph  # its weights are not held beside those that are compared and written
    _check_smoothing(request, scales)
    compensated = make_compensating_format(linears, scales, calibration)
    roundings = {autopilot.NEAREST: qdq.round_int8_weight, autopilot.COMPENSATED: compensated}
    if plan.compensate:
        del roundings[autopilot.NEAREST]
    return _make_int8(request, scales, make_table(request.onnx_digest, calibration, scales), roundings)


def _check_smoothing(request: QuantizationRequest, scales: Mapping[str, ActivationScale]) -> None:
    """Check on a few rows that smoothing alone changes nothing but rounding.

    Raises:
        BadInput: an output changed: a scale was folded where something else reads the tensor.
    """
    factors = {tensor: scale.smoothing for tensor, scale in scales.items() if scale.smoothing is not None}
    if not factors or not isinstance(request.rows, Sequence):
        return
    with tempfile.TemporaryDirectory() as folder:
        file = write_graph(smooth_graph(Graph(request.load()), factors).proto, Path(folder))
        header = onnx.load(request.graph_file, load_external_data=False)
        rows = fixed_batch(list_tensors(header.graph.input)) or CHECKED_ROWS
        few = {name: column[:rows] for name, column in request.rows[0].items()}
        check_rewrite(request.graph_file, file, [few], budget=FLOAT_BUDGET, what="smoothing")


def _make_int8(
    request: QuantizationRequest,
    scales: Mapping[str, ActivationScale],
    table: CalibrationTable,
    roundings: Mapping[str, qdq.WeightFormat],
) -> QuantizedGraph:
    """Make the int8 graph by the first of `roundings`, or, with a holdout, let the autopilot choose from all."""
    if request.plan.holdout is None:
        graph = make_int8_graph(request.load(), scales, weight_format=next(iter(roundings.values())))
        return QuantizedGraph(graph, table)
    graph, choice = autopilot.choose_mix(
        request.graph_file, scales, roundings, request.plan.holdout, request.on_progress
    )
    return QuantizedGraph(graph, table, choice)


def quantize_fp8(request: QuantizationRequest) -> QuantizedGraph:
    """Quantize weights and activations to float8 E4M3, one scale per tensor: amax / 448."""
    calibration = request.calibrate()
    graph = Graph(convert_to_opset(request.load(), FP8_OPSET))
    steps = {tensor: (statistics.amax or 1.0) / qdq.FP8_MAX for tensor, statistics in calibration.activations.items()}
    qdq.quantize_activations(graph, steps, qdq.make_fp8_zero())
    return _store_weights(Graph(graph.proto), qdq.round_fp8_weight)


def quantize_int8_weights(request: QuantizationRequest) -> QuantizedGraph:
    """Quantize weights to int8 per channel; activations stay fp32."""
    return _store_weights(Graph(request.load()), qdq.round_int8_weight)


def quantize_int4_weights(request: QuantizationRequest) -> QuantizedGraph:
    """Quantize weights to int4 in blocks along K; activations stay fp32."""
    return _store_weights(Graph(convert_to_opset(request.load(), INT4_OPSET)), qdq.round_int4_weight)


def _store_weights(graph: Graph, weight_format: qdq.WeightFormat) -> QuantizedGraph:
    if not graph.list_linears():
        raise BadInput("the graph has no MatMul, Gemm or Conv with a constant float32 weight to quantize")
    qdq.quantize_weights(graph, weight_format)
    return QuantizedGraph(graph.proto)


def quantize_int8_dynamic(request: QuantizationRequest) -> QuantizedGraph:
    """Quantize weights to int8 per channel, activations at run time: for ONNX Runtime on CPU only."""
    import onnx_ir
    from onnx_ir.passes.common import TopologicalSortPass
    from onnxruntime.quantization import QuantType, quantize_dynamic

    numbered, own_names = number_tensors(request.load())
    with tempfile.TemporaryDirectory() as folder, silence_logs():
        file = Path(folder) / "quantized.onnx"
        quantize_dynamic(
            write_graph(numbered, Path(folder)),
            file,
            op_types_to_quantize=["MatMul"],
            per_channel=True,
            weight_type=QuantType.QInt8,
            # 7 bits: x86 without VNNI adds two products in 16 bits, which saturate with 8 (ONNX Runtime's
            # documentation of quantization); an engine for "cpu" must be as accurate on every CPU.
            reduce_range=True,
        )
        # ONNX Runtime sorts by the inputs of a node alone, not by what the branches of an If read: sorted again.
        model = onnx_ir.load(file)
        TopologicalSortPass()(model)
        if not any(node.op_type in INTEGER_OPERATORS for node in model.graph.all_nodes()):
            raise BadInput("the graph has no MatMul with a constant weight that int8-dynamic could quantize")
        for value in list_values(model.graph):
            value.name = own_names.get(value.name or "", value.name)
        return QuantizedGraph(onnx_ir.to_proto(model))


# Rows that smoothing is checked on: what is folded wrongly is wrong on each of them.
CHECKED_ROWS = 4
# The type that a precision stores the weights of its layers in.
# An engine of a smaller share of its precision is the float engine by another name.
LEAST_SHARE = 0.01
WEIGHT_TYPES = {
    Precision.FP16: onnx.TensorProto.FLOAT16,
    Precision.BF16: onnx.TensorProto.BFLOAT16,
    Precision.INT8: onnx.TensorProto.INT8,
    Precision.INT8_DYNAMIC: onnx.TensorProto.INT8,
    Precision.INT8_WEIGHT_ONLY: onnx.TensorProto.INT8,
    Precision.FP8: onnx.TensorProto.FLOAT8E4M3FN,
    Precision.INT4_WEIGHT_ONLY: onnx.TensorProto.INT4,
}
METHODS: dict[Precision, Callable[[QuantizationRequest], QuantizedGraph]] = {
    Precision.FP32: keep_fp32,
    Precision.FP16: cast_to_fp16,
    Precision.BF16: cast_to_bf16,
    Precision.INT8: quantize_int8,
    Precision.INT8_DYNAMIC: quantize_int8_dynamic,
    Precision.INT8_WEIGHT_ONLY: quantize_int8_weights,
    Precision.FP8: quantize_fp8,
    Precision.INT4_WEIGHT_ONLY: quantize_int4_weights,
}
CALIBRATED = frozenset({Precision.INT8, Precision.FP8})

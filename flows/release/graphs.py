"""The graph of every precision; int8 held against its gate on a holdout, and what takes its place where none passes."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from calibration_data.reader import Rows, draw_behind, read_calibration_inputs
from flows.inputs.rows import read_table_of
from flows.release.context import ReleaseContext, describe_size, versions
from registry.errors import BadInput
from registry.records import NEW_TOKENS, CalibrationSet, GpuTarget, OnnxArtifact, Precision, SourceFiles, fixed_batch
from tasks.calibration.feeds import EncodedFeeds
from tasks.calibration.spread import check_spread
from tasks.execution.steps import Step
from tasks.execution.workspace import verify_stage
from tasks.generation.quantize import GenerationRows, quantize_parts
from tasks.graphs.given.widen import GIVEN_IN
from tasks.model_tasks.contract import Encoder
from tasks.quantization.autopilot import CHOICE_FILE, Choice
from tasks.quantization.autopilot import from_json as choice_from_json
from tasks.quantization.holdout import Holdout, MetricGate, rows_to_prove, run_holdout
from tasks.quantization.quantize import CALIBRATED, quantize
from tasks.quantization.request import Int8Plan

BATCH = 32
# What is tried, in this order, where no mix of int8 and fp32 passes.
INSTEAD_OF_INT8 = (Precision.INT8_WEIGHT_ONLY, Precision.FP8, Precision.FP16)
Takes = Callable[[Precision, GpuTarget], bool]


@dataclass(frozen=True)
class Graphs:
    """The ONNX graph of each precision, the reason for each one that is missing, and notes for the report.

    A precision is `refused` where something else takes its place, and has `failed` where its graph could not be made.
    """

    by_precision: dict[Precision, OnnxArtifact]
    refused: dict[Precision, str] = field(default_factory=dict)
    failed: dict[Precision, str] = field(default_factory=dict)
    remarks: dict[Precision, str] = field(default_factory=dict)

    def with_stand_ins(self, precisions: Sequence[Precision]) -> tuple[Precision, ...]:
        """Return a recipe's precisions, followed by those that stand in for a refused one."""
        return (*precisions, *(each for each in self.by_precision if each not in precisions))


@dataclass(frozen=True)
class Material:
    """What graphs are made from: checkpoint, fp32 graph, calibration rows, and the holdout (or why there is none)."""

    source: SourceFiles
    onnx: OnnxArtifact
    calibration: CalibrationSet
    holdout: Holdout | None
    no_holdout: str = ""


def gather(
    context: ReleaseContext, source: SourceFiles, onnx: OnnxArtifact, calibration: CalibrationSet, evaluation: Rows
) -> Material:
    """Draw the holdout: rows behind the calibration rows, none of which stands in the evaluation split.

    Raises:
        BadInput: calibration rows were prepared otherwise than evaluation rows.
    """
    spec, limit = context.recipe.data.calibration, context.recipe.gates.loss_max
    encoder, calibrating = context.open_encoder(source, onnx.input_names), read_calibration_inputs(calibration)
    check_spread(encoder, calibrating, evaluation.inputs)
    if onnx.generation is not None:
        return Material(source, onnx, calibration, None, "its graphs answer only together")
    if not spec.holdout:
        return Material(source, onnx, calibration, None, "the recipe asks for no holdout")
    task = context.recipe.model_task
    rows = draw_behind(
        context.recipe.dataset,
        task,
        spec.split,
        after=spec.samples,
        samples=spec.holdout,
        seed=spec.seed,
        apart_from=(*calibrating, *evaluation.inputs),
    )
    rows = task.align_rows(rows, source.source)
    batches = batch_rows(encoder, rows.inputs, fixed_batch(onnx.inputs))
    order = [position for positions, _ in batches for position in positions]
    targets, groups = (tuple(each[at] for at in order) if each else () for each in (rows.targets, rows.groups))
    feeds = EncodedFeeds(encoder, tuple(tuple(inputs) for _, inputs in batches))
    gate = MetricGate(task, encoder, feeds.batches, targets, limit, groups)
    if not gate.provable:
        what = "groups of rows" if groups else "rows"
        missing = f"{gate.drawn} {what} are left for the holdout, {rows_to_prove(limit)} could prove a loss of at"
        return Material(source, onnx, calibration, None, f"{missing} most {limit:.2%}")
    return Material(source, onnx, calibration, Holdout(feeds, gate))


def make_graphs(
    context: ReleaseContext,
    material: Material,
    precisions: Sequence[Precision],
    targets: Sequence[GpuTarget],
    takes: Takes,
) -> Graphs:
    """Make the graphs of `precisions` that at least one target takes, and of what stands in for an int8 that fails."""
    read_table_of(context.recipe)  # a table that cannot be read is the recipe's mistake, not one precision's failure
    graphs: dict[Precision, OnnxArtifact] = {}
    failed: dict[Precision, str] = {}
    for precision in precisions:
        if precision is Precision.FP32 or any(takes(precision, target) for target in targets):
            graph = try_graph(context, material, precision)
            if isinstance(graph, str):
                failed[precision] = graph
            else:
                graphs[precision] = graph
    choice = read_choice(graphs[Precision.INT8]) if Precision.INT8 in graphs else None
    remarks = note_exporter(material.onnx)
    if choice is None:
        if Precision.INT8 in graphs:
            remarks[Precision.INT8] = f"not checked against its gate before it is built: {material.no_holdout}"
        return Graphs(graphs, failed=failed, remarks=remarks)
    if choice.passed:
        return Graphs(graphs, failed=failed, remarks=remarks | {Precision.INT8: choice.in_words})
    del graphs[Precision.INT8]
    int8_targets = [target for target in targets if takes(Precision.INT8, target)]
    stand_ins = _make_stand_ins(context, material, int8_targets, takes)
    remarks |= dict.fromkeys(stand_ins, f"in place of int8: {choice.in_words}")
    reason = f"{choice.in_words}; instead: {', '.join(stand_ins) or 'nothing, since nothing else passes either'}"
    return Graphs(graphs | stand_ins, {Precision.INT8: reason}, failed, remarks)


def note_exporter(onnx: OnnxArtifact) -> dict[Precision, str]:
    """Return the note that a graph was exported by transformers 5, or given in 16 bits; of others there is none."""
    made_by = onnx.exporter or ""
    if made_by.startswith("transformers "):
        return {Precision.FP32: f"exported by {made_by}"}
    return {Precision.FP32: made_by} if made_by.startswith(GIVEN_IN) else {}


def _make_stand_ins(
    context: ReleaseContext, material: Material, targets: Sequence[GpuTarget], takes: Takes
) -> dict[Precision, OnnxArtifact]:
    """Make, for each target, the first of INSTEAD_OF_INT8 that it takes and that passes on the holdout."""
    stand_ins: dict[Precision, OnnxArtifact] = {}
    for precision in INSTEAD_OF_INT8:
        if any(takes(precision, target) for target in targets):
            graph = try_graph(context, material, precision)
            if isinstance(graph, OnnxArtifact) and passes_holdout(material, graph):
                stand_ins[precision] = graph
                targets = [target for target in targets if not takes(precision, target)]
    return stand_ins


def try_graph(context: ReleaseContext, material: Material, precision: Precision) -> OnnxArtifact | str:
    """Return the graph of one precision, or in a sentence why it cannot be made: the others go on without it.

    Raises:
        EngineryError, MemoryError: the machine failed, such as on a full disk, and not the graph.
    """
    try:
        return make_graph(context, material, precision)
    except BadInput as error:
        return str(error)


def make_graph(context: ReleaseContext, material: Material, precision: Precision) -> OnnxArtifact:
    """Make the graph of one precision; only calibrated ones depend on the rows, and only int8 on the holdout."""
    onnx, calibration = material.onnx, material.calibration
    if precision is Precision.FP32:
        return onnx
    # What the calibration is made of: the rows, and what makes tokens of them.
    rows = (calibration.digest, material.source.digest, context.recipe.largest)
    calibrated = precision in CALIBRATED
    holdout = material.holdout if precision is Precision.INT8 else None
    table = read_table_of(context.recipe) if precision is Precision.INT8 else None

    def make(into: Path) -> OnnxArtifact:
        verify_stage(onnx.directory)
        checkpoint = context.workspace.partial("calibration", (onnx.digest, rows, versions("onnxruntime")))
        calibration_set = calibration.digest if calibrated else None
        if onnx.generation is not None:
            return quantize_parts(
                onnx,
                precision,
                GenerationRows(calibration_feeds(context, material), context.recipe.largest[NEW_TOKENS]),
                calibration_set_digest=calibration_set,
                into=into,
                on_progress=context.progress_of(f"quantize {precision}"),
                checkpoint=checkpoint,
            )
        return quantize(
            onnx,
            precision,
            calibration_feeds(context, material),
            calibration_set_digest=calibration_set,
            into=into,
            on_progress=context.progress_of(f"quantize {precision}"),
            plan=Int8Plan(checkpoint=checkpoint, table=table, holdout=holdout),
        )

    key = (
        onnx.digest,
        precision,
        rows if calibrated else None,
        holdout.digest if holdout else None,
        table,
        versions("onnx", "onnxruntime", "nvidia-modelopt"),
    )
    return context.run(Step("quantize", precision, key, OnnxArtifact, make, lambda graph: describe_size(graph.files)))


def passes_holdout(material: Material, graph: OnnxArtifact) -> bool:
    """Tell whether a graph passes the quality gate on the holdout."""
    holdout = material.holdout
    if holdout is None:
        raise ValueError("there is no holdout to pass")
    exact, quantized = (run_holdout(each.path, holdout) for each in (material.onnx, graph))
    return holdout.gate.score(exact, quantized).passed


def read_choice(graph: OnnxArtifact) -> Choice | None:
    """Read what the autopilot chose for a graph; None where it did not look."""
    file = graph.directory / CHOICE_FILE
    return choice_from_json(file.read_bytes()) if file.is_file() else None


def calibration_feeds(context: ReleaseContext, material: Material) -> EncodedFeeds:
    """Return calibration rows as feed dicts, 32 rows of similar length per batch."""
    encoder = context.open_encoder(material.source, material.onnx.input_names)
    size = fixed_batch(material.onnx.inputs)
    batches = batch_rows(encoder, read_calibration_inputs(material.calibration), size)
    if not batches:
        raise BadInput(f"a batch of the graph has {size} rows, and there are fewer calibration rows: draw more of them")
    return EncodedFeeds(encoder, tuple(tuple(inputs) for _, inputs in batches))


def batch_rows(encoder: Encoder, inputs: Sequence[Any], size: int | None) -> list[tuple[list[int], list[Any]]]:
    """Return rows as (positions, inputs) of like length; with `size` of exactly that many, without those left over."""
    batches = list(encoder.batches(inputs, size or BATCH))
    return batches if size is None else [batch for batch in batches if len(batch[0]) == size]

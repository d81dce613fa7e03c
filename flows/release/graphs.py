"""The graph of every precision; int8 held against its gate on a holdout, and what takes its place where none passes."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from calibration_data.reader import Rows, draw_holdout, read_calibration_texts
from flows.release.context import ReleaseContext, versions
from flows.release.identity import dataset_ref
from registry.errors import BadInput
from registry.records import CalibrationSet, GpuTarget, OnnxArtifact, Precision, SourceFiles
from tasks.execution.steps import Step, run_stage
from tasks.execution.workspace import verify_stage
from tasks.model_tasks.text_inputs import FeedDict, batches, text_encoder
from tasks.quantization.autopilot import CHOICE_FILE, Choice
from tasks.quantization.autopilot import from_json as choice_from_json
from tasks.quantization.holdout import AccuracyGate, Holdout, answers, rows_to_prove
from tasks.quantization.quantize import CALIBRATED, quantize
from tasks.quantization.request import Int8Plan
from tasks.quantization.table import CalibrationTable, read_table

BATCH = 32
# What is tried, in this order, where no mix of int8 and fp32 passes.
INSTEAD_OF_INT8 = (Precision.INT8_WEIGHT_ONLY, Precision.FP8, Precision.FP16)
Takes = Callable[[Precision, GpuTarget], bool]


@dataclass(frozen=True)
class Graphs:
    """Graphs by precision, why a precision has none, and what is to be known of those that are made."""

    by_precision: dict[Precision, OnnxArtifact]
    refused: dict[Precision, str] = field(default_factory=dict)
    remarks: dict[Precision, str] = field(default_factory=dict)

    def asked(self, precisions: Sequence[Precision]) -> tuple[Precision, ...]:
        """What a recipe asks for, and behind it what is made in place of a refused one."""
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
    """Draw the holdout: rows behind the calibration rows, none of which stands in the evaluation split."""
    spec, limit = context.recipe.data.calibration, context.recipe.gates.accuracy_loss_max
    if not spec.holdout:
        return Material(source, onnx, calibration, None, "the recipe asks for no holdout")
    rows = draw_holdout(
        dataset_ref(context.recipe),
        spec.split,
        after=spec.samples,
        samples=spec.holdout,
        seed=spec.seed,
        apart_from=(*read_calibration_texts(calibration), *evaluation.texts),
    )
    encoder = text_encoder(source.directory, _input_names(onnx), max_length=context.recipe.data.max_length)
    groups = list(batches(rows.texts, BATCH))
    gate = AccuracyGate(tuple(rows.labels[at] for places, _ in groups for at in places), limit)
    if not gate.provable:
        missing = f"{len(rows.texts)} rows are left for the holdout, {rows_to_prove(limit)} could prove a loss of at"
        return Material(source, onnx, calibration, None, f"{missing} most {limit:.2%}")
    return Material(source, onnx, calibration, Holdout(tuple(encoder.encode(texts) for _, texts in groups), gate))


def make_graphs(
    context: ReleaseContext,
    material: Material,
    precisions: Sequence[Precision],
    targets: Sequence[GpuTarget],
    takes: Takes,
) -> Graphs:
    """The graphs of `precisions` that at least one target takes, and of what stands in for an int8 that fails."""
    wanted = [each for each in precisions if each is Precision.FP32 or any(takes(each, target) for target in targets)]
    made = {precision: make_graph(context, material, precision) for precision in wanted}
    choice = read_choice(made[Precision.INT8]) if Precision.INT8 in made else None
    if choice is None:
        off = f"not held against its gate before it is built: {material.no_holdout}"
        return Graphs(made, remarks={Precision.INT8: off} if Precision.INT8 in made else {})
    if choice.passed:
        return Graphs(made, remarks={Precision.INT8: choice.in_words})
    del made[Precision.INT8]
    instead = _stand_ins(context, material, [each for each in targets if takes(Precision.INT8, each)], takes)
    remarks = dict.fromkeys(instead, f"in place of int8: {choice.in_words}")
    reason = f"{choice.in_words}; instead: {', '.join(instead) or 'nothing, since nothing else passes either'}"
    return Graphs(made | instead, {Precision.INT8: reason}, remarks)


def _stand_ins(
    context: ReleaseContext, material: Material, targets: Sequence[GpuTarget], takes: Takes
) -> dict[Precision, OnnxArtifact]:
    """For each target the first of INSTEAD_OF_INT8 that it takes and that passes on the holdout."""
    found: dict[Precision, OnnxArtifact] = {}
    for precision in INSTEAD_OF_INT8:
        if any(takes(precision, target) for target in targets):
            graph = make_graph(context, material, precision)
            if passes_holdout(material, graph):
                found[precision] = graph
                targets = [target for target in targets if not takes(precision, target)]
    return found


def make_graph(context: ReleaseContext, material: Material, precision: Precision) -> OnnxArtifact:
    """The graph of one precision; only calibrated ones depend on the rows, and only int8 on the holdout."""
    onnx, calibration = material.onnx, material.calibration
    if precision is Precision.FP32:
        return onnx
    # What the calibration is made of: the rows, and what makes tokens of them.
    rows = (calibration.digest, material.source.digest, context.recipe.data.max_length)
    calibrated = precision in CALIBRATED
    holdout = material.holdout if precision is Precision.INT8 else None
    table = _table(context) if precision is Precision.INT8 else None

    def make(into: Path) -> OnnxArtifact:
        verify_stage(onnx.directory)
        checkpoint = context.workspace.partial("calibration", (onnx.digest, rows, versions("onnxruntime")))
        return quantize(
            onnx,
            precision,
            calibration_feeds(context, material) if calibrated and table is None else None,
            calibration_set_digest=calibration.digest if calibrated else None,
            into=into,
            on_progress=lambda phase, done: context.on_progress(f"quantize {precision}: {phase}", done),
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
    return run_stage(context.workspace, Step("quantize", precision, key, OnnxArtifact, make))[0]


def passes_holdout(material: Material, graph: OnnxArtifact) -> bool:
    """Whether a graph passes the accuracy gate on the holdout."""
    holdout = material.holdout
    if holdout is None:
        raise ValueError("there is no holdout to pass")
    exact, made = answers(material.onnx.path, holdout), answers(graph.path, holdout)
    return holdout.gate.score(exact, made).passed


def read_choice(graph: OnnxArtifact) -> Choice | None:
    """What the autopilot chose for a graph; None where it did not look."""
    file = graph.directory / CHOICE_FILE
    return choice_from_json(file.read_bytes()) if file.is_file() else None


def calibration_feeds(context: ReleaseContext, material: Material) -> list[FeedDict]:
    """Calibration rows as feed dicts, 32 rows of like length a batch."""
    names = _input_names(material.onnx)
    encoder = text_encoder(material.source.directory, names, max_length=context.recipe.data.max_length)
    return [encoder.encode(texts) for _, texts in batches(read_calibration_texts(material.calibration), BATCH)]


def _input_names(onnx: OnnxArtifact) -> list[str]:
    return [tensor.name for tensor in onnx.inputs]


def _table(context: ReleaseContext) -> CalibrationTable | None:
    """The table that the recipe reuses.

    Raises:
        BadInput: it cannot be read, or is no calibration table.
    """
    name = context.recipe.data.calibration.table
    if name is None:
        return None
    try:
        return read_table(Path(name))
    except OSError as error:
        raise BadInput(f"data.calibration.table: {name} cannot be read: {error.strerror}; check the path") from error

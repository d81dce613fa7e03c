"""The export of a checkpoint in a process of its own, which has no network: see docs/adr/0006 and 0029.

Imports little: the child takes the network away before it imports what could use it.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from registry.records import OnnxArtifact, SourceFiles
from tasks.checkpoints.architectures import explain_newer
from tasks.checkpoints.config import read_config
from tasks.execution.isolate import run_isolated
from tasks.execution.offline import go_offline
from tasks.execution.progress import OnProgress, ignore_progress
from tasks.graphs.tool_export import export_with_tool
from tasks.model_tasks import ModelTask, model_task


def run_exporter(
    source: SourceFiles,
    task: ModelTask,
    inputs: Sequence[Any],
    largest: Mapping[str, int],
    *,
    into: Path,
    on_progress: OnProgress = ignore_progress,
) -> OnnxArtifact:
    """Export a checkpoint to `into`, and compare the graph with PyTorch on `inputs`, cut at the `largest` sizes.

    Optimum exports it, or transformers 5 where Optimum cannot.

    Raises:
        BadInput: as `export_checkpoint`.
        EngineryError: the graph's outputs differ from PyTorch's.
        BuildError: the process died.
    """
    if explain_newer(read_config(source.directory)):
        return export_with_tool(source, task, inputs, largest, into=into, on_progress=on_progress)
    return run_isolated(_export, source, task.name, tuple(inputs), dict(largest), into, on_progress=ignore_progress)


def _export(
    source: SourceFiles, task: str, inputs: tuple[Any, ...], largest: dict[str, int], into: Path, _progress: OnProgress
) -> OnnxArtifact:
    go_offline()
    from tasks.graphs.export import check_export, export_checkpoint

    # A check tried the encoder before; what reaches this without one still ends in a sentence.
    model_task(task).measure_inputs(source.directory, inputs, largest)
    onnx = export_checkpoint(source, into=into)
    encoder = model_task(task).open_encoder(source.directory, onnx.input_names, largest)
    check_export(source, onnx, encoder.encode(inputs), encoder.encode(inputs[:1]))
    return onnx

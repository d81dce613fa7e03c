"""A given graph as a source: its files listed, hashed, copied; and its admission in a process of its own.

Imports little: releases are identified by these digests, and most are found finished.
"""

import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from registry.digest import digest_of, file_sha256, record_tree
from registry.errors import BadInput, BuildError, first_line
from registry.names import check_name
from registry.records import FileRecord, ModelSource, OnnxArtifact, ShapeProfile, SourceFiles, Tensor
from tasks.checkpoints.module import Processor
from tasks.execution.isolate import run_isolated
from tasks.execution.offline import go_offline
from tasks.execution.progress import OnProgress, ignore_progress
from tasks.graphs.external_data import check_external_data
from tasks.graphs.fixed_batch import check_batch
from tasks.model_tasks import MODULE, ModelTask

# Real rows on which a graph is compared with what it was made of.
CHECKED_ROWS = 32
ORIGIN = "onnx:"
GRAPH_FOLDER = "graph"
# A protobuf message ends there.
LARGEST_GRAPH_BYTES = 2**31 - 1
LARGEST_DATA_BYTES = 64 * 2**30
# Long, because gigabytes of weights are written: it is there to end what never would.
LIMIT_SECONDS = 1800.0


@dataclass(frozen=True)
class Trial:
    """Real rows that a graph is run on, with the largest sizes, and the classes.

    A user's own task is tried with it, on the `targets` too.
    """

    inputs: tuple[Any, ...]
    largest: Mapping[str, int]
    classes: tuple[str, ...]
    targets: tuple[Any, ...] = ()


def list_graph_files(graph: Path) -> tuple[Path, ...]:
    """List a given graph's file and those of its external data, none of which leaves its folder.

    Raises:
        BadInput: no such file, no ONNX graph, too large, or external data elsewhere or behind a link.
    """
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

    if not graph.is_file():
        raise BadInput(f"{graph} is not a file: name an ONNX graph in source.onnx")
    if (size := graph.stat().st_size) > LARGEST_GRAPH_BYTES:
        raise BadInput(f"{graph} has {size} bytes, a graph has at most {LARGEST_GRAPH_BYTES}: use external data")
    try:
        data = check_external_data(graph)
    except (DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise BadInput(f"{graph} is not an ONNX graph ({first_line(error)[:200]}): export it again") from None
    if (size := sum(file.stat().st_size for file in data)) > LARGEST_DATA_BYTES:
        raise BadInput(
            f"{graph} has {size} bytes of external data, more than {LARGEST_DATA_BYTES}: use a smaller model"
        )
    return (graph, *data)


def digest_graph(graph: Path) -> str:
    """Return the hex sha256 of a given graph: of its file, or of all its files where it has external data.

    Raises:
        BadInput: as `list_graph_files`.
    """
    files = list_graph_files(graph)
    if len(files) == 1:
        return file_sha256(graph)
    records = [
        FileRecord(file.relative_to(graph.parent).as_posix(), file_sha256(file), file.stat().st_size) for file in files
    ]
    return digest_of(records)


def copy_graph(
    graph: Path, digest: str, processor: Processor, classes: tuple[str, ...], *, name: str, task: str, into: Path
) -> SourceFiles:
    """Copy a given graph, with its external data, and its processor into `into`, and record them as a source.

    Raises:
        BadInput: as `list_graph_files`; the copy has another digest than `digest`, which becomes the revision; or the
            processor lacks a file.
    """
    check_name(name, what="model name")
    for file in list_graph_files(graph):
        place = into / GRAPH_FOLDER / file.relative_to(graph.parent)
        place.parent.mkdir(parents=True, exist_ok=True)
        # What was looked at: a link put there since is copied as a link, and refused.
        shutil.copyfile(file.resolve() if file == graph else file, place, follow_symlinks=False)
    processor.copy(into)
    if digest_graph(into / GRAPH_FOLDER / graph.name) != digest:
        raise BadInput(f"{graph} changed while it was copied: run again once it is written")
    files = record_tree(into)
    source = ModelSource(name, f"{ORIGIN}{graph.name}", digest, task, classes)
    return SourceFiles(source, digest_of((digest, files, classes)), files, into)


def locate_graph(source: SourceFiles) -> Path:
    """Return the file of a copied graph."""
    return source.directory / GRAPH_FOLDER / source.source.origin.removeprefix(ORIGIN)


def run_admission(graph: Path, task: ModelTask, folder: Path, trial: Trial | None, *, into: Path) -> OnnxArtifact:
    """Check a given graph, and write it to `into` as an export would be; with a trial both are compared on its rows.

    `folder` holds the processor. A hostile graph may crash or stall the libraries that read it: they run in a process
    without a network.

    Raises:
        BadInput: the graph is refused (`check_given`, `admit_graph`), or ended the process.
    """
    list_graph_files(graph)
    try:
        return run_isolated(
            _admit, graph, task, folder, trial, into, on_progress=ignore_progress, limit_seconds=LIMIT_SECONDS
        )
    except BuildError as error:
        reason = first_line(error).removeprefix("_admit: ")
        raise BadInput(f"{graph} cannot be read ({reason[:300]}): export it again") from None


def describe_graph(
    graph: Path, task: ModelTask, folder: Path, weights_bytes: int, profiles: Sequence[ShapeProfile]
) -> str:
    """Say what a given graph is, once it is known that it would be admitted.

    Raises:
        BadInput: as `run_admission`; or it takes one batch only, and the profiles ask for others.
    """
    with tempfile.TemporaryDirectory() as scratch:
        onnx = run_admission(graph, task, folder, None, into=Path(scratch))
    check_batch(onnx, profiles)
    inputs, outputs = (", ".join(map(_show_tensor, tensors)) for tensors in (onnx.inputs, onnx.outputs))
    size = f"{weights_bytes / 1e6:.1f} MB of weights" + (f" ({onnx.exporter})" if onnx.exporter else "")
    return f"{graph}: opset {onnx.opset}, inputs {inputs}, outputs {outputs}, {size}"


def _show_tensor(tensor: Tensor) -> str:
    return f"{tensor.name} {tensor.dtype}[{', '.join(map(str, tensor.shape))}]"


def _admit(
    graph: Path, task: ModelTask, folder: Path, trial: Trial | None, into: Path, _progress: OnProgress
) -> OnnxArtifact:
    go_offline()
    from tasks.graphs.given.admit import admit_graph
    from tasks.graphs.given.trial import try_graph

    onnx = admit_graph(graph, task, task.fixed_sizes(folder), into=into)
    if trial is not None:
        encoder = task.open_encoder(folder, onnx.input_names, trial.largest)
        for inputs in _split(trial.inputs):
            outputs = try_graph(graph, onnx, task, encoder.encode(inputs), trial.classes)
            if task.name == MODULE:
                answers = task.answers(task.reduce_outputs(outputs, inputs, encoder), inputs, encoder)
                task.metrics[0].score(answers, trial.targets[: len(answers)], answers)
        shapes = [output.shape for output in outputs[: len(task.judged_outputs)]]
        try:
            task.check_outputs(shapes, len(trial.classes), encoder)
        except BadInput as error:
            raise BadInput(f"{graph}: {error}") from None
    return onnx


def _split(inputs: Sequence[Any]) -> tuple[Sequence[Any], ...]:
    # One row alone has another batch and another sequence.
    return (inputs, inputs[:1])

"""Reduce an engine of a release: its graphs are found or made again, and held against each other on evaluation rows."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import onnx

from calibration_data.reader import Rows, read_calibration_inputs
from flows.inputs.rows import evaluation_rows, more_evaluation_rows
from flows.release.context import ReleaseContext
from flows.release.graphs import gather, make_graph
from flows.release.stages import make_calibration_set, make_onnx, make_source
from registry.errors import BadInput
from registry.mlflow.runs.lineage import ReleasedEngine
from registry.records import Backend, GpuTarget, OnnxArtifact, Precision
from tasks.graphs.files import SINGLE_FILE_BYTES
from tasks.graphs.prepare import prepare_graph
from tasks.measurement.row_results import cut_to_first, list_flips, parse_row_results, reference_of
from tasks.model_tasks.contract import Metric
from tasks.reduction.engine import describe_engine_of
from tasks.reduction.folder import CaseNotes, write_folder
from tasks.reduction.pair import GraphPair, OneGraph
from tasks.reduction.search import Bounds, Reduction, reduce_pair

PACKAGES = ("enginery", "onnx", "onnxruntime", "numpy")


@dataclass(frozen=True)
class ReduceRequest:
    """What is reduced and how far: at most `rows` evaluation rows are tried, and `into` is the folder to write."""

    engine: ReleasedEngine
    target: GpuTarget
    bounds: Bounds
    rows: int
    into: Path
    keep_names: bool = False


@dataclass(frozen=True)
class ReduceResult:
    """What was found; `folder` is None where there is nothing to show.

    `row` is the evaluation row, by its number. `is_same_graph` says whether the graph is, byte for byte, the one that
    the engine was built of. `engine` says in words what the engine of the reduced piece did.
    """

    reduction: Reduction
    row: int
    folder: Path | None
    is_same_graph: bool
    engine: str


def reduce_engine(context: ReleaseContext, request: ReduceRequest) -> ReduceResult:
    """Find where the graph of an engine differs most from fp32, and write the folder that shows it.

    Raises:
        BadInput: the engine is fp32, of several graphs, or larger than 2 GB; or the folder exists already.
    """
    precision = Precision(request.engine.precision)
    if precision is Precision.FP32:
        raise BadInput("fp32 is what other precisions are compared with: name an engine of another precision")
    if request.into.exists():
        raise BadInput(f"{request.into} exists already: choose another folder with --into, or remove it")
    recipe, source = context.recipe, make_source(context)
    evaluation = evaluation_rows(recipe, source.source)
    exact = make_onnx(context, source, evaluation)
    _check_size(exact)
    calibration = make_calibration_set(context, evaluation)
    more = more_evaluation_rows(recipe, source.source, evaluation, read_calibration_inputs(calibration))
    material = gather(context, source, exact, calibration, more or evaluation)
    made = make_graph(context, material, precision)
    numbers = choose_rows(recipe.model_task.metrics[0], request.engine.answered, evaluation, request.rows)
    encoder = context.open_encoder(source, exact.input_names)
    feeds = [encoder.encode([evaluation.inputs[number]]) for number in numbers]
    on_progress = context.progress_of(f"reduce {request.target.name} {precision}")
    with prepare_graph(exact.path) as file:
        pair = GraphPair(OneGraph(onnx.load(file)), OneGraph(onnx.load(made.path)))
    reduction = reduce_pair(pair, feeds, request.bounds, on_progress)
    engine = ""
    if reduction.reduced is not None and request.target.backend is not Backend.ONNXRUNTIME:
        workspace = recipe.workspace_mb * 2**20
        engine = describe_engine_of(reduction.reduced, precision, request.target, workspace, on_progress)
    folder = _write(pair, reduction, request, engine) if reduction.reduced is not None else None
    is_same = request.engine.onnx_digest in (None, made.digest)
    return ReduceResult(reduction, numbers[reduction.row], folder, is_same, engine)


def _check_size(exact: OnnxArtifact) -> None:
    if exact.generation is not None:
        raise BadInput("an engine of several graphs, which answer together, is not reduced: measure its parts yourself")
    if sum(file.size_bytes for file in exact.files) > SINGLE_FILE_BYTES:
        raise BadInput(
            "graphs of more than 2 GB are not reduced: both and their pieces have to fit in one message each"
        )


def _write(pair: GraphPair, reduction: Reduction, request: ReduceRequest, engine: str) -> Path:
    if reduction.reduced is None:
        raise ValueError("there is nothing to write")
    constants = pair.exact.graph.constants.values()
    parameters = sum(math.prod(tensor.dims) for tensor in constants)
    versions = tuple((package, version(package)) for package in PACKAGES)
    notes = CaseNotes(request.engine.precision, request.bounds.tolerance, parameters, versions, engine)
    return write_folder(reduction.reduced, notes, request.into, keep_names=request.keep_names)


def choose_rows(metric: Metric, answered: bytes | None, evaluation: Rows, most: int) -> tuple[int, ...]:
    """Return the numbers of at most `most` rows: first those that the engine answered otherwise than fp32."""
    results = None if answered is None else cut_to_first(parse_row_results(answered, "this engine"))
    flipped: list[int] = []
    if results is not None and results.evaluation_set == evaluation.digest:
        flipped = [flip.row for flip in list_flips(metric, reference_of(results), results, ())]
    return tuple(dict.fromkeys((*flipped, *range(len(evaluation.inputs)))))[:most]


def result_json(result: ReduceResult) -> Mapping[str, Any]:
    """Return a result as JSON values."""
    found = result.reduction
    reduced = found.reduced
    return {
        "difference": found.error,
        "row": result.row,
        "rows": found.rows,
        "is_same_graph": result.is_same_graph,
        "tried": found.tried,
        "pieces": found.pieces,
        "layers": [
            {"layer": each.layer, "output": each.output, "nodes": each.nodes, "error": each.error}
            for each in found.layers
        ],
        "folder": None if result.folder is None else str(result.folder),
        "reduced": None
        if reduced is None
        else {
            "output": reduced.piece.output,
            "nodes": len(reduced.piece.nodes),
            "error": reduced.error,
            "is_one_layer": found.is_one_layer,
            "engine": result.engine or None,
        },
    }

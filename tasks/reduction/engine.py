"""Build the engine of a reduced piece, where this machine runs the target's engines, and measure that too."""

import tempfile
from pathlib import Path

import onnx

from registry.errors import EngineryError
from registry.records import AxisRange, GpuTarget, OnnxArtifact, Precision, ShapeProfile, fixed_batch
from tasks.backends import BACKENDS, open_engine
from tasks.backends.build import build_engine
from tasks.backends.contract import BuildInputs
from tasks.execution.progress import OnProgress
from tasks.graphs.files import GRAPH_FILE, make_artifact
from tasks.reduction.differences import measure_distance, open_model, run_model
from tasks.reduction.search import Reduced


def describe_engine_of(
    reduced: Reduced, precision: Precision, target: GpuTarget, workspace_bytes: int, on_progress: OnProgress
) -> str:
    """Say how far the engine of a piece is from fp32 on this machine; or why none was run."""
    backend = BACKENDS[target.backend]
    if (reason := backend.can_run(target)) is not None:
        return f"the engine of this piece was not run: {reason}"
    try:
        error = _measure_engine(reduced, precision, target, workspace_bytes, on_progress)
    except EngineryError as refusal:
        return f"no engine of this piece was made for {target.name}: {refusal}"
    return f"the engine of this piece on {target.name} ({target.backend} {backend.version()}): {error:.4g}"


def _measure_engine(
    reduced: Reduced, precision: Precision, target: GpuTarget, workspace_bytes: int, on_progress: OnProgress
) -> float:
    with tempfile.TemporaryDirectory() as scratch:
        graph, into = Path(scratch) / "graph", Path(scratch) / "engine"
        graph.mkdir()
        onnx.save(reduced.made, graph / GRAPH_FILE)
        artifact = make_artifact(graph, precision)
        inputs = BuildInputs(artifact, target, (_only_shape(artifact),), workspace_bytes)
        session = open_engine(build_engine(inputs, into=into, on_progress=on_progress))
        kinds = {tensor.name: tensor.dtype for tensor in inputs.onnx.inputs}
        made = session.run({name: reduced.values[name].astype(kinds[name]) for name in session.input_names})
    exact = run_model(open_model(reduced.exact), reduced.values)[reduced.piece.output]
    return measure_distance(exact, made[0])


def _only_shape(piece: OnnxArtifact) -> ShapeProfile:
    """Return the profile of a piece, whose shapes are fixed: its batch where all inputs have the same, else no axis."""
    size = fixed_batch(piece.inputs)
    return ShapeProfile(()) if size is None else ShapeProfile.of(batch=AxisRange(size, size, size))

"""A given graph and what was made of it, run on the same real rows."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnxruntime.capi import onnxruntime_pybind11_state as ort_errors

from registry.errors import BadInput, first_line
from registry.records import OnnxArtifact, Tensor, fixed_batch
from tasks.graphs.compare import measure_distances, run_graph
from tasks.graphs.files import list_tensors
from tasks.graphs.fixed_batch import count_rows, join_outputs, split_feed
from tasks.graphs.given.widen import name_halves
from tasks.model_tasks import ModelTask

# fp32 sums in another order, and rounding to the output's own type.
TOLERANCE = 1e-4
# A graph that computes in float16 rounds each value to three digits; bfloat16, to two.
HALF_TOLERANCE = 0.05
RUN_FAILURES = (
    ort_errors.Fail,
    ort_errors.InvalidArgument,
    ort_errors.InvalidGraph,
    ort_errors.NotImplemented,
    ort_errors.RuntimeException,
)


def try_graph(
    graph: Path, made: OnnxArtifact, task: ModelTask, feed: Mapping[str, NDArray[Any]], classes: tuple[str, ...]
) -> list[NDArray[Any]]:
    """Check on real rows that a given graph runs, answers each, and that `made` gives the same; return what it gives.

    Raises:
        BadInput: it does not.
    """
    header = onnx.load(graph, load_external_data=False)
    halves = name_halves(header)
    types = {each.name: each.dtype for each in list_tensors(header.graph.input)}
    if task.graph_inputs is None:
        check_fed(made.inputs, feed)
    size, rows = fixed_batch(made.inputs), count_rows(feed)
    feeds = split_feed(feed, size)
    try:
        actual = run_graph(made.path, feeds)
        exact = _run_given(graph, [{name: array.astype(types[name]) for name, array in each.items()} for each in feeds])
    except RUN_FAILURES as error:
        own = "preprocess() right" if task.graph_inputs is None else "its processor its own"
        raise BadInput(
            f"{graph} does not run on {len(next(iter(feed.values())))} real rows ({first_line(error)[:300]}): its axes "
            f"must be dynamic and {own}"
        ) from error
    tolerance = HALF_TOLERANCE if halves else TOLERANCE
    for name, distance in measure_distances(exact, actual).items():
        if not distance <= tolerance:  # NaN is never within
            raise BadInput(f"{graph}: output {name} is not finite, or changes when its types or opset are converted")
    joined = {name: join_outputs(outputs, size, rows) for name, outputs in actual.items()}
    _check_answers(graph, made, task, feed, joined, classes)
    return [joined[output.name] for output in made.outputs]


def _run_given(graph: Path, feeds: Sequence[Mapping[str, NDArray[Any]]]) -> dict[str, list[Any]]:
    """Run a given graph; nothing is compared where ONNX Runtime has no kernels for its bfloat16."""
    try:
        return run_graph(graph, feeds)
    except ort_errors.NotImplemented:
        if "bfloat16" in name_halves(onnx.load(graph, load_external_data=False)):
            return {}
        raise


def check_fed(inputs: Sequence[Tensor], feed: Mapping[str, NDArray[Any]]) -> None:
    """Check that arrays have the types, ranks and fixed sizes of a graph's inputs.

    Raises:
        BadInput: one does not.
    """
    for tensor in inputs:
        array = feed[tensor.name]
        fits = len(array.shape) == len(tensor.shape) and all(
            isinstance(wanted, str) or wanted == size
            for wanted, size in zip(tensor.shape[1:], array.shape[1:], strict=True)
        )
        if array.dtype.name != tensor.dtype or not fits:
            wanted = f"{tensor.dtype}[{', '.join(map(str, tensor.shape))}]"
            raise BadInput(
                f"input {tensor.name} is {array.dtype.name}{list(array.shape)} as preprocess() makes it, and the graph "
                f"takes {wanted}: return such an array"
            )


def _check_answers(
    graph: Path,
    made: OnnxArtifact,
    task: ModelTask,
    feed: Mapping[str, NDArray[Any]],
    outputs: Mapping[str, NDArray[Any]],
    classes: tuple[str, ...],
) -> None:
    shape = next(iter(feed.values())).shape
    if task.graph_inputs is None:
        _check_own_outputs(graph, made, task, shape[0], outputs)
        return
    sizes = dict(zip(task.graph_inputs.axes, shape, strict=True)) | {"labels": len(classes)}
    for output in made.outputs[: len(task.judged_outputs)]:
        name = output.name
        answer = outputs[name]
        wanted = [sizes.get(axis, size) for axis, size in zip(task.answer_axes, answer.shape, strict=True)]
        if list(answer.shape) != wanted:
            raise BadInput(
                f"{graph}: output {name} is {list(answer.shape)} for inputs of {list(shape)}, where {task.name} "
                f"needs {wanted} ({', '.join(task.answer_axes)}): correct source.labels or the export"
            )
        if not np.isfinite(answer).all():
            raise BadInput(f"{graph}: output {name} is not finite on real rows: export it again")


def _check_own_outputs(
    graph: Path, made: OnnxArtifact, task: ModelTask, rows: int, outputs: Mapping[str, NDArray[Any]]
) -> None:
    for position in task.judged_outputs:
        name = made.outputs[position].name
        answer = outputs[name]
        if answer.shape[:1] != (rows,):
            raise BadInput(f"{graph}: output {name} is {list(answer.shape)} for {rows} rows: export one answer a row")
        if not np.isfinite(answer).all():
            raise BadInput(f"{graph}: output {name} is not finite on real rows: export it again")

"""A given graph and what was made of it, run on the same real rows."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnxruntime.capi import onnxruntime_pybind11_state as ort_errors

from registry.errors import BadInput, first_line
from registry.records import OnnxArtifact
from tasks.graphs.compare import measure_distances, run_graph
from tasks.graphs.files import list_tensors
from tasks.model_tasks import ModelTask

# fp32 sums in another order, and rounding to the output's own type.
TOLERANCE = 1e-4
RUN_FAILURES = (
    ort_errors.Fail,
    ort_errors.InvalidArgument,
    ort_errors.InvalidGraph,
    ort_errors.NotImplemented,
    ort_errors.RuntimeException,
)


def try_graph(
    graph: Path, made: OnnxArtifact, task: ModelTask, feed: Mapping[str, NDArray[Any]], classes: tuple[str, ...]
) -> list[tuple[int, ...]]:
    """Check on real rows that a given graph runs, answers each, and that `made` gives the same.

    Returns the shapes of its judged outputs.

    Raises:
        BadInput: it does not.
    """
    types = {each.name: each.dtype for each in list_tensors(onnx.load(graph, load_external_data=False).graph.input)}
    try:
        exact = run_graph(graph, [{name: values.astype(types[name]) for name, values in feed.items()}])
        actual = run_graph(made.path, [feed])
    except RUN_FAILURES as error:
        raise BadInput(
            f"{graph} does not run on {len(next(iter(feed.values())))} real rows ({first_line(error)[:300]}): its axes "
            "must be dynamic and its processor its own"
        ) from error
    for name, distance in measure_distances(exact, actual).items():
        if not distance <= TOLERANCE:  # NaN is never within
            raise BadInput(f"{graph}: output {name} is not finite, or changes when its types or opset are converted")
    _check_answers(graph, made, task, feed, actual, classes)
    return [actual[output.name][0].shape for output in made.outputs[: len(task.judged_outputs)]]


def _check_answers(
    graph: Path,
    made: OnnxArtifact,
    task: ModelTask,
    feed: Mapping[str, NDArray[Any]],
    outputs: Mapping[str, list[Any]],
    classes: tuple[str, ...],
) -> None:
    shape = next(iter(feed.values())).shape
    sizes = dict(zip(task.graph_inputs.axes, shape, strict=True)) | {"labels": len(classes)}
    for output in made.outputs[: len(task.judged_outputs)]:
        name = output.name
        answer = outputs[name][0]
        wanted = [sizes.get(axis, size) for axis, size in zip(task.answer_axes, answer.shape, strict=True)]
        if list(answer.shape) != wanted:
            raise BadInput(
                f"{graph}: output {name} is {list(answer.shape)} for inputs of {list(shape)}, where {task.name} "
                f"needs {wanted} ({', '.join(task.answer_axes)}): correct source.labels or the export"
            )
        if not np.isfinite(answer).all():
            raise BadInput(f"{graph}: output {name} is not finite on real rows: export it again")

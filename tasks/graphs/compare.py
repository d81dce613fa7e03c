"""Compare a rewritten graph with the graph before it, output by output, on real rows: the net under every rewrite."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray
from onnxruntime.capi import onnxruntime_pybind11_state as ort_errors

from registry.errors import BadInput
from tasks.graphs.session import choose_providers, exact_options

# Smoothing and folding change nothing but rounding.
FLOAT_BUDGET = 0.01
# A quantized graph is some percent away. Half of an output is a wrong graph, whatever a gate on labels says of it.
QUANTIZED_BUDGET = 0.5


def check_rewrite(
    exact: Path, made: Path, feeds: Sequence[Mapping[str, NDArray[Any]]], *, budget: float, what: str
) -> None:
    """Check that no output of a rewritten graph is further from the graph before it than `budget`.

    Nothing is checked where ONNX Runtime has no kernels for the rewritten graph on this machine.

    Raises:
        BadInput: an output is further away, not finite or of another shape; `what` names the rewrite.
    """
    try:
        after = run_graph(made, feeds)
    except (ort_errors.NotImplemented, ort_errors.InvalidGraph, ort_errors.Fail):
        return
    distances = measure_distances(run_graph(exact, feeds), after)
    worst = max(distances, key=lambda name: distances[name], default=None)
    if worst is not None and not distances[worst] <= budget:  # NaN is never within
        raise BadInput(
            f"{what}: output {worst} is {distances[worst]:.0%} away from the fp32 graph's on real rows, at most "
            f"{budget:.0%} is accepted: this graph is not rewritten right; leave the precision out of the recipe"
        )


def check_interface(before: onnx.ModelProto, after: onnx.ModelProto, *, what: str) -> None:
    """Check that a rewrite kept names, types, order and ranks of a graph's inputs and outputs.

    Constants that were listed among the inputs may be gone, and a rank that was not declared may be.

    Raises:
        BadInput: one changed; `what` names the rewrite.
    """
    for kind in ("input", "output"):
        then, now = _list_declared(before, kind), _list_declared(after, kind)
        if [each[:2] for each in then] != [each[:2] for each in now]:
            changed = f"the {kind}s {_show_declared(then)} became {_show_declared(now)}"
        elif pair := next((pair for pair in zip(then, now, strict=True) if pair[0][2] not in (None, pair[1][2])), None):
            changed = f"{kind} {pair[0][0]} had {pair[0][2]} axes and has {pair[1][2]}"
        else:
            continue
        raise BadInput(f"{what} changes what the graph declares: {changed}; leave it out of the recipe")


def _list_declared(model: onnx.ModelProto, kind: str) -> list[tuple[str, int, int | None]]:
    """List (name, type, rank) of the inputs or outputs that are no constants; a rank may be undeclared."""
    constants = {tensor.name for tensor in model.graph.initializer}
    values = model.graph.output if kind == "output" else [v for v in model.graph.input if v.name not in constants]
    tensors = [(value.name, value.type.tensor_type) for value in values]
    return [(name, each.elem_type, len(each.shape.dim) if each.HasField("shape") else None) for name, each in tensors]


def _show_declared(declared: Sequence[tuple[str, int, int | None]]) -> str:
    return ", ".join(f"{name} ({onnx.TensorProto.DataType.Name(kind).lower()})" for name, kind, _ in declared)


def run_graph(file: Path, feeds: Sequence[Mapping[str, NDArray[Any]]]) -> dict[str, list[Any]]:
    """Run feeds through a graph, and return what each output gives for each; the graph is closed again."""
    options = exact_options()
    options.log_severity_level = 4  # it warns of each fp16 node that it cannot fold
    # A few rows are no faster with weights laid out anew, and those would be a second copy of them.
    options.add_session_config_entry("session.disable_prepacking", "1")
    session = ort.InferenceSession(str(file), options, providers=choose_providers())
    names = [output.name for output in session.get_outputs()]
    answers = [session.run(names, dict(feed)) for feed in feeds]
    return {name: [answer[position] for answer in answers] for position, name in enumerate(names)}


def measure_distances(exact: Mapping[str, list[Any]], made: Mapping[str, list[Any]]) -> dict[str, float]:
    """Measure the relative distance of each output, |made - exact| / |exact| over all feeds; infinite where unlike."""
    distances = {}
    for name, befores in exact.items():
        error = power = 0.0
        for before, after in zip(befores, made.get(name, ()), strict=True):
            if not isinstance(before, np.ndarray) or before.dtype.kind not in "fiub":
                continue  # sequences and texts have no distance
            values = before.astype(np.float64)
            unlike = before.shape != after.shape
            error += float("inf") if unlike else float(np.square(after.astype(np.float64) - values).sum())
            power += float(np.square(values).sum())
        distances[name] = float(np.sqrt(error / power)) if power else error
    return distances

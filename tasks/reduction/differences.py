"""How far a graph, or a piece of it, is from fp32 on one input."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray

from registry.errors import BadInput, first_line
from tasks.graphs.session import exact_options
from tasks.reduction.pair import GraphPair, OneGraph, Values

_FLOATS = {"tensor(float)": np.float32, "tensor(float16)": np.float16, "tensor(double)": np.float64}


@dataclass(frozen=True)
class LayerError:
    """What one piece adds by itself, fed with fp32's values: |made - fp32| / |fp32| of its output; `nodes` counts it.

    `layer` names the nodes with weights in it, or its output where there are none.
    """

    output: str
    layer: str
    nodes: int
    error: float

    @property
    def sqnr_db(self) -> float:
        """The signal-to-quantization-noise ratio in dB."""
        return math.inf if self.error == 0 else -20 * math.log10(self.error) if math.isfinite(self.error) else -math.inf


def measure_distance(exact: NDArray[Any], made: NDArray[Any]) -> float:
    """Return |made - exact| / |exact|, Euclidean; infinite for other shapes and where `made` is not finite."""
    if exact.shape != made.shape:
        return math.inf
    before, after = exact.astype(np.float64), made.astype(np.float64)
    with np.errstate(all="ignore"):
        error, power = float(np.linalg.norm(after - before)), float(np.linalg.norm(before))
    if not math.isfinite(error):
        return 0.0 if np.array_equal(before, after, equal_nan=True) else math.inf
    return error / power if power else error and math.inf


def open_model(model: onnx.ModelProto) -> ort.InferenceSession:
    """Open a model on the CPU, as engines of ONNX Runtime are.

    Raises:
        BadInput: ONNX Runtime cannot run it here.
    """
    options = exact_options()
    options.log_severity_level = 4
    try:
        return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime's errors share no base
        raise BadInput(
            f"ONNX Runtime cannot run the graph on this machine's CPU ({first_line(error)[:200]}): there is nothing to "
            "compare with fp32 here"
        ) from error


def run_model(session: ort.InferenceSession, feed: Values) -> dict[str, NDArray[Any]]:
    """Run a session, with only those values that it is fed, cast to its types; return its outputs by name.

    Raises:
        BadInput: ONNX Runtime refuses the values.
    """
    types = {value.name: _FLOATS.get(value.type) for value in session.get_inputs()}
    asked = {name: feed[name].astype(kind) if kind else feed[name] for name, kind in types.items()}
    names = [value.name for value in session.get_outputs()]
    try:
        return dict(zip(names, session.run(names, asked), strict=True))
    except Exception as error:  # ONNX Runtime's errors share no base
        raise BadInput(f"ONNX Runtime cannot run the graph on this row: {first_line(error)[:200]}") from error


def trace(graph: OneGraph, names: Sequence[str], feed: Values) -> dict[str, NDArray[Any]]:
    """Return the values of tensors of a graph, its outputs' and its inputs' among them."""
    model = onnx.ModelProto()
    model.CopyFrom(graph.model)
    present = graph.graph.output_names
    extra = [name for name in names if name not in present]
    model.graph.output.extend(onnx.helper.make_tensor_value_info(name, graph.types[name], None) for name in extra)
    return {**feed, **run_model(open_model(model), feed)}


def find_worst_row(pair: GraphPair, feeds: Sequence[Values], on_row: Any) -> tuple[int, float]:
    """Return which of the feeds gives outputs furthest apart, and how far, by the worse output."""
    exact, made = open_model(pair.exact.model), open_model(pair.made.model)
    distances = []
    for number, feed in enumerate(feeds):
        before, after = run_model(exact, feed), run_model(made, feed)
        distances.append(max(measure_distance(before[name], after[name]) for name in pair.outputs))
        on_row(number + 1)
    worst = int(np.argmax(distances))
    return worst, distances[worst]

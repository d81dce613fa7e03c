"""Find the smallest piece of a graph that is further from fp32 than a tolerance, on the row that shows most."""

import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice

import onnx

from registry.errors import BadInput
from tasks.execution.progress import OnProgress, ignore_progress
from tasks.graphs.layers import INTEGER_OPERATORS, TRANSPOSE
from tasks.reduction.differences import LayerError, find_worst_row, measure_distance, open_model, run_model, trace
from tasks.reduction.pair import GraphPair, Piece, Values

# What a layer with weights is, beside which the other nodes of its piece are small.
WEIGHTED = ("MatMul", "Gemm", "Conv", TRANSPOSE, *INTEGER_OPERATORS)


@dataclass(frozen=True)
class Bounds:
    """When a search ends, and from which difference on something is shown: |made - fp32| / |fp32| of an output."""

    tolerance: float = 0.05
    most: int = 1000
    seconds_max: float = 120.0


@dataclass(frozen=True)
class Reduced:
    """A piece as two models, the values that it is fed (fp32's), and how far its output is from fp32's."""

    piece: Piece
    exact: onnx.ModelProto
    made: onnx.ModelProto
    values: Values
    error: float


@dataclass(frozen=True)
class Reduction:
    """What a search found: the row, how far the whole graph is there, and each piece by itself, worst first.

    `reduced` is None where the whole graph is within the tolerance. `tried` of `pieces` were measured.
    """

    row: int
    rows: int
    error: float
    layers: tuple[LayerError, ...]
    tried: int
    pieces: int
    reduced: Reduced | None

    @property
    def is_one_layer(self) -> bool:
        """Whether a single piece is beyond the tolerance, and not only several together."""
        return self.reduced is not None and self.reduced.piece.output in {
            layer.output for layer in self.layers if layer.error == self.reduced.error
        }


def reduce_pair(
    pair: GraphPair,
    feeds: Sequence[Values],
    bounds: Bounds | None = None,
    on_progress: OnProgress = ignore_progress,
    clock: Callable[[], float] = time.monotonic,
) -> Reduction:
    """Search the row whose outputs are furthest apart, and on it the smallest piece that is beyond the tolerance.

    Each piece is fed with fp32's values, so that it errs by itself. Where one is beyond the tolerance, the worst is the
    answer. Where none is, errors add up: the answer is what computes an output from as late as possible (bisection).

    Raises:
        BadInput: ONNX Runtime cannot run the graph here.
    """
    bounds = bounds or Bounds()
    started = clock()
    row, error = find_worst_row(pair, feeds, lambda done: on_progress("rows", done / len(feeds)))
    feed = feeds[row]
    if error <= bounds.tolerance:
        return Reduction(row, len(feeds), error, (), 0, 0, None)
    values = trace(pair.exact, pair.shared, feed)
    pieces, layers = list(pair.list_pieces()), list[LayerError]()
    for number, piece in enumerate(islice(pieces, bounds.most)):
        if clock() - started > bounds.seconds_max:
            break
        with suppress(BadInput):  # no kernel runs this piece alone
            layers.append(LayerError(piece.output, _name_layer(piece), len(piece.nodes), _measure(pair, piece, values)))
        on_progress("layers", (number + 1) / min(len(pieces), bounds.most))
    layers.sort(key=lambda layer: -layer.error)
    if layers and layers[0].error > bounds.tolerance:
        found = next(piece for piece in pieces if piece.output == layers[0].output)
    else:
        found = _bisect(pair, values, bounds.tolerance, on_progress)
    reduced = _make_reduced(pair, found, values)
    return Reduction(row, len(feeds), error, tuple(layers), len(layers), len(pieces), reduced)


def _measure(pair: GraphPair, piece: Piece, values: Values) -> float:
    made = run_model(open_model(pair.made.make_model(piece, values)), values)
    return measure_distance(values[piece.output], made[piece.output])


def _bisect(pair: GraphPair, values: Values, tolerance: float, on_progress: OnProgress) -> Piece:
    """Return what computes the worst output from the latest tensors from which it is beyond the tolerance."""
    whole = {name: pair.made.cut(name, pair.exact.input_names) for name in pair.outputs}
    output = max(whole, key=lambda name: _measure(pair, whole[name], values))
    found, early, late = whole[output], 0, len(pair.shared)
    while late - early > 1:
        on_progress("bisect", 1 - (late - early) / len(pair.shared))
        middle = (early + late) // 2
        piece = pair.made.cut(output, {*pair.shared[:middle], *pair.exact.input_names})
        if _measure(pair, piece, values) > tolerance:
            early, found = middle, piece
        else:
            late = middle
    return found


def _make_reduced(pair: GraphPair, piece: Piece, values: Values) -> Reduced:
    exact = pair.exact.cut(piece.output, {*piece.inputs, *pair.exact.input_names})
    missing = set(exact.inputs) - set(piece.inputs)
    if missing:  # the fp32 side begins elsewhere, as a residual branch that was quantized with its convolution
        boundary = {*pair.shared, *pair.exact.input_names}
        exact = pair.exact.cut(piece.output, boundary)
    fed = {name: values[name] for name in dict.fromkeys((*piece.inputs, *exact.inputs))}
    models = pair.exact.make_model(exact, values), pair.made.make_model(piece, values)
    return Reduced(piece, *models, fed, _measure(pair, piece, values))


def _name_layer(piece: Piece) -> str:
    weighted = [node.name or node.op_type for node in piece.nodes if node.op_type in WEIGHTED]
    return ", ".join(weighted) or piece.output

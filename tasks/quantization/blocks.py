"""The blocks of a graph, their multiply-adds, and the set of blocks that is cheapest to keep in fp32.

A block is the layers that read one tensor: they share its int8 scale, and are switched between int8 and fp32 together.
"""

from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import scipy

from tasks.calibration.probe import open_session
from tasks.calibration.rows import Feed
from tasks.graphs.files import has_external_data
from tasks.graphs.layers import TRANSPOSE, Graph, Linear, group_by_input
from tasks.quantization.scales import ActivationScale


@dataclass(frozen=True)
class Block:
    """The layers that read one tensor, and their multiply-adds (MACs) on one row.

    `damage` is how far the model's answers move from fp32's, by the gate, with only this block in int8; None where it
    was not measured.
    """

    tensor: str
    layers: tuple[int, ...]
    macs: int
    damage: float | None = None


def measure_macs(graph_file: Path, scales: Mapping[str, ActivationScale], feed: Feed) -> tuple[Block, ...]:
    """List the blocks of an fp32 graph with their multiply-adds on one row of `feed`, in graph order."""
    macs = {layer: count for layer, count in count_macs(graph_file, feed).items() if layer.op != TRANSPOSE}
    return tuple(
        Block(tensor, tuple(layer.index for layer in members), sum(macs[layer] for layer in members))
        for tensor, members in group_by_input(tuple(macs)).items()
        if tensor in scales
    )


def count_macs(graph_file: Path, feed: Feed) -> dict[Linear, int]:
    """Count the multiply-adds of each layer of an fp32 graph on one row of `feed`, in graph order.

    A layer does K·N/N multiply-adds for each value of its output, for MatMul, Gemm and Conv alike; a ConvTranspose as
    many for each value of its input as a channel of that has weights. The values are counted on the real rows of
    `feed`.
    """
    model = onnx.load(graph_file, load_external_data=False)
    graph, external = Graph(model), has_external_data(model)
    outputs = {layer.index: node.output[0] for layer, node in graph.find_linear_nodes().items()}
    transposes = graph.list_transposes()
    names = [
        name for name in dict.fromkeys([*outputs.values(), *(each.input for each in transposes)]) if name not in feed
    ]
    hidden = [name for name in names if name not in graph.output_names]
    session = open_session(graph_file, hidden, external=external)
    sizes = {name: values.size for name, values in feed.items()}
    sizes |= {name: value.size for name, value in zip(names, session.run(names, feed), strict=True)}
    rows, macs = len(next(iter(feed.values()))), {}
    for layer in graph.list_linears():
        shape = graph.constants[layer.weight].dims
        macs[layer] = sizes[outputs[layer.index]] * int(np.prod(shape)) // shape[layer.columns] // rows
    for layer in transposes:
        shape = graph.constants[layer.weight].dims
        macs[layer] = sizes[layer.input] * int(np.prod(shape)) // shape[0] // rows
    return macs


def compute_share(
    macs: Mapping[Linear, int], graph_file: Path, stored: Sequence[tuple[int, int]], wanted: int
) -> float:
    """Return the share of the layers' MACs whose weights a rewritten graph stores in the type `wanted`.

    `macs` are those of the fp32 graph in `graph_file`, `stored` the weights of the rewritten one
    (`list_stored_weights`), whose layers are found by the number of their weights' values: layers of one size do about
    as many multiply-adds each.
    """
    graph = Graph(onnx.load(graph_file, load_external_data=False))
    sizes: dict[int, list[int]] = {}
    for layer, count in macs.items():
        sizes.setdefault(int(np.prod(graph.constants[layer.weight].dims)), []).append(count)
    means = {size: sum(counts) / len(counts) for size, counts in sizes.items()}
    total = sum(means.get(size, 0.0) for _, size in stored)
    return sum(means.get(size, 0.0) for kind, size in stored if kind == wanted) / total if total else 0.0


def compute_int8_share(blocks: Sequence[Block], fp32_blocks: AbstractSet[str]) -> float:
    """Return the share of the blocks' MACs in int8 when `fp32_blocks`, by their tensors, stay fp32."""
    total = sum(block.macs for block in blocks)
    return sum(block.macs for block in blocks if block.tensor not in fp32_blocks) / max(1, total)


def solve_knapsack(blocks: Sequence[Block], prefix: AbstractSet[str]) -> frozenset[str] | None:
    """Find the blocks of fewest MACs that remove as much damage as `prefix`; None where nothing beats `prefix`.

    A 0/1 knapsack, solved exactly as a mixed-integer program (scipy.optimize.milp, HiGHS).
    """
    macs = np.array([block.macs for block in blocks], dtype=np.float64)
    damage = np.array([block.damage or 0.0 for block in blocks])
    needed = sum(block.damage or 0.0 for block in blocks if block.tensor in prefix)
    if needed <= 1e-6 * damage.sum():  # nothing that the solver could tell from zero
        return None
    solution = scipy.optimize.milp(
        macs / macs.sum(),
        integrality=np.ones(len(blocks)),
        bounds=scipy.optimize.Bounds(0, 1),
        constraints=scipy.optimize.LinearConstraint(damage[None, :] / needed, lb=1.0),
    )
    if solution.x is None:
        return None
    fp32_blocks = frozenset(block.tensor for block, taken in zip(blocks, solution.x > 0.5, strict=True) if taken)
    return fp32_blocks if compute_int8_share(blocks, fp32_blocks) > compute_int8_share(blocks, prefix) else None

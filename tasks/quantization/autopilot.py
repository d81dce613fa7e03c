"""The autopilot: when int8 misses its gate on the holdout, keep the fewest MACs in fp32 that make it pass.

Weights rounded for each other (GPTQ) are tried first: they cost no speed, only the seconds of the rounding. Then one
pass measures what each block (the layers that read one tensor) costs: the model's own answers with only that
block in int8. Blocks are kept in fp32 in the order of damage a MAC, as many as the gate needs (found by bisection on
the holdout). Damages add up nearly (independent rounding errors), so that a knapsack over them then looks for a set
of fewer MACs; the graph of what is chosen is made and held against the gate itself. The evaluation split is not here.
"""

import tempfile
from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import onnx
import scipy

from registry.digest import canonical_json, read_canonical
from tasks.calibration.probe import open_session
from tasks.calibration.rows import Feed
from tasks.execution.progress import OnProgress, ignore_progress
from tasks.graphs.files import has_external_data, write_graph
from tasks.graphs.layers import Floats, Graph, groups
from tasks.quantization import qdq
from tasks.quantization.holdout import Holdout, Score, answers
from tasks.quantization.int8 import int8_graph
from tasks.quantization.scales import ActivationScale
from tasks.quantization.switches import Switchboard

CHOICE_FILE = "autopilot.json"
MAX_BYTES = 16 * 2**20
NEAREST, COMPENSATED = "nearest", "compensated"
_TELL = "autopilot: {}"
_WORST = 1e12


@dataclass(frozen=True)
class Block:
    """The layers that read one tensor: their MACs on one row, and what int8 of this block alone does.

    `damage` is how far the model's answers go from fp32's, by the gate; None where it was not measured.
    """

    tensor: str
    layers: tuple[int, ...]
    macs: int
    damage: float | None = None


@dataclass(frozen=True)
class Tried:
    """One mix: how its weights are rounded, how many blocks stay fp32, the share of MACs in int8, and its score."""

    rounding: str
    kept: int
    int8_share: float
    loss: float
    bound: float
    passed: bool


@dataclass(frozen=True)
class Choice:
    """The mix that was chosen, or that none passes; `kept` are the tensors whose layers stay fp32."""

    passed: bool
    rounding: str
    kept: tuple[str, ...]
    int8_share: float
    limit: float
    rows: int
    blocks: tuple[Block, ...]
    path: tuple[Tried, ...]

    @property
    def in_words(self) -> str:
        """One sentence for the report."""
        tried = f"{len(self.path)} mixes tried on {self.rows} holdout rows"
        if not self.passed:
            return f"no mix of int8 and fp32 loses at most {self.limit:.2%} ({tried})"
        if not self.kept:
            return f"all MACs in int8 (rounding: {self.rounding}): the gate passes on {self.rows} holdout rows"
        names = ", ".join(name.lstrip("/") for name in self.kept[:3]) + (", …" if len(self.kept) > 3 else "")
        kept = f"{len(self.kept)} of {len(self.blocks)} blocks in fp32 ({names}; {tried})"
        return f"{self.int8_share:.1%} of the MACs in int8, {kept}"


@dataclass
class _Search:
    """What a search works with, and the path that it took."""

    source: Path
    scales: Mapping[str, ActivationScale]
    holdout: Holdout
    exact: list[Floats]
    tell: OnProgress
    rounding: str = NEAREST
    path: list[Tried] = field(default_factory=list)

    def judge(self, made: Sequence[Floats], kept: AbstractSet[str], blocks: Sequence[Block]) -> Score:
        score = self.holdout.gate.score(self.exact, made)
        share = _share(blocks, kept)
        self.path.append(Tried(self.rounding, len(kept), share, score.loss, score.bound, score.passed))
        # Bisection, a knapsack and the proof: about as many mixes as this.
        done = min(1.0, len(self.path) / (len(blocks).bit_length() + 3))
        self.tell(_TELL.format(f"mixes · {share:.0%} in int8 loses {score.loss:+.2%}"), done)
        return score


def choose(
    source: Path,
    scales: Mapping[str, ActivationScale],
    roundings: Mapping[str, qdq.WeightFormat],
    holdout: Holdout,
    on_progress: OnProgress = ignore_progress,
) -> tuple[onnx.ModelProto, Choice]:
    """The graph that passes the holdout's gate with the fewest MACs in fp32, and how it was found.

    `source` is the fp32 graph, `scales` those of every block. Each of `roundings` (by name) is tried on the whole
    graph first, and the last one is what mixes are made with. Where no mix passes, the whole graph in int8 comes
    back, and the choice says so.
    """
    on_progress(_TELL.format("fp32 on the holdout"), 0.0)
    search = _Search(source, scales, holdout, answers(source, holdout), on_progress)
    blocks = measure_macs(source, scales, holdout.feeds[0])
    for search.rounding, weight_format in roundings.items():  # the search says what it is at
        whole = _mixed(search, frozenset(), weight_format)
        if search.judge(_answers_of(whole, holdout), frozenset(), blocks).passed:
            return whole, _choice(search, blocks, frozenset())
    board = Switchboard(onnx.load(source), scales, weight_format, holdout.output)
    blocks = _sensitivities(search, board, blocks)
    for kept in _candidates(search, board, blocks):
        made = _mixed(search, kept, weight_format)
        if search.judge(_answers_of(made, holdout), kept, blocks).passed:
            return made, _choice(search, blocks, kept)
    return whole, _choice(search, blocks, None)


def measure_macs(source: Path, scales: Mapping[str, ActivationScale], feed: Feed) -> tuple[Block, ...]:
    """The blocks of an fp32 graph with their multiply-adds on one row of `feed`, in graph order.

    A layer with K·N/N weights an output channel multiplies that often for each value that it gives: counted from
    what it gives for real rows, for MatMul, Gemm and Conv alike.
    """
    model = onnx.load(source, load_external_data=False)
    graph, external = Graph(model), has_external_data(model)
    nodes = {each.index: node.output[0] for each, node in graph.linear_nodes().items()}
    shown = graph.output_names
    session = open_session(source, [name for name in nodes.values() if name not in shown], external=external)
    wanted = list(dict.fromkeys(nodes.values()))
    sizes = {name: value.size for name, value in zip(wanted, session.run(wanted, feed), strict=True)}
    rows, macs = len(next(iter(feed.values()))), {}
    for each in graph.linears():
        shape = graph.constants[each.weight].dims
        macs[each.index] = sizes[nodes[each.index]] * int(np.prod(shape)) // shape[each.columns] // rows
    return tuple(
        Block(tensor, tuple(each.index for each in members), sum(macs[each.index] for each in members))
        for tensor, members in groups(graph.linears()).items()
        if tensor in scales
    )


def _sensitivities(search: _Search, board: Switchboard, blocks: Sequence[Block]) -> tuple[Block, ...]:
    """Each block alone in int8 on the same few batches: together about one pass over the holdout."""
    feeds = search.holdout.feeds
    count = max(1, len(feeds) // len(blocks))
    some = [int(at) for at in np.linspace(0, len(feeds) - 1, count + 2)[1:-1]]
    measured = []
    for position, block in enumerate(blocks):
        search.tell(_TELL.format("sensitivity of each block"), position / len(blocks))
        made = [board.run(feeds[at], {block.tensor}) for at in some]
        found = [search.holdout.gate.damage(at, search.exact[at], each) for at, each in zip(some, made, strict=True)]
        damage = float(np.mean(found))
        # What is not finite is worst, and JSON has no infinity.
        measured.append(replace(block, damage=damage if 0 <= damage < _WORST else _WORST))
    return tuple(measured)


def _candidates(search: _Search, board: Switchboard, blocks: Sequence[Block]) -> list[frozenset[str]]:
    """Mixes to make, the fewest MACs first: a knapsack's, the shortest prefix that passes, and those behind it."""
    order = sorted(blocks, key=lambda block: (-(block.damage or 0.0) / max(1, block.macs), block.tensor))
    names = [block.tensor for block in order]
    everything = frozenset(names)

    def passes(kept: frozenset[str]) -> bool:
        made = [board.run(feed, everything - kept) for feed in search.holdout.feeds]
        return search.judge(made, kept, blocks).passed

    fails, works = 0, len(order)  # all in fp32 passes, and is no mix
    while works - fails > 1:
        middle = (fails + works) // 2
        if passes(frozenset(names[:middle])):
            works = middle
        else:
            fails = middle
    prefixes = [frozenset(names[:count]) for count in range(works, len(order))]
    if not prefixes:
        return []
    lighter = _knapsack(blocks, prefixes[0])
    return [lighter, *prefixes] if lighter is not None and passes(lighter) else prefixes


def _knapsack(blocks: Sequence[Block], prefix: AbstractSet[str]) -> frozenset[str] | None:
    """The set of fewest MACs that takes away as much damage as `prefix`; None where that is the prefix itself."""
    macs = np.array([block.macs for block in blocks], dtype=np.float64)
    damage = np.array([block.damage or 0.0 for block in blocks])
    needed = sum(block.damage or 0.0 for block in blocks if block.tensor in prefix)
    if needed <= 1e-6 * damage.sum():  # nothing that the solver could tell from zero
        return None
    found = scipy.optimize.milp(
        macs / macs.sum(),
        integrality=np.ones(len(blocks)),
        bounds=scipy.optimize.Bounds(0, 1),
        constraints=scipy.optimize.LinearConstraint(damage[None, :] / needed, lb=1.0),
    )
    if found.x is None:
        return None
    kept = frozenset(block.tensor for block, taken in zip(blocks, found.x > 0.5, strict=True) if taken)
    return kept if _share(blocks, kept) > _share(blocks, prefix) else None


def _mixed(search: _Search, kept: AbstractSet[str], weight_format: qdq.WeightFormat) -> onnx.ModelProto:
    scales = {tensor: scale for tensor, scale in search.scales.items() if tensor not in kept}
    return int8_graph(onnx.load(search.source), scales, weight_format=weight_format)


def _answers_of(model: onnx.ModelProto, holdout: Holdout) -> list[Floats]:
    with tempfile.TemporaryDirectory() as folder:
        return answers(write_graph(model, Path(folder)), holdout)


def _share(blocks: Sequence[Block], kept: AbstractSet[str]) -> float:
    total = sum(block.macs for block in blocks)
    return sum(block.macs for block in blocks if block.tensor not in kept) / max(1, total)


def _choice(search: _Search, blocks: Sequence[Block], kept: AbstractSet[str] | None) -> Choice:
    in_order = tuple(block.tensor for block in blocks if kept is not None and block.tensor in kept)
    return Choice(
        passed=kept is not None,
        rounding=search.rounding,
        kept=in_order,
        int8_share=_share(blocks, frozenset(in_order)),
        limit=search.holdout.gate.limit,
        rows=search.holdout.rows,
        blocks=tuple(blocks),
        path=tuple(search.path),
    )


def to_json(choice: Choice) -> bytes:
    """Canonical JSON (RFC 8785)."""
    return canonical_json(choice)


def from_json(raw: bytes) -> Choice:
    """Read a choice.

    Raises:
        BadInput: it is not what `to_json` writes.
    """
    return read_canonical(Choice, raw[:MAX_BYTES], CHOICE_FILE, advice="quantize again")

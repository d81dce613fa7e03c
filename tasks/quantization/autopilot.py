"""The autopilot: when int8 fails its gate on the holdout, keep the fewest MACs in fp32 that make it pass.

1. Weights are rounded for each other (GPTQ) first: that costs no speed, only the seconds of the rounding.
2. One pass measures each block's damage: how far the model's answers move with only that block in int8.
3. Blocks are kept in fp32 in the order of damage per MAC, as many as the gate needs, found by bisection.
4. Damages nearly add up (rounding errors are independent), so a knapsack over them looks for a set of fewer MACs.
5. The graph of the chosen set is made and judged by the gate itself.

Everything is judged on the holdout; the evaluation split is never read here (docs/adr/0023-autopilot.md).
"""

import tempfile
from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from registry.digest import canonical_json, read_canonical
from tasks.execution.progress import OnProgress, ignore_progress
from tasks.graphs.files import write_graph
from tasks.quantization.blocks import Block, compute_int8_share, measure_macs, solve_knapsack
from tasks.quantization.holdout import Holdout, Score, run_holdout
from tasks.quantization.int8 import make_int8_graph
from tasks.quantization.qdq import WeightFormat
from tasks.quantization.scales import ActivationScale
from tasks.quantization.switches import Switchboard

CHOICE_FILE = "autopilot.json"
MAX_BYTES = 16 * 2**20
NEAREST, COMPENSATED = "nearest", "compensated"
_PROGRESS = "autopilot: {}"
# Stands for damage that is not finite: JSON has no infinity.
_WORST_DAMAGE = 1e12


@dataclass(frozen=True)
class TriedMix:
    """One mix: how weights are rounded, how many blocks stay fp32, the share of MACs in int8, and its score."""

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
    path: tuple[TriedMix, ...]

    @property
    def in_words(self) -> str:
        """One sentence for the report."""
        tried = f"{len(self.path)} mixes tried on {self.rows} holdout rows"
        if not self.passed:
            return f"no mix of int8 and fp32 loses at most {self.limit:.2%} ({tried})"
        if not self.kept:
            return f"all MACs in int8 (rounding: {self.rounding}): the gate passes on {self.rows} holdout rows"
        names = ", ".join(name.lstrip("/") for name in self.kept[:3]) + (", …" if len(self.kept) > 3 else "")
        blocks = f"{len(self.kept)} of {len(self.blocks)} blocks in fp32 ({names}; {tried})"
        return f"{self.int8_share:.1%} of the MACs in int8, {blocks}"


@dataclass
class _Search:
    """The inputs of a search, what the gate keeps of fp32, the blocks so far measured, and the mixes tried."""

    graph_file: Path
    scales: Mapping[str, ActivationScale]
    holdout: Holdout
    on_progress: OnProgress
    exact: list[Any]
    blocks: tuple[Block, ...]
    rounding: str = NEAREST
    path: list[TriedMix] = field(default_factory=list)

    def judge(self, mix: Sequence[Any], fp32_blocks: AbstractSet[str]) -> Score:
        """Score a mix by what the gate keeps of it for each feed, and add it to the path."""
        score = self.holdout.gate.score(self.exact, mix)
        share = compute_int8_share(self.blocks, fp32_blocks)
        self.path.append(TriedMix(self.rounding, len(fp32_blocks), share, score.loss, score.bound, score.passed))
        # Bisection, a knapsack and the proof: about this many mixes.
        done = min(1.0, len(self.path) / (len(self.blocks).bit_length() + 3))
        self.on_progress(_PROGRESS.format(f"mixes · {share:.0%} in int8 loses {score.loss:+.2%}"), done)
        return score

    def make_mix(self, fp32_blocks: AbstractSet[str], weight_format: WeightFormat) -> onnx.ModelProto:
        """Make the int8 graph in which `fp32_blocks`, by their tensors, stay fp32."""
        scales = {tensor: scale for tensor, scale in self.scales.items() if tensor not in fp32_blocks}
        return make_int8_graph(onnx.load(self.graph_file), scales, weight_format=weight_format)

    def make_choice(self, fp32_blocks: AbstractSet[str] | None) -> Choice:
        """Record the search and the mix it chose; None where no mix passes."""
        in_order = tuple(block.tensor for block in self.blocks if block.tensor in (fp32_blocks or ()))
        return Choice(
            passed=fp32_blocks is not None,
            rounding=self.rounding,
            kept=in_order,
            int8_share=compute_int8_share(self.blocks, frozenset(in_order)),
            limit=self.holdout.gate.limit,
            rows=self.holdout.rows,
            blocks=self.blocks,
            path=tuple(self.path),
        )


def choose_mix(
    graph_file: Path,
    scales: Mapping[str, ActivationScale],
    roundings: Mapping[str, WeightFormat],
    holdout: Holdout,
    on_progress: OnProgress = ignore_progress,
) -> tuple[onnx.ModelProto, Choice]:
    """Make the graph that passes the holdout's gate with the fewest MACs in fp32, and record the search.

    `graph_file` is the fp32 graph, `scales` those of every block. Each of `roundings` (by name) is tried on the whole
    graph first; mixes are made with the last one. Where no mix passes, the whole graph in int8 is returned with a
    choice that did not pass.
    """
    on_progress(_PROGRESS.format("fp32 on the holdout"), 0.0)
    exact = run_holdout(graph_file, holdout)
    blocks = measure_macs(graph_file, scales, holdout.feeds[0])
    search = _Search(graph_file, scales, holdout, on_progress, exact, blocks)
    for rounding, weight_format in roundings.items():
        search.rounding = rounding
        whole = search.make_mix(frozenset(), weight_format)
        if search.judge(_run_model(whole, holdout), frozenset()).passed:
            return whole, search.make_choice(frozenset())
    board = Switchboard(onnx.load(graph_file), scales, weight_format, holdout.judged)
    search.blocks = _measure_damage(search, board)
    for fp32_blocks in _list_candidates(search, board):
        mix = search.make_mix(fp32_blocks, weight_format)
        if search.judge(_run_model(mix, holdout), fp32_blocks).passed:
            return mix, search.make_choice(fp32_blocks)
    return whole, search.make_choice(None)


def _measure_damage(search: _Search, board: Switchboard) -> tuple[Block, ...]:
    """Run each block alone in int8 on the same few feeds: together about one pass over the holdout."""
    feeds, gate = search.holdout.feeds, search.holdout.gate
    count = max(1, len(feeds) // len(search.blocks))
    sampled = [int(index) for index in np.linspace(0, len(feeds) - 1, count + 2)[1:-1]]
    exact = {index: board.run(feeds[index], frozenset()) for index in sampled}
    measured = []
    for position, block in enumerate(search.blocks):
        search.on_progress(_PROGRESS.format("sensitivity of each block"), position / len(search.blocks))
        damage = float(
            np.mean([gate.damage(index, exact[index], board.run(feeds[index], {block.tensor})) for index in sampled])
        )
        measured.append(replace(block, damage=damage if 0 <= damage < _WORST_DAMAGE else _WORST_DAMAGE))
    return tuple(measured)


def _list_candidates(search: _Search, board: Switchboard) -> list[frozenset[str]]:
    """List the sets of blocks to keep in fp32, fewest MACs first.

    The knapsack's set comes first if it passes on the switchboard, then the shortest passing prefix of the blocks in
    order of damage per MAC, then the longer prefixes.
    """
    blocks = search.blocks
    order = sorted(blocks, key=lambda block: (-(block.damage or 0.0) / max(1, block.macs), block.tensor))
    names = [block.tensor for block in order]
    everything = frozenset(names)

    def passes(fp32_blocks: frozenset[str]) -> bool:
        gate, in_int8 = search.holdout.gate, everything - fp32_blocks
        mix = [gate.keep(at, board.run(feed, in_int8)) for at, feed in enumerate(search.holdout.feeds)]
        return search.judge(mix, fp32_blocks).passed

    fails, works = 0, len(order)  # all in fp32 passes, but is not a mix
    while works - fails > 1:
        middle = (fails + works) // 2
        if passes(frozenset(names[:middle])):
            works = middle
        else:
            fails = middle
    prefixes = [frozenset(names[:count]) for count in range(works, len(order))]
    if not prefixes:
        return []
    lighter = solve_knapsack(blocks, prefixes[0])
    return [lighter, *prefixes] if lighter is not None and passes(lighter) else prefixes


def _run_model(model: onnx.ModelProto, holdout: Holdout) -> list[Any]:
    with tempfile.TemporaryDirectory() as folder:
        return run_holdout(write_graph(model, Path(folder)), holdout)


def to_json(choice: Choice) -> bytes:
    """Write a choice as canonical JSON (RFC 8785)."""
    return canonical_json(choice)


def from_json(raw: bytes) -> Choice:
    """Read a choice that `to_json` wrote.

    Raises:
        BadInput: `raw` has another form.
    """
    return read_canonical(Choice, raw[:MAX_BYTES], CHOICE_FILE, advice="quantize again")

"""Rows on which a choice is made, and the gate that they are held against: never rows of the evaluation split."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import onnx

from registry.digest import digest_of
from tasks.calibration.feeds import count_rows
from tasks.calibration.probe import open_session
from tasks.calibration.rows import Feed
from tasks.graphs.files import has_external_data
from tasks.graphs.layers import Floats
from tasks.model_tasks.contract import Answers, Encoder, ModelTask
from tasks.verdicts.intervals import Z_ONE_SIDED, compare_scores

Outputs = Sequence[Floats]
"""The judged outputs of a graph for one feed, each [rows, …]."""


@dataclass(frozen=True)
class Score:
    """What a graph loses against fp32 on the holdout, the bound of that at 95 % confidence, and whether it passes."""

    loss: float
    bound: float
    passed: bool


class Gate(Protocol):
    """Judges a graph by what the fp32 graph gives: of each feed's outputs it keeps what it judges by."""

    @property
    def limit(self) -> float:
        """The largest bound that passes."""

    @property
    def digest(self) -> str:
        """Digest of what the gate judges by."""

    def keep(self, at: int, outputs: Outputs) -> Any:
        """Return what is judged of the outputs of feed `at`: the outputs of all feeds may not fit into memory."""

    def score(self, exact: Sequence[Any], made: Sequence[Any]) -> Score:
        """Return loss, bound and verdict, by what was kept of each feed."""

    def damage(self, at: int, exact: Outputs, made: Outputs) -> float:
        """Return how far the outputs of feed `at` are from fp32's, finely enough to add up over blocks."""


@dataclass(frozen=True)
class Holdout:
    """Feed dicts of [batch, …], the gate that holds their targets, and the tensors judged (none: all outputs)."""

    feeds: Sequence[Feed]
    gate: Gate
    judged: tuple[str, ...] = ()

    @property
    def rows(self) -> int:
        """The number of rows."""
        return count_rows(self.feeds)

    @property
    def digest(self) -> str:
        """Digest of the rows as they are fed, in that order, and of the gate."""
        fed = hashlib.sha256()
        for feed in self.feeds:
            for name, column in sorted(feed.items()):
                fed.update(f"{name} {column.dtype} {column.shape};".encode() + np.ascontiguousarray(column).tobytes())
        return digest_of((fed.hexdigest(), self.gate.digest, self.judged))


@dataclass(frozen=True)
class MetricGate:
    """The release's own quality gate: paired loss against fp32, one-sided at 95 %, at most `limit` (a share).

    `batches` are the inputs of each feed, which `encoder` made of them, and `targets` those of all in that order;
    `groups` say which of these rows belong together, where some do.
    """

    task: ModelTask
    encoder: Encoder
    batches: tuple[tuple[Any, ...], ...]
    targets: tuple[Any, ...]
    limit: float
    groups: tuple[str, ...] = ()

    @property
    def digest(self) -> str:
        """Digest of the targets, their groups and the limit."""
        return digest_of((self.targets, self.limit, *([self.groups] if self.groups else [])))

    @property
    def drawn(self) -> int:
        """The number of rows, or of groups of them."""
        return len(set(self.groups)) if self.groups else len(self.targets)

    @property
    def provable(self) -> bool:
        """Whether so few rows could pass at all: Tango's bound with no row flipped is z² / (rows + z²)."""
        return self.drawn > 0 and Z_ONE_SIDED**2 / (self.drawn + Z_ONE_SIDED**2) <= self.limit

    def keep(self, at: int, outputs: Outputs) -> Answers | None:
        """Return the task's answers to the rows of a feed; None where outputs are not finite."""
        reduced = self._reduce(at, outputs)
        if not all(np.isfinite(reduced[position]).all() for position in self.task.judged_outputs):
            return None
        return self.task.answers(reduced, self.batches[at], self.encoder)

    def score(self, exact: Sequence[Answers | None], made: Sequence[Answers | None]) -> Score:
        """Return the loss of the task's first metric; outputs that are not finite pass nothing."""
        if any(answers is None for answers in (*exact, *made)):
            return Score(1.0, 1.0, False)
        metric, reference = self.task.metrics[0], _join(exact)
        before, after = (metric.score(each, self.targets, reference) for each in (reference, _join(made)))
        better = metric.higher_is_better
        loss = compare_scores(before, after, metric.aggregate, higher_is_better=better, groups=self.groups)
        return Score(loss.loss, loss.high, loss.high <= self.limit)

    def _reduce(self, at: int, outputs: Outputs) -> Outputs:
        return self.task.reduce_outputs(outputs, self.batches[at], self.encoder)

    def damage(self, at: int, exact: Outputs, made: Outputs) -> float:
        """Return the squared error of each judged output over its variance, summed."""
        exact, made = self._reduce(at, exact), self._reduce(at, made)
        return sum(_compute_error(exact[position], made[position]) for position in self.task.judged_outputs)


def _join(answers: Sequence[Answers | None]) -> Answers:
    return [answer for each in answers for answer in each or ()]


def _compute_error(exact: Floats, made: Floats) -> float:
    exact, made = exact.astype(np.float64), made.astype(np.float64)  # outputs of a graph may be whole numbers
    power = float(np.square(exact - exact.mean()).sum()) or 1.0
    return float(np.square(made - exact).sum()) / power


def rows_to_prove(limit: float) -> int:
    """Return the fewest rows that can prove a loss of at most `limit` (a share): those of which none flips."""
    return max(1, int(np.ceil(Z_ONE_SIDED**2 * (1 / limit - 1)))) if limit > 0 else 2**31


def run_holdout(file: Path, holdout: Holdout) -> list[Any]:
    """Return what the gate keeps of the judged outputs of the graph in a file, for each feed of the holdout."""
    model = onnx.load(file, load_external_data=False)
    shown, external = [output.name for output in model.graph.output], has_external_data(model)
    del model
    judged = list(holdout.judged) or shown
    session = open_session(file, [name for name in judged if name not in shown], external=external)
    return [holdout.gate.keep(at, session.run(judged, feed)) for at, feed in enumerate(holdout.feeds)]

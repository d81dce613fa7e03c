"""Rows on which a choice is made, and the gate that they are held against: never rows of the evaluation split."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import onnx

from registry.digest import digest_of
from tasks.calibration.probe import open_session
from tasks.calibration.rows import Feed
from tasks.graphs.files import has_external_data
from tasks.graphs.layers import Floats
from tasks.model_tasks.contract import ModelTask
from tasks.verdicts.intervals import Z_ONE_SIDED, paired_loss


@dataclass(frozen=True)
class Score:
    """What a graph loses against fp32 on the holdout, the bound of that at 95 % confidence, and whether it passes."""

    loss: float
    bound: float
    passed: bool


class Gate(Protocol):
    """Judges what a graph answers by what the fp32 graph answers; both [rows, …] for each feed."""

    @property
    def limit(self) -> float:
        """The largest bound that passes."""

    @property
    def digest(self) -> str:
        """Digest of what the gate judges by."""

    def score(self, exact: Sequence[Floats], made: Sequence[Floats]) -> Score:
        """Return loss, bound and verdict."""

    def damage(self, at: int, exact: Floats, made: Floats) -> float:
        """Return how far the outputs of feed `at` are from fp32's, finely enough to add up over blocks."""


@dataclass(frozen=True)
class Holdout:
    """Feed dicts of [batch, …], the gate that holds their targets, and the tensor judged (None: the first output)."""

    feeds: tuple[Feed, ...]
    gate: Gate
    output: str | None = None

    @property
    def rows(self) -> int:
        """The number of rows."""
        return sum(len(next(iter(feed.values()))) for feed in self.feeds)

    @property
    def digest(self) -> str:
        """Digest of the rows as they are fed, in that order, and of the gate."""
        fed = hashlib.sha256()
        for feed in self.feeds:
            for name, column in sorted(feed.items()):
                fed.update(f"{name} {column.dtype} {column.shape};".encode() + np.ascontiguousarray(column).tobytes())
        return digest_of((fed.hexdigest(), self.gate.digest, self.output))


@dataclass(frozen=True)
class MetricGate:
    """The release's own quality gate: paired loss against fp32, one-sided at 95 %, at most `limit` (a share).

    `targets` are in the order of the feeds' rows; what the graph gives is the task's output 0, [rows, …].
    """

    task: ModelTask
    targets: tuple[Any, ...]
    limit: float

    @property
    def digest(self) -> str:
        """Digest of the targets and the limit."""
        return digest_of((self.targets, self.limit))

    @property
    def provable(self) -> bool:
        """Whether so few rows could pass at all: Tango's bound with no row flipped is z² / (rows + z²)."""
        return len(self.targets) > 0 and Z_ONE_SIDED**2 / (len(self.targets) + Z_ONE_SIDED**2) <= self.limit

    def score(self, exact: Sequence[Floats], made: Sequence[Floats]) -> Score:
        """Return the loss of the task's metric; outputs that are not finite pass nothing."""
        outputs = np.concatenate(made)
        if not np.isfinite(outputs).all():
            return Score(1.0, 1.0, False)
        right_before, right = (
            self.task.scores(self.task.answers([each]), self.targets) for each in (np.concatenate(exact), outputs)
        )
        loss = paired_loss(right_before, right)
        return Score(loss.loss, loss.high, loss.high <= self.limit)

    def damage(self, at: int, exact: Floats, made: Floats) -> float:  # noqa: ARG002  # all rows are alike here
        """Return the squared error of the outputs over their variance."""
        power = float(np.square(exact - exact.mean()).sum()) or 1.0
        return float(np.square(made - exact).sum()) / power


def rows_to_prove(limit: float) -> int:
    """Return the fewest rows that can prove a loss of at most `limit` (a share): those of which none flips."""
    return max(1, int(np.ceil(Z_ONE_SIDED**2 * (1 / limit - 1)))) if limit > 0 else 2**31


def run_holdout(file: Path, holdout: Holdout) -> list[Floats]:
    """Return what the graph in a file gives for each feed of the holdout."""
    model = onnx.load(file, load_external_data=False)
    shown, external = [output.name for output in model.graph.output], has_external_data(model)
    del model
    judged = holdout.output or shown[0]
    session = open_session(file, [] if judged in shown else [judged], external=external)
    return [session.run([judged], feed)[0] for feed in holdout.feeds]

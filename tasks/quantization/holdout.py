"""Rows on which a choice is made, and the gate that they are held against: never rows of the evaluation split."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import onnx
from numpy.typing import NDArray

from registry.digest import digest_of
from tasks.calibration.probe import open_session
from tasks.calibration.rows import Feed
from tasks.graphs.files import has_external_data
from tasks.graphs.layers import Floats
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
        """Of what the gate judges by."""

    def score(self, exact: Sequence[Floats], made: Sequence[Floats]) -> Score:
        """Loss, bound and verdict."""

    def damage(self, at: int, exact: Floats, made: Floats) -> float:
        """How far the answers to feed `at` are from fp32's, finely: what adds up over blocks, before a label flips."""


@dataclass(frozen=True)
class Holdout:
    """Feed dicts of [batch, …], the gate that holds their labels, and the tensor judged (None: the first output)."""

    feeds: tuple[Feed, ...]
    gate: Gate
    output: str | None = None

    @property
    def rows(self) -> int:
        """How many rows there are."""
        return sum(len(next(iter(feed.values()))) for feed in self.feeds)

    @property
    def digest(self) -> str:
        """Of the rows as they are fed, in that order, and of the gate."""
        fed = hashlib.sha256()
        for feed in self.feeds:
            for name, column in sorted(feed.items()):
                fed.update(f"{name} {column.dtype} {column.shape};".encode() + np.ascontiguousarray(column).tobytes())
        return digest_of((fed.hexdigest(), self.gate.digest, self.output))


@dataclass(frozen=True)
class AccuracyGate:
    """The release's own accuracy gate: paired loss against fp32, one-sided at 95 %, at most `limit` (a share).

    `labels` are in the order of the feeds' rows; answers are logits [rows, classes].
    """

    labels: tuple[int, ...]
    limit: float

    @property
    def digest(self) -> str:
        """Of the labels and the limit."""
        return digest_of((self.labels, self.limit))

    @property
    def provable(self) -> bool:
        """Whether so few rows could pass at all: Tango's bound with no row flipped is z² / (rows + z²)."""
        return len(self.labels) > 0 and Z_ONE_SIDED**2 / (len(self.labels) + Z_ONE_SIDED**2) <= self.limit

    def score(self, exact: Sequence[Floats], made: Sequence[Floats]) -> Score:
        """Accuracy lost; logits that are not finite pass nothing."""
        logits, truth = np.concatenate(made), np.asarray(self.labels)
        if not np.isfinite(logits).all():
            return Score(1.0, 1.0, False)
        found = paired_loss(_right(np.concatenate(exact), truth), _right(logits, truth))
        return Score(found.loss, found.high, found.high <= self.limit)

    def damage(self, at: int, exact: Floats, made: Floats) -> float:  # noqa: ARG002  # all rows are alike here
        """Squared error of the logits over their variance."""
        power = float(np.square(exact - exact.mean()).sum()) or 1.0
        return float(np.square(made - exact).sum()) / power


def rows_to_prove(limit: float) -> int:
    """Fewest rows that can prove a loss of at most `limit` (a share): those of which none flips."""
    return max(1, int(np.ceil(Z_ONE_SIDED**2 * (1 / limit - 1)))) if limit > 0 else 2**31


def _right(logits: Floats, truth: NDArray[np.int64]) -> NDArray[np.bool_]:
    right: NDArray[np.bool_] = logits.argmax(axis=-1) == truth
    return right


def answers(file: Path, holdout: Holdout) -> list[Floats]:
    """What the graph in a file gives for each feed of the holdout."""
    model = onnx.load(file, load_external_data=False)
    shown, external = [each.name for each in model.graph.output], has_external_data(model)
    del model
    wanted = holdout.output or shown[0]
    session = open_session(file, [] if wanted in shown else [wanted], external=external)
    return [session.run([wanted], feed)[0] for feed in holdout.feeds]

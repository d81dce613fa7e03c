"""Accuracy on the evaluation split: every row once through a session, per-row answers kept."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from registry.digest import record_tree
from registry.errors import MeasurementError
from registry.records import EngineBuild, FileRecord
from tasks.backends import open_engine
from tasks.execution.progress import OnProgress
from tasks.model_tasks.text_inputs import FeedDict, TextEncoder, batches, text_encoder

LARGEST_BATCH = 32


class Runs(Protocol):
    """What a backend's session offers: feed dict in, outputs in graph order out."""

    def run(self, feed: FeedDict) -> list[NDArray[np.float32]]:
        """Outputs on the host."""


@dataclass(frozen=True)
class Evaluation:
    """Predicted class per row, in the order of the evaluation rows, in predictions.npy."""

    rows: int
    accuracy: float
    subject_digest: str
    files: tuple[FileRecord, ...]
    directory: Path = field(default=Path(), compare=False)

    def predictions(self) -> NDArray[np.int64]:
        """Predicted class per row, int64 [rows]."""
        predicted: NDArray[np.int64] = np.load(self.directory / "predictions.npy", allow_pickle=False)
        return predicted


def evaluate(
    session: Runs,
    encoder: TextEncoder,
    texts: Sequence[str],
    labels: Sequence[int],
    *,
    subject_digest: str,
    into: Path,
    batch_size: int = LARGEST_BATCH,
    on_progress: Callable[[float], object] = lambda _: None,
) -> Evaluation:
    """Run every text through `session`; output 0 is logits [batch, classes], the answer is its argmax.

    Raises:
        MeasurementError: the session gave NaN or infinite logits.
    """
    predictions = np.full(len(texts), -1, dtype=np.int64)
    done = 0
    for positions, batch in batches(texts, batch_size):
        logits = session.run(encoder.encode(batch))[0]
        if not np.isfinite(logits).all():
            raise MeasurementError(f"the graph {subject_digest[:12]} gave NaN or infinite logits: it cannot be judged")
        predictions[positions] = logits.argmax(axis=-1)
        done += len(batch)
        on_progress(done / len(texts))
    np.save(into / "predictions.npy", predictions)
    accuracy = float((predictions == np.asarray(labels)).mean())
    return Evaluation(len(texts), accuracy, subject_digest, record_tree(into), into)


def evaluate_engine(
    build: EngineBuild,
    checkpoint: Path,
    max_length: int,
    texts: tuple[str, ...],
    labels: tuple[int, ...],
    into: Path,
    on_progress: OnProgress,
) -> Evaluation:
    """Load an engine (its sha256 is checked first) and run every text through it; run it isolated."""
    encoder = text_encoder(checkpoint, [tensor.name for tensor in build.inputs], max_length=max_length)
    return evaluate(
        open_engine(build),
        encoder,
        texts,
        labels,
        subject_digest=build.digest,
        into=into,
        batch_size=min([LARGEST_BATCH, *(profile.batch.max for profile in build.profiles)]),
        on_progress=lambda done: on_progress("evaluate", done),
    )

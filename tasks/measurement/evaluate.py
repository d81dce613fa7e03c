"""Answers on the evaluation split: every row once through a session, one answer kept per row."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from registry.digest import record_tree
from registry.errors import MeasurementError
from registry.records import EngineBuild, FileRecord, largest_axes
from tasks.backends import open_engine
from tasks.execution.progress import OnProgress
from tasks.measurement.answers import ANSWERS_FILE, read_answers, write_answers
from tasks.model_tasks import model_task
from tasks.model_tasks.contract import Answers, Encoder, Feed, ModelTask

LARGEST_BATCH = 32


class Runs(Protocol):
    """What a backend's session offers: feed dict in, outputs in graph order out."""

    def run(self, feed: Feed) -> list[NDArray[Any]]:
        """Return the outputs, on the host."""


@dataclass(frozen=True)
class Evaluation:
    """The task's answer for each evaluation row, in the order of the rows, in answers.npz."""

    rows: int
    subject_digest: str
    files: tuple[FileRecord, ...]
    directory: Path = field(default=Path(), compare=False)

    def answers(self) -> Answers:
        """Read the answers, one array per row."""
        return read_answers(self.directory / ANSWERS_FILE)


def evaluate(
    session: Runs,
    task: ModelTask,
    encoder: Encoder,
    inputs: Sequence[Any],
    *,
    subject_digest: str,
    into: Path,
    batch_size: int = LARGEST_BATCH,
    on_progress: Callable[[float], object] = lambda _: None,
) -> Evaluation:
    """Run every input through `session` and keep the task's answers.

    Raises:
        MeasurementError: the session gave NaN or infinite outputs.
    """
    answers: dict[int, Any] = {}
    for positions, batch in encoder.batches(inputs, batch_size):
        outputs = session.run(encoder.encode(batch))
        if not all(np.isfinite(outputs[position]).all() for position in task.judged_outputs):
            raise MeasurementError(f"the graph {subject_digest[:12]} gave NaN or infinite outputs: it cannot be judged")
        answers.update(zip(positions, task.answers(outputs, batch, encoder), strict=True))
        on_progress(len(answers) / len(inputs))
    write_answers([answers[position] for position in range(len(inputs))], into / ANSWERS_FILE)
    return Evaluation(len(inputs), subject_digest, record_tree(into), into)


def evaluate_engine(
    build: EngineBuild,
    task: str,
    checkpoint: Path,
    largest: Mapping[str, int],
    inputs: tuple[Any, ...],
    into: Path,
    on_progress: OnProgress,
) -> Evaluation:
    """Load an engine (its sha256 is checked first) and run every input through it; run it isolated.

    Inputs are cut at the `largest` size of each named axis.
    """
    chosen = model_task(task)
    return evaluate(
        open_engine(build),
        chosen,
        chosen.open_encoder(checkpoint, build.input_names, largest),
        inputs,
        subject_digest=build.digest,
        into=into,
        batch_size=min(LARGEST_BATCH, largest_axes(build.profiles).get("batch", LARGEST_BATCH)),
        on_progress=lambda done: on_progress("evaluate", done),
    )

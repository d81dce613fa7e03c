"""Answers on the evaluation split: every row through a session, one answer kept per row and batching."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from registry.digest import record_tree
from registry.errors import MeasurementError
from registry.records import AxisRange, EngineBuild, FileRecord
from tasks.backends import open_engine
from tasks.bundle.golden import GOLDEN_FILE, Golden, parse_golden, write_golden
from tasks.bundle.record_golden import record_golden
from tasks.execution.progress import OnProgress
from tasks.measurement.answers import answers_file, read_answers, write_answers
from tasks.measurement.batching import (
    Batch,
    BatchDependence,
    Batching,
    OutputComparison,
    batch_padded,
    choose_probed,
    find_longest,
)
from tasks.measurement.machine import this_machine
from tasks.model_tasks.contract import Answers, Encoder, Feed, ModelTask

LARGEST_BATCH = 32
ANY_BATCH = AxisRange(1, LARGEST_BATCH, LARGEST_BATCH)


class Runs(Protocol):
    """What a backend's session offers: feed dict in, outputs in graph order out."""

    def run(self, feed: Feed) -> list[NDArray[Any]]:
        """Return the outputs, on the host."""


@dataclass(frozen=True)
class Evaluation:
    """The task's answer for each evaluation row, in the order of the rows, in a file for each of `batchings`.

    There is one batching where answers do not depend on the batch, as `dependence` says.
    Beside them are the golden inputs of a bundle in golden.json, where there are any.
    """

    rows: int
    subject_digest: str
    files: tuple[FileRecord, ...]
    batchings: tuple[Batching, ...] = (Batching.BY_LENGTH,)
    dependence: BatchDependence | None = None
    directory: Path = field(default=Path(), compare=False)

    def answers(self, batching: Batching = Batching.BY_LENGTH) -> Answers:
        """Read the answers, one array per row."""
        return read_answers(self.directory / answers_file(batching))

    def sha256(self, batching: Batching) -> str:
        """Return the digest of the file with the answers."""
        return next(file.sha256 for file in self.files if file.path == answers_file(batching))

    def golden(self, subject: str) -> Golden | None:
        """Read the golden inputs; `subject` is what answered them for a bundle: its engine, or the exact graph."""
        file = self.directory / GOLDEN_FILE
        return replace(parse_golden(file.read_bytes(), str(file)), subject=subject) if file.is_file() else None


@dataclass
class _Passes:
    """Runs rows through a session in one batching after another, and keeps the answer to each row in each."""

    session: Runs
    task: ModelTask
    encoder: Encoder
    inputs: Sequence[Any]
    subject_digest: str
    on_progress: OnProgress
    answers: dict[Batching, dict[int, Any]] = field(default_factory=lambda: {each: {} for each in Batching})
    outputs: OutputComparison = field(default_factory=OutputComparison)
    # Of the batches of like length: the values that a row has in the feed, and the rows.
    widths: dict[float, Sequence[int]] = field(default_factory=dict)

    def run(self, batching: Batching, batches: Iterable[Batch], rows: int) -> None:
        """Run batches, after which `rows` rows have run in this batching."""
        answers = self.answers[batching]
        for positions, batch in batches:
            feed = self.encoder.encode(batch)
            outputs = self.task.reduce_outputs(self.session.run(feed), batch, self.encoder)
            judged = [outputs[position] for position in self.task.judged_outputs]
            if not all(np.isfinite(output).all() for output in judged):
                raise MeasurementError(
                    f"the graph {self.subject_digest[:12]} gave NaN or infinite outputs: it cannot be judged"
                )
            answers.update(zip(positions, self.task.answers(outputs, batch, self.encoder), strict=False))
            self.outputs.add(batching, positions, len(batch), judged)
            if batching is Batching.BY_LENGTH:
                self.widths[sum(array.size / len(array) for array in feed.values())] = positions
            self.on_progress(f"evaluate {batching}", len(answers) / rows)

    def run_alone(self, positions: Sequence[int]) -> None:
        """Run rows one at a time."""
        rows = len(self.answers[Batching.ALONE]) + len(positions)
        self.run(Batching.ALONE, (([position], [self.inputs[position]]) for position in positions), rows)

    def run_padded(self, positions: Sequence[int], size: int) -> None:
        """Run rows beside the longest row, where rows differ in length."""
        if len(self.widths) > 1:
            longest = find_longest(self.encoder, self.inputs, self.widths[max(self.widths)])
            rows = len(self.answers[Batching.PADDED]) + len(positions)
            self.run(Batching.PADDED, batch_padded(self.encoder, self.inputs, positions, size, longest), rows)

    def count_flips(self, positions: Sequence[int]) -> int:
        """Count the rows whose answer is not the same in all batchings."""
        first = self.answers[Batching.BY_LENGTH]
        differs = self.task.metrics[0].differs
        others = [found for batching, found in self.answers.items() if found and batching is not Batching.BY_LENGTH]
        return sum(any(differs(first[row], other[row]) for other in others) for row in positions)


@dataclass(frozen=True)
class AskedInputs:
    """The inputs that an engine is judged on, and those that its bundle carries with their answers."""

    judged: tuple[Any, ...]
    golden: tuple[Any, ...] = ()


def evaluate(
    session: Runs,
    task: ModelTask,
    encoder: Encoder,
    inputs: Sequence[Any],
    *,
    subject_digest: str,
    into: Path,
    batch: AxisRange = ANY_BATCH,
    on_progress: OnProgress = lambda _phase, _fraction: None,
) -> Evaluation:
    """Run every input through `session`, in batches of like length, and keep the task's answers.

    Where `batch` allows it, some rows run alone too, and beside the longest row; all rows do where one of them is
    answered otherwise so.

    Raises:
        MeasurementError: the session gave NaN or infinite outputs.
    """
    passes = _Passes(session, task, encoder, inputs, subject_digest, on_progress)
    size, positions = min(LARGEST_BATCH, batch.max), range(len(inputs))
    tried: Sequence[int] = choose_probed(len(inputs)) if batch.min == 1 < size else []
    passes.run_alone(tried)
    passes.run(Batching.BY_LENGTH, encoder.batches(inputs, size), len(inputs))
    passes.run_padded(tried, size)
    flips = passes.count_flips(tried)
    if flips and len(tried) < len(inputs):
        rest = sorted(set(positions) - set(tried))
        passes.run_alone(rest)
        passes.run_padded(rest, size)
        tried, flips = positions, passes.count_flips(positions)
    dependence = BatchDependence(len(tried), flips, passes.outputs.largest) if tried else None
    batchings = tuple(each for each, found in passes.answers.items() if found and (flips or each is Batching.BY_LENGTH))
    for batching in batchings:
        write_answers([passes.answers[batching][position] for position in positions], into / answers_file(batching))
    return Evaluation(len(inputs), subject_digest, record_tree(into), batchings, dependence, into)


def evaluate_engine(
    build: EngineBuild,
    task: ModelTask,
    checkpoint: Path,
    largest: Mapping[str, int],
    inputs: AskedInputs,
    into: Path,
    on_progress: OnProgress,
) -> Evaluation:
    """Load an engine (its sha256 is checked first) and run every input through it; run it isolated.

    Inputs are cut at the `largest` size of each named axis.
    """
    session = open_engine(build)
    encoder = task.open_encoder(checkpoint, build.input_names, largest)
    golden = record_golden(session, task, encoder, inputs.golden, build=build, machine=this_machine())
    if golden is not None:
        write_golden(golden, into)
    batches = [axis for profile in build.profiles if (axis := profile.axis("batch"))]
    most = max((axis.max for axis in batches), default=LARGEST_BATCH)
    return evaluate(
        session,
        task,
        encoder,
        inputs.judged,
        subject_digest=build.digest,
        into=into,
        batch=AxisRange(min((axis.min for axis in batches), default=1), most, most),
        on_progress=on_progress,
    )

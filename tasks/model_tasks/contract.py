"""What one Hugging Face task decides; export, calibration, gates, registry and serving are blind to which it is.

A task is a value in `MODEL_TASKS` (tasks/model_tasks/__init__.py) that has these members, checked by the type checker.
Somebody else runs the session: a task turns rows into feeds, and outputs into answers and scores.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from calibration_data.reader import Rows
from registry.records import ModelSource

Feed = dict[str, NDArray[Any]]
"""Arrays by input name, each [batch, …]."""


Answers = Sequence[NDArray[Any]]
"""What a graph answers to each row, one array per row, all of one dtype and rank; a text is its UTF-8 bytes, uint8."""
Scores = NDArray[np.float64]
"""A few numbers per row, [rows, numbers]: what a metric is computed from."""
Counts = NDArray[np.float64]
"""How often each row is drawn, [resamples, rows]."""
Figures = NDArray[np.float64]
"""A metric's figure of each resample, [resamples]."""


# Axes of answers in which a graph has a number for each class.
CLASS_AXES = frozenset(("labels", "box_values"))
# Vectors and numbers are another answer where they are so much of their length apart.
CHANGED_SHARE = 0.01


def is_another_answer(one: NDArray[Any], other: NDArray[Any]) -> bool:
    """Tell whether two answers to a row differ; numbers and vectors by more than CHANGED_SHARE of their length."""
    if one.shape != other.shape:
        return True
    if one.dtype.kind != "f":
        return not np.array_equal(one, other)
    return bool(np.linalg.norm(one - other) > CHANGED_SHARE * np.linalg.norm(one))


@dataclass(frozen=True)
class OfSums:
    """A figure that sums of the rows' numbers give: `combine` maps sums [..., numbers] to figures [...]."""

    combine: Callable[[Scores], Figures]

    def __call__(self, scores: Scores, counts: Counts) -> Figures:
        """Return the figure of each resample."""
        return self.combine(counts @ scores)


@dataclass(frozen=True)
class Metric:
    """A figure that engines are compared by: a few numbers per row, and what they give over the rows drawn.

    `score` takes the answers, the targets and the answers of fp32 (for tasks without a truth), and returns the numbers.
    `aggregate` gives the figures of scores and of how often each row is drawn, mostly from sums (`OfSums`); None: one
    number that is 1 where a row is right and 0 where it is wrong, and their mean. So one paired test serves all metrics
    (tasks/verdicts/intervals.py). `reports_worst`: the figure of the worst row is reported too. `applies` tells by the
    answers whether there is anything to measure, of a metric that is only reported. `differs` tells whether two answers
    to one row count as different, where a row runs alone and in a batch; `changes` tells it of rows by their
    scores, where a number that changed is not enough.
    """

    name: str
    unit: str
    score: Callable[[Answers, Sequence[Any], Answers], Scores]
    aggregate: Callable[[Scores, Counts], Figures] | None = None
    higher_is_better: bool = True
    reports_worst: bool = False
    applies: Callable[[Answers], bool] = bool
    differs: Callable[[NDArray[Any], NDArray[Any]], bool] = is_another_answer
    changes: Callable[[Scores, Scores], NDArray[np.bool_]] | None = None

    def figure(self, scores: Scores) -> float:
        """Return the figure of rows that are each drawn once."""
        if self.aggregate is None:
            return float(scores[:, 0].mean())
        return float(self.aggregate(scores, np.ones((1, len(scores))))[0])

    @property
    def loss(self) -> str:
        """The name of what is lost of it against fp32."""
        return f"{self.name}_loss"


@dataclass(frozen=True)
class GraphInputs:
    """What a graph of a task takes: inputs of these `names`, or one of any name where there are none, all of `axes`.

    They are ids of tokens (integers) or values (floats). Of the axes the task's are dynamic, and the others have the
    sizes that the encoder gives (`fixed_sizes`).
    """

    names: tuple[str, ...]
    axes: tuple[str, ...]
    are_tokens: bool


@dataclass(frozen=True)
class EncodedSizes:
    """What encoding gave: the tokens of each input, and the largest id that there is or that came out."""

    tokens: tuple[int, ...]
    largest_id: int


class Encoder(Protocol):
    """Turns inputs into feeds for one graph."""

    def encode(self, inputs: Sequence[Any]) -> Feed:
        """Return the feed of one batch; rows are padded to the longest, and padding is masked."""

    def batches(self, inputs: Sequence[Any], size: int) -> Iterator[tuple[list[int], list[Any]]]:
        """Yield (positions, inputs) of at most `size` rows that need little padding together."""


class ShownAnswer(Protocol):
    """A dataclass whose fields are the JSON of one answer."""

    @property
    def line(self) -> str:
        """The answer for a terminal."""


class ModelTask(Protocol):
    """The members of a task."""

    @property
    def name(self) -> str:
        """Hugging Face's name of the task."""

    @property
    def columns(self) -> tuple[str, ...]:
        """Keys of `data:` in a recipe that name the dataset's columns: what the model reads first, the truth last."""

    @property
    def optional_columns(self) -> tuple[str, ...]:
        """Keys of `data:` that a recipe may name too."""

    @property
    def axes(self) -> tuple[str, ...]:
        """The dynamic axes of the task's graphs, each of which a profile has to name."""

    @property
    def optional_axes(self) -> tuple[str, ...]:
        """Those of `axes` that graphs of some checkpoints have: by config.json `check_shapes` says of which."""

    @property
    def graph_inputs(self) -> GraphInputs | None:
        """What a graph takes; None: any inputs, whose first axis is the batch, and others are named by the profiles."""

    @property
    def row_needs(self) -> str:
        """What a usable row has, for an error."""

    @property
    def export_task(self) -> str:
        """Optimum's name of the task that checkpoints are exported for."""

    @property
    def metrics(self) -> tuple[Metric, ...]:
        """What engines are judged by, and after it what is only reported."""

    @property
    def judged_outputs(self) -> tuple[int, ...]:
        """Positions of the outputs that answers are made of, as the task reduces them; none may be NaN or infinite.

        A given graph may have fewer, where the task makes them of these.
        """

    @property
    def answer_axes(self) -> tuple[str, ...]:
        """What the axes of a judged output are, such as batch, sequence, labels."""

    @property
    def serving_files(self) -> tuple[str, ...]:
        """The files of a checkpoint that a bundle carries for its encoder."""

    @property
    def request(self) -> str:
        """What a client of a server sends, as the input is named there: text, image or audio."""

    @property
    def answer_file(self) -> str | None:
        """How the name of an answer's file ends, such as .png, where each answer is the bytes of one; else None."""

    @property
    def example_inputs(self) -> tuple[Any, ...]:
        """Inputs to try an encoder on where no rows were read."""

    def read_row(self, row: Mapping[str, Any], classes: Sequence[str] | None) -> tuple[Any, Any] | None:
        """Return (input, target) of a dataset's row by the task's names of columns; None if unusable.

        `classes` are the names that the dataset gives to its targets, where it does.
        """

    def identify(self, row_input: Any) -> str:
        """Return what two inputs that are the same row have in common, for the search for overlapping splits."""

    def explain_row(self, row: Mapping[str, Any]) -> str:
        """Return, for an error, what is wrong with a row that `read_row` refused, and what to do."""

    def align_rows(self, rows: Rows, source: ModelSource) -> Rows:
        """Return the rows with targets as the model numbers them; the digest stays that of the rows as read.

        Raises:
            BadInput: the targets are another dataset's.
        """

    def check_rows(self, rows: Rows, source: ModelSource, folder: Path) -> None:
        """Check aligned rows against the files of the encoder in `folder`.

        Raises:
            BadInput: they do not go together.
        """

    def check_checkpoint(self, config: Mapping[str, Any]) -> None:
        """Check by config.json that a checkpoint is one of this task.

        Raises:
            BadInput: it has another head, or none.
        """

    def check_shapes(self, config: Mapping[str, Any], largest: Mapping[str, int]) -> None:
        """Check by config.json that a checkpoint takes inputs of the `largest` size of each named axis.

        Raises:
            BadInput: it does not.
        """

    def check_outputs(self, shapes: Sequence[Sequence[int]], classes: int, encoder: Encoder) -> None:
        """Check the shapes of a given graph's judged outputs, where `answer_axes` do not say all of them.

        Raises:
            BadInput: answers cannot be made of them.
        """

    def fixed_sizes(self, folder: Path) -> dict[str, int]:
        """Return the sizes of axes that a checkpoint's encoder always gives, by Optimum's names for them.

        Raises:
            BadInput: the encoder's files are missing.
        """

    def open_encoder(self, folder: Path, input_names: Sequence[str], largest: Mapping[str, int]) -> Encoder:
        """Open the encoder of a checkpoint or bundle; inputs are cut at the `largest` size of each named axis.

        Raises:
            BadInput: the folder lacks a file, or the graph has an input that the task's rows do not give.
        """

    def measure_inputs(self, folder: Path, inputs: Sequence[Any], largest: Mapping[str, int]) -> EncodedSizes:
        """Encode inputs with an encoder that nobody has tried: called in a process of its own, with a time limit.

        Raises:
            BadInput: the encoder's files are missing, or of another form, or it fails on an input.
        """

    def read_question(self, text: str) -> Any:
        """Return the input of what a user asks a bundle on the command line: a text, or the name of a file.

        Raises:
            BadInput: it has no answer, or the file cannot be read.
        """

    def read_request(self, content: bytes) -> tuple[str, Any]:
        """Return (how the answer names it, its input) of what a client sends: a text as UTF-8, or a file's bytes.

        Raises:
            BadInput: it has no answer, or is no such text or file.
        """

    def write_request(self, row_input: Any) -> bytes:
        """Return what a client sends to ask for a row's input: what `read_request` reads."""

    def reduce_outputs(
        self, outputs: Sequence[NDArray[Any]], inputs: Sequence[Any], encoder: Encoder
    ) -> Sequence[NDArray[Any]]:
        """Return what answers are made of, of a graph's outputs for `encoder.encode(inputs)`, at the same positions.

        What golden inputs record, and what the damage of a block is measured by. A task whose graph gives much that no
        answer is made of leaves it out here; `answers` takes what this returns.
        """

    def answers(self, outputs: Sequence[NDArray[Any]], inputs: Sequence[Any], encoder: Encoder) -> Answers:
        """Return one answer per input, from the reduced outputs of a graph for `encoder.encode(inputs)`."""

    def show(
        self,
        outputs: Sequence[NDArray[Any]],
        inputs: Sequence[Any],
        questions: Sequence[str],
        classes: Sequence[str],
        encoder: Encoder,
    ) -> list[ShownAnswer]:
        """Return what `enginery run` prints for each question: the answer to its input, and how it is named."""

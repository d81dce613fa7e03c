"""The model task of a user's Python file: what the file's functions give, checked, where the contract wants it."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from calibration_data.reader import Rows
from registry.errors import BadInput
from registry.records import ModelSource
from tasks.model_tasks.contract import Answers, EncodedSizes, Encoder, Feed, GraphInputs, Metric, Scores, ShownAnswer
from tasks.model_tasks.labels import show_value
from tasks.model_tasks.own.checks import check_answers, check_feed, check_scores
from tasks.model_tasks.own.code import TASK_FILE, ModuleCode, open_code
from tasks.model_tasks.own.declarations import AGGREGATES, Declarations, DeclaredMetric
from tasks.model_tasks.own.values import make_plain, pack_value, read_asked, unpack_value

# The task's name in a recipe and in a manifest.
MODULE = "module"
# An input that is shorter is shown itself where rows are named.
SHOWN_CHARACTERS = 200


@dataclass(frozen=True)
class OwnAnswer:
    """An input as it was asked, and what the task module shows of its answer."""

    question: str
    answer: Any

    @property
    def line(self) -> str:
        """The answer for a terminal."""
        if isinstance(self.answer, dict):
            shown = ", ".join(f"{name} {_show(value)}" for name, value in self.answer.items())
        else:
            shown = _show(self.answer)
        return f"{shown}  {self.question:.80}"


@dataclass(frozen=True)
class OwnScore:
    """The scores of a task module, as a metric takes them."""

    code: ModuleCode
    metric: DeclaredMetric

    def __call__(self, answers: Answers, targets: Sequence[Any], _reference: Answers) -> Scores:
        """Return the numbers of each row, float64 [rows, numbers].

        Raises:
            BadInput: score() fails, or returns something else.
        """
        given = self.code.call("score", list(answers), [unpack_value(target) for target in targets])
        return check_scores(given, len(answers), self.metric, self.code.shown)


@dataclass(frozen=True)
class ModuleEncoder:
    """Makes feeds by preprocess()."""

    code: ModuleCode
    input_names: tuple[str, ...]

    def encode(self, inputs: Sequence[Any]) -> Feed:
        """Return the arrays of preprocess() for a batch, by the graph's inputs.

        Raises:
            BadInput: it fails, or returns something else.
        """
        given = self.code.call("preprocess", [unpack_value(each) for each in inputs])
        return check_feed(given, self.input_names, len(inputs), self.code.shown)

    def batches(self, inputs: Sequence[Any], size: int) -> Iterator[tuple[list[int], list[Any]]]:
        """Yield rows in batches, the shortest first: as far as lengths differ, those of a batch are alike."""
        order = sorted(range(len(inputs)), key=lambda position: len(inputs[position]))
        for start in range(0, len(order), size):
            positions = order[start : start + size]
            yield positions, [inputs[position] for position in positions]


@dataclass(frozen=True)
class ModuleTask:
    """A task by its code and its constants; inputs and targets of rows are packed text (values.py).

    `axes` are those of the profiles: the batch is the first of each input and judged output, others go by their names.
    """

    code: ModuleCode
    declared: Declarations
    axes: tuple[str, ...]
    name: str = MODULE
    graph_inputs: GraphInputs | None = None
    optional_columns: tuple[str, ...] = ()
    answer_axes: tuple[str, ...] = ()
    optional_axes: tuple[str, ...] = ()
    request: str = "text"
    answer_file: str | None = None
    example_inputs: tuple[Any, ...] = ()

    @property
    def columns(self) -> tuple[str, ...]:
        """The dataset's columns that rows() reads."""
        return self.declared.columns

    @property
    def row_needs(self) -> str:
        """What a usable row has."""
        return f"what rows() of {self.code.shown} takes"

    @property
    def export_task(self) -> str:
        """None of Optimum's: a graph or a module is given.

        Raises:
            BadInput: always.
        """
        raise BadInput(f"task: {MODULE} exports no checkpoint: name the graph in source.onnx")

    @property
    def metrics(self) -> tuple[Metric, ...]:
        """The metric of the module."""
        declared = self.declared.metric
        compute = AGGREGATES[declared.aggregate].compute
        score = OwnScore(self.code, declared)
        return (Metric(declared.name, declared.unit, score, compute, higher_is_better=declared.higher_is_better),)

    @property
    def judged_outputs(self) -> tuple[int, ...]:
        """The first OUTPUTS of the graph."""
        return tuple(range(self.declared.outputs))

    @property
    def serving_files(self) -> tuple[str, ...]:
        """The code, and FILES."""
        return (TASK_FILE, *self.declared.files)

    def read_row(self, row: Mapping[str, Any], _classes: Sequence[str] | None) -> tuple[str, str] | None:
        """Return what rows() gives for a row, as text.

        Raises:
            BadInput: it fails, or returns neither None nor (input, target).
        """
        pair, what = self.code.call("rows", dict(row)), f"{self.code.shown}: rows() returns"
        if pair is None:
            return None
        if not isinstance(pair, tuple | list) or len(pair) != 2:
            raise BadInput(f"{what} {show_value(pair)}: return (input, target), or None for a row without them")
        given, target = pair
        return pack_value(given, f"{what} an input that"), pack_value(target, f"{what} a target that")

    def identify(self, row_input: str) -> str:
        """Return the input, or the sha256 of a long one."""
        return row_input if len(row_input) < SHOWN_CHARACTERS else f"sha256 {sha256(row_input.encode()).hexdigest()}"

    def explain_row(self, row: Mapping[str, Any]) -> str:
        """Return that rows() wants no such row."""
        return f"rows() of {self.code.shown} returned None for {show_value(dict(row))}: correct one of them"

    def align_rows(self, rows: Rows, source: ModelSource) -> Rows:  # noqa: ARG002
        """Return the rows as they are."""
        return rows

    def check_rows(self, rows: Rows, source: ModelSource, folder: Path) -> None:
        """Check nothing: rows() reads them."""

    def check_checkpoint(self, config: Mapping[str, Any]) -> None:  # noqa: ARG002
        """Refuse a checkpoint.

        Raises:
            BadInput: always.
        """
        raise BadInput(f"task: {MODULE} takes no checkpoint: name its graph in source.onnx")

    def check_shapes(self, config: Mapping[str, Any], largest: Mapping[str, int]) -> None:
        """Check nothing: the graph's axes are checked against the profiles."""

    def check_outputs(self, shapes: Sequence[Sequence[int]], classes: int, encoder: Encoder) -> None:
        """Check nothing: answers() is tried on real rows."""

    def fixed_sizes(self, folder: Path) -> dict[str, int]:  # noqa: ARG002
        """Return none: what is fixed stands in the graph."""
        return {}

    def open_encoder(self, folder: Path, input_names: Sequence[str], largest: Mapping[str, int]) -> Encoder:  # noqa: ARG002
        """Return what makes feeds by the module in a source's or bundle's folder."""
        return ModuleEncoder(self._code_in(folder), tuple(input_names))

    def measure_inputs(self, folder: Path, inputs: Sequence[Any], largest: Mapping[str, int]) -> EncodedSizes:  # noqa: ARG002
        """Make the feed of each input alone; its tensors are checked against the graph's later."""
        code, tokens = self._code_in(folder), []
        for each in inputs:
            given = code.call("preprocess", [unpack_value(each)])
            feed = check_feed(given, tuple(given) if isinstance(given, dict) else (), 1, code.shown)
            tokens.append(sum(array.size for array in feed.values()))
        return EncodedSizes(tuple(tokens), 0)

    def read_question(self, text: str) -> str:
        """Return the input that a text stands for: what question() says, else JSON, else the text.

        Raises:
            BadInput: question() fails.
        """
        value = self.code.call("question", text) if self.code.has("question") else read_asked(text)
        return pack_value(value, f"{self.code.shown}: question() returns an input that")

    def read_request(self, content: bytes) -> tuple[str, str]:
        """Return (the text, its input) of a text as UTF-8.

        Raises:
            BadInput: it is no such text, or question() fails.
        """
        try:
            text = content.decode()
        except UnicodeDecodeError as error:
            raise BadInput(f"the text is not UTF-8 ({error}): send it in that encoding") from error
        return text, self.read_question(text)

    def write_request(self, row_input: str) -> bytes:
        """Return the input as text, UTF-8."""
        return row_input.encode()

    def reduce_outputs(
        self,
        outputs: Sequence[NDArray[Any]],
        inputs: Sequence[Any],  # noqa: ARG002
        encoder: Encoder,  # noqa: ARG002
    ) -> Sequence[NDArray[Any]]:
        """Return the outputs as they are."""
        return outputs

    def answers(self, outputs: Sequence[NDArray[Any]], inputs: Sequence[Any], encoder: Encoder) -> Answers:
        """Return the answers that the module makes of outputs.

        Raises:
            BadInput: it fails, or returns something else.
        """
        code = encoder.code if isinstance(encoder, ModuleEncoder) else self.code
        given = code.call("answers", list(outputs), [unpack_value(each) for each in inputs])
        return check_answers(given, len(inputs), code.shown)

    def show(
        self,
        outputs: Sequence[NDArray[Any]],
        inputs: Sequence[Any],
        questions: Sequence[str],
        classes: Sequence[str],  # noqa: ARG002
        encoder: Encoder,
    ) -> list[ShownAnswer]:
        """Return what the module shows of each answer, else its numbers."""
        answers = self.answers(outputs, inputs, encoder)
        shown = [self.code.call("show", each) for each in answers] if self.code.has("show") else answers
        what = f"{self.code.shown}: show() returns an answer that"
        return [OwnAnswer(text, make_plain(each, what)) for text, each in zip(questions, shown, strict=True)]

    def _code_in(self, folder: Path) -> ModuleCode:
        """Return the same code in a source's or bundle's folder, beside its own files."""
        file = folder / TASK_FILE
        return replace(self.code, file=file) if file.is_file() else self.code


def open_module_task(
    file: Path, axes: Sequence[str], *, digest: str | None = None, shown: str | None = None
) -> ModuleTask:
    """Open the task of a Python file whose profiles have these axes, without running it.

    With `digest` it has this sha256. `shown` is its name in errors.

    Raises:
        BadInput: it cannot be read, has another digest, or declares something wrong.
    """
    code = open_code(file, digest=digest, shown=shown)
    return ModuleTask(code, code.declarations(), tuple(axes))


def _show(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else value if isinstance(value, str) else json.dumps(value)

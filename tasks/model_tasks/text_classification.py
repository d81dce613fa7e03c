"""Text classification: one text in, one of the model's labels out, judged by accuracy."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from calibration_data.reader import Rows
from registry.errors import BadInput
from registry.records import ModelSource
from registry.triton.python_models import TEXT_CLASSIFICATION as PYTHON_MODEL
from registry.triton.python_models import PythonModel
from tasks.model_tasks.contract import Answers, EncodedSizes, Encoder, Metric, Scores, ShownAnswer
from tasks.model_tasks.text_inputs import TextEncoder, check_positions, measure_texts, open_text_encoder

# In characters. The tokenizer reads all of a text before it cuts it: so many take 1 s and 170 MB, ten times them 9 s.
LONGEST_TEXT = 1_000_000
# What transformers calls classes that nobody named.
_UNNAMED = re.compile(r"LABEL_\d+")
# A number as a CSV file writes it, with ".0" where the column once lacked values.
_WHOLE_NUMBER = re.compile(r"([0-9]{1,9})(\.0+)?")


def score_labels(answers: Answers, targets: Sequence[Any], _reference: Answers) -> Scores:
    """Return 1 where a label is right, else 0, [rows, 1]."""
    right: Scores = (np.asarray(answers) == np.asarray(targets)).astype(np.float64)[:, None]
    return right


ACCURACY = Metric("accuracy", "share", score_labels)


@dataclass(frozen=True)
class LabelledText:
    """The label of a text; `score` is its softmax probability."""

    text: str
    label: str
    score: float

    @property
    def line(self) -> str:
        """The answer for a terminal."""
        return f"{self.label} ({self.score:.0%})  {self.text}"


@dataclass(frozen=True)
class TextClassification:
    """One label per text; output 0 of the graph is logits [batch, labels], the answer is their argmax."""

    name: str = "text-classification"
    columns: tuple[str, ...] = ("text", "label")
    axes: tuple[str, ...] = ("batch", "sequence")
    optional_columns: tuple[str, ...] = ()
    row_needs: str = "a text that is not empty and a label"
    export_task: str = "text-classification"
    metrics: tuple[Metric, ...] = (ACCURACY,)
    judged_outputs: tuple[int, ...] = (0,)
    serving_files: tuple[str, ...] = ("tokenizer.json",)
    python_model: PythonModel | None = PYTHON_MODEL

    def read_row(self, row: Mapping[str, Any], classes: Sequence[str] | None) -> tuple[str, int | str] | None:
        """Return (text, label) where there is a text, and the label is one of the dataset's: a number or a name."""
        text, label = row["text"], _read_label(row["label"])
        if not isinstance(text, str) or not text.strip() or len(text) > LONGEST_TEXT or label is None:
            return None
        return (text, label) if isinstance(label, str) or label in range(len(classes) if classes else 2**31) else None

    def explain_row(self, row: Mapping[str, Any]) -> str:
        """Return what is wrong with the text or the label of a row."""
        text, label = row["text"], row["label"]
        if not isinstance(text, str) or not text.strip():
            return f"the text is {_show(text)}: name the column of the texts in data.text"
        if len(text) > LONGEST_TEXT:
            return f"the text has {len(text)} characters, more than {LONGEST_TEXT}: cut it"
        if isinstance(label, list | tuple):
            return f"the label is {_show(label)}: several labels per text are not supported, give one"
        return f"the label is {_show(label)}: give a whole number, counted from 0, or the name of a class"

    def identify(self, row_input: str) -> str:
        """Return the text without case and extra space."""
        return " ".join(row_input.casefold().split())

    def align_rows(self, rows: Rows, source: ModelSource) -> Rows:
        """Give the labels the model's numbers: names are matched without case, and never swapped.

        A model whose classes have no names of their own (LABEL_0, LABEL_1, …) takes the dataset's numbers as they are.
        Whole numbers are the names of classes where the model has such names, else its numbers.

        Raises:
            BadInput: a label is not one of the model's, or could be the name of one class and the number of another.
        """
        names = _names_of(rows, source)
        labels = [_read_label(names[label]) if names and isinstance(label, int) else label for label in rows.targets]
        numbers = {_fold_case(_read_label(name)): number for number, name in enumerate(source.classes)}
        if _are_numbers(labels, numbers, source, are_named=names is not None):
            numbers = {number: number for number in range(len(source.classes))}
        targets = [numbers.get(_fold_case(label)) for label in labels]
        if strange := [str(label) for label, number in zip(labels, targets, strict=True) if number is None]:
            raise BadInput(
                f"the labels of {rows.source} ({', '.join(sorted(set(strange))[:3])}) are not among the classes of "
                f"{source.name} ({', '.join(source.classes)}): use the dataset that the model was trained for"
            )
        return replace(rows, targets=tuple(targets))

    def check_checkpoint(self, config: Mapping[str, Any]) -> None:
        """Check that the checkpoint has a head that gives one label per text.

        Raises:
            BadInput: it has another head or none, or gives several labels or a number.
        """
        architectures = [str(name) for name in config.get("architectures") or ()]
        if architectures and not any(name.endswith("ForSequenceClassification") for name in architectures):
            raise BadInput(
                f"the checkpoint is a {architectures[0][:80]}, which has no head for {self.name}: use a fine-tuned "
                "checkpoint, or fit a head with source.head"
            )
        kind = config.get("problem_type")
        if kind not in (None, "single_label_classification"):
            raise BadInput(f"the checkpoint's problem_type is {str(kind)[:80]!r}: only one label per text is supported")
        if len(config.get("id2label") or range(config.get("num_labels") or 2)) < 2:
            raise BadInput("the checkpoint gives one number per text (regression): only labels are supported")

    def check_shapes(self, config: Mapping[str, Any], largest: Mapping[str, int]) -> None:
        """Check that the checkpoint has a position for each token of the longest text."""
        check_positions(config, largest)

    def open_encoder(self, folder: Path, input_names: Sequence[str], largest: Mapping[str, int]) -> TextEncoder:
        """Open the folder's tokenizer.json; texts are cut at the longest sequence."""
        return open_text_encoder(folder, input_names, largest)

    def measure_inputs(self, folder: Path, inputs: Sequence[str], largest: Mapping[str, int]) -> EncodedSizes:
        """Encode texts with the folder's tokenizer.json, which nobody has tried."""
        return measure_texts(folder, inputs, largest)

    def check_inputs(self, inputs: Sequence[str]) -> None:
        """Check that no text is empty, or longer than any is read.

        Raises:
            BadInput: one is.
        """
        if (longest := max(map(len, inputs), default=0)) > LONGEST_TEXT:
            raise BadInput(f"a text has {longest} characters, more than {LONGEST_TEXT}: cut it")
        if not all(text.strip() for text in inputs):
            raise BadInput("an empty text has no answer: give words")

    def answers(self, outputs: Sequence[NDArray[Any]], inputs: Sequence[str], encoder: Encoder) -> Answers:  # noqa: ARG002
        """Return the label with the largest logit, int64 [] per text."""
        return list(outputs[0].argmax(axis=-1).astype(np.int64))

    def show(
        self,
        outputs: Sequence[NDArray[Any]],
        inputs: Sequence[str],
        classes: Sequence[str],
        encoder: Encoder,  # noqa: ARG002
    ) -> list[ShownAnswer]:
        """Return the most probable label of each text."""
        logits = outputs[0].astype(np.float64)
        shifted = np.exp(logits - logits.max(axis=-1, keepdims=True))
        shares = shifted / shifted.sum(axis=-1, keepdims=True)
        return [
            LabelledText(text, classes[int(row.argmax())], float(row.max()))
            for text, row in zip(inputs, shares, strict=True)
        ]


TEXT_CLASSIFICATION = TextClassification()


def _read_label(value: object) -> int | str | None:
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, str):
        number = _WHOLE_NUMBER.fullmatch(value.strip())
        return int(number[1]) if number else value.strip() or None
    return int(value) if isinstance(value, int) else None


def _fold_case(label: int | str | None) -> int | str | None:
    return label.casefold() if isinstance(label, str) else label


def _names_of(rows: Rows, source: ModelSource) -> Sequence[str] | None:
    """Return the dataset's names of classes, where the model has names too or other numbers of them.

    Raises:
        BadInput: the names are numbers in another order, and the model has no names.
    """
    if not rows.classes or len(rows.classes) != len(source.classes):
        return rows.classes
    if not all(_UNNAMED.fullmatch(name) for name in source.classes):
        return rows.classes
    own, order = [_read_label(name) for name in rows.classes], list(range(len(rows.classes)))
    if own != order and set(own) == set(order):
        raise _two_meanings(own, source)
    return None


def _are_numbers(
    labels: Sequence[int | str | None],
    numbers: Mapping[int | str | None, int],
    source: ModelSource,
    *,
    are_named: bool,
) -> bool:
    """Tell whether labels are the model's numbers, and not names of its classes that look like numbers.

    Raises:
        BadInput: they could be both, and differ.
    """
    found = set(labels)
    if not all(isinstance(label, int) for label in found):
        return False
    if not found <= numbers.keys():
        return True
    are_swapped = any(numbers[label] != label for label in found)
    if are_swapped and not are_named and found <= set(range(len(source.classes))):
        raise _two_meanings(found, source)
    return False


def _two_meanings(labels: Iterable[int | str | None], source: ModelSource) -> BadInput:
    shown = ", ".join(sorted(map(str, labels))[:3])
    return BadInput(
        f"the labels {shown} could be names or numbers of the classes of {source.name} ({', '.join(source.classes)}): "
        "store the classes' names in the dataset, or in the checkpoint's id2label"
    )


def _show(value: object) -> str:
    return f"{type(value).__name__} {value!r:.60}"

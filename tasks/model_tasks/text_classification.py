"""Text classification: one text in, one of the model's labels out, judged by accuracy."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from calibration_data.reader import Rows
from registry.errors import BadInput
from registry.records import ModelSource
from registry.triton.python_models import TEXT_CLASSIFICATION as PYTHON_MODEL
from registry.triton.python_models import PythonModel
from tasks.model_tasks.contract import Answers, Encoder, Metric, ShownAnswer
from tasks.model_tasks.labels import check_head, compute_softmax, number_labels, read_label, show_value
from tasks.model_tasks.scores import ACCURACY
from tasks.model_tasks.text_inputs import LONGEST_TEXT
from tasks.model_tasks.text_task import TextTask


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
class TextClassification(TextTask):
    """One label per text; output 0 of the graph is logits [batch, labels], the answer is their argmax."""

    name: str = "text-classification"
    columns: tuple[str, ...] = ("text", "label")
    row_needs: str = "a text that is not empty and a label"
    export_task: str = "text-classification"
    metrics: tuple[Metric, ...] = (ACCURACY,)
    python_model: PythonModel | None = PYTHON_MODEL

    def read_row(self, row: Mapping[str, Any], classes: Sequence[str] | None) -> tuple[str, int | str] | None:
        """Return (text, label) where there is a text, and the label is one of the dataset's: a number or a name."""
        text, label = row["text"], read_label(row["label"])
        if not isinstance(text, str) or not text.strip() or len(text) > LONGEST_TEXT or label is None:
            return None
        return (text, label) if isinstance(label, str) or label in range(len(classes) if classes else 2**31) else None

    def explain_row(self, row: Mapping[str, Any]) -> str:
        """Return what is wrong with the text or the label of a row."""
        text, label = row["text"], row["label"]
        if not isinstance(text, str) or not text.strip():
            return f"the text is {show_value(text)}: name the column of the texts in data.text"
        if len(text) > LONGEST_TEXT:
            return f"the text has {len(text)} characters, more than {LONGEST_TEXT}: cut it"
        if isinstance(label, list | tuple):
            return f"the label is {show_value(label)}: several labels per text are not supported, give one"
        return f"the label is {show_value(label)}: give a whole number, counted from 0, or the name of a class"

    def align_rows(self, rows: Rows, source: ModelSource) -> Rows:
        """Give the labels the model's numbers: names are matched without case, and never swapped.

        Raises:
            BadInput: a label is not one of the model's.
        """
        return replace(rows, targets=tuple(number_labels(rows.targets, rows.classes, source, rows.source)))

    def check_checkpoint(self, config: Mapping[str, Any]) -> None:
        """Check that the checkpoint has a head that gives one label per text.

        Raises:
            BadInput: it has another head or none, or gives several labels or a number.
        """
        check_head(config, self.name, "ForSequenceClassification")
        kind = config.get("problem_type")
        if kind not in (None, "single_label_classification"):
            raise BadInput(f"the checkpoint's problem_type is {str(kind)[:80]!r}: only one label per text is supported")
        if len(config.get("id2label") or range(config.get("num_labels") or 2)) < 2:
            raise BadInput("the checkpoint gives one number per text (regression): only labels are supported")

    def answers(self, outputs: Sequence[NDArray[Any]], inputs: Sequence[str], encoder: Encoder) -> Answers:  # noqa: ARG002
        """Return the label with the largest logit, int64 [] per text."""
        return list(outputs[0].argmax(axis=-1).astype(np.int64))

    def show(
        self,
        outputs: Sequence[NDArray[Any]],
        questions: Sequence[str],
        classes: Sequence[str],
        encoder: Encoder,  # noqa: ARG002
    ) -> list[ShownAnswer]:
        """Return the most probable label of each text."""
        return [
            LabelledText(text, classes[int(row.argmax())], float(row.max()))
            for text, row in zip(questions, compute_softmax(outputs[0]), strict=True)
        ]


TEXT_CLASSIFICATION = TextClassification()

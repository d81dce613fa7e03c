"""Text classification: one text in, one of the model's labels out, judged by accuracy."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from calibration_data.reader import Rows
from registry.records import ModelSource
from tasks.model_tasks.contract import Answers, Encoder, Metric, ShownAnswer
from tasks.model_tasks.inputs.texts import LONGEST_TEXT
from tasks.model_tasks.labels import (
    check_head,
    check_one_label,
    compute_softmax,
    explain_label,
    number_labels,
    read_known_label,
    show_value,
)
from tasks.model_tasks.scores import ACCURACY, MACRO_F1
from tasks.model_tasks.texts.text_task import TextTask


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
    metrics: tuple[Metric, ...] = (ACCURACY, MACRO_F1)

    def read_row(self, row: Mapping[str, Any], classes: Sequence[str] | None) -> tuple[Any, int | str] | None:
        """Return (text, label) where there is a text, and the label is one of the dataset's: a number or a name."""
        text, label = row["text"], read_known_label(row["label"], classes)
        if not isinstance(text, str) or not text.strip() or len(text) > LONGEST_TEXT or label is None:
            return None
        return text, label

    def explain_row(self, row: Mapping[str, Any]) -> str:
        """Return what is wrong with the text or the label of a row."""
        text = row["text"]
        if not isinstance(text, str) or not text.strip():
            return f"the text is {show_value(text)}: name the column of the texts in data.text"
        if len(text) > LONGEST_TEXT:
            return f"the text has {len(text)} characters, more than {LONGEST_TEXT}: cut it"
        return explain_label(row["label"], of="text")

    def align_rows(self, rows: Rows, source: ModelSource) -> Rows:
        """Give the labels the model's numbers: names are matched without case, and never swapped.

        Raises:
            BadInput: a label is not one of the model's, or could be the name of one class and the number of another.
        """
        return replace(rows, targets=tuple(number_labels(rows.targets, rows.classes, source, rows.source)))

    def check_checkpoint(self, config: Mapping[str, Any]) -> None:
        """Check that the checkpoint has a head that gives one label per text.

        Raises:
            BadInput: it has another head or none, or gives several labels or a number.
        """
        check_head(config, self.name, "ForSequenceClassification")
        check_one_label(config, of="text")

    def answers(self, outputs: Sequence[NDArray[Any]], inputs: Sequence[Any], encoder: Encoder) -> Answers:  # noqa: ARG002
        """Return the label with the largest logit, int64 [] per text."""
        return list(outputs[0].argmax(axis=-1).astype(np.int64))

    def show(
        self,
        outputs: Sequence[NDArray[Any]],
        inputs: Sequence[Any],  # noqa: ARG002
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

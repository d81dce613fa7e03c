"""Text regression: a text or a pair of texts in, a number out, as rerankers and graders give; judged by Spearman."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from calibration_data.reader import Rows
from registry.errors import BadInput
from registry.records import ModelSource
from tasks.model_tasks.contract import Answers, Encoder, Metric, ShownAnswer
from tasks.model_tasks.inputs.texts import check_text, is_number, is_text
from tasks.model_tasks.labels import check_head, show_value
from tasks.model_tasks.scores import SPEARMAN
from tasks.model_tasks.texts.text_task import BETWEEN, TextTask


@dataclass(frozen=True)
class ScoredText:
    """The number that the model gives a text, or a pair of them."""

    text: str
    score: float

    @property
    def line(self) -> str:
        """The answer for a terminal."""
        return f"{self.score:.4g}  {self.text}"


@dataclass(frozen=True)
class TextRegression(TextTask):
    """One number per text or pair; output 0 of the graph is [batch, 1], as it is, without a sigmoid."""

    name: str = "text-regression"
    columns: tuple[str, ...] = ("text", "score")
    optional_columns: tuple[str, ...] = ("text_pair",)
    row_needs: str = "a text that is not empty, or two, and a number"
    answer_axes: tuple[str, ...] = ("batch", "width")
    export_task: str = "text-classification"
    metrics: tuple[Metric, ...] = (SPEARMAN,)

    def read_row(
        self, row: Mapping[str, Any], _classes: Sequence[str] | None
    ) -> tuple[str | tuple[str, ...], float] | None:
        """Return (text or pair, number) where each text has words, and the number is finite."""
        texts = [row[name] for name in ("text", "text_pair") if name in row]
        if not all(map(is_text, texts)) or not is_number(row["score"]):
            return None
        return (texts[0] if len(texts) == 1 else tuple(texts)), float(row["score"])

    def explain_row(self, row: Mapping[str, Any]) -> str:
        """Return what is wrong with the texts or the number of a row."""
        for column in ("text", "text_pair"):
            if column in row and not is_text(row[column]):
                return f"the {column} is {show_value(row[column])}: name the column of the texts in data.{column}"
        return f"the score is {show_value(row['score'])}: name the column of numbers in data.score"

    def align_rows(self, rows: Rows, source: ModelSource) -> Rows:  # noqa: ARG002
        """Return the rows as they are."""
        return rows

    def check_checkpoint(self, config: Mapping[str, Any]) -> None:
        """Check that the checkpoint gives one number per text.

        Raises:
            BadInput: it has another head or none, or gives labels.
        """
        check_head(config, self.name, "ForSequenceClassification")
        outputs = len(config.get("id2label") or range(config.get("num_labels") or 2))
        if outputs != 1:
            raise BadInput(f"the checkpoint gives {outputs} numbers per text, not one: use task: text-classification")

    def read_question(self, text: str) -> str | tuple[str, ...]:
        """Return a text, or the two of "one ||| other".

        Raises:
            BadInput: one is empty or too long.
        """
        texts = tuple(text.split(BETWEEN, 1))
        for each in texts:
            check_text(each)
        return texts[0] if len(texts) == 1 else texts

    def answers(self, outputs: Sequence[NDArray[Any]], inputs: Sequence[Any], encoder: Encoder) -> Answers:  # noqa: ARG002
        """Return the number of each text, float32 []."""
        return list(outputs[0].reshape(len(outputs[0]), -1)[:, 0].astype(np.float32))

    def show(
        self,
        outputs: Sequence[NDArray[Any]],
        inputs: Sequence[Any],
        questions: Sequence[str],
        classes: Sequence[str],  # noqa: ARG002
        encoder: Encoder,
    ) -> list[ShownAnswer]:
        """Return the number of each text."""
        numbers = self.answers(outputs, inputs, encoder)
        return [ScoredText(text, float(number)) for text, number in zip(questions, numbers, strict=True)]


TEXT_REGRESSION = TextRegression()

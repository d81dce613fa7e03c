"""Classification of pairs: two texts in, one of the model's labels out, such as entailment or paraphrase."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tasks.model_tasks.inputs.texts import check_text, is_text
from tasks.model_tasks.labels import explain_label, read_known_label, show_value
from tasks.model_tasks.texts.text_classification import TextClassification
from tasks.model_tasks.texts.text_task import split_pair


@dataclass(frozen=True)
class TextPairClassification(TextClassification):
    """One label per pair of texts, which the tokenizer joins; else as text classification."""

    name: str = "text-pair-classification"
    columns: tuple[str, ...] = ("text", "text_pair", "label")
    row_needs: str = "two texts that are not empty and a label"

    @property
    def example_inputs(self) -> tuple[tuple[str, str], ...]:
        """A short pair and a longer one."""
        return (("a text", "a text"), ("Another, longer text; it has 2 clauses.", "a text"))

    def read_row(
        self, row: Mapping[str, Any], classes: Sequence[str] | None
    ) -> tuple[tuple[str, str], int | str] | None:
        """Return ((text, text), label) where both have words, and the label is one of the dataset's."""
        first, second, label = row["text"], row["text_pair"], read_known_label(row["label"], classes)
        return ((first, second), label) if is_text(first) and is_text(second) and label is not None else None

    def explain_row(self, row: Mapping[str, Any]) -> str:
        """Return what is wrong with the texts or the label of a row."""
        for column in ("text", "text_pair"):
            if not is_text(row[column]):
                return f"the {column} is {show_value(row[column])}: name the column of the texts in data.{column}"
        return explain_label(row["label"], of="pair")

    def read_question(self, text: str) -> tuple[str, str]:
        """Return the two texts of "one ||| other".

        Raises:
            BadInput: there are not two, or one is empty or too long.
        """
        first, second = split_pair(text, example="a cat sleeps ||| an animal rests")
        for each in (first, second):
            check_text(each)
        return first, second


TEXT_PAIR_CLASSIFICATION = TextPairClassification()

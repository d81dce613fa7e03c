"""Multi-label classification: one text in, any number of the model's labels out, judged by micro-F1."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from calibration_data.reader import Rows
from registry.errors import BadInput
from registry.records import ModelSource
from tasks.model_tasks.contract import Answers, Encoder, Metric, OfSums, Scores, ShownAnswer
from tasks.model_tasks.inputs.texts import is_text
from tasks.model_tasks.labels import check_head, number_labels, read_known_label, show_value
from tasks.model_tasks.scores import compute_f1
from tasks.model_tasks.texts.text_task import TextTask


def count_labels(answers: Answers, targets: Sequence[Sequence[int]], _reference: Answers) -> Scores:
    """Return (right, wrong, missed) labels of each row, [rows, 3]."""
    given = np.stack([np.asarray(answer, dtype=bool) for answer in answers])
    true = np.zeros_like(given)
    for row, labels in enumerate(targets):
        true[row, list(labels)] = True
    return np.stack([(given & true).sum(1), (given & ~true).sum(1), (true & ~given).sum(1)], axis=1).astype(np.float64)


MICRO_F1 = Metric("micro_f1", "share", count_labels, OfSums(compute_f1))


@dataclass(frozen=True)
class ManyLabels:
    """The labels of a text with their sigmoid probabilities, the most probable first."""

    text: str
    labels: tuple[str, ...]
    scores: tuple[float, ...]

    @property
    def line(self) -> str:
        """The answer for a terminal."""
        shown = [f"{label} ({score:.0%})" for label, score in zip(self.labels, self.scores, strict=True)]
        return f"{', '.join(shown) or 'no label'}  {self.text}"


@dataclass(frozen=True)
class MultiLabelClassification(TextTask):
    """Labels per text: output 0 of the graph is logits [batch, labels], a label is given where its logit is positive.

    That is a sigmoid probability of more than a half, the threshold of transformers' own pipelines and examples.
    """

    name: str = "multi-label-classification"
    columns: tuple[str, ...] = ("text", "labels")
    row_needs: str = "a text that is not empty and a list of labels"
    export_task: str = "text-classification"
    metrics: tuple[Metric, ...] = (MICRO_F1,)

    def read_row(
        self, row: Mapping[str, Any], classes: Sequence[str] | None
    ) -> tuple[str, tuple[int | str, ...]] | None:
        """Return (text, labels) where there is a text, and each label is one of the dataset's; there may be none."""
        if not is_text(row["text"]) or not isinstance(row["labels"], list | tuple):
            return None
        labels = tuple(read_known_label(label, classes) for label in row["labels"])
        known = tuple(label for label in labels if label is not None)
        return (row["text"], known) if len(known) == len(labels) else None

    def explain_row(self, row: Mapping[str, Any]) -> str:
        """Return what is wrong with the text or the labels of a row."""
        if not is_text(row["text"]):
            return f"the text is {show_value(row['text'])}: name the column of the texts in data.text"
        return (
            f"the labels are {show_value(row['labels'])}: give a list of whole numbers, counted from 0, or of names of "
            "classes"
        )

    def align_rows(self, rows: Rows, source: ModelSource) -> Rows:
        """Give the labels the model's numbers: names are matched without case, and never swapped.

        Raises:
            BadInput: a label is not one of the model's.
        """
        flat = [label for labels in rows.targets for label in labels]
        numbers = iter(number_labels(flat, rows.classes, source, rows.source))
        return replace(rows, targets=tuple(tuple(next(numbers) for _ in labels) for labels in rows.targets))

    def check_checkpoint(self, config: Mapping[str, Any]) -> None:
        """Check that the checkpoint was trained to give several labels per text.

        Raises:
            BadInput: it has another head or none, or gives one label or a number.
        """
        check_head(config, self.name, "ForSequenceClassification")
        if config.get("problem_type") != "multi_label_classification":
            raise BadInput(
                f"the checkpoint's problem_type is {str(config.get('problem_type'))[:80]!r}, and not "
                "'multi_label_classification': correct its config.json, or use task: text-classification"
            )

    def answers(self, outputs: Sequence[NDArray[Any]], inputs: Sequence[str], encoder: Encoder) -> Answers:  # noqa: ARG002
        """Return which labels are given, bool [labels] per text."""
        return list(outputs[0] > 0)

    def show(
        self,
        outputs: Sequence[NDArray[Any]],
        inputs: Sequence[Any],  # noqa: ARG002
        questions: Sequence[str],
        classes: Sequence[str],
        encoder: Encoder,  # noqa: ARG002
    ) -> list[ShownAnswer]:
        """Return the labels of each text."""
        shares = 1 / (1 + np.exp(-outputs[0].astype(np.float64)))
        shown: list[ShownAnswer] = []
        for text, row in zip(questions, shares, strict=True):
            order = [int(label) for label in np.argsort(-row, kind="stable") if row[label] > 0.5]
            names = tuple(classes[label] for label in order)
            shown.append(ManyLabels(text, names, tuple(float(row[label]) for label in order)))
        return shown


MULTI_LABEL_CLASSIFICATION = MultiLabelClassification()

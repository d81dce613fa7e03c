"""Text classification: one text in, one of the model's labels out, judged by accuracy."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from calibration_data.reader import Rows
from registry.errors import BadInput
from registry.records import ModelSource
from registry.triton.python_models import TEXT_CLASSIFICATION as PYTHON_MODEL
from registry.triton.python_models import PythonModel
from tasks.model_tasks.contract import Metric, ShownAnswer
from tasks.model_tasks.text_inputs import TextEncoder, open_text_encoder

ACCURACY = Metric("accuracy", "share")


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
    row_needs: str = "a text that is not empty and a label"
    metric: Metric = ACCURACY
    judged_outputs: tuple[int, ...] = (0,)
    serving_files: tuple[str, ...] = ("tokenizer.json",)
    python_model: PythonModel | None = PYTHON_MODEL

    def read_row(self, values: Sequence[Any], classes: Sequence[str] | None) -> tuple[str, int] | None:
        """Return (text, label) where there is a text, and the label is one of the dataset's."""
        text, label = values
        labels = range(len(classes) if classes else 2**31)
        usable = isinstance(text, str) and text.strip() and isinstance(label, int) and label in labels
        return (text, label) if usable else None

    def identify(self, row_input: str) -> str:
        """Return the text without case and extra space."""
        return " ".join(row_input.casefold().split())

    def check_rows(self, rows: Rows, source: ModelSource) -> None:
        """Check that the dataset's labels are the model's, in the same order.

        Raises:
            BadInput: they are not.
        """
        names = rows.classes or source.classes
        same = [name.casefold() for name in names] == [name.casefold() for name in source.classes]
        if not same or max(rows.targets) >= len(source.classes):
            raise BadInput(
                f"the classes of {rows.source} ({', '.join(names)}; largest label {max(rows.targets)}) are not those "
                f"of {source.name} ({', '.join(source.classes)}): use the dataset that the model was trained for"
            )

    def open_encoder(self, folder: Path, input_names: Sequence[str], largest: Mapping[str, int]) -> TextEncoder:
        """Open the folder's tokenizer.json; texts are cut at the longest sequence."""
        return open_text_encoder(folder, input_names, largest)

    def check_inputs(self, inputs: Sequence[str]) -> None:
        """Check that no text is empty.

        Raises:
            BadInput: one is.
        """
        if not all(text.strip() for text in inputs):
            raise BadInput("an empty text has no answer: give words")

    def answers(self, outputs: Sequence[NDArray[Any]]) -> NDArray[np.int64]:
        """Return the label with the largest logit, int64 [rows]."""
        labels: NDArray[np.int64] = outputs[0].argmax(axis=-1).astype(np.int64)
        return labels

    def scores(self, answers: NDArray[Any], targets: Sequence[int]) -> NDArray[np.bool_]:
        """Return whether each label is right, bool [rows]."""
        right: NDArray[np.bool_] = answers == np.asarray(targets)
        return right

    def show(self, outputs: Sequence[NDArray[Any]], inputs: Sequence[str], classes: Sequence[str]) -> list[ShownAnswer]:
        """Return the most probable label of each text."""
        logits = outputs[0].astype(np.float64)
        shifted = np.exp(logits - logits.max(axis=-1, keepdims=True))
        shares = shifted / shifted.sum(axis=-1, keepdims=True)
        return [
            LabelledText(text, classes[int(row.argmax())], float(row.max()))
            for text, row in zip(inputs, shares, strict=True)
        ]


TEXT_CLASSIFICATION = TextClassification()

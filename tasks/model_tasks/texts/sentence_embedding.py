"""Sentence encoders: feature extraction judged by the cosine to fp32, and similarity of pairs judged by Spearman.

Pooling and normalisation are in the graph (tasks/graphs/pooling.py): output 0 is one vector per text.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from calibration_data.reader import Rows
from registry.errors import BadInput
from registry.records import ModelSource
from tasks.model_tasks.contract import Answers, Encoder, Feed, Metric, OfSums, Scores, ShownAnswer
from tasks.model_tasks.inputs.texts import (
    EXAMPLE_TEXTS,
    TextEncoder,
    check_text,
    is_text,
    open_text_encoder,
    read_number,
)
from tasks.model_tasks.labels import show_value
from tasks.model_tasks.scores import SPEARMAN, compute_ratio
from tasks.model_tasks.texts.text_task import BETWEEN, TextTask, split_pair

Pair = tuple[str, str]


def compute_cosines(one: Sequence[NDArray[Any]], other: Sequence[NDArray[Any]]) -> NDArray[np.float64]:
    """Return the cosine of each pair of vectors, float64 [rows]; 0 where one has no length."""
    a, b = (np.stack(vectors).astype(np.float64) for vectors in (one, other))
    lengths = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    cosines: NDArray[np.float64] = np.divide((a * b).sum(axis=1), lengths, out=np.zeros(len(a)), where=lengths > 0)
    return cosines


def score_cosines(answers: Answers, _targets: Sequence[Any], reference: Answers) -> Scores:
    """Return (cosine to the vector of fp32, 1) of each row, [rows, 2]."""
    cosines = compute_cosines(answers, reference)
    return np.stack([cosines, np.ones_like(cosines)], axis=1)


COSINE = Metric("cosine", "cosine", score_cosines, OfSums(compute_ratio), reports_worst=True)


@dataclass(frozen=True)
class TextVector:
    """The vector of a text."""

    text: str
    vector: tuple[float, ...]

    @property
    def line(self) -> str:
        """The answer for a terminal."""
        shown = ", ".join(f"{value:.4f}" for value in self.vector[:4])
        return f"[{shown}, …] {len(self.vector)} numbers  {self.text}"


@dataclass(frozen=True)
class SimilarTexts:
    """Two texts and the cosine of their vectors."""

    text: str
    text_pair: str
    cosine: float

    @property
    def line(self) -> str:
        """The answer for a terminal."""
        return f"{self.cosine:.3f}  {self.text}{BETWEEN}{self.text_pair}"


@dataclass(frozen=True)
class PairEncoder:
    """Encodes pairs of texts: the first texts of a batch, then the second ones, so a pair is two rows of the graph."""

    texts: TextEncoder

    def encode(self, inputs: Sequence[Pair]) -> Feed:
        """Return int64 arrays [2 · len(inputs), longest text in tokens]."""
        return dict(self.texts.encode([*(first for first, _ in inputs), *(second for _, second in inputs)]))

    def batches(self, inputs: Sequence[Pair], size: int) -> Iterator[tuple[list[int], list[Pair]]]:
        """Yield pairs of about the same length together, half as many as the graph takes rows."""
        order = sorted(range(len(inputs)), key=lambda position: max(map(len, inputs[position])))
        step = max(1, size // 2)
        for start in range(0, len(order), step):
            positions = order[start : start + step]
            yield positions, [inputs[position] for position in positions]


def check_encoder(config: Mapping[str, Any], task: str) -> None:
    """Check by config.json that a checkpoint is an encoder without a head.

    Raises:
        BadInput: it has a head, or a decoder.
    """
    architectures = [str(name) for name in config.get("architectures") or ()]
    if any("For" in name or "LMHead" in name for name in architectures) or config.get("is_encoder_decoder"):
        raise BadInput(
            f"the checkpoint is a {architectures[0][:80] if architectures else 'encoder with a decoder'}, no encoder "
            f"without a head, as {task} needs: use a sentence encoder"
        )


@dataclass(frozen=True)
class FeatureExtraction(TextTask):
    """One vector per text, judged by its cosine to that of fp32: rows need no truth."""

    name: str = "feature-extraction"
    columns: tuple[str, ...] = ("text",)
    answer_axes: tuple[str, ...] = ("batch", "width")
    row_needs: str = "a text that is not empty"
    export_task: str = "feature-extraction"
    metrics: tuple[Metric, ...] = (COSINE,)

    def read_row(self, row: Mapping[str, Any], _classes: Sequence[str] | None) -> tuple[str, None] | None:
        """Return (text, None) where there is a text."""
        return (row["text"], None) if is_text(row["text"]) else None

    def explain_row(self, row: Mapping[str, Any]) -> str:
        """Return what is wrong with the text of a row."""
        return f"the text is {show_value(row['text'])}: name the column of the texts in data.text"

    def align_rows(self, rows: Rows, source: ModelSource) -> Rows:  # noqa: ARG002
        """Return the rows as they are."""
        return rows

    def check_checkpoint(self, config: Mapping[str, Any]) -> None:
        """Check that the checkpoint is an encoder without a head.

        Raises:
            BadInput: it has one.
        """
        check_encoder(config, self.name)

    def answers(self, outputs: Sequence[NDArray[Any]], inputs: Sequence[str], encoder: Encoder) -> Answers:  # noqa: ARG002
        """Return the vector of each text, float32 [width]."""
        return list(outputs[0].astype(np.float32))

    def show(
        self,
        outputs: Sequence[NDArray[Any]],
        inputs: Sequence[Any],  # noqa: ARG002
        questions: Sequence[str],
        classes: Sequence[str],  # noqa: ARG002
        encoder: Encoder,  # noqa: ARG002
    ) -> list[ShownAnswer]:
        """Return the vector of each text."""
        return [TextVector(text, tuple(row.tolist())) for text, row in zip(questions, outputs[0], strict=True)]


@dataclass(frozen=True)
class SentenceSimilarity(TextTask):
    """How alike two texts are, judged by Spearman's rho with the scores of people.

    The answer is the cosine of the two vectors. A profile takes at least two rows, since a pair is two.
    """

    name: str = "sentence-similarity"
    columns: tuple[str, ...] = ("text", "text_pair", "score")
    answer_axes: tuple[str, ...] = ("batch", "width")
    row_needs: str = "two texts that are not empty and a number that says how alike they are"
    export_task: str = "feature-extraction"
    metrics: tuple[Metric, ...] = (SPEARMAN,)

    @property
    def example_inputs(self) -> tuple[Pair, ...]:
        """A pair of texts."""
        return (EXAMPLE_TEXTS,)

    def read_row(self, row: Mapping[str, Any], _classes: Sequence[str] | None) -> tuple[Pair, float] | None:
        """Return ((text, text), score) where there are two texts, and a number that is finite."""
        texts, score = (row["text"], row["text_pair"]), read_number(row["score"])
        return (texts, score) if all(map(is_text, texts)) and score is not None else None

    def explain_row(self, row: Mapping[str, Any]) -> str:
        """Return what is wrong with the texts or the score of a row."""
        for column in ("text", "text_pair"):
            if not is_text(row[column]):
                return f"the {column} is {show_value(row[column])}: name the column of the texts in data.{column}"
        return f"the score is {show_value(row['score'])}: name the column of numbers in data.score"

    def align_rows(self, rows: Rows, source: ModelSource) -> Rows:  # noqa: ARG002
        """Return the rows as they are."""
        return rows

    def check_checkpoint(self, config: Mapping[str, Any]) -> None:
        """Check that the checkpoint is an encoder without a head.

        Raises:
            BadInput: it has one.
        """
        check_encoder(config, self.name)

    def check_shapes(self, config: Mapping[str, Any], largest: Mapping[str, int]) -> None:
        """Check that the checkpoint has a position for each token of the longest text, and a batch room for a pair.

        Raises:
            BadInput: it has not.
        """
        super().check_shapes(config, largest)
        if largest.get("batch", 2) < 2:
            raise BadInput("a pair is two rows of the graph: give a profile's batch a max of 2 or more")

    def open_encoder(self, folder: Path, input_names: Sequence[str], largest: Mapping[str, int]) -> PairEncoder:
        """Open the folder's tokenizer.json; texts are cut at the longest sequence."""
        return PairEncoder(open_text_encoder(folder, input_names, largest))

    def read_question(self, text: str) -> Pair:
        """Return the two texts of "one ||| other".

        Raises:
            BadInput: there are not two, or one is empty or too long.
        """
        first, second = split_pair(text, example=f"a film{BETWEEN}a movie")
        check_text(first)
        check_text(second)
        return first, second

    def answers(self, outputs: Sequence[NDArray[Any]], inputs: Sequence[Pair], encoder: Encoder) -> Answers:  # noqa: ARG002
        """Return the cosine of each pair, float64 []."""
        first, second = np.split(outputs[0], 2)
        return list(compute_cosines(list(first), list(second)))

    def show(
        self,
        outputs: Sequence[NDArray[Any]],
        inputs: Sequence[Any],
        questions: Sequence[str],  # noqa: ARG002
        classes: Sequence[str],  # noqa: ARG002
        encoder: Encoder,
    ) -> list[ShownAnswer]:
        """Return the cosine of each pair."""
        cosines = self.answers(outputs, inputs, encoder)
        return [SimilarTexts(one, other, float(cos)) for (one, other), cos in zip(inputs, cosines, strict=True)]


FEATURE_EXTRACTION = FeatureExtraction()
SENTENCE_SIMILARITY = SentenceSimilarity()

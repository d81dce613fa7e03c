"""Question answering: a question and a context in, the words of the context that answer it out, judged by F1."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from calibration_data.reader import Rows
from registry.records import ModelSource
from tasks.model_tasks.contract import Answers, Encoder, Metric, OfSums, Scores, ShownAnswer
from tasks.model_tasks.inputs.spans import Passage, SpanEncoder, open_span_encoder
from tasks.model_tasks.inputs.texts import EXAMPLE_TEXTS, check_text, is_text
from tasks.model_tasks.inputs.written import encode_answers
from tasks.model_tasks.labels import check_head, compute_softmax, show_value
from tasks.model_tasks.scores import compute_ratio
from tasks.model_tasks.texts.text_task import BETWEEN, TextTask, split_pair

# In tokens, as in transformers' example (run_qa.py, `max_answer_length`).
LONGEST_ANSWER = 30


def score_answers(answers: Answers, targets: Sequence[Sequence[str]], _reference: Answers) -> Scores:
    """Return (F1 of the words, 1) of each row, [rows, 2]: with the best of a row's true answers, as SQuAD counts."""
    return np.array([(each["f1"] / 100, 1.0) for each in _compare_answers(answers, targets)])


def score_matches(answers: Answers, targets: Sequence[Sequence[str]], _reference: Answers) -> Scores:
    """Return 1 where a row's answer is one of the true ones but for articles, case and signs, else 0, [rows, 1]."""
    return np.array([(each["exact_match"] / 100,) for each in _compare_answers(answers, targets)])


def _compare_answers(answers: Answers, targets: Sequence[Sequence[str]]) -> list[dict[str, float]]:
    from torchmetrics.functional.text import squad  # brings torch

    rows = []
    for answer, target in zip(answers, targets, strict=True):
        given = {"prediction_text": bytes(answer).decode(), "id": "row"}
        texts: dict[str, list[str] | list[int]] = {"text": list(target), "answer_start": [0] * len(target)}
        rows.append({name: float(value) for name, value in squad(given, {"answers": texts, "id": "row"}).items()})
    return rows


ANSWER_F1 = Metric("answer_f1", "share", score_answers, OfSums(compute_ratio))
EXACT_MATCH = Metric("exact_match", "share", score_matches)


@dataclass(frozen=True)
class FoundAnswer:
    """The words of a context that answer a question; `score` is the softmax probability of their first and last."""

    question: str
    answer: str
    start: int
    end: int
    score: float

    @property
    def line(self) -> str:
        """The answer for a terminal."""
        return f"{self.answer} ({self.score:.0%})  {self.question}"


@dataclass(frozen=True)
class QuestionAnswering(TextTask):
    """An answer per question; the graph gives start and end logits [spans, tokens]."""

    name: str = "question-answering"
    columns: tuple[str, ...] = ("question", "context", "answers")
    row_needs: str = "a question, a context and an answer"
    export_task: str = "question-answering"
    metrics: tuple[Metric, ...] = (ANSWER_F1, EXACT_MATCH)
    judged_outputs: tuple[int, ...] = (0, 1)
    answer_axes: tuple[str, ...] = ("batch", "sequence")

    @property
    def example_inputs(self) -> tuple[Passage, ...]:
        """A question and a context."""
        return (EXAMPLE_TEXTS,)

    def read_row(self, row: Mapping[str, Any], _classes: Sequence[str] | None) -> tuple[Passage, Sequence[str]] | None:
        """Return ((question, context), answers) where there are a question, a context and at least one answer."""
        passage, answers = (row["question"], row["context"]), read_answers(row["answers"])
        return (passage, answers) if all(map(is_text, passage)) and answers else None

    def explain_row(self, row: Mapping[str, Any]) -> str:
        """Return what is wrong with the question, the context or the answers of a row."""
        for column in ("question", "context"):
            if not is_text(row[column]):
                return f"the {column} is {show_value(row[column])}: name the column of the texts in data.{column}"
        return (
            f"the answers are {show_value(row['answers'])}: give a text, a list of texts, or SQuAD's mapping with a "
            "list `text`; questions without an answer are not supported"
        )

    def align_rows(self, rows: Rows, source: ModelSource) -> Rows:  # noqa: ARG002
        """Return the rows as they are."""
        return rows

    def check_checkpoint(self, config: Mapping[str, Any]) -> None:
        """Check that the checkpoint has a head that gives where an answer begins and ends.

        Raises:
            BadInput: it has another head or none.
        """
        check_head(config, self.name, "ForQuestionAnswering")

    def open_encoder(self, folder: Path, input_names: Sequence[str], largest: Mapping[str, int]) -> SpanEncoder:
        """Open the folder's tokenizer.json; contexts are read in spans of the longest sequence."""
        return open_span_encoder(folder, input_names, largest)

    def read_question(self, text: str) -> Passage:
        """Return the question and the context of "question ||| context".

        Raises:
            BadInput: there are not both, or one is empty or too long.
        """
        question, context = split_pair(text, example=f"who wrote it?{BETWEEN}Ana wrote the film.")
        check_text(question)
        check_text(context)
        return question, context

    def answers(self, outputs: Sequence[NDArray[Any]], inputs: Sequence[Passage], encoder: Encoder) -> Answers:
        """Return the answer to each question as UTF-8, uint8 [bytes]."""
        found = _find_answers(outputs, inputs, encoder)
        return encode_answers([context[start:end] for (_, context), (start, end, _) in zip(inputs, found, strict=True)])

    def show(
        self,
        outputs: Sequence[NDArray[Any]],
        inputs: Sequence[Any],
        questions: Sequence[str],  # noqa: ARG002
        classes: Sequence[str],  # noqa: ARG002
        encoder: Encoder,
    ) -> list[ShownAnswer]:
        """Return the answer to each question."""
        found = _find_answers(outputs, inputs, encoder)
        return [
            FoundAnswer(question, context[start:end], start, end, score)
            for (question, context), (start, end, score) in zip(inputs, found, strict=True)
        ]


def read_answers(value: Any) -> tuple[str, ...]:
    """Return the true answers of a row: a text, a list of texts, or SQuAD's mapping with a list `text`."""
    texts = value.get("text") if isinstance(value, dict) else value
    listed = [texts] if isinstance(texts, str) else texts if isinstance(texts, list | tuple) else []
    return tuple(text for text in listed if is_text(text))


def _find_answers(
    outputs: Sequence[NDArray[Any]], inputs: Sequence[Passage], encoder: Encoder
) -> list[tuple[int, int, float]]:
    """Return (start, end, probability) of the best answer to each question, in characters of its context.

    The best is that with the largest sum of its start's and end's logits in any span of the context
    (transformers' utils_qa.py, postprocess_qa_predictions), of at most LONGEST_ANSWER tokens.
    """
    if not isinstance(encoder, SpanEncoder):
        raise TypeError(f"{type(encoder).__name__} is no encoder of passages")
    rows = iter(zip(outputs[0], outputs[1], strict=True))
    found = []
    for spans in encoder.find_spans(inputs):
        best, place = -np.inf, (0, 0, 0.0)
        for span in spans:
            starts, ends = next(rows)
            first, behind = span.context
            if behind == first:
                continue
            sums = starts[first:behind, None].astype(np.float64) + ends[None, first:behind]
            # From the start to at most LONGEST_ANSWER tokens on.
            allowed = np.triu(np.ones_like(sums, dtype=bool)) & ~np.triu(np.ones_like(sums, dtype=bool), LONGEST_ANSWER)
            start, end = np.unravel_index(np.where(allowed, sums, -np.inf).argmax(), sums.shape)
            if sums[start, end] > best:
                offsets = span.encoding.offsets
                shares = [compute_softmax(logits[first:behind]) for logits in (starts, ends)]
                best = float(sums[start, end])
                score = float(shares[0][start] * shares[1][end])
                place = (offsets[first + int(start)][0], offsets[first + int(end)][1], score)
        found.append(place)
    return found


QUESTION_ANSWERING = QuestionAnswering()

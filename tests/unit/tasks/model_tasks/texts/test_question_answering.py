"""Question answering behind the contract: the best words of any span, and SQuAD's own figures."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torchmetrics.functional.text import squad

from registry.errors import BadInput
from tasks.model_tasks.inputs.spans import SpanEncoder
from tasks.model_tasks.texts.question_answering import (
    ANSWER_F1,
    EXACT_MATCH,
    LONGEST_ANSWER,
    QUESTION_ANSWERING,
    FoundAnswer,
    read_answers,
)
from tests.support.tiny import write_tokenizer

LONG = " ".join(["good", "bad", "fine", "poor", "film", "music", "library", "editor"] * 6)


@pytest.fixture
def encoder(tmp_path: Path) -> SpanEncoder:
    write_tokenizer(tmp_path)
    return QUESTION_ANSWERING.open_encoder(tmp_path, ["input_ids"], {"sequence": 16})


def point_at(
    encoder: SpanEncoder, passages: list[tuple[str, str]], row: int, start: int, end: int
) -> list[np.ndarray[Any, Any]]:
    """Logits that are largest for a start and an end token of one row."""
    starts, ends = (np.zeros(encoder.encode(passages)["input_ids"].shape, dtype=np.float32) for _ in range(2))
    starts[row, start], ends[row, end] = 9.0, 9.0
    return [starts, ends]


def text_of(answer: np.ndarray[Any, Any]) -> str:
    return bytes(answer).decode()


def test_the_answer_is_the_context_from_the_best_start_to_the_best_end(encoder: SpanEncoder) -> None:
    # [CLS] film [SEP] the good film [SEP]
    passages = [("film", "the good film")]
    (answer,) = QUESTION_ANSWERING.answers(point_at(encoder, passages, 0, 4, 5), passages, encoder)
    assert text_of(answer) == "good film"
    (backwards,) = QUESTION_ANSWERING.answers(point_at(encoder, passages, 0, 5, 3), passages, encoder)
    assert text_of(backwards) in {"the", "film"}  # an answer never ends before it begins


def test_the_best_of_all_spans_answers(encoder: SpanEncoder) -> None:
    passages = [("film", LONG), ("music", "a film")]
    spans = encoder.find_spans(passages)[0]
    last = len(spans) - 1
    first, behind = spans[last].context
    answers = QUESTION_ANSWERING.answers(point_at(encoder, passages, last, behind - 2, behind - 1), passages, encoder)
    assert text_of(answers[0]) == "library editor"
    assert LONG.endswith("library editor")
    assert first < behind


def test_an_answer_is_never_longer_than_so_many_tokens(tmp_path: Path) -> None:
    write_tokenizer(tmp_path)
    wide = QUESTION_ANSWERING.open_encoder(tmp_path, ["input_ids"], {"sequence": 64})
    passages = [("film", LONG)]
    first, behind = wide.find_spans(passages)[0][0].context
    outputs = point_at(wide, passages, 0, first, behind - 1)
    (answer,) = QUESTION_ANSWERING.answers(outputs, passages, wide)
    assert 0 < len(text_of(answer).split()) <= LONGEST_ANSWER


def test_figures_are_squads() -> None:
    given = ["The film", "a good music", "editor", "poor"]
    true = [("film",), ("music", "a fine music"), ("library",), ("poor!", "fine")]
    answers = [np.frombuffer(text.encode(), dtype=np.uint8) for text in given]
    f1, match = (metric.score(answers, true, answers) for metric in (ANSWER_F1, EXACT_MATCH))
    theirs = squad(
        [{"prediction_text": text, "id": str(at)} for at, text in enumerate(given)],
        [{"answers": {"text": list(texts), "answer_start": [0]}, "id": str(at)} for at, texts in enumerate(true)],
    )
    assert 100 * ANSWER_F1.figure(f1) == pytest.approx(float(theirs["f1"]))
    assert 100 * float(match.mean()) == pytest.approx(float(theirs["exact_match"]))
    assert match[:, 0].tolist() == [1.0, 0.0, 0.0, 1.0]


@pytest.mark.parametrize(
    ("value", "texts"),
    [
        ({"text": ["a film", "film"], "answer_start": [0, 2]}, ("a film", "film")),
        (["a film", " "], ("a film",)),
        ("a film", ("a film",)),
        ({"text": []}, ()),
        (None, ()),
        (3, ()),
    ],
)
def test_answers_are_read_in_the_forms_that_people_have(value: Any, texts: tuple[str, ...]) -> None:
    assert read_answers(value) == texts
    row = {"question": "who?", "context": "a film", "answers": value}
    assert QUESTION_ANSWERING.read_row(row, None) == ((("who?", "a film"), texts) if texts else None)


def test_what_is_wrong_with_a_row_is_said() -> None:
    explain = QUESTION_ANSWERING.explain_row
    assert "the question is int 3: name the column" in explain({"question": 3, "context": "b", "answers": "c"})
    assert "the context is str ' '" in explain({"question": "a", "context": " ", "answers": "c"})
    assert "questions without an answer are not supported" in explain({"question": "a", "context": "b", "answers": []})


def test_an_answer_is_shown_with_its_place_and_probability(encoder: SpanEncoder) -> None:
    passages = [("film", "the good film")]
    (shown,) = QUESTION_ANSWERING.show(
        point_at(encoder, passages, 0, 4, 5), passages, ["film ||| the good film"], (), encoder
    )
    assert isinstance(shown, FoundAnswer)
    assert (shown.answer, shown.start, shown.end) == ("good film", 4, 13)
    assert 0.9 < shown.score <= 1
    assert shown.line == "good film (100%)  film"
    with pytest.raises(BadInput, match="give two texts with"):
        QUESTION_ANSWERING.read_question("film")

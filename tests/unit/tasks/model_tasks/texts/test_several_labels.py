"""Several labels, or a number: the other two heads of a sequence classifier behind the contract."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import f1_score

from calibration_data.reader import Rows
from registry.errors import BadInput
from registry.records import ModelSource
from tasks.model_tasks.inputs.texts import TextEncoder, open_text_encoder
from tasks.model_tasks.texts.multi_label_classification import MICRO_F1, MULTI_LABEL_CLASSIFICATION, ManyLabels
from tasks.model_tasks.texts.text_classification import TEXT_CLASSIFICATION
from tasks.model_tasks.texts.text_regression import TEXT_REGRESSION
from tests.support.tiny import write_tokenizer

CLASSES = ("sad", "Glad", "mad")
SOURCE = ModelSource("moods", "org/moods", "b" * 40, "multi-label-classification", CLASSES)
MANY = {"architectures": ["BertForSequenceClassification"], "problem_type": "multi_label_classification"}
ONE = {"architectures": ["BertForSequenceClassification"], "id2label": {"0": "LABEL_0"}}


@pytest.fixture
def encoder(tmp_path: Path) -> TextEncoder:
    write_tokenizer(tmp_path)
    return open_text_encoder(tmp_path, ["input_ids", "token_type_ids"], {"sequence": 16})


def test_micro_f1_is_scikit_learns() -> None:
    random = np.random.default_rng(0)
    true, given = random.random((50, 4)) < 0.4, random.random((50, 4)) < 0.4
    targets = [tuple(np.flatnonzero(row).tolist()) for row in true]
    ours = MICRO_F1.figure(MICRO_F1.score(list(given), targets, list(given)))
    assert float(ours) == pytest.approx(f1_score(true, given, average="micro"))


def test_a_label_is_given_where_its_probability_is_more_than_a_half(encoder: TextEncoder) -> None:
    logits = np.array([[0.1, -2.0, 3.0], [-1.0, -1.0, 0.0]], dtype=np.float32)
    answers = MULTI_LABEL_CLASSIFICATION.answers([logits], ["a", "b"], encoder)
    assert [answer.tolist() for answer in answers] == [[True, False, True], [False, False, False]]
    shown, nothing = MULTI_LABEL_CLASSIFICATION.show([logits], ["a", "b"], ["a", "b"], CLASSES, encoder)
    assert isinstance(shown, ManyLabels)
    assert shown.labels == ("mad", "sad")
    assert shown.line == "mad (95%), sad (52%)  a"
    assert nothing.line == "no label  b"


def test_labels_are_numbered_as_the_model_does_and_there_may_be_none() -> None:
    rows = Rows(("a", "b", "c"), (("glad", "MAD"), (), ("sad",)), None, 0, "d" * 64, "the data")
    assert MULTI_LABEL_CLASSIFICATION.align_rows(rows, SOURCE).targets == ((1, 2), (), (0,))
    strange = Rows(("a",), (("bored",),), None, 0, "d" * 64, "the data")
    with pytest.raises(BadInput, match=r"the labels of the data \(bored\) are not among the classes of moods"):
        MULTI_LABEL_CLASSIFICATION.align_rows(strange, SOURCE)


@pytest.mark.parametrize("labels", ["sad", None, [None], [0.5], [9]])
def test_a_row_has_a_list_of_labels(labels: Any) -> None:
    row = {"text": "a film", "labels": labels}
    assert MULTI_LABEL_CLASSIFICATION.read_row(row, CLASSES) is None
    assert "give a list of whole numbers" in MULTI_LABEL_CLASSIFICATION.explain_row(row)


@pytest.mark.parametrize(
    ("row", "read"),
    [
        ({"text": "a", "score": 2}, ("a", 2.0)),
        ({"text": "a", "text_pair": "b", "score": -0.5}, (("a", "b"), -0.5)),
        ({"text": "a", "text_pair": " ", "score": 1.0}, None),
        ({"text": "a", "score": float("inf")}, None),
        ({"text": "a", "score": "1.5"}, ("a", 1.5)),
        ({"text": "a", "score": "one"}, None),
    ],
)
def test_a_row_to_grade_has_one_text_or_two_and_a_number(row: dict[str, Any], read: Any) -> None:
    assert TEXT_REGRESSION.read_row(row, None) == read
    if read is None:
        assert "is " in TEXT_REGRESSION.explain_row(row)


def test_a_pair_is_one_row_with_both_texts(encoder: TextEncoder) -> None:
    feed = encoder.encode([("a film", "good music"), ["bad", "a"]])
    assert feed["token_type_ids"].tolist() == [[0, 0, 0, 0, 1, 1, 1], [0, 0, 0, 1, 1, 0, 0]]
    assert [positions for positions, _ in encoder.batches([("a film", "good music"), ("bad", "a")], 1)] == [[1], [0]]


def test_a_question_is_a_text_or_a_pair(encoder: TextEncoder) -> None:
    assert TEXT_REGRESSION.read_question("a film") == "a film"
    assert TEXT_REGRESSION.read_question("a film ||| a movie") == ("a film", "a movie")
    with pytest.raises(BadInput, match="empty text"):
        TEXT_REGRESSION.read_question("a film |||  ")
    (shown,) = TEXT_REGRESSION.show([np.array([[0.25]], dtype=np.float32)], [("a", "b")], ["a ||| b"], (), encoder)
    assert shown.line == "0.25  a ||| b"


def test_each_head_is_sent_to_its_own_task() -> None:
    MULTI_LABEL_CLASSIFICATION.check_checkpoint(MANY)
    TEXT_REGRESSION.check_checkpoint(ONE)
    with pytest.raises(BadInput, match="use task: multi-label-classification"):
        TEXT_CLASSIFICATION.check_checkpoint(MANY)
    with pytest.raises(BadInput, match=r"one number per text .* use task: text-regression"):
        TEXT_CLASSIFICATION.check_checkpoint(ONE)
    with pytest.raises(BadInput, match="not 'multi_label_classification'"):
        MULTI_LABEL_CLASSIFICATION.check_checkpoint(ONE)
    with pytest.raises(BadInput, match="gives 2 numbers per text, not one"):
        TEXT_REGRESSION.check_checkpoint({"architectures": ["BertForSequenceClassification"]})

"""Pairs of texts behind the contract, and macro-F1 as torchmetrics counts it."""

from typing import Any

import numpy as np
import pytest
import torch
from torchmetrics.functional.classification import multiclass_f1_score

from registry.errors import BadInput
from tasks.model_tasks.scores import MACRO_F1, MOST_COUNTED_CLASSES
from tasks.model_tasks.texts.text_pair_classification import TEXT_PAIR_CLASSIFICATION as PAIRS


@pytest.mark.parametrize(
    ("first", "second", "label", "row"),
    [
        ("a", "b", 1, (("a", "b"), 1)),
        ("a", "b", "Yes", (("a", "b"), "Yes")),
        ("a", " ", 1, None),
        ("", "b", 1, None),
        ("a", None, 1, None),
        ("a", "b", 7, None),
        ("a", "b", None, None),
    ],
)
def test_a_row_has_two_texts_and_one_of_the_datasets_labels(first: Any, second: Any, label: Any, row: Any) -> None:
    assert PAIRS.read_row({"text": first, "text_pair": second, "label": label}, ("no", "yes")) == row


def test_a_row_without_a_second_text_is_explained_by_its_column() -> None:
    assert "data.text_pair" in PAIRS.explain_row({"text": "a", "text_pair": 3, "label": 1})
    assert "the label is" in PAIRS.explain_row({"text": "a", "text_pair": "b", "label": None})


def test_a_question_is_two_texts() -> None:
    assert PAIRS.read_question("a cat ||| an animal") == ("a cat", "an animal")
    for wrong in ("a cat", "a cat ||| ", " ||| a cat"):
        with pytest.raises(BadInput):
            PAIRS.read_question(wrong)


def answer(labels: Any) -> list[Any]:
    return list(np.asarray(labels, dtype=np.int64))


@pytest.mark.parametrize("classes", [2, 5])
def test_macro_f1_is_that_of_torchmetrics(classes: int) -> None:
    draw = np.random.default_rng(classes)
    targets = draw.integers(0, classes, 300)
    given = np.where(draw.random(300) < 0.6, targets, draw.integers(0, classes, 300))
    scores = MACRO_F1.score(answer(given), list(targets), answer(given))
    expected = multiclass_f1_score(torch.tensor(given), torch.tensor(targets), num_classes=classes, average="macro")
    assert MACRO_F1.figure(scores) == pytest.approx(float(expected), abs=1e-6)


def test_an_answer_of_a_class_that_no_row_has_is_only_missed() -> None:
    scores = MACRO_F1.score(answer([0, 1, 9]), [0, 1, 1], answer([0, 1, 1]))
    assert scores.tolist() == [[1, 0, 0, 0, 0, 0], [0, 1, 0, 0, 0, 0], [0, 0, 0, 0, 0, 1]]


def test_macro_f1_is_of_few_classes_only() -> None:
    assert MACRO_F1.applies(answer(range(MOST_COUNTED_CLASSES)))
    assert not MACRO_F1.applies(answer(range(MOST_COUNTED_CLASSES + 1)))

"""Text classification behind the contract: what a row is, what an answer is, and when it is right."""

from typing import Any

import numpy as np
import pytest

from calibration_data.reader import Rows
from registry.errors import BadInput
from registry.records import ModelSource
from registry.triton.python_models import PYTHON_MODELS
from tasks.model_tasks import MODEL_TASKS, model_task
from tasks.model_tasks.contract import ModelTask
from tasks.model_tasks.text_classification import TEXT_CLASSIFICATION, LabelledText

SOURCE = ModelSource("sst2", "distilbert/sst2", "b" * 40, "text-classification", ("no", "Yes"))


def rows(targets: tuple[int, ...], classes: tuple[str, ...] | None = ("No", "yes")) -> Rows:
    return Rows(tuple("abc"[: len(targets)]), targets, classes, 0, "0" * 64, source="the data")


@pytest.mark.parametrize("task", MODEL_TASKS.values(), ids=MODEL_TASKS)
def test_every_task_is_found_by_its_own_name_and_has_a_triton_model_of_the_same_name(task: ModelTask) -> None:
    assert model_task(task.name) is task
    assert PYTHON_MODELS.get(task.name) == task.python_model


@pytest.mark.parametrize(
    ("values", "row"),
    [
        (("good", 1), ("good", 1)),
        (("good", 2), None),
        (("good", -1), None),
        (("good", None), None),
        (("good", 0.5), None),
        (("good", "yes"), None),
        ((" \n", 1), None),
        ((None, 1), None),
        ((["good"], 1), None),
    ],
)
def test_a_row_has_a_text_and_one_of_the_datasets_labels(values: tuple[Any, Any], row: tuple[str, int] | None) -> None:
    assert TEXT_CLASSIFICATION.read_row(values, ("no", "yes")) == row


def test_labels_of_other_case_are_the_models() -> None:
    TEXT_CLASSIFICATION.check_rows(rows((0, 1)), SOURCE)
    TEXT_CLASSIFICATION.check_rows(rows((0, 1), None), SOURCE)


@pytest.mark.parametrize(
    "other",
    [rows((0, 1), ("yes", "no")), rows((0, 2), None), rows((0, 1), ("a", "b", "c"))],
    ids=["order", "2", "names"],
)
def test_labels_of_another_dataset_are_refused(other: Rows) -> None:
    with pytest.raises(BadInput, match=r"the classes of the data .* are not those of sst2 \(no, Yes\)"):
        TEXT_CLASSIFICATION.check_rows(other, SOURCE)


def test_the_answer_is_the_label_with_the_largest_logit_and_right_or_wrong() -> None:
    logits = np.array([[0.1, 0.9], [3.0, -1.0], [0.0, 0.5]], dtype=np.float32)
    answers = TEXT_CLASSIFICATION.answers([logits])
    assert answers.tolist() == [1, 0, 1]
    assert TEXT_CLASSIFICATION.scores(answers, (1, 1, 1)).tolist() == [True, False, True]


def test_what_is_shown_is_the_label_with_its_probability() -> None:
    (shown,) = TEXT_CLASSIFICATION.show([np.array([[0.0, np.log(3.0)]], dtype=np.float32)], ["a film"], ("no", "yes"))
    assert isinstance(shown, LabelledText)
    assert (shown.text, shown.label) == ("a film", "yes")
    assert shown.score == pytest.approx(0.75)
    assert shown.line == "yes (75%)  a film"


def test_an_empty_text_has_no_answer() -> None:
    with pytest.raises(BadInput, match="empty text"):
        TEXT_CLASSIFICATION.check_inputs(["words", " "])

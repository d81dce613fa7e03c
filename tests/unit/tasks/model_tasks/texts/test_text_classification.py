"""Text classification behind the contract: what a row is, what an answer is, and when it is right."""

import re
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer
from tokenizers.models import WordLevel

from calibration_data.reader import Rows
from registry.errors import BadInput
from registry.records import ModelSource
from tasks.model_tasks import MODEL_TASKS, model_task
from tasks.model_tasks.contract import ModelTask
from tasks.model_tasks.inputs.texts import LONGEST_TEXT, TextEncoder
from tasks.model_tasks.scores import ACCURACY
from tasks.model_tasks.texts.text_classification import TEXT_CLASSIFICATION, LabelledText

ENCODER = TextEncoder(Tokenizer(WordLevel()), ())
SOURCE = ModelSource("sst2", "distilbert/sst2", "b" * 40, "text-classification", ("no", "Yes"))


@pytest.mark.parametrize("task", MODEL_TASKS.values(), ids=MODEL_TASKS)
def test_every_task_is_found_by_its_own_name(task: ModelTask) -> None:
    assert model_task(task.name) is task


@pytest.mark.parametrize(
    ("values", "row"),
    [
        (("good", 1), ("good", 1)),
        (("good", 2), None),
        (("good", -1), None),
        (("good", None), None),
        (("good", 0.5), None),
        (("good", 1.0), ("good", 1)),
        (("good", True), ("good", 1)),
        (("good", "yes"), ("good", "yes")),
        (("good", "1"), ("good", 1)),
        (("good", "1.0 "), ("good", 1)),
        (("good", "2"), None),
        (("good", "-1"), ("good", "-1")),
        (("good", "01a"), ("good", "01a")),
        (("good", float("nan")), None),
        (("good", " "), None),
        (("good", [0, 1]), None),
        ((" \n", 1), None),
        ((None, 1), None),
        ((["good"], 1), None),
    ],
)
def test_a_row_has_a_text_and_one_of_the_datasets_labels(values: tuple[Any, Any], row: tuple[str, int] | None) -> None:
    assert TEXT_CLASSIFICATION.read_row(name_columns(values), ("no", "yes")) == row


def name_columns(values: tuple[Any, Any]) -> dict[str, Any]:
    return dict(zip(("text", "label"), values, strict=True))


def align(targets: tuple[int | str, ...], classes: tuple[str, ...] | None, source: ModelSource = SOURCE) -> list[int]:
    given = Rows(tuple("abcdef"[: len(targets)]), targets, classes, 0, "0" * 64, source="the data")
    aligned = TEXT_CLASSIFICATION.align_rows(given, source)
    assert (aligned.inputs, aligned.digest) == (given.inputs, given.digest)
    return list(aligned.targets)


UNNAMED = replace(SOURCE, classes=("LABEL_0", "LABEL_1"))


@pytest.mark.parametrize(
    ("targets", "classes", "source", "numbers"),
    [
        ((0, 1, 0), None, SOURCE, [0, 1, 0]),
        ((0, 1, 0), ("No", "yes"), SOURCE, [0, 1, 0]),
        ((0, 1, 0), ("yes", "no"), SOURCE, [1, 0, 1]),
        (("YES", "no", "Yes"), None, SOURCE, [1, 0, 1]),
        ((0, 1, 0), ("negative", "positive"), UNNAMED, [0, 1, 0]),
        (("LABEL_1", "label_0"), None, UNNAMED, [1, 0]),
    ],
    ids=["numbers", "same names", "other order", "names", "model without names", "names of transformers"],
)
def test_labels_are_numbered_as_the_model_does(
    targets: tuple[int | str, ...], classes: tuple[str, ...] | None, source: ModelSource, numbers: list[int]
) -> None:
    assert align(targets, classes, source) == numbers


STARS = replace(SOURCE, classes=("1", "2", "3"))


@pytest.mark.parametrize(
    ("targets", "classes", "source", "numbers"),
    [
        ((1, 2, 3), None, STARS, [0, 1, 2]),
        ((0, 1, 2), None, STARS, [0, 1, 2]),
        ((0, 1), ("3", "1"), STARS, [2, 0]),
        ((0, 1), ("2", "1"), STARS, [1, 0]),
        ((0, 1, 0), None, replace(SOURCE, classes=("0", "1")), [0, 1, 0]),
        ((1, 0, 1), None, replace(SOURCE, classes=("1.0", "0.0")), None),
        ((0, 1), ("1", "0"), SOURCE, [1, 0]),
        ((0, 1), ("0", "1"), UNNAMED, [0, 1]),
        ((0, 1), ("1", "0"), UNNAMED, None),
        ((0, 1), ("1", "2"), UNNAMED, [0, 1]),
        ((1, 2), None, STARS, None),
        ((1, 1), None, STARS, None),
    ],
)
def test_whole_numbers_are_names_or_numbers_and_refused_where_they_could_be_both(
    targets: tuple[int | str, ...], classes: tuple[str, ...] | None, source: ModelSource, numbers: list[int] | None
) -> None:
    if numbers is not None:
        assert align(targets, classes, source) == numbers
        return
    with pytest.raises(BadInput, match=r"the labels 0?,? ?1(, 2)? could be names or numbers of the classes of sst2"):
        align(targets, classes, source)


@pytest.mark.parametrize(
    ("targets", "classes", "source"),
    [
        ((0, 2), None, SOURCE),
        (("no", 1), None, SOURCE),
        ((0, 1), ("a", "b"), SOURCE),
        ((0, 1, 2), ("no", "yes", "maybe"), SOURCE),
        (("no", "perhaps"), None, SOURCE),
        (("positive", "negative"), None, UNNAMED),
        ((0, 1, 2), ("a", "b", "c"), UNNAMED),
    ],
    ids=[
        "number",
        "name and number",
        "names",
        "one too many",
        "name",
        "names for a model without",
        "too many for a model without",
    ],
)
def test_labels_of_another_dataset_are_refused(
    targets: tuple[int | str, ...], classes: tuple[str, ...] | None, source: ModelSource
) -> None:
    with pytest.raises(BadInput, match=r"the labels of the data \(.*\) are not among the classes of sst2"):
        align(targets, classes, source)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ((3, 1), "the text is int 3: name the column of the texts in data.text"),
        (("good", [0, 1]), r"the label is list \[0, 1\]: several labels per text are not supported"),
        (("good", 0.5), "the label is float 0.5: give a whole number, counted from 0, or the name of a class"),
    ],
)
def test_what_is_wrong_with_a_row_is_said_with_its_type(values: tuple[Any, Any], words: str) -> None:
    assert re.search(words, TEXT_CLASSIFICATION.explain_row(name_columns(values)))


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"architectures": ["BertModel"]}, "a BertModel, which has no head for text-classification: .* source.head"),
        ({"architectures": ["ViTForImageClassification"]}, "a ViTForImageClassification, which has no head"),
        ({"problem_type": "multi_label_classification"}, "only one label per text"),
        ({"problem_type": "regression"}, "only one label per text"),
        ({"id2label": {"0": "LABEL_0"}}, "one number per text"),
    ],
)
def test_a_checkpoint_of_another_kind_is_refused_by_its_config(config: dict[str, Any], words: str) -> None:
    with pytest.raises(BadInput, match=words):
        TEXT_CLASSIFICATION.check_checkpoint(config)


@pytest.mark.parametrize("config", [{}, {"architectures": ["BertForSequenceClassification"], "problem_type": None}])
def test_a_fine_tuned_checkpoint_is_accepted(config: dict[str, Any]) -> None:
    TEXT_CLASSIFICATION.check_checkpoint(config)


def test_the_answer_is_the_label_with_the_largest_logit_and_right_or_wrong() -> None:
    logits = np.array([[0.1, 0.9], [3.0, -1.0], [0.0, 0.5]], dtype=np.float32)
    answers = TEXT_CLASSIFICATION.answers([logits], ["a", "b", "c"], ENCODER)
    assert [int(answer) for answer in answers] == [1, 0, 1]
    assert ACCURACY.score(answers, (1, 1, 1), answers).tolist() == [[1.0], [0.0], [1.0]]


def test_what_is_shown_is_the_label_with_its_probability() -> None:
    logits = np.array([[0.0, np.log(3.0)]], dtype=np.float32)
    (shown,) = TEXT_CLASSIFICATION.show([logits], ["a film"], ["a film"], ("no", "yes"), ENCODER)
    assert isinstance(shown, LabelledText)
    assert (shown.text, shown.label) == ("a film", "yes")
    assert shown.score == pytest.approx(0.75)
    assert shown.line == "yes (75%)  a film"


def test_an_empty_text_has_no_answer() -> None:
    with pytest.raises(BadInput, match="empty text"):
        TEXT_CLASSIFICATION.read_question(" ")
    with pytest.raises(BadInput, match="more than 1000000: cut it"):
        TEXT_CLASSIFICATION.read_question("x" * (LONGEST_TEXT + 1))

"""Image classification behind the contract: what a row is, ranked answers, and the file that a user names."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from calibration_data.reader import Rows
from registry.errors import BadInput
from registry.records import ModelSource
from tasks.model_tasks.images.image_classification import IMAGE_CLASSIFICATION, LabelledImage
from tasks.model_tasks.inputs.images import ImageEncoder, open_image_encoder
from tasks.model_tasks.scores import ACCURACY, TOP_5_ACCURACY
from tests.support.images import draw_image, save_classifier

IMAGE = draw_image(0)
SOURCE = ModelSource("shapes", "org/shapes", "b" * 40, "image-classification", ("no", "Yes"))


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_classifier(tmp_path_factory.mktemp("checkpoint"))


@pytest.fixture
def encoder(checkpoint: Path) -> ImageEncoder:
    return open_image_encoder(checkpoint, ["pixel_values"])


@pytest.mark.parametrize(
    ("image", "label", "reason"),
    [
        (b"GIF8", 0, r"the image's 4 bytes cannot be decoded \(no image\)"),
        ("a.png", 0, "the image is str 'a.png': name the column with the bytes of image files in data.image"),
        (None, 0, "the image is NoneType None: name the column"),
        (draw_image(0, (400, 2)), 0, "the image is 400 by 2 pixels, more than 32 to 1: cut it"),
        (IMAGE, [0, 1], r"the label is list \[0, 1\]: several labels per image are not supported, give one"),
        (IMAGE, 0.5, "the label is float 0.5: give a whole number, counted from 0, or the name of a class"),
        (IMAGE, 2, "the label is int 2"),
    ],
)
def test_a_row_has_an_image_and_one_of_the_datasets_labels(image: Any, label: Any, reason: str) -> None:
    row = {"image": image, "label": label}
    assert IMAGE_CLASSIFICATION.read_row(row, ("no", "yes")) is None
    assert re.search(reason, IMAGE_CLASSIFICATION.explain_row(row))
    assert IMAGE_CLASSIFICATION.read_row({"image": IMAGE, "label": "yes"}, ("no", "yes")) == (IMAGE, "yes")


def test_labels_are_numbered_as_the_model_does() -> None:
    rows = Rows((IMAGE, draw_image(1)), (0, 1), ("yes", "NO"), 0, "d" * 64, "the data")
    assert IMAGE_CLASSIFICATION.align_rows(rows, SOURCE).targets == (1, 0)
    assert IMAGE_CLASSIFICATION.identify(IMAGE) != IMAGE_CLASSIFICATION.identify(draw_image(1))


def test_of_more_than_five_classes_the_five_best_are_ranked(encoder: ImageEncoder) -> None:
    logits = np.array([[0, 9, 8, 7, 6, 5, 4], [1, 1, 1, 1, 1, 1, 9]], dtype=np.float32)
    answers = IMAGE_CLASSIFICATION.answers([logits], [IMAGE] * 2, encoder)
    assert [answer.tolist() for answer in answers] == [[1, 2, 3, 4, 5], [6, 0, 1, 2, 3]]
    assert all(answer.dtype == np.int64 for answer in answers)
    assert ACCURACY.score(answers, (1, 0), answers).tolist() == [[1.0], [0.0]]
    assert TOP_5_ACCURACY.score(answers, (6, 0), answers).tolist() == [[0.0], [1.0]]
    assert TOP_5_ACCURACY.applies(answers)


def test_of_five_classes_or_fewer_only_the_best_is_kept(encoder: ImageEncoder) -> None:
    answers = IMAGE_CLASSIFICATION.answers([np.eye(5, dtype=np.float32)], [IMAGE] * 5, encoder)
    assert [answer.tolist() for answer in answers] == [[0], [1], [2], [3], [4]]
    assert not TOP_5_ACCURACY.applies(answers)


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"architectures": ["ResNetModel"]}, "a ResNetModel, which has no head for image-classification: use a fine-"),
        ({"architectures": ["BertForSequenceClassification"]}, "which has no head for image-classification"),
        ({"problem_type": "multi_label_classification"}, "only one label per image"),
        ({"id2label": {"0": "LABEL_0"}}, "one number per image"),
    ],
)
def test_a_checkpoint_of_another_kind_is_refused_by_its_config(config: dict[str, Any], words: str) -> None:
    with pytest.raises(BadInput, match=words):
        IMAGE_CLASSIFICATION.check_checkpoint(config)


def test_a_checkpoint_of_other_channels_is_refused() -> None:
    IMAGE_CLASSIFICATION.check_shapes({"num_channels": 3}, {"batch": 8})
    with pytest.raises(BadInput, match=r"takes images of 1 channels, and rows give 3 \(RGB\): use another model"):
        IMAGE_CLASSIFICATION.check_shapes({"num_channels": 1}, {"batch": 8})


def test_the_processor_fixes_channels_height_and_width(checkpoint: Path) -> None:
    assert IMAGE_CLASSIFICATION.fixed_sizes(checkpoint) == {"num_channels": 3, "height": 16, "width": 16}
    assert IMAGE_CLASSIFICATION.measure_inputs(checkpoint, IMAGE_CLASSIFICATION.example_inputs, {}).tokens == ()


def test_a_question_is_the_file_of_an_image(tmp_path: Path) -> None:
    file = tmp_path / "shape.png"
    file.write_bytes(IMAGE)
    assert IMAGE_CLASSIFICATION.read_question(str(file)) == IMAGE
    file.write_bytes(b"no image")
    with pytest.raises(BadInput, match=r"shape.png: the image's 8 bytes cannot be decoded"):
        IMAGE_CLASSIFICATION.read_question(str(file))
    with pytest.raises(BadInput, match=r"a charming film cannot be read \(No such file or directory\): name the file"):
        IMAGE_CLASSIFICATION.read_question("a charming film")
    with pytest.raises(BadInput, match=r"cannot be read \(no path\)"):
        IMAGE_CLASSIFICATION.read_question("a\0b")


def test_what_is_shown_is_the_label_with_its_probability(encoder: ImageEncoder) -> None:
    logits = np.array([[0.0, np.log(3.0)]], dtype=np.float32)
    (shown,) = IMAGE_CLASSIFICATION.show([logits], [IMAGE], ["shape.png"], ("no", "yes"), encoder)
    assert isinstance(shown, LabelledImage)
    assert (shown.image, shown.label, shown.line) == ("shape.png", "yes", "yes (75%)  shape.png")

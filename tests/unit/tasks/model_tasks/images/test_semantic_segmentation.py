"""Semantic segmentation: maps as transformers makes them, and the mean IoU as torchmetrics has it."""

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from calibration_data.reader import Rows
from registry.errors import BadInput
from registry.records import ModelSource
from tasks.model_tasks.contract import Metric
from tasks.model_tasks.images.masks import MEAN_IOU, PIXEL_ACCURACY, encode_map, find_classes
from tasks.model_tasks.images.semantic_segmentation import SEMANTIC_SEGMENTATION, SegmentedImage
from tasks.model_tasks.inputs.image_files import decode_mask
from tasks.model_tasks.inputs.images import ImageEncoder, open_image_encoder
from tests.support.images import draw_image, draw_mask, save_image, save_segmenter

IMAGE = draw_image(0, (12, 9))
TURNED = Image.Exif()
TURNED[0x0112] = 6
SIDEWAYS = draw_image(0, (12, 9), file_type="JPEG", exif=TURNED)
SOURCE = ModelSource("maps", "org/maps", "b" * 40, "semantic-segmentation", ("dark", "bright"))


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_segmenter(tmp_path_factory.mktemp("checkpoint"))


@pytest.fixture
def encoder(checkpoint: Path) -> ImageEncoder:
    return open_image_encoder(checkpoint, ["pixel_values"])


def to_mask(values: Any, mode: str | None = None) -> bytes:
    return save_image(Image.fromarray(np.asarray(values), mode))


def measure(metric: Metric, maps: list[NDArray[np.uint8]], masks: list[bytes], *, reduced: bool = False) -> float:
    answers = [encode_map(each, ignores_zero=reduced) for each in maps]
    return metric.figure(metric.score(answers, masks, answers))


@pytest.mark.parametrize("size", [(8, 8), (16, 32), (31, 45), (5, 3), (1, 1)])
def test_logits_are_resized_before_the_best_class_is_taken(size: tuple[int, int]) -> None:
    import torch
    from transformers import SegformerImageProcessor
    from transformers.modeling_outputs import SemanticSegmenterOutput

    logits = np.random.default_rng(sum(size)).normal(size=(1, 6, 8, 8)).astype(np.float32)
    (expected,) = SegformerImageProcessor().post_process_semantic_segmentation(
        SemanticSegmenterOutput(logits=torch.from_numpy(logits)), [size]
    )
    assert (find_classes(logits[0], size) == expected.numpy()).all()


@pytest.mark.parametrize("seed", range(4))
def test_the_mean_iou_is_that_of_torchmetrics(seed: int) -> None:
    import torch
    from torchmetrics.functional.classification import multiclass_jaccard_index

    draw = np.random.default_rng(seed)
    wanted = draw.integers(0, 5, (3, 9, 12), dtype=np.uint8)
    given = np.where(draw.random(wanted.shape) < 0.7, wanted, draw.integers(0, 5, wanted.shape)).astype(np.uint8)
    wanted[draw.random(wanted.shape) < 0.1] = 255
    expected = multiclass_jaccard_index(
        torch.from_numpy(given).long(), torch.from_numpy(wanted).long(), 5, ignore_index=255
    )
    masks = [to_mask(each) for each in wanted]
    assert measure(MEAN_IOU, list(given), masks) == pytest.approx(float(expected), abs=1e-6)
    judged = wanted != 255
    assert measure(PIXEL_ACCURACY, list(given), masks) == pytest.approx((given == wanted)[judged].mean())


def test_with_reduced_labels_0_is_not_judged(encoder: ImageEncoder) -> None:
    wanted = np.zeros((9, 12), dtype=np.uint8)
    wanted[:3], wanted[3:6] = 1, 2
    logits = np.zeros((1, 2, 9, 12), dtype=np.float32)
    logits[0, 1, 3:] = 1
    reducing = replace(encoder, processor=replace(encoder.processor, reduces_labels=True))
    (answer,) = SEMANTIC_SEGMENTATION.answers([logits], [IMAGE], reducing)
    found = decode_mask(answer.tobytes())
    assert (found[:3] == 1).all()
    assert (found[3:] == 2).all()
    assert measure(MEAN_IOU, [found], [to_mask(wanted)], reduced=True) == 1.0
    assert measure(MEAN_IOU, [found], [to_mask(wanted)]) < 1.0


def test_a_class_that_no_mask_has_is_only_missed() -> None:
    wanted, given = np.zeros((4, 4), dtype=np.uint8), np.zeros((4, 4), dtype=np.uint8)
    given[0] = 7
    assert measure(MEAN_IOU, [given], [to_mask(wanted)]) == 0.75


def test_a_map_has_the_size_of_its_image_as_it_is_seen(encoder: ImageEncoder) -> None:
    logits = np.random.default_rng(0).normal(size=(2, 2, 8, 8)).astype(np.float32)
    answers = SEMANTIC_SEGMENTATION.answers([logits], [IMAGE, SIDEWAYS], encoder)
    assert [decode_mask(answer.tobytes()).shape for answer in answers] == [(9, 12), (12, 9)]


def test_a_map_is_another_where_more_than_a_hundredth_of_its_pixels_is() -> None:
    maps = [np.zeros((10, 20), dtype=np.uint8) for _ in range(3)]
    maps[1][0, :2], maps[2][0, :3] = 1, 1
    one, same, other = map(encode_map, maps)
    assert not MEAN_IOU.differs(one, one)
    assert not MEAN_IOU.differs(one, same)
    assert MEAN_IOU.differs(one, other)


@pytest.mark.parametrize(
    ("image", "mask", "reason"),
    [
        (b"GIF8", draw_mask(IMAGE), r"the image's 4 bytes cannot be decoded"),
        (IMAGE, b"GIF8", r"the image's 4 bytes cannot be decoded"),
        (IMAGE, None, "the mask is NoneType None: name the column with the bytes of mask files in data.mask"),
        (IMAGE, draw_image(0, (12, 9)), "the mask is an image of mode RGB: give one number a pixel"),
        (IMAGE, draw_mask(draw_image(0, (9, 12))), "the mask is 9 by 12 pixels, and its image 12 by 9"),
        (IMAGE, to_mask(np.full((9, 12), 300, dtype=np.uint16)), "the mask has a pixel of 300: numbers of classes end"),
    ],
)
def test_a_row_has_an_image_and_a_mask_of_its_size(image: Any, mask: Any, reason: str) -> None:
    row = {"image": image, "mask": mask}
    assert SEMANTIC_SEGMENTATION.read_row(row, None) is None
    assert re.search(reason, SEMANTIC_SEGMENTATION.explain_row(row))


@pytest.mark.parametrize("mode", ["L", "P", "1", "I;16"])
def test_a_mask_has_a_number_a_pixel_in_any_mode(mode: str) -> None:
    mask = Image.fromarray(decode_mask(draw_mask(IMAGE)))
    if mode == "P":
        mask.putpalette([0, 0, 0, 200, 10, 10])  # as PASCAL VOC has them
    elif mode != "L":
        mask = Image.fromarray(np.asarray(mask).astype(bool if mode == "1" else np.uint16))
    assert mask.mode == mode
    given = save_image(mask)
    assert SEMANTIC_SEGMENTATION.read_row({"image": IMAGE, "mask": given}, None) == (IMAGE, given)
    assert (decode_mask(given) == decode_mask(draw_mask(IMAGE))).all()


def test_a_mask_with_a_number_that_is_no_class_is_refused() -> None:
    def rows(number: int) -> Rows:
        mask = np.zeros((9, 12), dtype=np.uint8)
        mask[0] = number
        return Rows((IMAGE,), (to_mask(mask),), None, 0, "d" * 64, "the data")

    assert SEMANTIC_SEGMENTATION.align_rows(rows(1), SOURCE) == rows(1)
    assert SEMANTIC_SEGMENTATION.align_rows(rows(255), SOURCE) == rows(255)
    with pytest.raises(BadInput, match="the mask of row 0 of the data has pixels of 3, and maps has 2 classes"):
        SEMANTIC_SEGMENTATION.align_rows(rows(3), SOURCE)


def test_a_mask_numbered_from_1_is_refused_where_the_processor_does_not_reduce_labels(tmp_path: Path) -> None:
    mask = np.ones((9, 12), dtype=np.uint8)
    mask[4] = 2
    rows = Rows((IMAGE,) * 2, (to_mask(mask * 0), to_mask(mask)), None, 0, "d" * 64, "the data")
    file = save_segmenter(tmp_path) / "preprocessor_config.json"
    with pytest.raises(BadInput, match="the mask of row 1 of the data has pixels of 2, and maps numbers its 2 classes"):
        SEMANTIC_SEGMENTATION.check_rows(rows, SOURCE, tmp_path)
    SEMANTIC_SEGMENTATION.check_rows(replace(rows, targets=rows.targets[:1]), SOURCE, tmp_path)
    file.write_text(json.dumps(json.loads(file.read_text("utf-8")) | {"do_reduce_labels": True}), encoding="utf-8")
    SEMANTIC_SEGMENTATION.check_rows(rows, SOURCE, tmp_path)


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"architectures": ["SegformerModel"]}, "a SegformerModel, which has no head for semantic-segmentation"),
        ({"id2label": dict.fromkeys(map(str, range(255)), "a")}, "has 255 classes, and masks number at most 254"),
    ],
)
def test_a_checkpoint_of_another_kind_is_refused_by_its_config(config: dict[str, Any], words: str) -> None:
    with pytest.raises(BadInput, match=words):
        SEMANTIC_SEGMENTATION.check_checkpoint(config)


def test_what_is_shown_are_the_shares_of_classes(encoder: ImageEncoder) -> None:
    logits = np.zeros((1, 2, 2, 2), dtype=np.float32)
    logits[0, 1, 0, 0] = logits[0, 1, 1] = 1
    (shown,) = SEMANTIC_SEGMENTATION.show([logits], [b""], ["shape.png"], ("dark", "bright"), encoder)
    assert isinstance(shown, SegmentedImage)
    assert shown.shares == {"bright": 0.75, "dark": 0.25}
    assert shown.line == "bright 75.0%, dark 25.0%  shape.png"

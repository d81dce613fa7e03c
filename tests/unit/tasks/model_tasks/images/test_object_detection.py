"""Boxes of rows are checked, and those of outputs are found as transformers' processors and Ultralytics find them."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from calibration_data.reader import Rows
from registry.errors import BadInput
from registry.records import ModelSource
from tasks.model_tasks.images.average_precision import measure_overlaps
from tasks.model_tasks.images.boxes import find_boxes, guess_box_format, keep_surest, read_boxes
from tasks.model_tasks.images.object_detection import OBJECT_DETECTION, DetectedImage, FoundBox
from tasks.model_tasks.inputs.image_steps import ImageProcessor
from tasks.model_tasks.inputs.images import ImageEncoder
from tests.support.images import draw_image

SIZE = (40, 60)  # height, width
IMAGE = draw_image(0, (SIZE[1], SIZE[0]))


def steps(kind: str, *, size: tuple[int, int] = (32, 32), is_padded: bool = False) -> ImageProcessor:
    return ImageProcessor(size, None, 2, 1 / 255, None, None, kind=kind, is_padded=is_padded)


def draw_outputs(seed: int, queries: int = 20, classes: int = 4) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    random = np.random.default_rng(seed)
    boxes = np.hstack([random.uniform(0.3, 0.7, (queries, 2)), random.uniform(0.1, 0.5, (queries, 2))])
    return random.normal(0, 2, (queries, classes)).astype(np.float32), boxes.astype(np.float32)


@pytest.mark.parametrize(("kind", "options"), [("Yolos", {}), ("Detr", {}), ("RTDetr", {})])
@pytest.mark.parametrize("seed", range(3))
def test_boxes_are_those_of_transformers(kind: str, options: dict[str, Any], seed: int) -> None:
    import torch
    import transformers
    from transformers.models.yolos.modeling_yolos import YolosObjectDetectionOutput

    logits, boxes = draw_outputs(seed)
    output = YolosObjectDetectionOutput(logits=torch.tensor(logits)[None], pred_boxes=torch.tensor(boxes)[None])
    processor = getattr(transformers, f"{kind}ImageProcessor")(**options)
    (theirs,) = processor.post_process_object_detection(output, threshold=0.0, target_sizes=[SIZE])
    order = np.argsort(-theirs["scores"].numpy(), kind="stable")
    found = find_boxes(logits, boxes, steps(kind), SIZE)[: len(order)]
    np.testing.assert_array_equal(found[:, 0], theirs["labels"].numpy()[order])
    np.testing.assert_allclose(found[:, 1], theirs["scores"].numpy()[order], rtol=1e-5)
    edges = theirs["boxes"].numpy()[order].clip(0, [SIZE[1], SIZE[0]] * 2)
    np.testing.assert_allclose(found[:, 2:], edges, atol=1e-3)


def as_ultralytics(*places: tuple[float, ...]) -> list[NDArray[np.float32]]:
    """One output [1, 4 + classes, places]."""
    return [np.array(places, dtype=np.float32).T[None]]


def test_one_output_gives_the_surest_of_boxes_at_one_place_and_class() -> None:
    outputs = as_ultralytics(
        (16, 16, 8, 8, 0.9, 0.0),
        (16.5, 16, 8, 8, 0.8, 0.0),
        (16, 16, 8, 8, 0.0, 0.7),
        (8, 8, 4, 4, 0.0005, 0.6),
    )
    encoder = ImageEncoder(steps("Ultralytics", size=(32, 32)))
    reduced = OBJECT_DETECTION.reduce_outputs(outputs, [IMAGE], encoder)
    (found,) = OBJECT_DETECTION.answers(reduced, [IMAGE], encoder)
    expected = [(0, 0.9, 22.5, 15, 37.5, 25), (1, 0.7, 22.5, 15, 37.5, 25), (1, 0.6, 11.25, 7.5, 18.75, 12.5)]
    np.testing.assert_allclose(found, np.array(expected), rtol=1e-5)


def test_kept_boxes_do_not_overlap_and_each_other_has_a_surer_one() -> None:
    random = np.random.default_rng(0)
    corners = random.uniform(0, 30, (60, 2))
    boxes, labels = np.hstack([corners, corners + random.uniform(5, 15, (60, 2))]), random.integers(0, 3, 60)
    kept = keep_surest(boxes, labels, 0.5)
    overlaps = measure_overlaps(boxes, boxes)
    rivals = (overlaps > 0.5) & (labels[:, None] == labels)
    assert not (rivals[np.ix_(kept, kept)] & ~np.eye(len(kept), dtype=bool)).any()
    assert kept == sorted(kept)
    assert all(any(rivals[box, surer] for surer in kept if surer < box) for box in {*range(60)} - {*kept})


@pytest.mark.parametrize("size", [(40, 60), (60, 40), (32, 32), (20, 80)])
def test_boxes_on_a_padded_image_are_put_back_where_they_were(size: tuple[int, int]) -> None:
    from PIL import Image

    processor = steps("Ultralytics", is_padded=True)
    height, width = size
    values = np.zeros((height, width, 3), dtype=np.uint8)
    place = slice(height // 4, height // 2), slice(width // 4, width // 2)
    values[place] = 255
    seen = processor.process(Image.fromarray(values))
    assert seen.shape == (3, 32, 32)
    ys, xs = np.nonzero(seen[0] > 0.6)
    shares = np.array([[xs.min(), ys.min(), xs.max() + 1, ys.max() + 1]]) / 32
    (box,) = processor.restore_boxes(shares, size)
    expected = [width // 4, height // 4, width // 2, height // 2]
    np.testing.assert_allclose(box, expected, atol=1.01 * max(size) / 32)
    np.testing.assert_allclose(processor.restore_boxes(np.array([[0, 0, 1, 1]]), size), [[0, 0, width, height]])


@pytest.mark.parametrize(
    ("box_format", "box"),
    [("coco", [6, 4, 12, 8]), ("pascal_voc", [6, 4, 18, 12]), ("yolo", [0.2, 0.2, 0.2, 0.2])],
)
def test_each_format_of_boxes_is_read(box_format: str, box: list[float]) -> None:
    row = {"image": IMAGE, "boxes": [box], "labels": ["cat"], "box_format": box_format}
    found = OBJECT_DETECTION.read_row(row, None)
    assert found is not None
    assert found[1]["labels"] == ["cat"]
    np.testing.assert_allclose(found[1]["boxes"], [[6, 4, 18, 12]])


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"boxes": None}, "the boxes are NoneType None: name the column"),
        ({"labels": "cat"}, "the labels are str 'cat': name the column"),
        ({"labels": [0, 1]}, "1 boxes and 2 labels: give each box its label"),
        ({"labels": [1.5]}, "of box 0 the label is float 1.5"),
        ({"boxes": [[1, 2, 3]]}, "box 0 is list .* give four numbers"),
        ({"boxes": [[1, 2, float("nan"), 3]]}, "box 0 is list .* give four numbers"),
        ({"boxes": [[6, 4, 0, 8]]}, r"box 0 \(6, 4, 0, 8\), read as data.box_format: coco, has no width or height"),
        ({"boxes": [[6, 4, 60, 8]]}, "is not inside its image of 60 by 40 pixels: correct it, or name the format"),
        ({"boxes": [[6, 4, 3, 8]], "box_format": "pascal_voc"}, "pascal_voc, has no width or height"),
        ({"image": b"no image"}, "cannot be decoded"),
    ],
)
def test_a_bad_row_is_left_out_and_said_what_is_wrong_with(changes: dict[str, Any], words: str) -> None:
    row = {"image": IMAGE, "boxes": [[6, 4, 12, 8]], "labels": [0], "box_format": "coco"}
    assert OBJECT_DETECTION.read_row(row, None) is not None
    assert OBJECT_DETECTION.read_row(row | changes, None) is None
    assert re.search(words, OBJECT_DETECTION.explain_row(row | changes))


def test_the_format_of_boxes_is_guessed_by_their_numbers() -> None:
    left_top_sides = [[[30, 20, 10, 15]], [], [[2, 3, 10, 15]]]
    assert guess_box_format(left_top_sides) == "coco"
    assert guess_box_format([[[30, 20, 40, 35]], None, [[2, 3, 12, 18]]]) == "pascal_voc"
    assert guess_box_format([[[0.5, 0.5, 0.1, 1.0]]]) == "yolo"
    assert guess_box_format([[]]) == "coco"


def test_an_image_without_boxes_is_a_row_and_a_rounding_error_is_no_fault() -> None:
    row: dict[str, Any] = {"image": IMAGE, "boxes": [], "labels": [], "box_format": "coco"}
    assert OBJECT_DETECTION.read_row(row, None) == (IMAGE, {"boxes": [], "labels": []})
    row |= {"boxes": [[-0.4, 0, 60.9, 40]], "labels": [0]}
    assert read_boxes(row, None)["boxes"] == [[0, 0, 60, 40]]


def test_labels_get_the_models_numbers() -> None:
    rows = Rows((IMAGE,) * 2, ({"boxes": [], "labels": []}, {"boxes": [[0, 0, 1, 1]] * 2, "labels": [1, 0]}),
                ("Dog", "cat"), 0, "f" * 64, "rows")  # fmt: skip
    source = ModelSource("m", "o", "r", "object-detection", ("cat", "bird", "dog"))
    aligned = OBJECT_DETECTION.align_rows(rows, source)
    assert [target["labels"] for target in aligned.targets] == [[], [0, 2]]
    with pytest.raises(BadInput, match="not among the classes"):
        OBJECT_DETECTION.align_rows(rows, ModelSource("m", "o", "r", "object-detection", ("cat", "bird")))
    empty = Rows((IMAGE,), ({"boxes": [], "labels": []},), None, 0, "f" * 64, "rows")
    with pytest.raises(BadInput, match="no row of rows has a box"):
        OBJECT_DETECTION.align_rows(empty, source)


@pytest.mark.parametrize(
    ("kind", "shapes", "words"),
    [
        ("Ultralytics", [(2, 6, 84)], ""),
        ("Yolos", [(2, 7, 3), (2, 7, 4)], ""),
        ("RTDetr", [(2, 7, 2), (2, 7, 4)], ""),
        (
            "Ultralytics",
            [(2, 300, 6)],
            r"one output \[batch, 6, places\].* the graph has \[2, 300, 6\]: export it without",
        ),
        ("Ultralytics", [(2, 7, 3), (2, 7, 4)], "goes with one output"),
        ("Yolos", [(2, 6, 84)], "of the type UltralyticsImageProcessor"),
        ("Yolos", [(2, 7, 9), (2, 7, 4)], r"logits \[batch, boxes, 2 or 3\] \(source.labels\)"),
    ],
)
def test_outputs_of_another_layout_are_refused(kind: str, shapes: list[tuple[int, ...]], words: str) -> None:
    encoder = ImageEncoder(steps(kind))
    if not words:
        OBJECT_DETECTION.check_outputs(shapes, 2, encoder)
        return
    with pytest.raises(BadInput, match=words):
        OBJECT_DETECTION.check_outputs(shapes, 2, encoder)


def test_an_answer_names_label_probability_and_box_a_line() -> None:
    shown = DetectedImage("a.png", (FoundBox("cat", 0.91, 1.2, 2, 30, 40), FoundBox("dog", 0.6, 0, 0, 5, 6)))
    assert shown.line.splitlines() == [
        "cat (91%)  left 1, top 2, right 30, bottom 40  a.png",
        "dog (60%)  left 0, top 0, right 5, bottom 6  a.png",
    ]
    assert DetectedImage("a.png", ()).line == "nothing above 50%  a.png"


def test_a_processor_that_crops_is_refused(tmp_path: Path) -> None:
    from transformers import ViTImageProcessor

    ViTImageProcessor().save_pretrained(tmp_path)
    with pytest.raises(BadInput, match="of the type ViT, and boxes need one of Detr"):
        OBJECT_DETECTION.fixed_sizes(tmp_path)

"""Boxes of rows, read and checked; and boxes of a network's outputs, found, made unique and put on the image."""

from collections.abc import Mapping, Sequence
from typing import Any, TypedDict

import numpy as np
from numpy.typing import NDArray

from registry.errors import BadInput
from tasks.model_tasks.images.average_precision import MOST_BOXES, measure_overlaps
from tasks.model_tasks.inputs.image_files import read_size
from tasks.model_tasks.inputs.image_steps import ImageProcessor
from tasks.model_tasks.inputs.images import ULTRALYTICS
from tasks.model_tasks.labels import compute_softmax, explain_label, read_known_label, show_value

# Annotations are rounded: what is so many pixels outside is cut off.
_OUTSIDE = 1.0
# transformers' processors whose networks give a probability for each class, and not one for "nothing" beside them.
_SIGMOID = ("RTDetr",)
# Of a network that answers at each place of a grid: what is less sure is no answer (Ultralytics judges so too), and as
# many of the surest are compared with each other.
_LEAST_SCORE, _MOST_COMPARED = 0.001, 2000
_EDGES = 4


class Boxes(TypedDict):
    """The boxes of a row, (left, top, right, bottom) in the image's pixels, and the label of each."""

    boxes: list[list[float]]
    labels: list[int | str]


def read_boxes(row: Mapping[str, Any], classes: Sequence[str] | None) -> Boxes:
    """Read the boxes and labels of a row whose image can be decoded.

    `row` has `boxes`, `labels`, and perhaps `box_format`: coco (left, top, width, height), pascal_voc (left, top,
    right, bottom), both in pixels, or yolo (middle across, middle down, width, height) as shares of the image.

    Raises:
        BadInput: a box is no box of the image, or has no label; says which.
    """
    boxes, labels = row["boxes"], row["labels"]
    for name, value in (("boxes", boxes), ("labels", labels)):
        if not isinstance(value, list | tuple):
            raise BadInput(f"the {name} are {show_value(value)}: name the column with a list of {name} in data.{name}")
    if len(boxes) != len(labels):
        raise BadInput(f"there are {len(boxes)} boxes and {len(labels)} labels: give each box its label")
    height, width = read_size(row["image"])
    found: Boxes = {"boxes": [], "labels": []}
    for number, (box, value) in enumerate(zip(boxes, labels, strict=True)):
        label = read_known_label(value, classes)
        if label is None:
            raise BadInput(f"of box {number} {explain_label(value, of='box')}")
        found["boxes"].append(_read_box(box, row.get("box_format", "coco"), (width, height), number))
        found["labels"].append(label)
    return found


def _read_box(box: Any, box_format: str, size: tuple[int, int], number: int) -> list[float]:
    """Return a box as (left, top, right, bottom) in pixels of an image of (width, height)."""
    is_box = isinstance(box, list | tuple) and len(box) == _EDGES
    if not is_box or not all(isinstance(edge, int | float) and np.isfinite(edge) for edge in box):
        raise BadInput(f"box {number} is {show_value(box)}: give four numbers")
    values = np.array(box, dtype=np.float64)
    if box_format == "yolo":
        values = np.concatenate([values[:2] - values[2:] / 2, values[2:]]) * (*size, *size)
    if box_format != "pascal_voc":
        values[2:] += values[:2]
    shown = ", ".join(f"{edge:g}" for edge in box)
    what = f"box {number} ({shown}), read as data.box_format: {box_format}, "
    if not (values[2:] > values[:2]).all():
        raise BadInput(f"{what}has no width or height: correct it, or name the format it has")
    if values.min() < -_OUTSIDE or (values[2:] > np.array(size) + _OUTSIDE).any():
        raise BadInput(
            f"{what}is not inside its image of {size[0]} by {size[1]} pixels: correct it, or name the format it has"
        )
    edges: list[float] = values.clip(0, [*size, *size]).tolist()
    return edges


def guess_box_format(rows: Sequence[Any]) -> str:
    """Return the `box_format` that boxes of several rows most likely have, by how their numbers compare."""
    boxes = [
        box for row in rows if isinstance(row, list) for box in row if isinstance(box, list) and len(box) == _EDGES
    ]
    if not boxes:
        return "coco"
    values = np.array(boxes, dtype=np.float64)
    if values.max() <= 1:
        return "yolo"
    return "pascal_voc" if (values[:, 2:] > values[:, :2]).all() else "coco"


def split_outputs(outputs: Sequence[NDArray[Any]], processor: ImageProcessor) -> Sequence[NDArray[Any]]:
    """Return scores or logits [batch, boxes, classes], and boxes (middle, size) [batch, boxes, 4] as shares.

    transformers' networks give these two; Ultralytics' one output [batch, 4 + classes, places], its boxes in pixels.
    """
    if processor.kind != ULTRALYTICS:
        return outputs
    places = outputs[0].transpose(0, 2, 1)
    size = np.array([*processor.size[::-1]] * 2, dtype=np.float32)
    return [places[..., _EDGES:], places[..., :_EDGES] / size]


def find_boxes(
    logits: NDArray[Any], boxes: NDArray[Any], processor: ImageProcessor, size: tuple[int, int]
) -> NDArray[np.float32]:
    """Return the surest boxes of an image of (height, width), float32 [boxes, 6]: class, score, four edges in pixels.

    `logits` [boxes, classes] and `boxes` are those of `split_outputs`. Read as transformers' processors do in
    `post_process_object_detection`; Ultralytics' scores are probabilities, and of two boxes of one class that overlap
    by more than `nms_overlap` the surest is kept.
    """
    if processor.kind == ULTRALYTICS or processor.kind in _SIGMOID:
        scores = logits if processor.kind == ULTRALYTICS else 1 / (1 + np.exp(-logits.astype(np.float64)))
        places, labels = np.divmod(np.argsort(-scores, axis=None, kind="stable")[:_MOST_COMPARED], scores.shape[1])
        sure = scores[places, labels]
    else:
        shares = compute_softmax(logits)[:, :-1]
        best = shares.argmax(axis=1)
        places = np.argsort(-shares[np.arange(len(best)), best], kind="stable")
        labels, sure = best[places], shares[places, best[places]]
    middles, sizes = boxes[places, :2], boxes[places, 2:]
    edges = processor.restore_boxes(np.hstack([middles - sizes / 2, middles + sizes / 2]), size)
    is_box = (edges[:, 2:] > edges[:, :2]).all(axis=1)
    if processor.kind == ULTRALYTICS:
        is_box &= sure >= _LEAST_SCORE
    found = np.column_stack([labels, sure, edges])[is_box]
    if processor.kind == ULTRALYTICS:
        found = found[keep_surest(found[:, 2:], found[:, 0], processor.nms_overlap)]
    return found[:MOST_BOXES].astype(np.float32)


def keep_surest(boxes: NDArray[Any], labels: NDArray[Any], overlap: float) -> list[int]:
    """Return the places of boxes, the surest first, which no surer one of their class overlaps by more."""
    kept: list[int] = []
    left = np.arange(len(boxes))
    while len(left) and len(kept) < MOST_BOXES:
        best, left = int(left[0]), left[1:]
        kept.append(best)
        is_same = (labels[left] == labels[best]) & (measure_overlaps(boxes[[best]], boxes[left])[0] > overlap)
        left = left[~is_same]
    return kept

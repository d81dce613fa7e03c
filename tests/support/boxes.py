"""Drawn boxes and drawn answers to them, and what pycocotools makes of both."""

import contextlib
import io
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

CLASSES = 3
EDGE = 100


def draw_targets(random: np.random.Generator, rows: int) -> list[dict[str, Any]]:
    """Draw up to 6 boxes of CLASSES classes for each row, some of which overlap."""
    targets = []
    for count in random.integers(0, 7, rows):
        corners = random.uniform(0, EDGE * 0.7, (count, 2))
        boxes = np.hstack([corners, corners + random.uniform(5, EDGE * 0.3, (count, 2))])
        targets.append({"labels": random.integers(0, CLASSES, count).tolist(), "boxes": boxes.tolist()})
    return targets


def answer_targets(
    random: np.random.Generator, targets: Sequence[dict[str, Any]], *, shift: float = 2.0, ties: bool = False
) -> list[NDArray[np.float32]]:
    """Answer each row with its boxes, shifted, some missed, doubled, or of another class, and with some of nothing."""
    answers = []
    for target in targets:
        boxes = np.array(target["boxes"]).reshape(-1, 4).repeat(2, axis=0)
        labels = np.array(target["labels"], dtype=np.int64).repeat(2)
        kept = random.random(len(labels)) < np.tile([0.85, 0.25], len(labels) // 2)
        boxes, labels = boxes[kept] + random.normal(0, shift, (int(kept.sum()), 4)).clip(-2.4, 2.4), labels[kept]
        labels = np.where(random.random(len(labels)) < 0.1, random.integers(0, CLASSES, len(labels)), labels)
        corners = random.uniform(0, 60, (int(random.integers(0, 4)), 2))
        stray = np.hstack([corners, corners + 20])
        scores = random.random(len(boxes) + len(stray))
        answers.append(
            np.column_stack([
                np.concatenate([labels, random.integers(0, CLASSES, len(stray))]),
                scores.round(1) if ties else scores,
                np.vstack([boxes, stray]),
            ]).astype(np.float32)
        )  # fmt: skip
    return answers


def measure_by_coco(answers: Sequence[NDArray[np.float32]], targets: Sequence[dict[str, Any]]) -> tuple[float, float]:
    """Return pycocotools' mAP over overlaps 0.5 to 0.95, and that at 0.5."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    def to_coco(label: float, box: Sequence[float], image: int, number: int) -> dict[str, Any]:
        left, top, right, bottom = (float(edge) for edge in box)
        sides = right - left, bottom - top
        return {
            "id": number, "image_id": image, "category_id": int(label), "bbox": [left, top, *sides],
            "area": sides[0] * sides[1], "iscrowd": 0,
        }  # fmt: skip

    wanted = [
        (label, box, image)
        for image, target in enumerate(targets)
        for label, box in zip(target["labels"], target["boxes"], strict=True)
    ]
    truth = COCO()
    truth.dataset = {
        "images": [{"id": image} for image in range(len(targets))],
        "categories": [{"id": label} for label in range(CLASSES)],
        "annotations": [to_coco(*each, number) for number, each in enumerate(wanted, 1)],
    }
    with contextlib.redirect_stdout(io.StringIO()):
        truth.createIndex()
        found = truth.loadRes(
            [
                to_coco(row[0], row[2:], image, 0) | {"score": float(row[1])}
                for image, answer in enumerate(answers)
                for row in answer
            ]
        )
        judged = COCOeval(truth, found, "bbox")
        judged.evaluate()
        judged.accumulate()
        judged.summarize()
    return float(judged.stats[0]), float(judged.stats[1])

"""Boxes against boxes as COCO counts them: which are right at which overlap, and the mean average precision of that.

An average precision ranks the boxes of all images by their scores, so it is no sum over images; but ranks stay where
images are drawn again, and only how often each box counts changes. The rules are those of pycocotools (cocoeval.py, Lin
et al., arXiv 1405.0312) without its crowds and areas; tests compare both.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tasks.model_tasks.contract import Answers, Counts, Figures, Metric, Scores

# The surest boxes of an image, of all classes together: as many as COCO's detectors give.
MOST_BOXES = 100
# Of an answer, float32 [boxes, 6]: its class, its score, and (left, top, right, bottom) in the image's pixels.
LABEL, SCORE, CORNERS = 0, 1, slice(2, 6)
OVERLAPS = np.linspace(0.5, 0.95, 10)
_RECALLS = np.linspace(0, 1, 101)
# What is wrong by less than a rounding error is right, as in cocoeval.py.
_MOST_NEEDED = 1 - 1e-10
# Of a row's numbers: how many boxes of each class there are; then of each box given the place of its class from 1, its
# score, and a bit for each overlap that it is right at.
_NUMBERS = 3
# Right boxes times resamples that are counted at a time: 2 MB, which a core's own cache holds.
_AT_A_TIME = 250_000
# Boxes of a lower score are no answer to somebody who asks one question.
SURE = 0.5
# Boxes of two answers are the same above this overlap.
SAME_PLACE = 0.9


def measure_overlaps(ones: NDArray[Any], others: NDArray[Any]) -> NDArray[np.float64]:
    """Return intersection over union of boxes (left, top, right, bottom): [n, 4] and [m, 4] to [n, m]."""
    one, other = ones.astype(np.float64)[:, None], others.astype(np.float64)[None]
    sides = np.minimum(one[..., 2:], other[..., 2:]) - np.maximum(one[..., :2], other[..., :2])
    shared = np.maximum(sides, 0).prod(axis=-1)
    united = (one[..., 2:] - one[..., :2]).prod(axis=-1) + (other[..., 2:] - other[..., :2]).prod(axis=-1) - shared
    overlaps: NDArray[np.float64] = np.divide(shared, united, out=np.zeros_like(shared), where=united > 0)
    return overlaps


def match_boxes(given: NDArray[Any], wanted: NDArray[Any]) -> NDArray[np.bool_]:
    """Return which boxes are right at which of OVERLAPS, [given, overlaps]; both of one class, the surest given first.

    Each takes the box that it overlaps most of those that none before it took.
    """
    right = np.zeros((len(given), len(OVERLAPS)), dtype=bool)
    if not len(wanted):
        return right
    needed, is_free = np.minimum(OVERLAPS, _MOST_NEEDED), np.ones((len(OVERLAPS), len(wanted)), dtype=bool)
    overlaps = measure_overlaps(given, wanted)
    for box in np.flatnonzero(overlaps.max(axis=1) >= needed[0]):
        left = np.where(is_free, overlaps[box], -1.0)
        best = len(wanted) - 1 - left[:, ::-1].argmax(axis=1)  # of equal ones the last, as in cocoeval.py
        right[box] = left[np.arange(len(OVERLAPS)), best] >= needed
        is_free[right[box], best[right[box]]] = False
    return right


def score_boxes(answers: Answers, targets: Sequence[Any], _reference: Answers) -> Scores:
    """Return of each row how many boxes of each class there are, and what each box given is, [rows, numbers].

    The classes are those that any target has: boxes of others are left out, as by COCO.
    """
    classes = np.unique([label for target in targets for label in target["labels"]])
    scores = np.zeros((len(targets), len(classes) + _NUMBERS * MOST_BOXES))
    bits = 2.0 ** np.arange(len(OVERLAPS))
    for row, (answer, target) in enumerate(zip(answers, targets, strict=True)):
        labels, boxes = np.asarray(target["labels"]), np.asarray(target["boxes"], dtype=np.float64).reshape(-1, 4)
        given = answer[np.argsort(-answer[:, SCORE], kind="stable")][:MOST_BOXES]
        numbers = scores[row, len(classes) :].reshape(-1, _NUMBERS)[: len(given)]
        for place, label in enumerate(classes):
            is_given, is_wanted = given[:, LABEL] == label, labels == label
            scores[row, place] = is_wanted.sum()
            right = match_boxes(given[is_given, CORNERS], boxes[is_wanted])
            numbers[is_given] = np.column_stack([np.full(len(right), place + 1), given[is_given, SCORE], right @ bits])
    return scores


def compute_mean_precision(scores: Scores, counts: Counts, overlaps: NDArray[np.int64]) -> Figures:
    """Return the mean average precision over classes and `overlaps` (their places) of each resample; 0 of no boxes.

    A class of which a resample has no box is left out, as by COCO. Precision changes for the better at right boxes
    only, so only those are looked at.
    """
    total, classes = np.zeros(len(counts)), np.zeros(len(counts))
    width = scores.shape[1] - _NUMBERS * MOST_BOXES
    boxes = scores[:, width:].reshape(-1, _NUMBERS)
    for place in range(width):
        of_class = np.flatnonzero(boxes[:, 0] == place + 1)
        order = of_class[np.argsort(-boxes[of_class, 1], kind="stable")]
        right = (boxes[order, 2].astype(np.int64)[:, None] >> overlaps & 1).astype(bool)
        wanted = counts @ scores[:, place]
        classes += wanted > 0
        step = max(1, _AT_A_TIME // max(1, int(right.any(axis=1).sum())))
        for start in range(0, len(counts), step):
            part = slice(start, start + step)
            drawn = np.ascontiguousarray(counts[part].T)
            total[part] += _average_precision(order // MOST_BOXES, right, drawn, wanted[part])
    return total / np.maximum(classes, 1)


def _average_precision(
    rows: NDArray[np.int64], right: NDArray[np.bool_], counts: NDArray[np.float64], wanted: NDArray[np.float64]
) -> Figures:
    """Return the average precision of one class, the mean over overlaps, of each resample.

    `rows` are those of the boxes, the surest first, `right` whether each is right [boxes, overlaps], `counts` how often
    each row is drawn [rows, resamples], so that what is added up lies side by side, and `wanted` how many boxes there
    are.
    """
    hits = np.flatnonzero(right.any(axis=1))
    seen = np.zeros((len(hits) + 1, len(counts)))
    np.add.at(seen, (np.searchsorted(hits, np.arange(len(rows))), rows), 1)
    all_given, drawn = seen[:-1].cumsum(axis=0) @ counts, counts[rows[hits]]
    figures = np.zeros(counts.shape[1])
    # Of a good network the same boxes are right at several overlaps.
    for is_right, times in zip(*_count_columns(right[hits]), strict=True):
        found = drawn[is_right].cumsum(axis=0)
        precision = found / np.maximum(all_given[is_right], 1)
        best_after = np.maximum.accumulate(precision[::-1], axis=0)[::-1]
        reached = _count_reached(found / np.maximum(wanted, 1))
        figures += times * (best_after * np.diff(reached, axis=0, prepend=0)).sum(axis=0) / len(_RECALLS)
    mean: Figures = figures / right.shape[1]
    return mean


def _count_columns(values: NDArray[np.bool_]) -> tuple[NDArray[np.bool_], NDArray[np.int64]]:
    """Return the different columns, [columns, rows], and how often each is there."""
    columns, times = np.unique(values, axis=1, return_counts=True)
    return columns.T, times


def _count_reached(recall: NDArray[np.float64]) -> NDArray[np.int64]:
    """Return how many of _RECALLS each recall reaches: np.searchsorted, where they are so evenly spaced."""
    last = (recall * (len(_RECALLS) - 1)).astype(np.int64)
    last -= _RECALLS[last] > recall
    last += np.append(_RECALLS, np.inf)[last + 1] <= recall
    return last + 1


def compute_map(scores: Scores, counts: Counts) -> Figures:
    """Return the mean over overlaps of 0.5 to 0.95, COCO's own figure, of each resample."""
    return compute_mean_precision(scores, counts, np.arange(len(OVERLAPS)))


def compute_map_50(scores: Scores, counts: Counts) -> Figures:
    """Return the figure at an overlap of 0.5, of each resample."""
    return compute_mean_precision(scores, counts, np.arange(1))


def find_other_boxes(before: Scores, after: Scores) -> NDArray[np.bool_]:
    """Tell of each row whether the sure boxes are of other classes, or another number of them is right."""

    def describe(scores: Scores) -> Iterator[list[tuple[float, bool]]]:
        for row in scores[:, scores.shape[1] - _NUMBERS * MOST_BOXES :]:
            boxes = row.reshape(-1, _NUMBERS)
            sure = boxes[(boxes[:, 0] > 0) & (boxes[:, 1] >= SURE)]
            yield sorted((float(label), bool(int(right) & 1)) for label, _, right in sure)

    return np.array([one != other for one, other in zip(describe(before), describe(after), strict=True)])


def is_another_detection(one: NDArray[Any], other: NDArray[Any]) -> bool:
    """Tell whether two answers have other sure boxes: of other classes, or not at the same place."""
    one, other = (answer[answer[:, SCORE] >= SURE] for answer in (one, other))
    if not np.array_equal(np.sort(one[:, LABEL]), np.sort(other[:, LABEL])):
        return True
    alike = measure_overlaps(one[:, CORNERS], other[:, CORNERS]) >= SAME_PLACE
    alike &= one[:, LABEL, None] == other[None, :, LABEL]
    return bool(len(one)) and not (alike.any(axis=0).all() and alike.any(axis=1).all())


def make_metric(name: str, aggregate: Callable[[Scores, Counts], Figures]) -> Metric:
    """Return a metric of boxes."""
    return Metric(name, "share", score_boxes, aggregate, differs=is_another_detection, changes=find_other_boxes)


MEAN_AVERAGE_PRECISION = make_metric("map", compute_map)
MAP_50 = make_metric("map_50", compute_map_50)

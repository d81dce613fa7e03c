"""Maps of classes as answers: made of logits, kept as PNG files, and scored pixel by pixel against masks.

The map of a photograph has megabytes and its PNG a hundredth of them, so the answers to all rows fit into memory.
"""

import io
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tasks.model_tasks.contract import Answers, Metric, OfSums, Scores
from tasks.model_tasks.inputs.image_files import IGNORED, decode_mask
from tasks.model_tasks.scores import compute_ratio

# A row is answered otherwise where more than this share of its pixels has another class.
CHANGED_PIXELS = 0.01
_NUMBERS = IGNORED + 1


def find_classes(logits: NDArray[Any], size: tuple[int, int]) -> NDArray[np.uint8]:
    """Return the best class of each pixel of an image of `size`, uint8 [height, width], of logits [classes, h, w].

    The logits are resized first, as transformers' post_process_semantic_segmentation does: bilinear, corners not
    aligned, without anti-aliasing. One row of pixels at a time: those of the whole image would have gigabytes.
    """
    (top, bottom, down), (left, right, across) = (
        _interpolate(given, wanted) for given, wanted in zip(logits.shape[1:], size, strict=True)
    )
    scores, weights = np.ascontiguousarray(logits.transpose(1, 2, 0), dtype=np.float32), across[:, None]
    classes = np.empty(size, dtype=np.uint8)
    for row, (one, other, share) in enumerate(zip(top, bottom, down, strict=True)):
        line = scores[one] * (1 - share) + scores[other] * share
        classes[row] = (line[left] * (1 - weights) + line[right] * weights).argmax(axis=-1)
    return classes


def _interpolate(given: int, wanted: int) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float32]]:
    """Return the two neighbours of each wanted place among the given ones, and the weight of the second."""
    places = np.clip((np.arange(wanted) + 0.5) * (given / wanted) - 0.5, 0, given - 1)
    first = places.astype(np.int64)
    return first, np.minimum(first + 1, given - 1), (places - first).astype(np.float32)


def encode_map(classes: NDArray[np.uint8], *, ignores_zero: bool = False) -> NDArray[np.uint8]:
    """Return the bytes of a PNG file, uint8 [bytes]; where 0 is no class it is transparent."""
    from PIL import Image  # native code, which planning a release does not need

    file = io.BytesIO()
    Image.fromarray(classes).save(file, "PNG", compress_level=1, **({"transparency": 0} if ignores_zero else {}))
    return np.frombuffer(file.getvalue(), dtype=np.uint8)


def _ignores_zero(answer: NDArray[np.uint8]) -> bool:
    from PIL import Image

    return Image.open(io.BytesIO(answer.tobytes())).info.get("transparency") == 0


def is_another_map(one: NDArray[Any], other: NDArray[Any]) -> bool:
    """Tell whether more than CHANGED_PIXELS of the pixels have another class."""
    if np.array_equal(one, other):
        return False
    return bool((decode_mask(one.tobytes()) != decode_mask(other.tobytes())).mean() > CHANGED_PIXELS)


def _count_pixels(answers: Answers, targets: Sequence[bytes]) -> Iterator[NDArray[np.int64]]:
    """Yield for each row how many pixels of each class were answered with each, [targets, answers]."""
    for answer, mask in zip(answers, targets, strict=True):
        given, wanted = decode_mask(answer.tobytes()), decode_mask(mask)
        is_judged = wanted != IGNORED
        if _ignores_zero(answer):
            is_judged &= wanted != 0
        pairs = wanted[is_judged].astype(np.int64) * _NUMBERS + given[is_judged]
        yield np.bincount(pairs, minlength=_NUMBERS**2).reshape(_NUMBERS, _NUMBERS)


def score_overlaps(answers: Answers, targets: Sequence[Any], _reference: Answers) -> Scores:
    """Return for each class the pixels of its intersection, then of its union, [rows, 2 times classes].

    The classes are those that any mask has: a pixel that was given another is only missed.
    """
    counts = [
        (np.diag(each), each.sum(axis=0) + each.sum(axis=1) - np.diag(each), each.sum(axis=1))
        for each in _count_pixels(answers, targets)
    ]
    shared, united, wanted = np.array(counts, dtype=np.float64).transpose(1, 0, 2)
    is_there = wanted.any(axis=0)
    return np.hstack([shared[:, is_there], united[:, is_there]])


def compute_mean_overlap(sums: Scores) -> Scores:
    """Return the mean over classes of intersection over union; classes of which the rows show nothing are left out."""
    shared, united = np.split(sums, 2, axis=-1)
    shown = united > 0
    ratios = np.divide(shared, united, out=np.zeros_like(united), where=shown)
    mean: Scores = ratios.sum(axis=-1) / np.maximum(shown.sum(axis=-1), 1)
    return mean


def score_pixels(answers: Answers, targets: Sequence[Any], _reference: Answers) -> Scores:
    """Return how many pixels are right, and how many are judged, [rows, 2]."""
    counts = [(np.trace(each), each.sum()) for each in _count_pixels(answers, targets)]
    return np.array(counts, dtype=np.float64)


MEAN_IOU = Metric("mean_iou", "share", score_overlaps, OfSums(compute_mean_overlap), differs=is_another_map)
PIXEL_ACCURACY = Metric("pixel_accuracy", "share", score_pixels, OfSums(compute_ratio))

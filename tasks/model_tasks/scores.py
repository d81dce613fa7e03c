"""Numbers per row, and the figures that their sums give: see docs/adr/0027."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from tasks.model_tasks.contract import Answers, Metric, Scores


def score_labels(answers: Answers, targets: Sequence[Any], _reference: Answers) -> Scores:
    """Return 1 where a label is right, else 0, [rows, 1]."""
    right: Scores = (np.asarray(answers) == np.asarray(targets)).astype(np.float64)[:, None]
    return right


def compute_ratio(sums: Scores) -> Scores:
    """Return the first number over the second; 0 of nothing is 0."""
    return np.divide(sums[..., 0], sums[..., 1], out=np.zeros_like(sums[..., 0]), where=sums[..., 1] != 0)


def compute_f1(sums: Scores) -> Scores:
    """Return micro-F1 of (right, wrong, missed); where there is nothing to find and nothing was found it is 0."""
    right, both = 2 * sums[..., 0], 2 * sums[..., 0] + sums[..., 1] + sums[..., 2]
    return np.divide(right, both, out=np.zeros_like(both), where=both != 0)


ACCURACY = Metric("accuracy", "share", score_labels)

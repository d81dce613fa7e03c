"""Numbers per row, and the figures that their sums give: see docs/adr/0027."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from tasks.model_tasks.contract import Answers, Metric, OfSums, Scores

# As many labels a task ranks that has more; of fewer, each would be right.
RANKED = 5
# A bootstrap holds six numbers a class and row.
MOST_COUNTED_CLASSES = 64


def score_labels(answers: Answers, targets: Sequence[Any], _reference: Answers) -> Scores:
    """Return 1 where a label, or the first of ranked ones, is right, else 0, [rows, 1]."""
    given = np.asarray(answers).reshape(len(answers), -1)
    right: Scores = (given[:, :1] == np.asarray(targets)[:, None]).astype(np.float64)
    return right


def score_ranked_labels(answers: Answers, targets: Sequence[Any], _reference: Answers) -> Scores:
    """Return 1 where a label is among the ranked ones, else 0, [rows, 1]."""
    right: Scores = (np.asarray(answers) == np.asarray(targets)[:, None]).any(axis=1).astype(np.float64)[:, None]
    return right


def has_ranks(answers: Answers) -> bool:
    """Tell whether answers rank several labels."""
    return len(answers[0]) == RANKED


def score_classes(answers: Answers, targets: Sequence[Any], reference: Answers) -> Scores:
    """Return for each class whether a row is right, wrong and missed in it, [rows, 3 times classes].

    The classes are those of the targets and of fp32's answers: any other answer is only missed.
    """
    given, wanted = np.asarray(answers), np.asarray(targets)
    classes = np.union1d(wanted, np.asarray(reference))
    is_given, is_wanted = given[:, None] == classes, wanted[:, None] == classes
    return np.hstack([is_given & is_wanted, is_given & ~is_wanted, ~is_given & is_wanted]).astype(np.float64)


def has_few_classes(answers: Answers) -> bool:
    """Tell whether answers are of few enough classes that each is counted apart."""
    return len(np.unique(np.asarray(answers))) <= MOST_COUNTED_CLASSES


def compute_macro_f1(sums: Scores) -> Scores:
    """Return the mean F1 over classes, of sums as `score_classes` gives them; of a class that no row has it is 0."""
    numbers = np.stack(np.split(sums, 3, axis=-1), axis=-1)
    mean: Scores = compute_f1(numbers).mean(axis=-1)
    return mean


def compute_ratio(sums: Scores) -> Scores:
    """Return the first number over the second; 0 of nothing is 0."""
    return np.divide(sums[..., 0], sums[..., 1], out=np.zeros_like(sums[..., 0]), where=sums[..., 1] != 0)


def compute_f1(sums: Scores) -> Scores:
    """Return micro-F1 of (right, wrong, missed); where there is nothing to find and nothing was found it is 0."""
    right, both = 2 * sums[..., 0], 2 * sums[..., 0] + sums[..., 1] + sums[..., 2]
    return np.divide(right, both, out=np.zeros_like(both), where=both != 0)


def score_ranks(answers: Answers, targets: Sequence[Any], _reference: Answers) -> Scores:
    """Return what Spearman's rho adds up, of the ranks of answers and targets: (1, x, y, x², y², xy), [rows, 6].

    Ranks do not add up, so all rows are ranked once, ties by their mean (scipy.stats.rankdata), and scaled to -1 … 1.
    """
    import scipy  # native code, which planning a release does not need

    x, y = (
        2 * scipy.stats.rankdata(np.asarray(values, dtype=np.float64)) / (len(answers) + 1) - 1
        for values in (answers, targets)
    )
    return np.stack([np.ones_like(x), x, y, x * x, y * y, x * y], axis=1)


def compute_correlation(sums: Scores) -> Scores:
    """Return Pearson's correlation of the sums (n, x, y, x², y², xy); 0 where one side does not vary."""
    n, x, y, xx, yy, xy = np.moveaxis(sums, -1, 0)
    variance = (n * xx - x * x) * (n * yy - y * y)
    root = np.sqrt(np.maximum(variance, 0))
    rho: Scores = np.divide(n * xy - x * y, root, out=np.zeros_like(root), where=root > 1e-9)
    return rho


ACCURACY = Metric("accuracy", "share", score_labels)
MACRO_F1 = Metric("macro_f1", "share", score_classes, OfSums(compute_macro_f1), applies=has_few_classes)
SPEARMAN = Metric("spearman", "rho", score_ranks, OfSums(compute_correlation))
TOP_5_ACCURACY = Metric("top_5_accuracy", "share", score_ranked_labels, applies=has_ranks)

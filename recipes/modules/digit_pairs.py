"""The task of recipes/digit-pairs.yaml: do two scans show the same digit? docs/recipes.md explains each part."""

import numpy as np

COLUMNS = ("left", "right", "same")
METRIC = {"name": "pairs_right", "unit": "share", "aggregate": "share"}


def rows(row):
    """Return ((left, right), same) of a row of the dataset, or None where a scan is torn."""
    if len(row["left"]) != 64 or len(row["right"]) != 64:
        return None
    return (row["left"], row["right"]), row["same"]


def preprocess(inputs):
    """Return the graph's inputs for a batch: grey values of 0 to 16 become 0 to 1."""
    left, right = (np.array([pair[side] for pair in inputs], np.float32) / 16 for side in (0, 1))
    return {"left": left, "right": right}


def answers(outputs, _inputs):
    """Return the probability of each pair that its digits are the same, of the graph's logits [batch]."""
    return list(1 / (1 + np.exp(-outputs[0])))


def score(answers, targets):
    """Return 1 for each pair that is judged right, else 0."""
    return [float((answer > 0.5) == same) for answer, same in zip(answers, targets, strict=True)]


def show(answer):
    """Return what `enginery run` prints for a pair."""
    return {"same digit": bool(answer > 0.5), "probability": float(answer)}

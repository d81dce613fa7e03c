"""The answers of an engine as a file: one array per row, of any length, without a pickle."""

from pathlib import Path

import numpy as np

from tasks.model_tasks.contract import Answers

ANSWERS_FILE = "answers.npz"


def write_answers(answers: Answers, file: Path) -> None:
    """Write one array per row, all of one dtype and rank: their values end to end, and the shape of each."""
    arrays = [np.asarray(answer) for answer in answers]
    shapes = np.array([array.shape for array in arrays], dtype=np.int64)
    np.savez(file, values=np.concatenate([array.ravel() for array in arrays]), shapes=shapes)


def read_answers(file: Path) -> Answers:
    """Read what `write_answers` wrote."""
    with np.load(file, allow_pickle=False) as arrays:
        values, shapes = arrays["values"], arrays["shapes"]
    ends = np.cumsum(shapes.prod(axis=1, dtype=np.int64))[:-1]
    return [part.reshape(shape) for part, shape in zip(np.split(values, ends), shapes, strict=True)]

"""The answers of an engine as a file: one array per row, of any length, without a pickle."""

from pathlib import Path

import numpy as np

from tasks.measurement.batching import Batching
from tasks.model_tasks.contract import Answers


def answers_file(batching: Batching) -> str:
    """Return the name of the file with the answers of a batching."""
    return "answers.npz" if batching is Batching.BY_LENGTH else f"answers-{batching}.npz"


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

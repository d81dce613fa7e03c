"""The feeds that a decoder really gets, kept in files: a row's past may be megabytes."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, overload

import numpy as np

from tasks.calibration.rows import Feed
from tasks.generation.greedy import GreedySession, Step
from tasks.model_tasks.contract import Encoder


@dataclass(frozen=True)
class StoredFeeds(Sequence[Feed]):
    """A feed per file, read when it is asked for."""

    files: tuple[Path, ...]

    def __len__(self) -> int:
        return len(self.files)

    @overload
    def __getitem__(self, at: int) -> Feed: ...
    @overload
    def __getitem__(self, at: slice) -> "StoredFeeds": ...
    def __getitem__(self, at: int | slice) -> "Feed | StoredFeeds":
        if isinstance(at, slice):
            return StoredFeeds(self.files[at])
        with np.load(self.files[at], allow_pickle=False) as arrays:
            return dict(arrays)


def draw_decoder_feeds(session: GreedySession, encoder: Encoder, inputs: Iterable[Any], *, into: Path) -> StoredFeeds:
    """Generate for each input alone, without padding, and store two feeds of its decoder: a later one and the first.

    The first has a past of no tokens. The later one is another step for each row, so that all lengths of the past are
    drawn from; the rows of a release all take part.
    """
    files: list[Path] = []
    for number, row_input in enumerate(inputs):
        steps = list(session.steps(encoder.encode([row_input])))
        for step in _choose_steps(steps, number):
            file = into / f"{len(files)}.npz"
            np.savez(file, **step.feed)  # type: ignore[arg-type]  # numpy's stub takes its own keyword for one of them
            files.append(file)
    return StoredFeeds(tuple(files))


def _choose_steps(steps: Sequence[Step], number: int) -> list[Step]:
    later = steps[1 + number % (len(steps) - 1)] if len(steps) > 1 else None
    return [step for step in (later, steps[0]) if step is not None]

"""Graphs that take batches of one size only: rows in batches of that size, the last one filled up with its last row."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from registry.errors import BadInput
from registry.records import AxisRange, OnnxArtifact, ShapeProfile, fixed_batch

Arrays = Mapping[str, NDArray[Any]]


def check_batch(onnx: OnnxArtifact, profiles: Sequence[ShapeProfile]) -> None:
    """Check that profiles ask for the one batch that a graph takes, where it takes only one.

    Raises:
        BadInput: one asks for another.
    """
    size = fixed_batch(onnx.inputs)
    if size is not None and any(profile.axis("batch") != AxisRange(size, size, size) for profile in profiles):
        raise BadInput(
            f"the graph has its batch axis fixed at {size}: give each profile batch: {{min: {size}, opt: {size}, "
            f"max: {size}}}, or export the graph with a dynamic axis"
        )


def split_feed(feed: Arrays, size: int | None) -> list[Arrays]:
    """Return a feed as feeds of exactly `size` rows; None: as it is."""
    rows = count_rows(feed)
    if size is None or rows == size:
        return [feed]
    places = [np.minimum(np.arange(start, start + size), rows - 1) for start in range(0, rows, size)]
    return [{name: array[place] for name, array in feed.items()} for place in places]


def join_outputs(outputs: Sequence[NDArray[Any]], size: int | None, rows: int) -> NDArray[Any]:
    """Return an output of `split_feed`'s feeds as that of their `rows` rows; one without a batch is the first's."""
    first = outputs[0]
    if size is None or first.ndim == 0 or len(first) != size:
        return first
    return (np.concatenate(outputs) if len(outputs) > 1 else first)[:rows]


def count_rows(feed: Arrays) -> int:
    """Return the rows of a feed."""
    return len(next(iter(feed.values())))

"""Choose golden inputs among a split's rows, and record what an engine answers to them."""

import base64
from collections.abc import Sequence
from typing import Any

import numpy as np

from registry.digest import digest_of
from registry.errors import MeasurementError
from registry.records import EngineBuild, Machine, ShapeProfile, Tensor, axis_name
from tasks.backends import Session
from tasks.bundle.golden import (
    ENGINE,
    TOLERANCES,
    FileContent,
    GivenOutput,
    Golden,
    GoldenRow,
    describe_feed,
    run_judged,
)
from tasks.model_tasks.contract import Encoder, Feed, ModelTask

# A row that is larger, or has more numbers in its answer, is not chosen: every bundle carries them.
LARGEST_INPUT = 256 * 1024
MOST_VALUES = 16 * 1024


def choose_inputs(inputs: Sequence[Any], count: int) -> tuple[Any, ...]:
    """Return the shortest input, the longest, and others spread between: at most `count`, in any order of `inputs`."""
    different = {digest_of(row_input): row_input for row_input in inputs if _measure(row_input) <= LARGEST_INPUT}
    ordered = sorted(different, key=lambda digest: (_measure(different[digest]), digest))
    count = min(count, len(ordered))
    places = [place * (len(ordered) - 1) // max(1, count - 1) for place in range(count)]
    return tuple(different[ordered[place]] for place in places)


def _measure(row_input: Any) -> int:
    """Return the size of an input in bytes."""
    if isinstance(row_input, bytes):
        return len(row_input)
    return sum(len(text.encode()) for text in ((row_input,) if isinstance(row_input, str) else row_input))


def fits_profile(feed: Feed, inputs: Sequence[Tensor], profiles: Sequence[ShapeProfile]) -> bool:
    """Tell whether an engine with these inputs and profiles takes a feed."""
    sizes = {
        axis_name(axis): size
        for tensor in inputs
        for axis, size in zip(tensor.shape, feed[tensor.name].shape, strict=True)
        if isinstance(axis, str)
    }
    return any(profile.holds(sizes) for profile in profiles)


def record_golden(
    session: Session,
    task: ModelTask,
    encoder: Encoder,
    inputs: Sequence[Any],
    *,
    build: EngineBuild,
    machine: Machine,
) -> Golden | None:
    """Run each input alone, and record its feed and outputs; None where no input has an answer of a usual size.

    Args:
        session: the engine, or its exact graph.
        task: the model's task.
        encoder: makes the feeds.
        inputs: rows of the task.
        build: what the session runs.
        machine: this machine.

    Raises:
        MeasurementError: an output has NaN or infinite values.
    """
    rows = []
    for row_input in inputs:
        feed = encoder.encode([row_input])
        outputs = run_judged(session, task, encoder, row_input, feed)
        if not all(np.isfinite(output).all() for output in outputs.values()):
            raise MeasurementError(f"the graph {build.digest[:12]} gave NaN or infinite outputs: it cannot be judged")
        if sum(output.size for output in outputs.values()) <= MOST_VALUES:
            given = tuple(GivenOutput(name, each.shape, tuple(each.ravel().tolist())) for name, each in outputs.items())
            rows.append(GoldenRow(_encode_input(row_input), describe_feed(feed), given))
    return Golden(ENGINE, build.digest, machine, TOLERANCES[build.precision], tuple(rows)) if rows else None


def _encode_input(row_input: Any) -> str | tuple[str, ...] | FileContent:
    if isinstance(row_input, bytes):
        return FileContent(base64.b64encode(row_input).decode())
    return row_input if isinstance(row_input, str) else tuple(row_input)

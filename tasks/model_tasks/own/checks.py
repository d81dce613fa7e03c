"""What a task module's functions may return; anything else is named in a sentence."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from registry.errors import BadInput
from tasks.model_tasks.contract import Answers, Feed, Scores
from tasks.model_tasks.own.declarations import AGGREGATES, DeclaredMetric

_KINDS = "fiub"


def check_feed(feed: Any, names: Sequence[str], rows: int, shown: str) -> Feed:
    """Return what preprocess() gave for so many rows, as arrays by the graph's inputs.

    Raises:
        BadInput: no mapping, other inputs than the graph's, no array, another number of rows, NaN.
    """
    what = f"{shown}: preprocess() returns"
    if not isinstance(feed, dict) or set(feed) != set(names):
        there = f"{', '.join(map(str, feed))}" if isinstance(feed, dict) else f"a {type(feed).__name__}"
        raise BadInput(f"{what} {there:.200}: return a dict of the graph's inputs{_list(names)}")
    return {name: _check_rows(feed[name], rows, f"{what} {name}") for name in names}


def _list(names: Sequence[str]) -> str:
    return f", {', '.join(names)}" if names else ", by their names"


def check_answers(given: Any, rows: int, shown: str) -> Answers:
    """Return what answers() gave for so many rows, one array a row.

    Raises:
        BadInput: another number of answers, no numbers, NaN, or arrays of different types or ranks.
    """
    what = f"{shown}: answers() returns"
    if not isinstance(given, list | tuple | np.ndarray) or len(given) != rows:
        there = f"{len(given)}" if hasattr(given, "__len__") else f"a {type(given).__name__}"
        raise BadInput(f"{what} {there:.60} for {rows} rows: return a list of one array a row")
    arrays = [_check_array(each, f"{what} for row {at}") for at, each in enumerate(given)]
    if kinds := {(array.dtype.name, array.ndim) for array in arrays} - {(arrays[0].dtype.name, arrays[0].ndim)}:
        one, other = (f"{name} with {axes} axes" for name, axes in (*kinds, (arrays[0].dtype.name, arrays[0].ndim))[:2])
        raise BadInput(f"{what} {one} beside {other}: return arrays of one dtype and number of axes")
    return arrays


def check_scores(given: Any, rows: int, metric: DeclaredMetric, shown: str) -> Scores:
    """Return what score() gave for so many rows, float64 [rows, numbers]; of a mean with a number that counts rows.

    Raises:
        BadInput: another number of rows or of numbers a row, NaN; or a share of something that is not 0 or 1.
    """
    aggregate, what = AGGREGATES[metric.aggregate], f"{shown}: score() returns"
    scores = _check_rows(given, rows, what).astype(np.float64)
    if scores.ndim == 1:
        scores = scores[:, None]
    if scores.shape != (rows, aggregate.numbers):
        raise BadInput(
            f"{what} {list(scores.shape)} for {rows} rows, and the aggregate {metric.aggregate} takes "
            f"{aggregate.numbers} a row: correct it, or METRIC"
        )
    if aggregate.compute is None and not np.isin(scores, (0.0, 1.0)).all():
        raise BadInput(f"{what} other numbers than 0 and 1, and METRIC's aggregate is share: use mean")
    return np.hstack([scores, np.ones((rows, 1))]) if aggregate.counts_rows else scores


def _check_rows(given: Any, rows: int, what: str) -> NDArray[Any]:
    array = _check_array(given, what)
    if array.ndim == 0 or len(array) != rows:
        there = "one number" if array.ndim == 0 else f"{len(array)} along its first axis"
        raise BadInput(f"{what} with {there} for {rows} rows: return as many as there are rows, in their order")
    return np.ascontiguousarray(array)


def _check_array(given: Any, what: str) -> NDArray[Any]:
    try:
        array = np.asarray(given)
    except (ValueError, TypeError):  # lists of different lengths
        raise BadInput(f"{what} lists of different lengths: return an array, padded where rows differ") from None
    if array.dtype.kind not in _KINDS:
        raise BadInput(f"{what} a {type(given).__name__} of {array.dtype.name}: return an array of numbers")
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        place = f" (row {int(np.argwhere(~np.isfinite(array))[0][0])})" if array.ndim else ""
        raise BadInput(f"{what} NaN or infinite values{place}: correct it, or have rows() return None for such a row")
    return array

"""The calibration table: every range and how it was found, in a file of its own beside the graph.

A table has exactly one form in bytes, canonical JSON: only bytes that `to_json` writes are read, as for manifests.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from pydantic import TypeAdapter, ValidationError

from registry.digest import canonical_json
from registry.errors import BadInput
from tasks.calibration.ranges import INT8_MAX, Method
from tasks.calibration.statistics import TYPICAL, Calibration, Outlier
from tasks.graphs.layers import Floats, Graph, group_by_input
from tasks.quantization.scales import ActivationScale

TABLE_FILE = "calibration.json"
FORMAT_VERSION = 1
# Large models have tens of thousands of channels; a larger file is an attempt to exhaust the reader.
MAX_BYTES = 256 * 2**20
# Two samples of one dataset move a scale by a few percent.
DRIFT_MOST = 0.10


@dataclass(frozen=True)
class TensorRange:
    """One tensor's range: the largest |x| seen, the clip after smoothing, and the evidence for it.

    `strength` is SmoothQuant's alpha (None: not smoothed), `factor` each channel's divisor, `error` the relative
    squared error of the layers that read the tensor, `histogram` the sha256 of the histogram of |x|, `typical` the
    value that 99.9 % of |x| stay below.
    """

    tensor: str
    method: Method
    amax: float
    typical: float
    clip: float
    scale: float
    error: float
    histogram: str
    strength: float | None = None
    factor: tuple[float, ...] | None = None


@dataclass(frozen=True)
class CalibrationTable:
    """All ranges of a graph (by the digest of its fp32 form), the number of rows, and those quarantined."""

    onnx_digest: str
    ranges: tuple[TensorRange, ...]
    rows: int
    quarantined: tuple[int, ...]
    outlier: Outlier
    format_version: int = FORMAT_VERSION


@dataclass(frozen=True)
class Drift:
    """A scale that moved; None where only one of the tables has the tensor."""

    tensor: str
    old: float | None
    new: float | None

    @property
    def change(self) -> float:
        """Larger scale over the smaller, minus 1; infinite where one is missing."""
        if self.old is None or self.new is None:
            return math.inf
        return max(self.old, self.new) / min(self.old, self.new) - 1


_TABLE = TypeAdapter(CalibrationTable)


def make_table(onnx_digest: str, calibration: Calibration, scales: Mapping[str, ActivationScale]) -> CalibrationTable:
    """Make the table of the chosen scales, tensors in the order of their names."""
    ranges = []
    for tensor, scale in sorted(scales.items()):
        statistics, smoothing = calibration.activations[tensor], scale.smoothing
        ranges.append(
            TensorRange(
                tensor=tensor,
                method=scale.method,
                amax=statistics.amax,
                typical=statistics.histogram.quantile(TYPICAL),
                clip=scale.clip,
                scale=scale.scale,
                error=scale.error,
                histogram=statistics.histogram.digest,
                strength=scale.alpha,
                factor=None if smoothing is None else tuple(map(float, smoothing)),
            )
        )
    return CalibrationTable(
        onnx_digest, tuple(ranges), calibration.rows, tuple(sorted(calibration.quarantined)), calibration.find_outlier()
    )


def reuse_scales(table: CalibrationTable, graph: Graph) -> dict[str, ActivationScale]:
    """Take the scales to quantize `graph` with from a table, without a calibration run.

    Raises:
        BadInput: the table has other tensors, or tensors of another width.
    """
    readers = {tensor: members[0] for tensor, members in group_by_input(graph.list_linears()).items()}
    widths = {
        tensor: len(layer.to_matrix(graph.read_weight(layer)))
        for tensor, layer in readers.items()
        if layer.op != "Conv"
    }
    ranges = {entry.tensor: entry for entry in table.ranges}
    if unmatched := sorted(readers.keys() ^ ranges.keys()):
        raise BadInput(f"{TABLE_FILE} is of another graph: only one of them has {unmatched[0]}; calibrate again")
    for tensor, entry in ranges.items():
        if entry.factor is not None and len(entry.factor) != widths.get(tensor):
            raise BadInput(f"{TABLE_FILE} has {len(entry.factor)} factors for {tensor}, not its width: calibrate again")
    return {
        entry.tensor: ActivationScale(entry.scale, entry.method, _read_smoothing(entry), entry.strength, entry.error)
        for entry in table.ranges
    }


def _read_smoothing(entry: TensorRange) -> Floats | None:
    return None if entry.factor is None else np.array(entry.factor, dtype=np.float32)


def drift(old: CalibrationTable, new: CalibrationTable, most: float = DRIFT_MOST) -> tuple[Drift, ...]:
    """List the scales that moved by more than `most` (0.1: a tenth) between two tables, the farthest first."""
    before = {entry.tensor: entry.scale for entry in old.ranges}
    after = {entry.tensor: entry.scale for entry in new.ranges}
    drifts = [Drift(tensor, before.get(tensor), after.get(tensor)) for tensor in sorted(before | after)]
    return tuple(sorted((drift for drift in drifts if drift.change > most), key=lambda drift: -drift.change))


def to_json(table: CalibrationTable) -> bytes:
    """Write a table as canonical JSON (RFC 8785).

    Raises:
        BadInput: a figure is NaN, infinite or out of its range.
    """
    _check_table(table)
    return canonical_json(table)


def from_json(raw: bytes) -> CalibrationTable:
    """Read the table that `raw` holds.

    Raises:
        BadInput: not canonical JSON of this format version, or a value that no calibration gives.
    """
    if len(raw) > MAX_BYTES:
        raise BadInput(f"{TABLE_FILE} has {len(raw)} bytes, at most {MAX_BYTES} are read: calibrate again")
    try:
        table: CalibrationTable = _TABLE.validate_json(raw, strict=True)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise BadInput(f"{TABLE_FILE}: {place}: {first['msg']}; calibrate again") from error
    if to_json(table) != raw:
        raise BadInput(f"{TABLE_FILE} is not in canonical form (RFC 8785), or has unknown keys: calibrate again")
    return table


def read_table(file: Path) -> CalibrationTable:
    """Read the table in a file.

    Raises:
        OSError: the file cannot be read.
        BadInput: as `from_json`.
    """
    with file.open("rb") as stream:
        return from_json(stream.read(MAX_BYTES + 1))


def _check_table(table: CalibrationTable) -> None:
    if table.format_version != FORMAT_VERSION:
        raise BadInput(
            f"{TABLE_FILE} has format version {table.format_version}, this reads {FORMAT_VERSION}: calibrate again"
        )
    names = [entry.tensor for entry in table.ranges]
    if names != sorted(set(names)):
        raise BadInput(f"{TABLE_FILE} names a tensor twice or out of order: calibrate again")
    for entry in table.ranges:
        if field := _find_impossible_field(entry):
            raise BadInput(f"{TABLE_FILE}: no calibration gives this {field} of {entry.tensor}: calibrate again")


def _find_impossible_field(entry: TensorRange) -> str | None:
    """Return the name of the first field whose value no calibration gives."""
    positive = {"scale": entry.scale, "clip": entry.clip}
    positive |= {f"factor {channel}": value for channel, value in enumerate(entry.factor or ())}
    if name := next((name for name, value in positive.items() if not 0 < value < math.inf), None):
        return name
    not_negative = {"amax": entry.amax, "typical": entry.typical, "error": entry.error}
    if name := next((name for name, value in not_negative.items() if not 0 <= value < math.inf), None):
        return name
    return None if math.isclose(entry.scale * INT8_MAX, entry.clip, rel_tol=1e-6) else "scale"


def describe_drift(moved: tuple[Drift, ...], tensors: int) -> str:
    """Say how many scales moved, and which one moved farthest."""
    if not moved:
        return f"none of {tensors} scales moved by more than {DRIFT_MOST:.0%}"
    farthest = moved[0]
    in_both = farthest.old is not None and farthest.new is not None
    how = f"by {farthest.change:.0%}" if in_both else "is in one table only"
    count = f"{len(moved)} of {tensors} scales moved by more than {DRIFT_MOST:.0%}"
    return f"{count}, farthest {farthest.tensor.strip('/')} {how}"

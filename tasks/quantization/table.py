"""The calibration table: every range with how it was found, an artefact of its own beside the graph that it made.

One table has one form in bytes, canonical JSON: what is read must be what `to_json` writes, as for manifests.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from registry.digest import canonical_json, read_canonical
from registry.errors import BadInput
from tasks.calibration.histogram import Floats
from tasks.calibration.ranges import INT8_MAX, Method
from tasks.calibration.statistics import Calibration, Outlier
from tasks.graphs.layers import Graph, groups
from tasks.quantization.scales import ActivationScale

TABLE_FILE = "calibration.json"
FORMAT_VERSION = 1
# Channels of large models are tens of thousands; anything beyond this is an attempt to exhaust the reader.
MAX_BYTES = 256 * 2**20
# Two samples of one data set move a scale by a few percent.
DRIFT_MOST = 0.10


@dataclass(frozen=True)
class TensorRange:
    """One tensor's range: largest |x| seen, what was clipped to after smoothing, and what it was chosen from.

    `strength` is SmoothQuant's alpha (None: not divided), `factor` what each channel was divided by,
    `error` the relative squared error of the layers that read the tensor, `histogram` the sha256 of the
    histogram of |x|, `typical` what 99.9 % of |x| stay below.
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
    """All ranges of a graph (by the sha256 of its fp32 form's files), the rows, and those that were refused."""

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
        """Larger scale over the smaller one, less 1; infinite where one is missing."""
        if self.old is None or self.new is None:
            return math.inf
        return max(self.old, self.new) / min(self.old, self.new) - 1


def make_table(
    onnx_digest: str, calibration: Calibration, scales: Mapping[str, ActivationScale], typical: float = 0.999
) -> CalibrationTable:
    """Write down what was chosen, tensors in the order of their names."""
    ranges = []
    for tensor, scale in sorted(scales.items()):
        statistics, smoothing = calibration.activations[tensor], scale.smoothing
        ranges.append(
            TensorRange(
                tensor=tensor,
                method=scale.method,
                amax=statistics.amax,
                typical=statistics.histogram.quantile(typical),
                clip=scale.clip,
                scale=scale.scale,
                error=scale.error,
                histogram=statistics.histogram.digest,
                strength=scale.alpha,
                factor=None if smoothing is None else tuple(map(float, smoothing)),
            )
        )
    return CalibrationTable(
        onnx_digest, tuple(ranges), calibration.rows, tuple(sorted(calibration.quarantined)), calibration.outlier()
    )


def scales_for(table: CalibrationTable, graph: Graph) -> dict[str, ActivationScale]:
    """Reuse a table: the scales to quantize `graph` with, without a calibration run.

    Raises:
        BadInput: the table is of other tensors, or of tensors of another width.

    """
    found = groups(graph.linears())
    widths = {t: len(each[0].to_matrix(graph.weight(each[0]))) for t, each in found.items() if each[0].op != "Conv"}
    ranges = {each.tensor: each for each in table.ranges}
    if strange := sorted(found.keys() ^ ranges.keys()):
        raise BadInput(f"{TABLE_FILE} is of another graph: only one of them has {strange[0]}; calibrate again")
    for tensor, each in ranges.items():
        if each.factor is not None and len(each.factor) != widths.get(tensor):
            raise BadInput(f"{TABLE_FILE} has {len(each.factor)} factors for {tensor}, not its width: calibrate again")
    return {
        each.tensor: ActivationScale(each.scale, each.method, _smoothing(each), each.strength, each.error)
        for each in table.ranges
    }


def _smoothing(each: TensorRange) -> Floats | None:
    return None if each.factor is None else np.array(each.factor, dtype=np.float32)


def drift(old: CalibrationTable, new: CalibrationTable, most: float = DRIFT_MOST) -> tuple[Drift, ...]:
    """Scales that moved by more than `most` (0.1: a tenth) between two tables, the farthest first."""
    before = {each.tensor: each.scale for each in old.ranges}
    after = {each.tensor: each.scale for each in new.ranges}
    moved = [Drift(tensor, before.get(tensor), after.get(tensor)) for tensor in sorted(before | after)]
    return tuple(sorted((each for each in moved if each.change > most), key=lambda each: -each.change))


def to_json(table: CalibrationTable) -> bytes:
    """Canonical JSON (RFC 8785).

    Raises:
        BadInput: a figure is NaN, infinite or out of its range.

    """
    _check(table)
    return canonical_json(table)


def from_json(raw: bytes) -> CalibrationTable:
    """Read the table that `raw` holds.

    Raises:
        BadInput: not canonical JSON of this format version, or a value that no calibration gives.

    """
    if len(raw) > MAX_BYTES:
        raise BadInput(f"{TABLE_FILE} has {len(raw)} bytes, at most {MAX_BYTES} are read: calibrate again")
    return read_canonical(CalibrationTable, raw, TABLE_FILE, advice="calibrate again", write=to_json)


def read_table(file: Path) -> CalibrationTable:
    """Read the table in a file.

    Raises:
        OSError: it cannot be read.
        BadInput: as `from_json`.

    """
    with file.open("rb") as stream:
        return from_json(stream.read(MAX_BYTES + 1))


def _check(table: CalibrationTable) -> None:
    if table.format_version != FORMAT_VERSION:
        raise BadInput(f"{TABLE_FILE} has format version {table.format_version}, this reads {FORMAT_VERSION}")
    names = [each.tensor for each in table.ranges]
    if names != sorted(set(names)):
        raise BadInput(f"{TABLE_FILE} names a tensor twice or out of order: calibrate again")
    for each in table.ranges:
        if wrong := _wrong(each):
            raise BadInput(f"{TABLE_FILE}: {wrong} of {each.tensor} is no value of a calibration: calibrate again")


def _wrong(each: TensorRange) -> str | None:
    """The name of the first field that no calibration gives."""
    figures = {"scale": each.scale, "clip": each.clip}
    figures |= {f"factor {at}": value for at, value in enumerate(each.factor or ())}
    positive = next((name for name, value in figures.items() if not 0 < value < math.inf), None)
    if positive is not None:
        return positive
    others = {"amax": each.amax, "typical": each.typical, "error": each.error}
    if name := next((name for name, value in others.items() if not 0 <= value < math.inf), None):
        return name
    return None if math.isclose(each.scale * INT8_MAX, each.clip, rel_tol=1e-6) else "scale"


def describe_drift(moved: tuple[Drift, ...], tensors: int) -> str:
    """How many scales moved, and the one that moved farthest."""
    if not moved:
        return f"none of {tensors} scales moved by more than {DRIFT_MOST:.0%}"
    far = moved[0]
    by = f"by {far.change:.0%}" if far.old is not None and far.new is not None else "is in one table only"
    return (
        f"{len(moved)} of {tensors} scales moved by more than {DRIFT_MOST:.0%}, farthest {far.tensor.strip('/')} {by}"
    )

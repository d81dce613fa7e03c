"""The request that a precision's function gets, and the graph that it returns."""

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import onnx

from registry.errors import BadInput
from tasks.calibration.collect import calibrate
from tasks.calibration.feeds import count_rows
from tasks.calibration.ranges import Method
from tasks.calibration.rows import Feed
from tasks.calibration.statistics import Calibration
from tasks.execution.progress import OnProgress
from tasks.quantization.autopilot import Choice
from tasks.quantization.holdout import Holdout
from tasks.quantization.table import CalibrationTable


@dataclass(frozen=True)
class Int8Plan:
    """How int8 is made.

    `checkpoint` is a file from which a killed calibration resumes. `table` reuses the ranges of an earlier calibration:
    no rows run, and weights are rounded to nearest. With a `holdout` the autopilot keeps layers in fp32 where its gate
    needs that.

    Releases leave the rest at its defaults; only benchmarks and tests change it. `method` fixes how clips are found
    (None: the best one per tensor), `smooth` divides channels (SmoothQuant), `compensate` always rounds weights for the
    sample (GPTQ): a little nearer on average, no nearer at worst, and several times slower
    (docs/adr/0017-calibration.md).
    """

    method: Method | None = None
    smooth: bool = True
    compensate: bool = False
    checkpoint: Path | None = None
    table: CalibrationTable | None = None
    holdout: Holdout | None = None


@dataclass(frozen=True)
class QuantizedGraph:
    """A precision's graph, with its calibration table and the autopilot's choice where it has them."""

    graph: onnx.ModelProto
    table: CalibrationTable | None = None
    choice: Choice | None = None


@dataclass(frozen=True)
class QuantizationRequest:
    """The input of a precision's function: fp32 graph, calibration rows, progress callback, plan for int8."""

    graph_file: Path
    onnx_digest: str
    rows: Iterable[Feed] | None
    on_progress: OnProgress
    plan: Int8Plan

    def load(self) -> onnx.ModelProto:
        """Read the fp32 graph, external data included."""
        return onnx.load(self.graph_file)

    def calibrate(self) -> Calibration:
        """Collect the statistics of the calibration rows.

        Raises:
            BadInput: there are no rows.
        """
        if self.rows is None:
            raise BadInput("this precision needs calibration rows: name a calibration set in the recipe")
        total = count_rows(self.rows) if isinstance(self.rows, Sequence) else 0
        started = time.monotonic()

        def report_row(row: int) -> None:
            rate = f"calibrate · {row / max(1e-3, time.monotonic() - started):.0f} rows/s"
            self.on_progress(rate, min(1.0, row / total) if total else 0.0)

        return calibrate(self.graph_file, self.rows, on_row=report_row, checkpoint=self.plan.checkpoint)

"""The report of a release as rows, one per target and precision, and as JSON."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from pydantic import TypeAdapter

from registry.errors import EngineryError
from registry.records import Backend, Measurement, Precision, Verdict
from tasks.verdicts.gates import find


@dataclass(frozen=True)
class EngineRow:
    """One target and precision; `state` is built, found, skipped, failed or lost, and `reason` says why.

    `remark` is a note on its graph, such as its share of int8 MACs. `is_open`: more windows of calls may decide it.
    """

    model: str
    target: str
    precision: Precision
    backend: Backend
    state: str
    reason: str
    verdict: Verdict | None = None
    digest: str | None = None
    size_bytes: int | None = None
    build_seconds: float | None = None
    measurements: tuple[Measurement, ...] = ()
    version: int | None = None
    aliases: tuple[str, ...] = ()
    remark: str = ""
    is_open: bool = False

    def figure(self, metric: str) -> Measurement | None:
        """Return the measurement of a metric, or None."""
        return find(self.measurements, metric)

    @property
    def quality(self) -> Measurement | None:
        """The measurement of the model task's metric: the one whose loss against fp32 is measured too."""
        names = {measurement.metric for measurement in self.measurements}
        return next((each for each in self.measurements if f"{each.metric}_loss" in names), None)


@dataclass(frozen=True)
class ReleaseReport:
    """The result of a release; `found` is True where an earlier run had already finished it.

    `missing` are targets without a result for a temporary reason: no worker took the job, or the worker vanished.
    """

    release: str
    model: str
    rows: tuple[EngineRow, ...]
    found: bool = False
    run_id: str = ""
    missing: tuple[str, ...] = ()

    @property
    def metric(self) -> str:
        """The name of the model task's metric; "quality" where it was not measured."""
        return next((row.quality.metric for row in self.rows if row.quality), "quality")

    @property
    def state(self) -> str:
        """The state in the release's run: complete, partial or failed."""
        if self.missing:
            return "partial"
        return "failed" if self.failed else "complete"

    @property
    def failed(self) -> bool:
        """Whether no engine was built; engines that failed their gates are a result."""
        return not any(row.digest for row in self.rows)

    @property
    def passed(self) -> bool:
        """Whether an engine passed all its gates."""
        return any(row.verdict is Verdict.PASSED for row in self.rows)


class ReleaseIncomplete(EngineryError):
    """The release built no engine, or has no result for some of its targets."""

    def __init__(self, report: ReleaseReport) -> None:
        self.report = report
        release = f"release {report.release} of {report.model}"
        if report.missing:
            sentence = (
                f"{release} has no result for {', '.join(report.missing)}: see the reasons in its report, then run "
                f"`enginery release --resume {report.release}` to build only the missing engines"
            )
        else:
            sentence = f"{release} built no engine: see the reasons in its report"
        super().__init__(sentence)


ROWS: TypeAdapter[tuple[EngineRow, ...]] = TypeAdapter(tuple[EngineRow, ...])


def pick_winner(rows: Sequence[EngineRow]) -> EngineRow | None:
    """Return the fastest published row whose gates all passed, or None.

    Each has its speed-up over the baseline of the same time; p50 decides between equals, and where there is none.
    """
    passed = [row for row in rows if row.verdict is Verdict.PASSED and row.version is not None]
    return min(passed, key=_read_speed, default=None)


def add_aliases(rows: Sequence[EngineRow], aliases: dict[str, int]) -> tuple[EngineRow, ...]:
    """Return the rows with the aliases that now point at their versions."""
    return tuple(
        replace(row, aliases=tuple(sorted(name for name, version in aliases.items() if version == row.version)))
        for row in rows
    )


def _read_speed(row: EngineRow) -> tuple[float, float]:
    p50, speedup = row.figure("latency_p50_ms"), row.figure("speedup")
    return -(1.0 if speedup is None else speedup.value), float("inf") if p50 is None else p50.value


def report_json(report: ReleaseReport) -> dict[str, Any]:
    """Return the object that `release --json` prints last."""
    return {
        "release": report.release,
        "model": report.model,
        "found": report.found,
        "missing": list(report.missing),
        "engines": [row_json(row) for row in report.rows],
    }


def row_json(row: EngineRow) -> dict[str, Any]:
    """Return a row as JSON; a metric that the engine itself did not produce carries its subject's name."""
    machine = next((figure.measured_on for figure in row.measurements if figure.subject == "engine"), None)
    return {
        "model": row.model,
        "version": row.version,
        "target": row.target,
        "precision": row.precision.value,
        "backend": row.backend.value,
        "state": row.state,
        "verdict": row.verdict.value if row.verdict else None,
        "reason": row.reason,
        "remark": row.remark,
        "aliases": list(row.aliases),
        "digest": row.digest,
        "size_bytes": row.size_bytes,
        "build_seconds": row.build_seconds,
        "metrics": {figure.name: figure.value for figure in row.measurements},
        "intervals": {figure.name: [figure.low, figure.high] for figure in row.measurements if figure.low is not None},
        "measured_on": machine.label if machine else "",
    }

"""What a release made, as rows: one per target and precision, for people (a table) and for programs (JSON)."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from pydantic import TypeAdapter

from registry.errors import EngineryError
from registry.records import Backend, Measurement, Precision, Verdict


@dataclass(frozen=True)
class EngineRow:
    """One target and precision; `state` is built, found, skipped, failed or lost, and `reason` says why.

    `remark` is what is to be known of its graph, such as the share of it that is int8.
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

    def figure(self, metric: str) -> Measurement | None:
        """The measurement of that name, or None."""
        return next((found for found in self.measurements if found.metric == metric), None)


@dataclass(frozen=True)
class ReleaseReport:
    """A finished release: its id, whether it was found finished, and its rows.

    `missing` are targets that gave no result, for a reason that may pass: no worker came, or it vanished.
    """

    release: str
    model: str
    rows: tuple[EngineRow, ...]
    found: bool = False
    run_id: str = ""
    missing: tuple[str, ...] = ()

    @property
    def state(self) -> str:
        """What the release's run says: complete, partial or failed."""
        if self.missing:
            return "partial"
        return "failed" if self.failed else "complete"

    @property
    def failed(self) -> bool:
        """Whether nothing at all was published."""
        return not any(row.version for row in self.rows)


class ReleaseIncomplete(EngineryError):
    """A release that published nothing, or that lacks the engines of some of its targets."""

    def __init__(self, report: ReleaseReport) -> None:
        self.report = report
        what = f"release {report.release} of {report.model}"
        if report.missing:
            sentence = (
                f"{what} lacks {', '.join(report.missing)}: see the reasons, then "
                f"`enginery release --resume {report.release}` makes only what is missing"
            )
        else:
            sentence = f"{what} published no engine: see the reasons"
        super().__init__(sentence)


ROWS: TypeAdapter[tuple[EngineRow, ...]] = TypeAdapter(tuple[EngineRow, ...])


def winner(rows: Sequence[EngineRow]) -> EngineRow | None:
    """The fastest row whose gates all passed (lowest measured p50), or None."""
    passed = [row for row in rows if row.verdict is Verdict.PASSED and row.version is not None]
    return min(passed, key=lambda row: _value(row, "latency_p50_ms", float("inf")), default=None)


def with_aliases(rows: Sequence[EngineRow], aliases: dict[str, int]) -> tuple[EngineRow, ...]:
    """Rows with the aliases that point at their version now."""
    return tuple(
        replace(row, aliases=tuple(sorted(name for name, version in aliases.items() if version == row.version)))
        for row in rows
    )


def _value(row: EngineRow, metric: str, otherwise: float) -> float:
    found = row.figure(metric)
    return otherwise if found is None else found.value


def as_json(report: ReleaseReport) -> dict[str, Any]:
    """The object that `release --json` ends with."""
    return {
        "release": report.release,
        "model": report.model,
        "found": report.found,
        "missing": list(report.missing),
        "engines": [row_json(row) for row in report.rows],
    }


def row_json(row: EngineRow) -> dict[str, Any]:
    """A row for programs; a metric that something else than the engine produced carries its subject's name."""

    def name(found: Measurement) -> str:
        return found.metric if found.subject == "engine" else f"{found.subject}.{found.metric}"

    ran = next((found.measured_on for found in row.measurements if found.subject == "engine"), None)
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
        "metrics": {name(found): found.value for found in row.measurements},
        "intervals": {name(found): [found.low, found.high] for found in row.measurements if found.low is not None},
        "measured_on": (ran.gpu or ran.host_cpu) if ran else "",
    }

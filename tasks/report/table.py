"""TODO: tasks/report/table.py."""

from itertools import groupby

from rich.table import Table

from registry.records import Measurement, Verdict
from tasks.report.rows import EngineRow, ReleaseReport

COLORS = {Verdict.PASSED: "green", Verdict.FAILED: "red", Verdict.INCONCLUSIVE: "yellow", Verdict.UNMEASURED: "dim"}


def release_table(report: ReleaseReport) -> Table:
    """Target by precision, with size, build time, accuracy, latency, speed-up, verdict, version and alias.

    A target that nothing was built for is one line; `notes` has the reasons. An accuracy with * is
    of the ONNX graph, on this machine's CPU: the engine itself has not run.
    """
    table = Table(title=f"{report.model}, release {report.release}", title_justify="left")
    for column in ("target", "precision"):
        table.add_column(column, no_wrap=True)
    for column in ("MB", "build s", "accuracy (95 %)", "p50 ms", "p99 ms", "speed-up"):
        table.add_column(column, justify="right")
    table.add_column("verdict", no_wrap=True)
    table.add_column("version", justify="right")
    table.add_column("alias")
    for target, group in groupby(report.rows, key=lambda row: row.target):
        rows = list(group)
        if len(rows) > 1 and all(row.state == "skipped" for row in rows):
            table.add_row(target, f"all {len(rows)}", *[""] * 6, "[dim]skipped[/]", "", "")
            continue
        for row in rows:
            table.add_row(*_cells(row))
    return table


def _cells(row: EngineRow) -> tuple[str, ...]:
    verdict = f"[{COLORS[row.verdict]}]{row.verdict}[/]" if row.verdict else f"[dim]{row.state}[/]"
    built = "" if row.build_seconds is None else f"{row.build_seconds:.1f}"
    return (
        row.target,
        row.precision.value,
        "" if row.size_bytes is None else f"{row.size_bytes / 1e6:.1f}",
        f"{built} [dim]found[/]" if row.state == "found" else built,
        _accuracy(row.figure("accuracy")),
        _milliseconds(row.figure("latency_p50_ms")),
        _milliseconds(row.figure("latency_p99_ms")),
        _times(row.figure("speedup")),
        verdict,
        "" if row.version is None else str(row.version),
        ", ".join(row.aliases),
    )


def _accuracy(found: Measurement | None) -> str:
    if found is None or found.low is None or found.high is None:
        return ""
    mark = "" if found.subject == "engine" else "*"
    return f"{100 * found.value:.1f} ({100 * found.low:.1f}-{100 * found.high:.1f}){mark}"


def _milliseconds(found: Measurement | None) -> str:
    return "" if found is None else f"{found.value:.1f}"


def _times(found: Measurement | None) -> str:
    return "" if found is None else f"{found.value:.2f}"


def notes(report: ReleaseReport) -> list[str]:
    """One line per distinct reason of what is not passed, and per remark: what, where and why."""
    lines: dict[str, dict[str, list[str]]] = {}
    for row in report.rows:
        if row.remark:
            lines.setdefault(row.remark, {}).setdefault(row.target, []).append(row.precision.value)
        if row.verdict is not Verdict.PASSED:
            where = lines.setdefault(f"{row.verdict or row.state}: {row.reason}", {})
            where.setdefault(row.target, []).append(row.precision.value)
    return [f"{'; '.join(map(_engines, where.items()))}: {reason}" for reason, where in lines.items()]


def _engines(entry: tuple[str, list[str]]) -> str:
    target, precisions = entry
    return f"{target} {', '.join(precisions)}"

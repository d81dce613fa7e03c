"""A release in figures and in Markdown, for its run's page in MLflow."""

from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import groupby

from registry.records import Measurement, Verdict
from tasks.model_tasks.contract import Metric
from tasks.report.rows import EngineRow, ReleaseReport
from tasks.report.table import describe_result, format_figure, format_quality, list_notes

_P50 = "latency_p50_ms"
_COLUMNS = ("target", "precision", "verdict", "version", "MB", "{metric}, % (95 %)", "p50 ms", "p99 ms", "speed-up")


def release_metrics(report: ReleaseReport, metric: Metric) -> dict[str, float]:
    """Return how many engines got which verdict, and for each target the best metric and p50 of its engines.

    Only published engines count, and only figures that the engine itself produced.
    """
    counts = Counter(row.verdict for row in report.rows)
    metrics = {f"engines_{verdict}": float(counts[verdict]) for verdict in Verdict}
    for target, rows in _by_target(report):
        published = [row for row in rows if row.version is not None]
        qualities, latencies = ([*_own_figures(published, name)] for name in (metric.name, _P50))
        if qualities:
            metrics[f"best_{metric.name}.{target}"] = (max if metric.higher_is_better else min)(qualities)
        if latencies:
            metrics[f"best_{_P50}.{target}"] = min(latencies)
    return metrics


def release_note(report: ReleaseReport) -> str:
    """Return a release's table, its notes and the next command, as Markdown."""
    columns = [column.format(metric=report.metric) for column in _COLUMNS]
    rows = [cells for _, group in _by_target(report) for cells in _make_cells(group)]
    table = [f"| {' | '.join(line)} |" for line in (columns, ["---"] * len(columns), *rows)]
    notes = [f"- {note}" for note in list_notes(report)]
    return "\n".join([f"{describe_result(report)}", "", *table, "", *notes])


def _by_target(report: ReleaseReport) -> list[tuple[str, list[EngineRow]]]:
    return [(target, list(rows)) for target, rows in groupby(report.rows, key=lambda row: row.target)]


def _own_figures(rows: Sequence[EngineRow], metric: str) -> Iterator[float]:
    figures: list[Measurement | None] = [row.figure(metric) for row in rows]
    return (figure.value for figure in figures if figure is not None and figure.subject == "engine")


def _make_cells(rows: Sequence[EngineRow]) -> Iterator[Sequence[str]]:
    if len(rows) > 1 and all(row.state == "skipped" for row in rows):
        yield rows[0].target, f"all {len(rows)}", "skipped", *[""] * (len(_COLUMNS) - 3)
        return
    for row in rows:
        yield (
            row.target,
            row.precision.value,
            row.verdict.value if row.verdict else row.state,
            "" if row.version is None else str(row.version),
            "" if row.size_bytes is None else f"{row.size_bytes / 1e6:.1f}",
            format_quality(row.quality),
            format_figure(row.figure(_P50), ".1f"),
            format_figure(row.figure("latency_p99_ms"), ".1f"),
            format_figure(row.figure("speedup"), ".2f"),
        )

"""The table that `enginery release` prints, and the notes below it."""

from collections import Counter
from collections.abc import Sequence
from itertools import groupby

from rich.table import Table

from registry.names import candidate_alias, production_alias
from registry.records import Measurement, Verdict
from tasks.report.rows import EngineRow, ReleaseReport
from tasks.verdicts.against_production import OVER_PRODUCTION

# Notes are cut there, at the end of a clause.
LONGEST_NOTE = 200
COLORS = {Verdict.PASSED: "green", Verdict.FAILED: "red", Verdict.INCONCLUSIVE: "yellow", Verdict.UNMEASURED: "dim"}


def make_release_table(report: ReleaseReport) -> Table:
    """Make the table of a release: a row per target and precision, with its figures, verdict and version.

    A target whose precisions were all skipped is one line; `list_notes` has the reasons. A metric with * is of the
    ONNX graph on this machine's CPU: the engine itself has not run.
    """
    table = Table(title=f"{report.model}, release {report.release}", title_justify="left")
    for column in ("target", "precision"):
        table.add_column(column, no_wrap=True)
    for column in ("MB", "build s", f"{report.metric} (95 %)", "p50 ms", "p99 ms", "speed-up"):
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
            table.add_row(*_format_cells(row))
    return table


def _format_cells(row: EngineRow) -> tuple[str, ...]:
    verdict = f"[{COLORS[row.verdict]}]{row.verdict}[/]" if row.verdict else f"[dim]{row.state}[/]"
    built = "" if row.build_seconds is None else f"{row.build_seconds:.1f}"
    return (
        row.target,
        row.precision.value,
        "" if row.size_bytes is None else f"{row.size_bytes / 1e6:.1f}",
        f"{built} [dim]found[/]" if row.state == "found" else built,
        format_quality(row.quality),
        format_figure(row.figure("latency_p50_ms"), ".1f"),
        format_figure(row.figure("latency_p99_ms"), ".1f"),
        format_figure(row.figure("speedup"), ".2f"),
        verdict,
        "" if row.version is None else str(row.version),
        ", ".join(row.aliases),
    )


def format_quality(quality: Measurement | None) -> str:
    """Return a metric with its interval, a share as a percentage; * marks that of the ONNX graph."""
    if quality is None or quality.low is None or quality.high is None:
        return ""
    mark = "" if quality.subject == "engine" else "*"
    if quality.unit != "share":
        return f"{quality.value:.4f} ({quality.low:.4f}-{quality.high:.4f}){mark}"
    return f"{100 * quality.value:.1f} ({100 * quality.low:.1f}-{100 * quality.high:.1f}){mark}"


def format_figure(figure: Measurement | None, spec: str) -> str:
    """Return a figure as text, or nothing where it is missing."""
    return "" if figure is None else format(figure.value, spec)


def list_notes(report: ReleaseReport) -> list[str]:
    """List why engines did not pass, and what was noted of their graphs: in few and short lines.

    Engines with the same reason share a line. `enginery list`, the report and `--json` have every word.
    """
    engines: dict[str, dict[str, list[str]]] = {}
    for row in report.rows:
        sentences = [] if row.verdict is Verdict.PASSED else [f"{row.verdict or row.state}: {_explain(row)}"]
        for sentence in filter(None, [*sentences, _compare_candidate(row), row.remark]):
            engines.setdefault(_shorten(sentence), {}).setdefault(row.target, []).append(row.precision.value)
    return [f"{_name_engines(by_target)}: {sentence}" for sentence, by_target in engines.items()]


def _compare_candidate(row: EngineRow) -> str:
    """Say how much longer or shorter a call of a candidate takes than one in production; empty for any other engine."""
    ratio = row.figure(OVER_PRODUCTION["latency_p50_ms"])
    if ratio is None or ratio.low is None or ratio.high is None or candidate_alias(row.target) not in row.aliases:
        return ""
    return f"p50 {ratio.value:.2f} times as long as in production ({ratio.low:.2f} to {ratio.high:.2f}), side by side"


def _explain(row: EngineRow) -> str:
    """Return why an engine did not pass; that it cannot run here is said once, and not with each graph's figures."""
    if row.verdict is Verdict.UNMEASURED and not any(each.subject == "engine" for each in row.measurements):
        return "no machine here runs it: release it on workers that have the GPU"
    return row.reason


def _shorten(sentence: str) -> str:
    """Cut a sentence between two of its clauses, so that it takes a line or two."""
    if len(sentence) <= LONGEST_NOTE:
        return sentence
    ends = [sentence.rfind(mark, 0, LONGEST_NOTE) for mark in (": ", "; ", ", ", " ")]
    return f"{sentence[: next((end for end in ends if end > LONGEST_NOTE // 2), LONGEST_NOTE)]} …"


def _name_engines(precisions: dict[str, list[str]]) -> str:
    """Name engines by target and precision; targets with the same precisions stand together."""
    targets: dict[str, list[str]] = {}
    for target, names in precisions.items():
        targets.setdefault(", ".join(names), []).append(target)
    return "; ".join(f"{', '.join(group)} {names}" for names, group in targets.items())


def describe_result(report: ReleaseReport) -> str:
    """Say how many engines got which verdict, and the command that comes next."""
    counts = Counter(row.verdict for row in report.rows)
    verdicts = ", ".join(f"{counts[verdict]} {verdict}" for verdict in Verdict if counts[verdict])
    if not verdicts:
        return "No engine was built."
    head = "" if report.passed else "No engine passed: "
    return f"{head}{verdicts}. Next: {_name_next_command(report)}"


def _name_next_command(report: ReleaseReport) -> str:
    published = [row for row in report.rows if row.version is not None]
    candidates = [row for row in published if candidate_alias(row.target) in row.aliases]
    waiting = [row.target for row in candidates if production_alias(row.target) not in row.aliases]
    if waiting:
        return f"enginery promote {report.model} {' '.join(f'--target {target}' for target in waiting)}"
    if candidates:
        return f"enginery fetch {report.model}, on a host that serves it"
    if (row := _find_open(published)) is not None:
        return f"{_name_measure(report, row)}, which goes on measuring"
    if any(row.verdict is Verdict.INCONCLUSIVE for row in report.rows):
        return "evaluate on more rows, or promote with a waiver: no more windows of calls decide it"
    if published:
        return f"enginery promote {report.model} --target {published[0].target}, which names the best engine"
    return "change the gates, the precisions or the calibration of the recipe"


def describe_undecided(report: ReleaseReport) -> str:
    """Name the engines that more windows of calls may decide, and the command that measures them; empty: none is."""
    rows = [row for row in report.rows if row.is_open]
    row = _find_open(rows)
    if row is None:
        return ""
    by_target: dict[str, list[str]] = {}
    for each in rows:
        by_target.setdefault(each.target, []).append(each.precision.value)
    return (
        f"Undecided: {_name_engines(by_target)}. {_name_measure(report, row)} goes on from the windows that were kept."
    )


def _find_open(rows: Sequence[EngineRow]) -> EngineRow | None:
    return next((row for row in rows if row.is_open and row.version is not None), None)


def _name_measure(report: ReleaseReport, row: EngineRow) -> str:
    return f"enginery measure {report.model} --version {row.version}"


def has_graph_scores(report: ReleaseReport) -> bool:
    """Return whether a metric in the table, marked *, is of an ONNX graph and not of the engine."""
    return any(row.quality is not None and row.quality.subject != "engine" for row in report.rows)

"""Artifacts on a flow run's page in Prefect: the release as a table, the verdicts in words, progress while it works.

`show_release` and `show_progress` call Prefect, inside of a flow run only, and never fail one. The builders of tables
and texts are pure functions.
"""

import logging
import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from threading import Lock
from typing import cast
from uuid import UUID

from prefect import runtime
from prefect.artifacts import (
    create_markdown_artifact,
    create_progress_artifact,
    create_table_artifact,
    update_progress_artifact,
)

from registry.mlflow.runs.lineage import Lineage
from registry.mlflow.store import MlflowStore
from tasks.execution.progress import Reporter, StepEnd
from tasks.report.rows import EngineRow, ReleaseReport, row_json

log = logging.getLogger(__name__)

# Calibrations and builds: each takes minutes, and is one piece of work.
SHOWN_STEPS = ("quantize ", "build ")
SECONDS_BETWEEN_UPDATES = 3.0
_FIGURES = {"p50 ms": "latency_p50_ms", "p99 ms": "latency_p99_ms", "speed-up": "speedup"}


@dataclass(frozen=True)
class Pages:
    """The addresses of a model's runs in MLflow's UI; `runs` are run ids by target and precision."""

    uri: str
    experiment: str
    release: str
    runs: Mapping[tuple[str, str], str]

    def of_run(self, run_id: str) -> str | None:
        """Return the page of a run; None where MLflow is a file or database, which has no UI."""
        if not self.uri.startswith(("http://", "https://")) or not run_id:
            return None
        return f"{self.uri.rstrip('/')}/#/experiments/{self.experiment}/runs/{run_id}"

    def of_engine(self, row: EngineRow) -> str | None:
        """Return the page of an engine's run, as `of_run`."""
        return self.of_run(self.runs.get((row.target, row.precision.value), ""))


def show_release(report: ReleaseReport, store: MlflowStore) -> None:
    """Show a finished release on its flow run's page: a table, and the verdicts with links to MLflow's runs."""
    if not runtime.flow_run.id:
        return
    with warn_on_failure("the release"):
        runs = Lineage(store).run_ids(report.model, report.run_id) if report.run_id else {}
        pages = Pages(store.client.tracking_uri, store.experiment(report.model), report.run_id, runs)
        title = f"{report.model}, release {report.release}"
        create_table_artifact(
            key=_make_key("release", report.model), table=make_release_rows(report), description=title
        )
        create_markdown_artifact(key=_make_key("verdicts", report.model), markdown=describe_verdicts(report, pages))


def show_progress(reporter: Reporter) -> Reporter:
    """Return a reporter that passes all on to `reporter`, and shows calibrations and builds on the flow run's page."""
    return ProgressPage(reporter) if runtime.flow_run.id else reporter


def make_release_rows(report: ReleaseReport) -> list[dict[str, object]]:
    """Return one row per engine, for people; "" stands for a value that is missing."""
    table = []
    for row in report.rows:
        figures = row_json(row)["metrics"]  # the engine's own: others have their subject's name in front
        table.append(
            {
                "target": row.target,
                "precision": row.precision.value,
                "state": row.state,
                "verdict": row.verdict.value if row.verdict else "",
                "version": row.version or "",
                "aliases": ", ".join(row.aliases),
                "MB": round(row.size_bytes / 1e6, 1) if row.size_bytes else "",
                "build s": round(row.build_seconds, 1) if row.build_seconds is not None else "",
                **{
                    title: round(figures[name], 3) if name in figures else ""
                    for title, name in {report.metric: report.metric, **_FIGURES}.items()
                },
            }
        )
    return table


def describe_verdicts(report: ReleaseReport, pages: Pages) -> str:
    """Return each engine's verdict and reason as Markdown, with a link to its run where MLflow has a UI."""
    release = _link_text(f"release {report.release}", pages.of_run(pages.release))
    state = ", already complete" if report.found else ""
    lines = [
        f"# {_escape_markdown(report.model)}, {release}{state}",
        "",
        "| engine | verdict | reason |",
        "|---|---|---|",
    ]
    for row in report.rows:
        engine = _link_text(f"{row.target} {row.precision.value}", pages.of_engine(row))
        lines.append(
            f"| {engine} | {row.verdict.value if row.verdict else row.state} | {_escape_markdown(row.reason)} |"
        )
    return "\n".join(lines)


@dataclass
class _ShownStep:
    """The artifact of a step, updated at `shown_at` (monotonic seconds); `not_shown` is a later phase and fraction."""

    artifact: UUID
    shown_at: float
    not_shown: tuple[str, float] | None = None


class ProgressPage:
    """A `Reporter` that updates each step's artifact every few seconds at most, and no more after a failure."""

    def __init__(self, reporter: Reporter, clock: Callable[[], float] = time.monotonic) -> None:
        """Pass every call on to `reporter`; `clock` counts seconds."""
        self._reporter, self._clock = reporter, clock
        self._steps: dict[str, _ShownStep] = {}
        self._lock = Lock()
        self._works = True

    def __call__(self, what: str, fraction: float) -> None:
        """Take a phase, named "step: phase", and the share of it that is done."""
        self._reporter(what, fraction)
        with self._lock:
            if self._works:
                self._works = False
                with warn_on_failure("progress"):
                    self._update(what, fraction)
                    self._works = True

    def end_step(self, end: StepEnd) -> None:
        """Take a step that has ended."""
        self._reporter.end_step(end)

    def say(self, sentence: str) -> None:
        """Take a finding."""
        self._reporter.say(sentence)

    def _update(self, what: str, fraction: float) -> None:
        name, now = what.split(":")[0], self._clock()
        if name in self._steps:
            self._steps[name].not_shown = what, fraction
        elif name.startswith(SHOWN_STEPS):
            # Its type allows an awaitable, which it returns only inside of an event loop.
            artifact = create_progress_artifact(
                _to_percent(fraction), key=_make_key("progress", name), description=what
            )
            self._steps[name] = _ShownStep(cast("UUID", artifact), now)
        # Also the steps that have ended: no call says so, and the last phase may have come too soon to be shown.
        for step in self._steps.values():
            if step.not_shown is not None and now - step.shown_at >= SECONDS_BETWEEN_UPDATES:
                phase, done = step.not_shown
                update_progress_artifact(step.artifact, _to_percent(done), description=phase)
                step.not_shown, step.shown_at = None, now


@contextmanager
def warn_on_failure(what: str) -> Iterator[None]:
    """Log any exception of the block as one warning, since a page is not worth a release; `what` is shown there."""
    try:
        yield
    except Exception as error:  # noqa: BLE001 - whatever fails, the flow run continues
        log.warning(
            "could not show %s in Prefect: %s", what, (str(error) or type(error).__name__).splitlines()[0][:300]
        )


def _to_percent(fraction: float) -> float:
    return round(100 * min(max(fraction, 0.0), 1.0), 1)


def _make_key(kind: str, name: str) -> str:
    """Return an artifact's key, in which Prefect allows lower-case letters, digits and dashes."""
    return f"{kind}-{re.sub(r'[^a-z0-9]+', '-', name.lower()).strip('-')}"


def _link_text(text: str, page: str | None) -> str:
    escaped = _escape_markdown(text)
    return escaped if page is None else f"[{escaped}]({page})"


def _escape_markdown(text: str) -> str:
    """Escape text for Markdown: a vendor's message may contain anything."""
    return re.sub(r"([\\`*_\[\]<>|#&!])", r"\\\1", " ".join(text.split()))

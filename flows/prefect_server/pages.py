"""What a flow run shows in Prefect's pages: the release as a table, the verdicts in words, progress while it works.

Builders are plain functions; what calls Prefect does so inside of a flow run only, and never sinks one.
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
from tasks.execution.progress import OnProgress
from tasks.report.rows import EngineRow, ReleaseReport, row_json

log = logging.getLogger(__name__)

# Calibrations and builds: what takes minutes, and is one piece of work.
SHOWN = ("quantize ", "build ")
SECONDS_BETWEEN_UPDATES = 3.0
_FIGURES = {"accuracy": "accuracy", "p50 ms": "latency_p50_ms", "p99 ms": "latency_p99_ms", "speed-up": "speedup"}


@dataclass(frozen=True)
class Pages:
    """Where MLflow shows a model's runs; `runs` are run ids by target and precision."""

    uri: str
    experiment: str
    release: str
    runs: Mapping[tuple[str, str], str]

    def of_run(self, run_id: str) -> str | None:
        """The page of a run; None where MLflow is a file, and nobody serves pages."""
        if not self.uri.startswith(("http://", "https://")) or not run_id:
            return None
        return f"{self.uri.rstrip('/')}/#/experiments/{self.experiment}/runs/{run_id}"

    def of_engine(self, row: EngineRow) -> str | None:
        """The page of an engine's run."""
        return self.of_run(self.runs.get((row.target, row.precision.value), ""))


def release_artifacts(report: ReleaseReport, store: MlflowStore) -> None:
    """Show a finished release on its flow run's page: a table, and the verdicts with links to MLflow's runs."""
    if not runtime.flow_run.id:
        return
    with _best_effort("the release"):
        runs = Lineage(store).run_ids(report.model, report.run_id) if report.run_id else {}
        pages = Pages(store.client.tracking_uri, store.experiment(report.model), report.run_id, runs)
        title = f"{report.model}, release {report.release}"
        create_table_artifact(key=_key("release", report.model), table=release_rows(report), description=title)
        create_markdown_artifact(key=_key("verdicts", report.model), markdown=verdicts(report, pages))


def progress_artifacts(report: OnProgress) -> OnProgress:
    """The same `OnProgress`, which also shows calibrations and builds as progress on the flow run's page."""
    return _Progress(report) if runtime.flow_run.id else report


def release_rows(report: ReleaseReport) -> list[dict[str, object]]:
    """One row an engine, in words and figures; "" where there is none."""
    table = []
    for row in report.rows:
        figures = row_json(row)["metrics"]
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
                **{title: round(figures[name], 3) if name in figures else "" for title, name in _FIGURES.items()},
            }
        )
    return table


def verdicts(report: ReleaseReport, pages: Pages) -> str:
    """Markdown: each engine's verdict and reason, with a link to its run where MLflow has pages."""
    whole = _link(f"release {report.release}", pages.of_run(pages.release))
    found = ", found finished" if report.found else ""
    lines = [f"# {_plain(report.model)}, {whole}{found}", "", "| engine | verdict | reason |", "|---|---|---|"]
    for row in report.rows:
        engine = _link(f"{row.target} {row.precision.value}", pages.of_engine(row))
        lines.append(f"| {engine} | {row.verdict.value if row.verdict else row.state} | {_plain(row.reason)} |")
    return "\n".join(lines)


@dataclass
class _Piece:
    """One artifact; `waiting` is what is not shown yet, `shown_at` when it was last updated (monotonic seconds)."""

    artifact: UUID
    shown_at: float
    waiting: tuple[str, float] | None = None


class _Progress:
    """Updates at most one artifact a piece every few seconds; after a failure it only reports on."""

    def __init__(self, report: OnProgress, clock: Callable[[], float] = time.monotonic) -> None:
        self._report, self._clock = report, clock
        self._pieces: dict[str, _Piece] = {}
        self._lock = Lock()
        self._works = True

    def __call__(self, what: str, fraction: float) -> None:
        self._report(what, fraction)
        with self._lock:
            if self._works:
                self._works = False
                with _best_effort("progress"):
                    self._show(what, fraction)
                    self._works = True

    def _show(self, what: str, fraction: float) -> None:
        name, now = what.split(":")[0], self._clock()
        if name in self._pieces:
            self._pieces[name].waiting = what, fraction
        elif name.startswith(SHOWN):
            # The type says that it may be awaited, which it is only inside of an event loop.
            shown = create_progress_artifact(_percent(fraction), key=_key("progress", name), description=what)
            self._pieces[name] = _Piece(cast("UUID", shown), now)
        # Those too that have ended: nobody says so, and their last step may have come too soon to be shown.
        for piece in self._pieces.values():
            if piece.waiting is not None and now - piece.shown_at >= SECONDS_BETWEEN_UPDATES:
                said, done = piece.waiting
                update_progress_artifact(piece.artifact, _percent(done), description=said)
                piece.waiting, piece.shown_at = None, now


@contextmanager
def _best_effort(what: str) -> Iterator[None]:
    """What goes wrong in the block is one line in the log."""
    try:
        yield
    except Exception as error:  # noqa: BLE001 - a page is not worth a release, whatever it is that fails
        log.warning("Prefect does not show %s: %s", what, (str(error) or type(error).__name__).splitlines()[0][:300])


def _percent(fraction: float) -> float:
    return round(100 * min(max(fraction, 0.0), 1.0), 1)


def _key(kind: str, name: str) -> str:
    """Prefect takes lower-case letters, digits and dashes."""
    return f"{kind}-{re.sub(r'[^a-z0-9]+', '-', name.lower()).strip('-')}"


def _link(text: str, page: str | None) -> str:
    return _plain(text) if page is None else f"[{_plain(text)}]({page})"


def _plain(text: str) -> str:
    """Text that Markdown takes as text: a vendor's message may hold anything."""
    return re.sub(r"([\\`*_\[\]<>|#&!])", r"\\\1", " ".join(text.split()))

"""A release on its flow run's page in Prefect: what it will build from its start, how far that is, and the verdicts.

`show_plan` and `show_release` call Prefect, inside of a flow run only, and never fail one. The builders of tables and
texts are pure functions.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

from prefect import runtime
from prefect.artifacts import MarkdownArtifact, TableArtifact

from flows.prefect_server.artifacts import PageUpdates, make_key, put_artifact, warn_on_failure
from registry.errors import shown_address
from registry.mlflow.publish import REPORT_PAGE
from registry.mlflow.runs.lineage import Lineage
from registry.mlflow.store import MlflowStore
from registry.records import GpuTarget, Precision
from tasks.backends import BACKENDS
from tasks.execution.progress import Reporter, StepEnd
from tasks.report.rows import EngineRow, ReleaseReport, row_json

_FIGURES = {"p50 ms": "latency_p50_ms", "p99 ms": "latency_p99_ms", "speed-up": "speedup"}


@dataclass(frozen=True)
class Pages:
    """The addresses of a model's runs in MLflow's UI; `runs` are run ids by target and precision."""

    uri: str
    experiment: str
    release: str
    runs: Mapping[tuple[str, str], str]

    def of_experiment(self) -> str | None:
        """Return the page of the model's runs; None where MLflow is a file or database, which has no UI."""
        if not self.uri.startswith(("http://", "https://")):
            return None
        return f"{shown_address(self.uri).rstrip('/')}/#/experiments/{self.experiment}"

    def of_run(self, run_id: str) -> str | None:
        """Return the page of a run, as `of_experiment`."""
        experiment = self.of_experiment()
        return f"{experiment}/runs/{run_id}" if experiment and run_id else None

    def of_report(self) -> str | None:
        """Return the page of the release's report, as `of_experiment`."""
        run = self.of_run(self.release)
        return f"{run}/artifacts/{REPORT_PAGE}" if run else None

    def of_engine(self, row: EngineRow) -> str | None:
        """Return the page of an engine's run, as `of_run`."""
        return self.of_run(self.runs.get((row.target, row.precision.value), ""))


@dataclass(frozen=True)
class PlannedEngine:
    """An engine that a release will build, and how far it is; or that its target's backend does not have."""

    target: GpuTarget
    precision: Precision
    state: str


def show_plan(
    title: tuple[str, str], engines: Sequence[PlannedEngine], store: MlflowStore, reporter: Reporter
) -> Reporter:
    """Show what a release will build, and return a reporter that keeps that up to date, and tells `reporter` all.

    Args:
        title: the model, and the release's id.
        engines: as `plan_engines` returns them.
        store: the registry, whose page of the model is linked.
        reporter: is told everything.
    """
    if not runtime.flow_run.id:
        return reporter
    flow_run, (model, release) = str(runtime.flow_run.id), title
    with warn_on_failure("the plan"):
        pages = Pages(store.client.tracking_uri, store.experiment(model), "", {})
        plan = describe_plan(model, release, engines, pages)
        _show_words(flow_run, model, plan, "what this run builds")
    show = partial(_show_engines, flow_run, model, release)
    page = PlanPage(show, engines, reporter)
    page.begin("begins")
    return page


class PlanPage:
    """A `Reporter` that shows with each new step of a release how far its engines are."""

    def __init__(
        self,
        show: Callable[[Sequence[PlannedEngine], str], None],
        engines: Sequence[PlannedEngine],
        reporter: Reporter,
    ) -> None:
        """Pass every call on to `reporter`, and the engines with each new step to `show`, until that fails."""
        self._show, self._engines, self._reporter = show, tuple(engines), reporter
        self._step = ""
        self._updates = PageUpdates("the plan")

    def __call__(self, what: str, fraction: float) -> None:
        """Take a phase, named "step: phase", and the share of it that is done."""
        self._reporter(what, fraction)
        if (step := what.split(":")[0]) != self._step:
            self.begin(step)

    def end_step(self, end: StepEnd) -> None:
        """Pass a step that has ended on."""
        self._reporter.end_step(end)

    def say(self, sentence: str) -> None:
        """Pass a finding on."""
        self._reporter.say(sentence)

    def begin(self, step: str) -> None:
        """Show the engines as they are once a step begins."""
        self._step, self._engines = step, advance_engines(self._engines, step)
        self._updates.run(partial(self._show, self._engines, step))


def _show_engines(flow_run: str, model: str, release: str, engines: Sequence[PlannedEngine], step: str) -> None:
    words, table = f"{model}, release {release}: {step}", make_plan_rows(engines)
    put_artifact(TableArtifact(key=make_key("release", model), table=table, description=words), flow_run)


def _show_words(flow_run: str, model: str, markdown: str, description: str) -> None:
    words = MarkdownArtifact(key=make_key("verdicts", model), markdown=markdown, description=description)
    put_artifact(words, flow_run)


def show_release(report: ReleaseReport, store: MlflowStore) -> None:
    """Show a finished release on its flow run's page: a table, and the verdicts with links to MLflow's runs."""
    if not (flow_run := runtime.flow_run.id):
        return
    with warn_on_failure("the release"):
        runs = Lineage(store).run_ids(report.model, report.run_id) if report.run_id else {}
        pages = Pages(store.client.tracking_uri, store.experiment(report.model), report.run_id, runs)
        title, table = f"{report.model}, release {report.release}", make_release_rows(report)
        put_artifact(
            TableArtifact(key=make_key("release", report.model), table=table, description=title), str(flow_run)
        )
        _show_words(str(flow_run), report.model, describe_verdicts(report, pages), "verdicts, with links to MLflow")


def plan_engines(targets: Sequence[GpuTarget], precisions: Sequence[Precision]) -> tuple[PlannedEngine, ...]:
    """Return the engines of a release before it begins: each precision for each target."""
    return tuple(
        PlannedEngine(
            target, precision, "skipped" if BACKENDS[target.backend].supports(precision, target) else "planned"
        )
        for target in targets
        for precision in precisions
    )


def advance_engines(engines: Sequence[PlannedEngine], step: str) -> tuple[PlannedEngine, ...]:
    """Return the engines as they are once a step of the release begins, by the step's name."""
    return tuple(replace(engine, state=_advance_state(engine, step)) for engine in engines)


def _advance_state(engine: PlannedEngine, step: str) -> str:
    verb, _, rest = step.partition(" ")
    match engine.state, verb:
        case "skipped", _:
            return "skipped"
        case _, "quantize" if rest == engine.precision.value:
            return "quantizing"
        case _, "wait":
            works = engine.target.name in rest.removeprefix("for ").split(", ")
            return f"{'in' if works else 'has left'} pool {engine.target.work_pool}"
        case _, "publish":
            return "publishing"
        case "quantizing", _:
            return "graph ready"
        case state, _:
            return state


def make_plan_rows(engines: Sequence[PlannedEngine]) -> list[dict[str, object]]:
    """Return one row per engine, for people."""
    return [
        {"target": engine.target.name, "precision": engine.precision.value, "state": engine.state} for engine in engines
    ]


def describe_plan(model: str, release: str, engines: Sequence[PlannedEngine], pages: Pages) -> str:
    """Return what a release will build as Markdown, with a link to the model in MLflow where that has a UI."""
    built = [engine for engine in engines if engine.state != "skipped"]
    targets = ", ".join(dict.fromkeys(engine.target.name for engine in built))
    count = f"{len(built)} engine{'' if len(built) == 1 else 's'}"
    return "\n".join(
        [
            f"# {_escape_markdown(model)}, release {release}",
            "",
            f"This run builds {count} for {targets}. Their verdicts follow here at its end.",
            "",
            _link_text(f"All releases of {model} in MLflow", pages.of_experiment()),
        ]
    )


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
        *([_link_text("The report", pages.of_report()), ""] if pages.of_report() else []),
        "| engine | verdict | reason |",
        "|---|---|---|",
    ]
    for row in report.rows:
        engine = _link_text(f"{row.target} {row.precision.value}", pages.of_engine(row))
        lines.append(
            f"| {engine} | {row.verdict.value if row.verdict else row.state} | {_escape_markdown(row.reason)} |"
        )
    return "\n".join(lines)


def _link_text(text: str, page: str | None) -> str:
    escaped = _escape_markdown(text)
    return escaped if page is None else f"[{escaped}]({page})"


def _escape_markdown(text: str) -> str:
    """Escape text for Markdown: a vendor's message may contain anything."""
    return re.sub(r"([\\`*_\[\]<>|#&!])", r"\\\1", " ".join(text.split()))

"""Releases as MLflow runs: one parent run per release, one nested run per engine, also for engines that failed."""

import getpass
import json
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mlflow.entities import Metric
from mlflow.tracking import MlflowClient
from mlflow.utils.credentials import read_mlflow_creds
from mlflow.utils.mlflow_tags import MLFLOW_RUN_NOTE, MLFLOW_SOURCE_NAME, MLFLOW_SOURCE_TYPE, MLFLOW_USER

from registry.errors import NotFound
from registry.host.process import this_process
from registry.mlflow.errors import check_id, read_pages, translate_errors
from registry.mlflow.files.artifacts import upload_to_run
from registry.mlflow.publish import BUILD_KEY, KIND, OWNER, RELEASE, VERSION
from registry.mlflow.runs.entries import (
    IDENTITY,
    EngineEntry,
    UsedRows,
    compared,
    dataset_inputs,
    describe_entry,
    engine_metrics,
    identity,
    make_params,
    make_tags,
)
from registry.mlflow.store import MlflowStore
from registry.names import check_name
from registry.records import EngineBuild, Verdict

# Tags by which runs are searched; what a person compares is in parameters and metrics.
STATE, TARGET, PARENT = "enginery.state", "enginery.target", "mlflow.parentRunId"
REPORT, RECIPE, CALIBRATION = "release.json", "recipe.json", "calibration"


class ReleaseLog:
    """Writes and finds the runs of releases in the experiment of a model."""

    def __init__(self, store: MlflowStore) -> None:
        self._client: MlflowClient = store.client
        self._experiment_of, self._find_experiment = store.experiment, store.find_experiment

    @translate_errors("runs of releases")
    def finished(self, model: str, release: str) -> tuple[str, str] | None:
        """Return (run id, the report's JSON) of a finished release, or None."""
        for run in self._find_runs(model, f"tags.`{STATE}` = 'complete' and {_release_query(release)}"):
            if (report := read_report(self._client, run.info.run_id)) is not None:
                return str(run.info.run_id), report
        return None

    @translate_errors("runs of releases")
    def start(self, model: str, release: str, parameters: Mapping[str, str], tags: Mapping[str, str]) -> str:
        """Return the run of a release: the one that an interrupted process left, or a new one."""
        if runs := self._find_runs(model, _release_query(release)):
            run_id = str(runs[0].info.run_id)
            self._client.update_run(run_id, "RUNNING")
        else:
            run = self._client.create_run(
                self._experiment_of(model),
                run_name=f"release-{release}",
                tags={RELEASE: release, KIND: "release", **_describe_source()},
            )
            run_id = str(run.info.run_id)
            self._client.log_batch(run_id, params=make_params(parameters))
        self._client.log_batch(run_id, tags=make_tags(tags))
        return run_id

    @translate_errors("runs of releases")
    def engine_run(
        self, model: str, release: str, parent: str, build: EngineBuild, verdict: Verdict
    ) -> tuple[str, bool]:
        """Return the nested run of an engine, and whether it is finished; end an unfinished one and start again.

        A finished run with another verdict stays as it is: its engine was measured again, in a run of its own.
        """
        query = f"tags.`{KIND}` = 'engine' and tags.`{RELEASE}` = '{release}'"
        query += f" and tags.`{BUILD_KEY}` = '{build.build_key}' and tags.`{TARGET}` = '{build.target.name}'"
        for run in self._find_runs(model, query):
            if run.info.status == "FINISHED":
                if run.data.params.get("verdict") == verdict.value:
                    return str(run.info.run_id), True
                continue
            self._client.set_terminated(run.info.run_id, "KILLED")
            self._client.delete_run(run.info.run_id)
        tags = {
            RELEASE: release,
            KIND: "engine",
            PARENT: parent,
            BUILD_KEY: build.build_key,
            TARGET: build.target.name,
            OWNER: this_process(),
            **_describe_source(),
        }
        name = f"{build.target.name}-{build.precision}"
        run = self._client.create_run(self._experiment_of(model), run_name=name, tags=tags)
        return str(run.info.run_id), False

    @translate_errors("runs of releases")
    def log_engine(self, run_id: str, entry: EngineEntry) -> None:
        """Write an engine's parameters, metrics, datasets, note and files."""
        self._client.log_batch(
            run_id,
            metrics=list(engine_metrics(entry)),
            params=make_params(compared(entry)),
            tags=make_tags({MLFLOW_RUN_NOTE: describe_entry(entry), **entry.links}),
        )
        self._client.log_inputs(run_id, dataset_inputs(entry.evaluation, entry.calibration))
        self._log_text(run_id, IDENTITY, json.dumps(identity(entry), indent=1))
        self._log_figures(run_id, entry.figures)
        for file in entry.tables:
            upload_to_run(self._client, run_id, file, CALIBRATION)
        for file in entry.files:
            upload_to_run(self._client, run_id, file)

    @translate_errors("runs of releases")
    def finish_engine(self, run_id: str, version: int | None, advice: str) -> None:
        """End an engine's run, with the version it became; `advice` is added to its note."""
        note = self._client.get_run(run_id).data.tags.get(MLFLOW_RUN_NOTE, "")
        tags = {MLFLOW_RUN_NOTE: f"{note}\n\n{advice}"} | ({} if version is None else {VERSION: str(version)})
        self._client.log_batch(run_id, tags=make_tags(tags))
        self._client.set_terminated(run_id)

    @translate_errors("runs of releases")
    def summarize(self, run_id: str, metrics: Mapping[str, float], note: str, *used: UsedRows) -> None:
        """Write what a release's run shows in MLflow's lists and charts: figures, a note in Markdown, its rows."""
        now = int(time.time() * 1000)
        figures = [Metric(name, value, now, 0) for name, value in metrics.items()]
        self._client.log_batch(run_id, metrics=figures, tags=make_tags({MLFLOW_RUN_NOTE: note}))
        self._client.log_inputs(run_id, dataset_inputs(*used))

    @translate_errors("runs of releases")
    def finish(
        self, run_id: str, report: str, figures: Mapping[str, Path], pages: Sequence[Path] = (), *, state: str
    ) -> None:
        """End a release's run as "complete", "partial" or "failed"; the state is written after report and figures.

        `pages` are the report for people, and the same as JSON.
        """
        self._log_figures(run_id, figures)
        for page in pages:
            upload_to_run(self._client, run_id, page)
        self._log_text(run_id, REPORT, report)
        self._client.set_tag(run_id, STATE, state)
        self._client.set_terminated(run_id, "FINISHED" if state == "complete" else "FAILED")

    @translate_errors("runs of releases")
    def abandon(self, run_id: str) -> None:
        """End a release's run after an error: as failed, unless another process completed the release meanwhile."""
        is_complete = self._client.get_run(run_id).data.tags.get(STATE) == "complete"
        self._client.set_terminated(run_id, "FINISHED" if is_complete else "FAILED")

    @translate_errors("runs of releases")
    def keep_recipe(self, run_id: str, recipe: str) -> None:
        """Store the pinned recipe (JSON) with its release, so that the release can be resumed by its id alone."""
        self._log_text(run_id, RECIPE, recipe)

    def recipe_of(self, release: str) -> str:
        """Return the pinned recipe (JSON) that was stored with a release of any model.

        Raises:
            NotFound: no such release, or none that stored its recipe.
        """
        with translate_errors(f"release {check_id(release)}"), tempfile.TemporaryDirectory() as scratch:
            experiments = read_pages(lambda token: self._client.search_experiments(page_token=token))
            ids = [experiment.experiment_id for experiment in experiments]
            runs = self._client.search_runs(ids, _release_query(release), max_results=1)
            names = {file.path for run in runs for file in self._client.list_artifacts(run.info.run_id)}
            if RECIPE not in names:
                raise NotFound(f"release {release} kept no recipe: release its recipe again")
            file = self._client.download_artifacts(runs[0].info.run_id, RECIPE, scratch)
            return Path(file).read_text(encoding="utf-8")

    def _log_text(self, run_id: str, name: str, text: str) -> None:
        with tempfile.TemporaryDirectory() as scratch:
            file = Path(scratch) / name
            file.write_text(text, encoding="utf-8")
            upload_to_run(self._client, run_id, file)

    def _log_figures(self, run_id: str, figures: Mapping[str, Path]) -> None:
        for file in figures.values():
            upload_to_run(self._client, run_id, file, "figures")

    def _find_runs(self, model: str, query: str) -> Sequence[Any]:
        if (experiment := self._find_experiment(check_name(model, what="model"))) is None:
            return []
        runs: Sequence[Any] = self._client.search_runs([experiment], query, max_results=100)
        return runs


def read_report(client: MlflowClient, run_id: str) -> str | None:
    """Return the report (JSON) of a release's run, or None if it cannot be read: such a run tells nothing."""
    with tempfile.TemporaryDirectory() as scratch:
        try:
            return Path(client.download_artifacts(run_id, REPORT, scratch)).read_text(encoding="utf-8")
        except Exception:  # noqa: BLE001 - each artifact store raises its own
            return None


def _release_query(release: str) -> str:
    return f"tags.`{KIND}` = 'release' and tags.`{RELEASE}` = '{release}'"


def _describe_source() -> dict[str, str]:
    try:
        user = read_mlflow_creds().username or getpass.getuser()
    except (KeyError, OSError):
        user = "unknown"  # a container's user may have no name
    return {MLFLOW_SOURCE_NAME: "enginery release", MLFLOW_SOURCE_TYPE: "LOCAL", MLFLOW_USER: user}

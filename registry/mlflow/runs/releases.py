"""Releases as MLflow runs: one parent run per release, one nested run per engine, also for engines that failed."""

import json
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param, RunTag
from mlflow.tracking import MlflowClient

from registry.errors import NotFound
from registry.host.process import this_process
from registry.mlflow.artifacts import upload_to_run
from registry.mlflow.errors import check_id, read_pages, translate_errors
from registry.mlflow.publish import KIND, OWNER
from registry.mlflow.rows import LONGEST
from registry.mlflow.store import MlflowStore
from registry.records import EngineBuild, Measurement, Verdict

RELEASE, STATE, PARENT = "release", "enginery.state", "mlflow.parentRunId"
REPORT, RECIPE, CALIBRATION = "release.json", "recipe.json", "calibration"


@dataclass(frozen=True)
class EngineEntry:
    """What an engine's run records.

    `calibration` are files that record how its graph was quantized, `links` tags that lead to its Prefect run.
    """

    build: EngineBuild
    measurements: tuple[Measurement, ...]
    verdict: Verdict
    reason: str
    calibration_set: str | None
    evaluation_set: str
    source_revision: str
    figures: Mapping[str, Path] = field(default_factory=dict)
    calibration: tuple[Path, ...] = ()
    int8_share: float | None = None
    remark: str = ""
    links: Mapping[str, str] = field(default_factory=dict)


class ReleaseLog:
    """Writes and finds the runs of releases in the experiment of a model."""

    def __init__(self, store: MlflowStore) -> None:
        self._client: MlflowClient = store.client
        self._experiment_of = store.experiment

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
                self._experiment_of(model), run_name=f"release-{release}", tags={RELEASE: release, KIND: "release"}
            )
            run_id = str(run.info.run_id)
            self._client.log_batch(run_id, params=_params(parameters))
        self._client.log_batch(run_id, tags=_tags(tags))
        return run_id

    @translate_errors("runs of releases")
    def engine_run(
        self, model: str, release: str, parent: str, build: EngineBuild, verdict: Verdict
    ) -> tuple[str, bool]:
        """Return the nested run of an engine, and whether it is finished; end an unfinished one and start again.

        A finished run with another verdict stays as it is: its engine was measured again, in a run of its own.
        """
        query = f"tags.`{KIND}` = 'engine' and tags.{RELEASE} = '{release}' and tags.build_key = '{build.build_key}'"
        for run in self._find_runs(model, f"{query} and tags.target = '{build.target.name}'"):
            if run.info.status == "FINISHED":
                if run.data.tags.get("verdict") == verdict.value:
                    return str(run.info.run_id), True
                continue
            self._client.set_terminated(run.info.run_id, "KILLED")
            self._client.delete_run(run.info.run_id)
        tags = {
            RELEASE: release,
            KIND: "engine",
            PARENT: parent,
            "build_key": build.build_key,
            "target": build.target.name,
            "precision": build.precision.value,
            "backend": build.backend.value,
            OWNER: this_process(),
        }
        name = f"{build.target.name}-{build.precision}"
        run = self._client.create_run(self._experiment_of(model), run_name=name, tags=tags)
        return str(run.info.run_id), False

    @translate_errors("runs of releases")
    def log_engine(self, run_id: str, entry: EngineEntry) -> None:
        """Write an engine's parameters, metrics (the ONNX graph's under its name), dataset, tags and files."""
        words = {"verdict": entry.verdict.value, "reason": entry.reason[:LONGEST], "remark": entry.remark[:LONGEST]}
        self._client.log_batch(
            run_id,
            metrics=list(_engine_metrics(entry)),
            params=_params(_engine_parameters(entry)),
            tags=_tags(words | dict(entry.links)),
        )
        dataset = Dataset(
            name="evaluation",
            digest=entry.evaluation_set[:36],
            source_type="enginery",
            source=json.dumps({"sha256": entry.evaluation_set}),
        )
        self._client.log_inputs(run_id, [DatasetInput(dataset, [InputTag("mlflow.data.context", "evaluation")])])
        self._log_figures(run_id, entry.figures)
        for file in entry.calibration:
            upload_to_run(self._client, run_id, file, CALIBRATION)

    @translate_errors("runs of releases")
    def finish_engine(self, run_id: str, version: int | None) -> None:
        """End an engine's run, with the version it became."""
        if version is not None:
            self._client.set_tag(run_id, "version", str(version))
        self._client.set_terminated(run_id)

    @translate_errors("runs of releases")
    def finish(self, run_id: str, report: str, figures: Mapping[str, Path], *, state: str) -> None:
        """End a release's run as "complete", "partial" or "failed"; the state is written after report and figures."""
        self._log_figures(run_id, figures)
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
                raise NotFound(f"no release {release} was run on workers: release its recipe again")
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
        runs: Sequence[Any] = self._client.search_runs([self._experiment_of(model)], query, max_results=100)
        return runs


def read_report(client: MlflowClient, run_id: str) -> str | None:
    """Return the report (JSON) of a release's run, or None if it cannot be read: such a run tells nothing."""
    with tempfile.TemporaryDirectory() as scratch:
        try:
            return Path(client.download_artifacts(run_id, REPORT, scratch)).read_text(encoding="utf-8")
        except Exception:  # noqa: BLE001 - each artifact store raises its own
            return None


def _engine_parameters(entry: EngineEntry) -> dict[str, str]:
    build = entry.build
    return {
        "onnx": build.onnx_digest,
        "digest": build.digest,
        "backend_version": build.backend_version,
        "compute_capability": build.target.compute_capability or "none",
        "profiles": json.dumps([asdict(profile) for profile in build.profiles]),
        "calibration_set": entry.calibration_set or "none",
        "evaluation_set": entry.evaluation_set,
        "source_revision": entry.source_revision,
        "driver": next((m.measured_on.driver for m in entry.measurements if m.subject == "engine"), None) or "none",
    }


def _engine_metrics(entry: EngineEntry) -> Iterator[Metric]:
    now = int(time.time() * 1000)
    yield Metric("size_mb", entry.build.size_bytes / 1e6, now, 0)
    yield Metric("build_seconds", entry.build.build_seconds, now, 0)
    if entry.int8_share is not None:
        yield Metric("int8_macs_share", entry.int8_share, now, 0)
    for measurement in entry.measurements:
        subject = measurement.subject
        name = measurement.metric if subject == "engine" else f"{subject}.{measurement.metric}"
        bounds = {"": measurement.value, "_low": measurement.low, "_high": measurement.high}
        yield from (Metric(f"{name}{end}", value, now, 0) for end, value in bounds.items() if value is not None)


def _params(parameters: Mapping[str, str]) -> list[Param]:
    return [Param(key, value[:LONGEST]) for key, value in parameters.items()]


def _tags(tags: Mapping[str, str]) -> list[RunTag]:
    return [RunTag(key, value) for key, value in tags.items()]


def _release_query(release: str) -> str:
    return f"tags.`{KIND}` = 'release' and tags.{RELEASE} = '{release}'"

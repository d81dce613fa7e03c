"""Releases as MLflow runs: a parent run a release, a nested run an engine, failed engines too."""

import json
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param, RunTag
from mlflow.tracking import MlflowClient

from registry.errors import NotFound
from registry.host.process import this_process
from registry.mlflow.errors import pages, plainly, quotable
from registry.mlflow.publish import OWNER
from registry.mlflow.store import MlflowStore
from registry.mlflow.uploads import upload_to_run
from registry.records import EngineBuild, Measurement, Precision, Verdict

RELEASE, KIND, STATE, PARENT = "release", "enginery.kind", "enginery.state", "mlflow.parentRunId"
REPORT, RECIPE, CALIBRATION = "release.json", "recipe.json", "calibration"
# On a release's run: the outcome of each target that was accepted, and the flow runs whose results no longer count.
OUTCOME, GIVEN_UP = "enginery.outcome.", "enginery.given_up."
# MLflow's own limit on a parameter's and a tag's length.
LONGEST = 5000


@dataclass(frozen=True)
class EngineEntry:
    """What a nested run says of one engine.

    `calibration` are files on how its graph was made, `links` tags that lead to the Prefect run that made it.
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

    @plainly("runs of releases")
    def finished(self, model: str, release: str) -> tuple[str, str] | None:
        """(run id, the report's JSON) of a finished release, or None."""
        runs = self._find(model, f"tags.`{STATE}` = 'complete' and {_parent_query(release)}")
        for run in runs:
            if (report := read_report(self._client, run.info.run_id)) is not None:
                return str(run.info.run_id), report
        return None

    @plainly("runs of releases")
    def start(self, model: str, release: str, parameters: Mapping[str, str], tags: Mapping[str, str]) -> str:
        """The run of a release: the one that a killed process left, or a new one."""
        if runs := self._find(model, _parent_query(release)):
            run_id = str(runs[0].info.run_id)
            self._client.update_run(run_id, "RUNNING")
        else:
            run = self._client.create_run(
                self._experiment_of(model), run_name=f"release-{release}", tags={RELEASE: release, KIND: "release"}
            )
            run_id = str(run.info.run_id)
            self._client.log_batch(run_id, params=[Param(key, value[:LONGEST]) for key, value in parameters.items()])
        self._client.log_batch(run_id, tags=[RunTag(key, value) for key, value in tags.items()])
        return run_id

    @plainly("runs of releases")
    def engine_run(self, model: str, release: str, parent: str, build: EngineBuild) -> tuple[str, bool]:
        """The nested run of an engine, and whether it was finished before; a torn one is set aside as killed."""
        query = f"tags.`{KIND}` = 'engine' and tags.{RELEASE} = '{release}' and tags.build_key = '{build.build_key}'"
        for run in self._find(model, f"{query} and tags.target = '{build.target.name}'"):
            if run.info.status == "FINISHED":
                return str(run.info.run_id), True
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

    @plainly("runs of releases")
    def log_engine(self, run_id: str, entry: EngineEntry) -> None:
        """Parameters, metrics (the ONNX graph's under its name), dataset, tags and files of an engine."""
        build, now = entry.build, int(time.time() * 1000)
        dataset = Dataset(
            name="evaluation",
            digest=entry.evaluation_set[:36],
            source_type="enginery",
            source=json.dumps({"sha256": entry.evaluation_set}),
        )
        parameters = {
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
        metrics = [
            Metric("size_mb", build.size_bytes / 1e6, now, 0),
            Metric("build_seconds", build.build_seconds, now, 0),
        ]
        if entry.int8_share is not None:
            metrics.append(Metric("int8_macs_share", entry.int8_share, now, 0))
        for found in entry.measurements:
            bounds = {"": found.value, "_low": found.low, "_high": found.high}
            metrics += [
                Metric(f"{found.name}{end}", value, now, 0) for end, value in bounds.items() if value is not None
            ]
        words = {"verdict": entry.verdict.value, "reason": entry.reason[:LONGEST], "remark": entry.remark[:LONGEST]}
        tags = words | dict(entry.links)
        self._client.log_batch(
            run_id,
            metrics=metrics,
            params=[Param(key, value[:LONGEST]) for key, value in parameters.items()],
            tags=[RunTag(key, value) for key, value in tags.items()],
        )
        self._client.log_inputs(run_id, [DatasetInput(dataset, [InputTag("mlflow.data.context", "evaluation")])])
        self._log_figures(run_id, entry.figures)
        for file in entry.calibration:
            upload_to_run(self._client, run_id, file, CALIBRATION)

    def calibration_file(self, model: str, name: str, *, version: int) -> bytes | None:
        """A file on how the graph of a version was made; None where its run has none.

        Raises:
            EngineryError: it is there, and cannot be read.
        """
        return self._calibration_file(model, name, f"tags.version = '{version}'")

    def last_calibration_file(self, model: str, name: str, precision: Precision, *, apart_from: str) -> bytes | None:
        """The same file of the newest finished engine of a precision that another release than `apart_from` made.

        Raises:
            EngineryError: it is there, and cannot be read.
        """
        return self._calibration_file(
            model, name, f"tags.precision = '{precision}' and tags.{RELEASE} != '{quotable(apart_from)}'"
        )

    def _calibration_file(self, model: str, name: str, query: str) -> bytes | None:
        finished, path = f"tags.`{KIND}` = 'engine' and attributes.status = 'FINISHED'", f"{CALIBRATION}/{name}"
        with plainly(f"{path} of {model}"), tempfile.TemporaryDirectory() as scratch:
            for run in self._find(model, f"{finished} and {query}"):
                if any(file.path == path for file in self._client.list_artifacts(run.info.run_id, CALIBRATION)):
                    return Path(self._client.download_artifacts(run.info.run_id, path, scratch)).read_bytes()
        return None

    @plainly("runs of releases")
    def finish_engine(self, run_id: str, version: int | None) -> None:
        """Close an engine's run, with the version it became."""
        if version is not None:
            self._client.set_tag(run_id, "version", str(version))
        self._client.set_terminated(run_id)

    @plainly("runs of releases")
    def finish(self, run_id: str, report: str, figures: Mapping[str, Path], *, state: str) -> None:
        """Close a release's run as "complete", "partial" or "failed": the report and figures first, the state last."""
        self._log_figures(run_id, figures)
        self._log_text(run_id, REPORT, report)
        self._client.set_tag(run_id, STATE, state)
        self._client.set_terminated(run_id, "FINISHED" if state == "complete" else "FAILED")

    @plainly("runs of releases")
    def keep_recipe(self, run_id: str, recipe: str) -> None:
        """Keep the pinned recipe (JSON) with its release, so that the release can be resumed by its id alone."""
        self._log_text(run_id, RECIPE, recipe)

    def recipe_of(self, release: str) -> str:
        """The pinned recipe of a release, of whatever model, as it was kept.

        Raises:
            NotFound: no release of that id, or one that kept none.
        """
        with plainly(f"release {quotable(release)}"), tempfile.TemporaryDirectory() as scratch:
            every = pages(lambda token: self._client.search_experiments(page_token=token))
            experiments = [found.experiment_id for found in every]
            runs = self._client.search_runs(experiments, _parent_query(release), max_results=1)
            names = {found.path for run in runs for found in self._client.list_artifacts(run.info.run_id)}
            if RECIPE not in names:
                raise NotFound(f"there is no release {release} that was made on workers: release its recipe again")
            file = self._client.download_artifacts(runs[0].info.run_id, RECIPE, scratch)
            return Path(file).read_text(encoding="utf-8")

    @plainly("runs of releases")
    def accept(self, run_id: str, target: str, key: str, outcome: str) -> None:
        """Record a target's outcome (JSON), to be found again under `key`."""
        self._client.set_tag(run_id, f"{OUTCOME}{target}", f"{key} {outcome}")

    @plainly("runs of releases")
    def accepted(self, model: str, target: str, key: str) -> str | None:
        """The newest outcome that any release of the model accepted for that target and key, or None."""
        tag = f"{OUTCOME}{target}"
        runs = self._find(model, f"tags.`{KIND}` = 'release' and tags.`{tag}` LIKE '{quotable(key)} %'")
        return str(runs[0].data.tags[tag]).partition(" ")[2] if runs else None

    @plainly("runs of releases")
    def give_up(self, run_id: str, flow_run: str, reason: str) -> None:
        """Record, before anything else is done about it, that a flow run's result will not be taken any more."""
        self._client.set_tag(run_id, f"{GIVEN_UP}{flow_run}", reason[:LONGEST])

    @plainly("runs of releases")
    def given_up(self, run_id: str) -> frozenset[str]:
        """The flow runs that this release gave up."""
        tags = self._client.get_run(run_id).data.tags
        return frozenset(name.removeprefix(GIVEN_UP) for name in tags if name.startswith(GIVEN_UP))

    @plainly("runs of releases")
    def abandon(self, run_id: str) -> None:
        """Close a release's run after an error: as failed, unless another process completed the release meanwhile."""
        is_complete = self._client.get_run(run_id).data.tags.get(STATE) == "complete"
        self._client.set_terminated(run_id, "FINISHED" if is_complete else "FAILED")

    def _log_text(self, run_id: str, name: str, text: str) -> None:
        with tempfile.TemporaryDirectory() as scratch:
            file = Path(scratch) / name
            file.write_text(text, encoding="utf-8")
            upload_to_run(self._client, run_id, file)

    def _log_figures(self, run_id: str, figures: Mapping[str, Path]) -> None:
        for file in figures.values():
            upload_to_run(self._client, run_id, file, "figures")

    def _find(self, model: str, query: str) -> Sequence[Any]:
        found: Sequence[Any] = self._client.search_runs([self._experiment_of(model)], query, max_results=100)
        return found


def read_report(client: MlflowClient, run_id: str) -> str | None:
    """The report (JSON) of a release's run; None where it cannot be read: such a run says nothing."""
    with tempfile.TemporaryDirectory() as scratch:
        try:
            return Path(client.download_artifacts(run_id, REPORT, scratch)).read_text(encoding="utf-8")
        except Exception:  # noqa: BLE001 - each artifact store raises its own
            return None


def _parent_query(release: str) -> str:
    return f"tags.`{KIND}` = 'release' and tags.{RELEASE} = '{release}'"

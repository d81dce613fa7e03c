"""What the engines of a model were built from, as their runs record it: inputs, calibration files and reports.

Read to decide what is stale, what moved since the last release, and how a version was calibrated.
"""

import json
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from registry.errors import NotFound
from registry.mlflow.errors import check_id, read_pages, translate_errors
from registry.mlflow.publish import KIND, RELEASE, VERSION
from registry.mlflow.runs.entries import IDENTITY
from registry.mlflow.runs.releases import CALIBRATION, PARENT, STATE, TARGET, read_report
from registry.mlflow.store import MlflowStore
from registry.names import check_name
from registry.records import Precision

# Older runs are not read: what is released weekly never goes so far back.
_NEWEST = 200
_FINISHED_ENGINE = f"tags.`{KIND}` = 'engine' and attributes.status = 'FINISHED'"


@dataclass(frozen=True)
class EngineRun:
    """One finished run of an engine; `version` is the version that holds the engine, None if it failed its gates.

    `identity` is what the engine was made from (registry/mlflow/runs/entries.py); empty where its run has no such file,
    or one that was edited into something else: such an engine is stale.
    """

    precision: str
    version: int | None
    identity: Mapping[str, Any]


@dataclass(frozen=True)
class ReleasedEngine:
    """The newest finished run of an engine, with or without a version.

    `onnx_digest` is that of the graph that it was built of, `answered` what it answered row by row (bytes of a file);
    each is None where its run has none.
    """

    release: str
    target: str
    precision: str
    onnx_digest: str | None
    answered: bytes | None


class Lineage:
    """Reads the runs of engines and releases."""

    def __init__(self, store: MlflowStore) -> None:
        self._client, self._find_experiment = store.client, store.find_experiment

    def engine_runs(self, model: str, target: str) -> tuple[EngineRun, ...]:
        """Return the newest finished run of each precision of a target."""
        query = f"{_FINISHED_ENGINE} and tags.`{TARGET}` = '{check_name(target, what='target')}'"
        newest: dict[str, Any] = {}
        for run in self._find_newest_first(model, query):
            newest.setdefault(run.data.params.get("precision", ""), run)
        return tuple(self._read_engine_run(precision, run) for precision, run in newest.items())

    def _read_engine_run(self, precision: str, run: Any) -> EngineRun:
        version, raw = run.data.tags.get(VERSION, ""), self._read_file(str(run.info.run_id), IDENTITY)
        return EngineRun(precision, int(version) if version.isdecimal() else None, _parse_identity(raw or b""))

    def reports(self, model: str, *, newest: int) -> Iterator[str]:
        """Yield the reports (JSON) of the newest finished releases, newest first, read one by one."""
        for run in self._find_newest_first(model, f"tags.`{KIND}` = 'release' and tags.`{STATE}` != ''")[:newest]:
            if (report := read_report(self._client, run.info.run_id)) is not None:
                yield report

    def run_ids(self, model: str, parent: str) -> dict[tuple[str, str], str]:
        """Return the newest engine run below a release's run for each target and precision."""
        runs = self._find_newest_first(model, f"tags.`{PARENT}` = '{check_id(parent)}'")
        pairs = [(run.data.params, str(run.info.run_id)) for run in reversed(runs)]
        return {(params.get("target", ""), params.get("precision", "")): run_id for params, run_id in pairs}

    def version_file(self, model: str, path: str, *, version: int) -> bytes | None:
        """Return a file of the newest run of a version's engine that has it, or None.

        Raises:
            EngineryError: it exists, but cannot be read.
        """
        return self._read_engine_file(model, path, f"tags.`{VERSION}` = '{version}'")

    def find_engine(self, model: str, answered: str, **wanted: str | int | None) -> ReleasedEngine:
        """Return the newest finished engine with the `version`, or the `target`, `precision` and `release`, wanted.

        What is None is not asked for. `answered` is the name of the file with its answers.

        Raises:
            NotFound: there is none.
        """
        asked = {name: check_name(str(value), what=name) for name, value in wanted.items() if value is not None}
        tags = {"version": f"tags.`{VERSION}`", "target": f"tags.`{TARGET}`", "release": f"tags.`{RELEASE}`"}
        terms = [f"{tags.get(name, f'params.{name}')} = '{value}'" for name, value in asked.items()]
        runs = self._find_newest_first(model, " and ".join([_FINISHED_ENGINE, *terms]))
        if not runs:
            shown = ", ".join(f"{name} {value}" for name, value in asked.items())
            raise NotFound(f"no release of {model} has built an engine with {shown}: see `enginery list {model}`")
        run, params = str(runs[0].info.run_id), runs[0].data.params
        return ReleasedEngine(
            runs[0].data.tags[RELEASE],
            params["target"],
            params["precision"],
            _parse_identity(self._read_file(run, IDENTITY) or b"").get("onnx_digest"),
            self._read_file(run, answered),
        )

    def calibration_file(self, model: str, name: str, *, version: int) -> bytes | None:
        """Return a file that records how a version's graph was quantized; None if its run has no such file.

        Raises:
            EngineryError: it exists, but cannot be read.
        """
        return self.version_file(model, f"{CALIBRATION}/{name}", version=version)

    def last_calibration_file(self, model: str, name: str, precision: Precision, *, apart_from: str) -> bytes | None:
        """Return that file of the newest finished engine of a precision, in any release except `apart_from`.

        Raises:
            EngineryError: it exists, but cannot be read.
        """
        return self._read_engine_file(
            model,
            f"{CALIBRATION}/{name}",
            f"params.precision = '{precision}' and tags.`{RELEASE}` != '{check_id(apart_from)}'",
        )

    def _read_engine_file(self, model: str, path: str, query: str) -> bytes | None:
        for run in self._find_newest_first(model, f"{_FINISHED_ENGINE} and {query}"):
            if (content := self._read_file(str(run.info.run_id), path)) is not None:
                return content
        return None

    def _read_file(self, run_id: str, path: str) -> bytes | None:
        folder = path.rpartition("/")[0] or None
        with translate_errors(f"{path} of run {run_id}"), tempfile.TemporaryDirectory() as scratch:
            if all(file.path != path for file in self._client.list_artifacts(run_id, folder)):
                return None
            return Path(self._client.download_artifacts(run_id, path, scratch)).read_bytes()

    def _find_newest_first(self, model: str, query: str) -> list[Any]:
        if (experiment := self._find_experiment(check_name(model, what="model"))) is None:
            return []
        with translate_errors(f"runs of {model}"):
            runs = read_pages(
                lambda token: self._client.search_runs(
                    [experiment], query, max_results=_NEWEST, order_by=["attributes.start_time DESC"], page_token=token
                )
            )
            return list(islice(runs, _NEWEST))


def _parse_identity(raw: bytes) -> dict[str, Any]:
    try:
        identity = json.loads(raw)
    except (ValueError, RecursionError):
        return {}
    return identity if isinstance(identity, dict) else {}

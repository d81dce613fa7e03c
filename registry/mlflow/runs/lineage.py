"""What the engines of a model were built from, as their runs record it: inputs, calibration files and reports.

Read to decide what is stale, what moved since the last release, and how a version was calibrated.
"""

import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from registry.mlflow.errors import check_id, read_pages, translate_errors
from registry.mlflow.publish import KIND
from registry.mlflow.runs.releases import CALIBRATION, RELEASE, STATE, read_report
from registry.mlflow.store import MlflowStore
from registry.names import check_name
from registry.records import Precision

# Older runs are not read: what is released weekly never goes so far back.
_NEWEST = 200
_FINISHED_ENGINE = f"tags.`{KIND}` = 'engine' and attributes.status = 'FINISHED'"


@dataclass(frozen=True)
class EngineRun:
    """One finished run of an engine; `version` is the version that holds the engine, None if it failed its gates."""

    precision: str
    version: int | None
    parameters: Mapping[str, str]


class Lineage:
    """Reads the runs of engines and releases."""

    def __init__(self, store: MlflowStore) -> None:
        self._client, self._experiment_of = store.client, store.experiment

    def engine_runs(self, model: str, target: str) -> tuple[EngineRun, ...]:
        """Return the newest finished run of each precision of a target."""
        query = f"{_FINISHED_ENGINE} and tags.target = '{check_name(target, what='target')}'"
        newest: dict[str, EngineRun] = {}
        for run in self._find_newest_first(model, query):
            tags = run.data.tags
            version = int(tags["version"]) if tags.get("version", "").isdecimal() else None
            newest.setdefault(tags.get("precision", ""), EngineRun(tags.get("precision", ""), version, run.data.params))
        return tuple(newest.values())

    def reports(self, model: str, *, newest: int) -> Iterator[str]:
        """Yield the reports (JSON) of the newest finished releases, newest first, read one by one."""
        for run in self._find_newest_first(model, f"tags.`{KIND}` = 'release' and tags.`{STATE}` != ''")[:newest]:
            if (report := read_report(self._client, run.info.run_id)) is not None:
                yield report

    def run_ids(self, model: str, parent: str) -> dict[tuple[str, str], str]:
        """Return the newest engine run below a release's run for each target and precision."""
        runs = self._find_newest_first(model, f"tags.`mlflow.parentRunId` = '{check_id(parent)}'")
        pairs = [(run.data.tags, str(run.info.run_id)) for run in reversed(runs)]
        return {(tags.get("target", ""), tags.get("precision", "")): run_id for tags, run_id in pairs}

    def calibration_file(self, model: str, name: str, *, version: int) -> bytes | None:
        """Return a file that records how a version's graph was quantized; None if its run has no such file.

        Raises:
            EngineryError: it exists, but cannot be read.
        """
        return self._read_calibration_file(model, name, f"tags.version = '{version}'")

    def last_calibration_file(self, model: str, name: str, precision: Precision, *, apart_from: str) -> bytes | None:
        """Return that file of the newest finished engine of a precision, in any release except `apart_from`.

        Raises:
            EngineryError: it exists, but cannot be read.
        """
        return self._read_calibration_file(
            model, name, f"tags.precision = '{precision}' and tags.{RELEASE} != '{check_id(apart_from)}'"
        )

    def _read_calibration_file(self, model: str, name: str, query: str) -> bytes | None:
        path = f"{CALIBRATION}/{name}"
        with translate_errors(f"{path} of {model}"), tempfile.TemporaryDirectory() as scratch:
            for run in self._find_newest_first(model, f"{_FINISHED_ENGINE} and {query}"):
                if any(file.path == path for file in self._client.list_artifacts(run.info.run_id, CALIBRATION)):
                    return Path(self._client.download_artifacts(run.info.run_id, path, scratch)).read_bytes()
        return None

    def _find_newest_first(self, model: str, query: str) -> list[Any]:
        with translate_errors(f"runs of {model}"):
            experiment = [self._experiment_of(model)]
            runs = read_pages(
                lambda token: self._client.search_runs(
                    experiment, query, max_results=_NEWEST, order_by=["attributes.start_time DESC"], page_token=token
                )
            )
            return list(islice(runs, _NEWEST))

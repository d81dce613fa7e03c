"""What the newest engines of a model were made from, as their runs say; read for deciding what has gone stale."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any

from registry.mlflow.errors import pages, plainly, quotable
from registry.mlflow.runs.releases import KIND, STATE, read_report
from registry.mlflow.store import MlflowStore
from registry.names import check_name

# Older runs than these of one target are not looked at: nothing that is made each week goes so far back.
_NEWEST = 200


@dataclass(frozen=True)
class EngineRun:
    """One finished run of an engine; `version` is the version that it became or was found as, None where it failed."""

    precision: str
    version: int | None
    parameters: Mapping[str, str]


class Lineage:
    """Reads runs of engines and releases."""

    def __init__(self, store: MlflowStore) -> None:
        self._client, self._experiment_of = store.client, store.experiment

    def engine_runs(self, model: str, target: str) -> tuple[EngineRun, ...]:
        """The newest finished run of each precision of a target."""
        query = (
            f"tags.`{KIND}` = 'engine' and tags.target = '{check_name(target, what='target')}' "
            "and attributes.status = 'FINISHED'"
        )
        newest: dict[str, EngineRun] = {}
        for run in self._runs(model, query):
            tags = run.data.tags
            version = int(tags["version"]) if tags.get("version", "").isdecimal() else None
            newest.setdefault(tags.get("precision", ""), EngineRun(tags.get("precision", ""), version, run.data.params))
        return tuple(newest.values())

    def reports(self, model: str, *, newest: int) -> Iterator[str]:
        """The reports (JSON) of the newest releases that came to an end, newest first, read one by one."""
        for run in self._runs(model, f"tags.`{KIND}` = 'release' and tags.`{STATE}` != ''")[:newest]:
            if (report := read_report(self._client, run.info.run_id)) is not None:
                yield report

    def run_ids(self, model: str, parent: str) -> dict[tuple[str, str], str]:
        """The id of each engine's run below a release's run, by target and precision; of several, the newest."""
        found = self._runs(model, f"tags.`mlflow.parentRunId` = '{quotable(parent)}'")
        tags = [(run.data.tags, str(run.info.run_id)) for run in reversed(found)]
        return {(each.get("target", ""), each.get("precision", "")): run_id for each, run_id in tags}

    def _runs(self, model: str, query: str) -> list[Any]:
        """Newest first."""
        with plainly(f"runs of {model}"):
            experiment = [self._experiment_of(model)]
            found = pages(
                lambda token: self._client.search_runs(
                    experiment, query, max_results=_NEWEST, order_by=["attributes.start_time DESC"], page_token=token
                )
            )
            return list(islice(found, _NEWEST))

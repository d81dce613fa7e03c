"""The history of promotions in MLflow: one run of tags per event, in an experiment of the model's own."""

import json
from collections.abc import Callable
from dataclasses import asdict
from itertools import islice
from typing import Any

from mlflow.tracking import MlflowClient
from mlflow.utils.mlflow_tags import MLFLOW_RUN_NOTE, MLFLOW_SOURCE_NAME, MLFLOW_USER

from registry.errors import BadInput, NotFound
from registry.mlflow.errors import check_id, read_pages, translate_errors
from registry.mlflow.rows import (
    EVENT_ALIAS,
    EVENT_ID,
    EVENT_OUTCOME,
    EVENT_RECORD,
    NEWEST_EVENT_FIRST,
    event_from,
    events_query,
    history_experiment,
)
from registry.names import PRODUCTION
from registry.records import PromotionEvent

_PAGE = 1000
# MLflow silently cuts a run's tag at 8000 characters; a longer record is refused instead.
_MAX_RECORD = 8000


class History:
    """Events of all models; `named_experiment` returns (and creates) the id of an experiment."""

    def __init__(self, client: MlflowClient, named_experiment: Callable[[str], str]) -> None:
        self._client = client
        self._named_experiment = named_experiment
        # Ids never change, and a promotion need not search for the run that it has just written.
        self._experiments: dict[str, str] = {}
        self._run_ids: dict[tuple[str, str], str] = {}

    def append(self, event: PromotionEvent) -> None:
        """See `Store.append_event`."""
        record = json.dumps(asdict(event))
        if len(record) > _MAX_RECORD:
            raise BadInput(f"the promotion's text has {len(record)} characters, more than {_MAX_RECORD}: shorten it")
        tags = {
            EVENT_ID: event.event,
            EVENT_ALIAS: event.alias,
            EVENT_RECORD: record,
            EVENT_OUTCOME: event.outcome,
            MLFLOW_USER: event.who,
            MLFLOW_SOURCE_NAME: f"enginery {event.action}",
            MLFLOW_RUN_NOTE: _describe_event(event),
        }
        with translate_errors(f"history of {event.model}"):
            name = history_experiment(event.model)
            experiment = self._find_experiment(event.model) or self._named_experiment(name)
            run = self._client.create_run(experiment, tags=tags, run_name=_name_event(event))
        self._run_ids[event.model, event.event] = run.info.run_id

    def finish(self, model: str, event_id: str, outcome: str) -> None:
        """See `Store.finish_event`."""
        # An event that this object appended and has not finished is pending: no need to read it first.
        run_id = self._run_ids.pop((model, event_id), None) or self._find_pending(model, event_id)
        with translate_errors(f"history of {model}"):
            self._client.set_tag(run_id, EVENT_OUTCOME, outcome)
            self._client.set_terminated(run_id, "FINISHED" if outcome == "done" else "FAILED")

    def read(
        self, model: str, *, alias: str | None = None, outcome: str | None = None, newest: int | None = None
    ) -> tuple[PromotionEvent, ...]:
        """See `Store.events`."""
        runs = self._search_newest_first(model, events_query(alias, outcome), newest)
        return tuple(event_from(run.data.tags) for run in reversed(runs))

    def _find_pending(self, model: str, event_id: str) -> str:
        runs = self._search_newest_first(model, f"tags.`{EVENT_ID}` = '{check_id(event_id)}'", 1)
        if not runs:
            raise NotFound(f"{model} has no promotion event {event_id}")
        if (outcome := runs[0].data.tags[EVENT_OUTCOME]) != "pending":
            raise BadInput(f"event {event_id} of {model} is {outcome} already: history is append-only")
        return str(runs[0].info.run_id)

    def _search_newest_first(self, model: str, query: str, newest: int | None) -> list[Any]:
        size = min(_PAGE, newest or _PAGE)
        with translate_errors(f"history of {model}"):
            if (experiment := self._find_experiment(model)) is None:
                return []
            runs = read_pages(
                lambda token: self._client.search_runs(
                    [experiment], query, max_results=size, order_by=[NEWEST_EVENT_FIRST], page_token=token
                )
            )
            return list(islice(runs, newest))

    def _find_experiment(self, model: str) -> str | None:
        if model not in self._experiments:
            experiment = self._client.get_experiment_by_name(history_experiment(model))
            if experiment is None:
                return None
            self._experiments[model] = str(experiment.experiment_id)
        return self._experiments[model]


def _name_event(event: PromotionEvent) -> str:
    before = "none" if event.from_version is None else str(event.from_version)
    return f"{event.action} {event.alias.removeprefix(PRODUCTION)}: {before} → {event.to_version}"


def _describe_event(event: PromotionEvent) -> str:
    lines = [
        f"**{event.why}**",
        f"{event.alias} by {event.who}, {event.at}",
        f"Waiver: {event.waiver}" if event.waiver else "",
        f"Approved by {event.approved_by}" if event.approved_by else "",
        event.evidence,
    ]
    return "\n\n".join(filter(None, lines))

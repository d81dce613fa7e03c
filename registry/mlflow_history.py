"""The history of promotions in MLflow: an event is a run of its own, made of tags, in the model's experiment."""

import json
from collections.abc import Callable
from dataclasses import asdict, replace
from typing import Any

from mlflow.tracking import MlflowClient
from pydantic import TypeAdapter

from registry.errors import BadInput, NotFound
from registry.mlflow_errors import pages, plainly, quotable
from registry.names import check_name
from registry.records import PromotionEvent

_EVENT = TypeAdapter(PromotionEvent)
# Only events have these, so a search by them meets no engine's run.
_KIND, _ALIAS, _RECORD, _OUTCOME, _POSITION = (
    "enginery.kind",
    "enginery.alias",
    "enginery.record",
    "enginery.outcome",
    "enginery.position",
)
_PAGE = 1000
# MLflow cuts a run's tag at 8000 characters without a word; a record is kept whole or refused.
_MAX_RECORD = 8000


class History:
    """Events of all models; `experiment_of` gives (and makes) the id of a model's experiment."""

    def __init__(self, client: MlflowClient, experiment_of: Callable[[str], str]) -> None:
        self._client = client
        self._experiment_of = experiment_of

    def append(self, event: PromotionEvent) -> None:
        """See `Store.append_event`."""
        record = json.dumps(asdict(event))
        if len(record) > _MAX_RECORD:
            raise BadInput(f"the promotion's text has {len(record)} characters; {_MAX_RECORD} are kept: shorten it")
        if self._runs(event.model, _named(event.event), newest=1):
            raise BadInput(f"event {event.event} is already in the history of {event.model}")
        before = self._runs(event.model, newest=1)
        position = 1 + int(before[0].data.tags[_POSITION]) if before else 0
        tags = {
            _KIND: "promotion",
            _ALIAS: event.alias,
            _RECORD: record,
            _OUTCOME: event.outcome,
            _POSITION: f"{position:012d}",  # MLflow sorts tags as text
        }
        with plainly(f"history of {event.model}"):
            self._client.create_run(self._experiment_of(event.model), tags=tags, run_name=event.event)

    def finish(self, model: str, event_id: str, outcome: str) -> None:
        """See `Store.finish_event`."""
        run = next(iter(self._runs(model, _named(event_id), newest=1)), None)
        if run is None:
            raise NotFound(f"{model} has no promotion event {event_id}")
        if run.data.tags[_OUTCOME] != "pending":
            raise BadInput(f"event {event_id} of {model} is {run.data.tags[_OUTCOME]} already: history is append-only")
        with plainly(f"history of {model}"):
            self._client.set_tag(run.info.run_id, _OUTCOME, outcome)
            self._client.set_terminated(run.info.run_id, "FINISHED" if outcome == "done" else "FAILED")

    def events(
        self, model: str, *, alias: str | None = None, outcome: str | None = None, newest: int | None = None
    ) -> tuple[PromotionEvent, ...]:
        """See `Store.events`."""
        wanted = [f"tags.`{_ALIAS}` = '{check_name(alias, what='alias')}'"] if alias else []
        wanted += [f"tags.`{_OUTCOME}` = '{quotable(outcome)}'"] if outcome else []
        return tuple(
            replace(_EVENT.validate_json(run.data.tags[_RECORD]), outcome=run.data.tags[_OUTCOME])
            for run in reversed(self._runs(model, *wanted, newest=newest))
        )

    def _runs(self, model: str, *wanted: str, newest: int | None = None) -> list[Any]:
        """Newest first."""
        query = " and ".join(wanted) or f"tags.`{_KIND}` = 'promotion'"
        order = [f"tags.`{_POSITION}` DESC", "attributes.start_time DESC"]
        size = min(_PAGE, newest or _PAGE)
        with plainly(f"history of {model}"):
            found = self._client.get_experiment_by_name(check_name(model, what="model"))
            if found is None:
                return []
            scope = [found.experiment_id]
            return pages(
                lambda token: self._client.search_runs(
                    scope, query, max_results=size, order_by=order, page_token=token
                ),
                newest,
            )


def _named(event_id: str) -> str:
    return f"attributes.run_name = '{quotable(event_id)}' and tags.`{_KIND}` = 'promotion'"

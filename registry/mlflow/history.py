"""The history of promotions in MLflow: an event is a run of its own, made of tags, in the model's experiment."""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from itertools import islice
from typing import Any

from mlflow.tracking import MlflowClient
from pydantic import TypeAdapter

from registry.errors import BadInput, NotFound
from registry.mlflow.errors import pages, plainly, quotable
from registry.names import check_name
from registry.records import PromotionEvent

_EVENT = TypeAdapter(PromotionEvent)
# Only events have these, so a search by them meets no engine's run.
_KIND, _ALIAS, _RECORD, _OUTCOME = "enginery.event", "enginery.alias", "enginery.record", "enginery.outcome"
_PAGE = 1000
# MLflow cuts a run's tag at 8000 characters without a word; a record is kept whole or refused.
_MAX_RECORD = 8000


class History:
    """Events of all models; `experiment_of` gives (and makes) the id of a model's experiment.

    An event's id is its run's name: in the order of names is in the order of time.
    """

    def __init__(self, client: MlflowClient, experiment_of: Callable[[str], str]) -> None:
        self._client = client
        self._experiment_of = experiment_of
        # Ids that never change, so that a promotion needs no search for what it has just written.
        self._experiments: dict[str, str] = {}
        self._run_ids: dict[tuple[str, str], str] = {}

    def append(self, event: PromotionEvent) -> None:
        """See `Store.append_event`."""
        record = json.dumps(asdict(event))
        if len(record) > _MAX_RECORD:
            raise BadInput(f"the promotion's text has {len(record)} characters; {_MAX_RECORD} are kept: shorten it")
        tags = {_KIND: event.action, _ALIAS: event.alias, _RECORD: record, _OUTCOME: event.outcome}
        with plainly(f"history of {event.model}"):
            experiment = self._experiment(event.model) or self._experiment_of(event.model)
            run = self._client.create_run(experiment, tags=tags, run_name=event.event)
        self._run_ids[event.model, event.event] = run.info.run_id

    def finish(self, model: str, event_id: str, outcome: str) -> None:
        """See `Store.finish_event`."""
        # What was appended here and not finished since is pending: it need not be read first.
        run_id = self._run_ids.pop((model, event_id), None) or self._pending(model, event_id)
        with plainly(f"history of {model}"):
            self._client.set_tag(run_id, _OUTCOME, outcome)
            self._client.set_terminated(run_id, "FINISHED" if outcome == "done" else "FAILED")

    def events(
        self, model: str, *, alias: str | None = None, outcome: str | None = None, newest: int | None = None
    ) -> tuple[PromotionEvent, ...]:
        """See `Store.events`."""
        wanted = [f"tags.`{_ALIAS}` = '{check_name(alias, what='alias')}'"] if alias else []
        wanted += [f"tags.`{_OUTCOME}` = '{quotable(outcome)}'"] if outcome else []
        return tuple(
            replace(_EVENT.validate_json(run.data.tags[_RECORD]), outcome=run.data.tags[_OUTCOME])
            for run in reversed(self._runs(model, wanted, newest))
        )

    def _pending(self, model: str, event_id: str) -> str:
        found = self._runs(model, [f"attributes.run_name = '{quotable(event_id)}'"], 1)
        if not found:
            raise NotFound(f"{model} has no promotion event {event_id}")
        if (outcome := found[0].data.tags[_OUTCOME]) != "pending":
            raise BadInput(f"event {event_id} of {model} is {outcome} already: history is append-only")
        return str(found[0].info.run_id)

    def _runs(self, model: str, wanted: Sequence[str], newest: int | None = None) -> list[Any]:
        """Newest first."""
        query = " and ".join([f"tags.`{_KIND}` != ''", *wanted])
        size = min(_PAGE, newest or _PAGE)
        with plainly(f"history of {model}"):
            if (experiment := self._experiment(model)) is None:
                return []
            found = pages(
                lambda token: self._client.search_runs(
                    [experiment], query, max_results=size, order_by=["attributes.run_name DESC"], page_token=token
                )
            )
            return list(islice(found, newest))

    def _experiment(self, model: str) -> str | None:
        if model not in self._experiments:
            found = self._client.get_experiment_by_name(check_name(model, what="model"))
            if found is None:
                return None
            self._experiments[model] = str(found.experiment_id)
        return self._experiments[model]

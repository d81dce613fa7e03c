"""The history of promotions in MLflow: one run of tags per event, in the model's experiment."""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from itertools import islice
from typing import Any

from mlflow.tracking import MlflowClient
from pydantic import TypeAdapter

from registry.errors import BadInput, NotFound
from registry.mlflow.errors import check_id, read_pages, translate_errors
from registry.names import check_name
from registry.records import PromotionEvent

_EVENT = TypeAdapter(PromotionEvent)
# Only events have these tags, so a search by them finds no engine's run.
_KIND, _ALIAS, _RECORD, _OUTCOME = "enginery.event", "enginery.alias", "enginery.record", "enginery.outcome"
_PAGE = 1000
# MLflow silently cuts a run's tag at 8000 characters; a longer record is refused instead.
_MAX_RECORD = 8000


class History:
    """Events of all models; `experiment_of` returns (and creates) the id of a model's experiment.

    The run's name is the event's id, so sorting runs by name sorts events by time.
    """

    def __init__(self, client: MlflowClient, experiment_of: Callable[[str], str]) -> None:
        self._client = client
        self._experiment_of = experiment_of
        # Ids never change, and a promotion need not search for the run that it has just written.
        self._experiments: dict[str, str] = {}
        self._run_ids: dict[tuple[str, str], str] = {}

    def append(self, event: PromotionEvent) -> None:
        """See `Store.append_event`."""
        record = json.dumps(asdict(event))
        if len(record) > _MAX_RECORD:
            raise BadInput(f"the promotion's text has {len(record)} characters, more than {_MAX_RECORD}: shorten it")
        tags = {_KIND: event.action, _ALIAS: event.alias, _RECORD: record, _OUTCOME: event.outcome}
        with translate_errors(f"history of {event.model}"):
            experiment = self._find_experiment(event.model) or self._experiment_of(event.model)
            run = self._client.create_run(experiment, tags=tags, run_name=event.event)
        self._run_ids[event.model, event.event] = run.info.run_id

    def finish(self, model: str, event_id: str, outcome: str) -> None:
        """See `Store.finish_event`."""
        # An event that this object appended and has not finished is pending: no need to read it first.
        run_id = self._run_ids.pop((model, event_id), None) or self._find_pending(model, event_id)
        with translate_errors(f"history of {model}"):
            self._client.set_tag(run_id, _OUTCOME, outcome)
            self._client.set_terminated(run_id, "FINISHED" if outcome == "done" else "FAILED")

    def read(
        self, model: str, *, alias: str | None = None, outcome: str | None = None, newest: int | None = None
    ) -> tuple[PromotionEvent, ...]:
        """See `Store.events`."""
        conditions = [f"tags.`{_ALIAS}` = '{check_name(alias, what='alias')}'"] if alias else []
        conditions += [f"tags.`{_OUTCOME}` = '{check_id(outcome)}'"] if outcome else []
        return tuple(
            replace(_EVENT.validate_json(run.data.tags[_RECORD]), outcome=run.data.tags[_OUTCOME])
            for run in reversed(self._search_newest_first(model, conditions, newest))
        )

    def _find_pending(self, model: str, event_id: str) -> str:
        runs = self._search_newest_first(model, [f"attributes.run_name = '{check_id(event_id)}'"], 1)
        if not runs:
            raise NotFound(f"{model} has no promotion event {event_id}")
        if (outcome := runs[0].data.tags[_OUTCOME]) != "pending":
            raise BadInput(f"event {event_id} of {model} is {outcome} already: history is append-only")
        return str(runs[0].info.run_id)

    def _search_newest_first(self, model: str, conditions: Sequence[str], newest: int | None = None) -> list[Any]:
        query = " and ".join([f"tags.`{_KIND}` != ''", *conditions])
        size = min(_PAGE, newest or _PAGE)
        with translate_errors(f"history of {model}"):
            if (experiment := self._find_experiment(model)) is None:
                return []
            runs = read_pages(
                lambda token: self._client.search_runs(
                    [experiment], query, max_results=size, order_by=["attributes.run_name DESC"], page_token=token
                )
            )
            return list(islice(runs, newest))

    def _find_experiment(self, model: str) -> str | None:
        if model not in self._experiments:
            experiment = self._client.get_experiment_by_name(check_name(model, what="model"))
            if experiment is None:
                return None
            self._experiments[model] = str(experiment.experiment_id)
        return self._experiments[model]

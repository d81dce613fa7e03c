"""How a model's history stands in MLflow: apart from its engines' runs, named for people, ordered for machines."""

from dataclasses import replace
from typing import Any

import pytest
from mlflow.entities import Run

from registry.errors import BadInput, NotFound
from registry.mlflow.store import MlflowStore
from registry.records import PromotionEvent
from tests.support.deciding import promote, rollback


@pytest.fixture
def decided(mlflow_store: MlflowStore, manifest_factory: Any) -> MlflowStore:
    """Versions 1 and 2, promoted one after the other; then 1 again by a rollback."""
    for number in (1, 2):
        mlflow_store.publish(*manifest_factory(bytes([number]), sequence=number))
        promote(mlflow_store, "l4", number)
    rollback(mlflow_store, "l4")
    return mlflow_store


def read_runs(store: MlflowStore) -> list[Run]:
    runs = store.client.search_runs([store.named_experiment("sst2/history")], order_by=["attributes.start_time ASC"])
    return list(runs)


def test_runs_are_named_for_what_happened(decided: MlflowStore) -> None:
    names = sorted(run.info.run_name or "" for run in read_runs(decided))
    assert names == ["promote l4: 1 → 2", "promote l4: none → 1", "rollback l4: 2 → 1"]
    promotion = next(run for run in read_runs(decided) if run.info.run_name == "promote l4: 1 → 2")
    assert promotion.data.tags["mlflow.user"] == "ana"
    assert promotion.data.tags["mlflow.note.content"].startswith("**faster**")


def test_no_promotion_is_among_the_runs_of_engines(decided: MlflowStore) -> None:
    runs = decided.client.search_runs([decided.experiment("sst2")])
    assert {run.data.tags["enginery.kind"] for run in runs} == {"engine"}


def test_experiments_open_as_model_training(decided: MlflowStore) -> None:
    for name in ("sst2", "sst2/history"):
        experiment = decided.client.get_experiment_by_name(name)
        assert experiment is not None
        assert experiment.tags["mlflow.experimentKind"] == "custom_model_development"


def test_order_is_that_of_the_ids_whatever_the_clocks_and_names_say(decided: MlflowStore) -> None:
    template = decided.events("sst2")[-1]
    for number in (12, 11, 13):  # written by hosts whose clocks and turns disagree
        decided.append_event(replace(template, event=f"9{number:011d}-000-x", to_version=number, outcome="pending"))
    assert [event.to_version for event in decided.events("sst2")] == [1, 2, 1, 11, 12, 13]
    assert [event.to_version for event in decided.events("sst2", newest=2)] == [12, 13]
    assert [event.to_version for event in decided.events("sst2", alias="production-l4", newest=1)] == [13]
    assert [event.to_version for event in decided.events("sst2", outcome="done", newest=2)] == [2, 1]


def test_another_process_finishes_an_event_by_its_id(decided: MlflowStore, tmp_path: Any) -> None:
    event: PromotionEvent = replace(decided.events("sst2")[-1], event="900000000099-000-x", outcome="pending")
    decided.append_event(event)
    other = MlflowStore(decided.client.tracking_uri, tmp_path)
    other.finish_event("sst2", event.event, "failed")
    assert decided.events("sst2")[-1].outcome == "failed"
    with pytest.raises(BadInput, match="append-only"):
        other.finish_event("sst2", event.event, "done")
    with pytest.raises(NotFound, match="no promotion event"):
        other.finish_event("sst2", "900000000098-000-x", "done")


def test_edited_event_is_named(decided: MlflowStore) -> None:
    run = read_runs(decided)[0]
    decided.client.set_tag(run.info.run_id, "enginery.record", "{}")
    with pytest.raises(BadInput, match="tags that were edited"):
        decided.events("sst2")

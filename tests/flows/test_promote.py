"""promote-engine and rollback-engine: the registry's rules, with the flow run in the history."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from flows.promotion import events
from registry.records import Verdict
from registry.store import Store
from tests.support.manifests import ManifestFactory

FLEET = """
targets:
  l4: {backend: tensorrt, compute_capability: "8.9"}
  t4: {backend: tensorrt, compute_capability: "7.5"}
"""
Told = list[events.EngineEvent]


@pytest.fixture
def fleet(tmp_path: Path) -> str:
    path = tmp_path / "fleet.yaml"
    path.write_text(FLEET, encoding="utf-8")
    return str(path)


@pytest.fixture
def published(mlflow_store: Store, manifest_factory: ManifestFactory) -> Store:
    """Versions 1 and 2 for l4, both passed; 3 for t4, failed. Candidate of l4: 2."""
    for number in (1, 2):
        mlflow_store.publish(*manifest_factory(bytes([number]), sequence=number, target="l4", release=f"r{number}"))
    failed = manifest_factory(b"3", sequence=3, target="t4", verdict=Verdict.FAILED, reason="p99 was 9 ms")
    mlflow_store.publish(*failed)
    mlflow_store.set_alias("sst2", "candidate-l4", 2)
    return mlflow_store


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> Told:
    """What Prefect would be told: the seam is the request."""
    heard: Told = []
    monkeypatch.setenv("PREFECT_API_URL", "http://127.0.0.1:9/api")
    monkeypatch.setattr(events, "_post_events", heard.extend)
    return heard


@pytest.fixture
def run(prefect_offline: None, fleet: str) -> Callable[..., Any]:
    """Run a flow of flows/deployments.py by name; its final state."""

    def flow_run(name: str, **parameters: Any) -> Any:
        from flows import deployments

        flow = getattr(deployments, name)
        return flow(model="sst2", why="a test", who="ana", fleet=fleet, **parameters, return_state=True)

    return flow_run


def test_the_candidate_moves_and_the_history_names_the_flow_run(published: Store, run: Any, told: Told) -> None:
    state = run("promote_engine", targets=["l4"])
    assert state.is_completed(), state.message
    assert published.aliases("sst2")["production-l4"] == 2
    (event,) = published.events("sst2")
    assert event.flow_run == str(state.state_details.flow_run_id)
    assert (event.who, event.why) == ("ana", "a test")
    (said,) = told
    assert said.event == "enginery.engine.promoted"
    assert said.resource["prefect.resource.id"] == "enginery.engine.sst2.l4"
    wanted = {"from": None, "to": 2, "who": "ana", "why": "a test", "digest": event.digest, "release": "r2"}
    assert said.payload == wanted


def test_a_rollback_goes_back_and_says_so(published: Store, run: Any, told: Told) -> None:
    run("promote_engine", targets=["l4"], version=1)
    run("promote_engine", targets=["all"])
    state = run("rollback_engine", targets=["l4"])
    assert state.is_completed(), state.message
    assert published.aliases("sst2")["production-l4"] == 1
    assert [(each.event, each.payload["from"], each.payload["to"]) for each in told] == [
        ("enginery.engine.promoted", None, 1),
        ("enginery.engine.promoted", 1, 2),
        ("enginery.engine.rolled-back", 2, 1),
    ]


def test_a_refusal_ends_failed_with_its_one_sentence(published: Store, run: Any, told: Told) -> None:
    state = run("promote_engine", targets=["t4"], version=3)
    assert state.is_failed()
    assert state.message == "sst2 version 3 is failed for t4: p99 was 9 ms; a failed gate cannot be waived"
    assert "production-t4" not in published.aliases("sst2")
    (said,) = told
    assert (said.event, said.target) == ("enginery.engine.refused", "t4")
    assert said.payload["reason"] == state.message


def test_bad_input_fails_and_is_no_refusal(published: Store, run: Any, told: Told) -> None:
    state = run("promote_engine", targets=["t4"])
    assert state.is_failed()
    assert "no candidate for t4" in state.message
    assert told == []


def test_what_is_in_production_already_is_no_event(published: Store, run: Any, told: Told) -> None:
    run("promote_engine", targets=["l4"])
    told.clear()
    assert "unchanged" in run("promote_engine", targets=["l4"]).message
    assert told == []


def test_an_empty_waiver_of_a_form_is_none(published: Store, run: Any) -> None:
    assert run("promote_engine", targets=["l4"], waiver="").is_completed()


def test_a_server_that_is_down_neither_fails_nor_holds_up_a_promotion(
    published: Store, run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from prefect.settings import PREFECT_API_URL, temporary_settings

    nobody = "http://127.0.0.1:9/api"
    monkeypatch.setenv("PREFECT_API_URL", nobody)
    began = time.monotonic()
    with temporary_settings({PREFECT_API_URL: nobody}):
        assert events.emit([events.stale("sst2", "l4", 1, ["TensorRT 11.4 is there"])]) is False
    assert time.monotonic() - began < 10


def test_without_a_server_no_event_is_even_made(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    assert events.emit(pytest.fail("made") for _ in range(1)) is False


def test_a_registry_that_fails_after_the_move_does_not_make_it_look_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PREFECT_API_URL", "http://127.0.0.1:9/api")

    def lost(_: int) -> events.EngineEvent:
        raise OSError("the registry is gone")

    assert events.emit(lost(number) for number in range(2)) is False


def test_reasons_are_cut_before_prefect_refuses_the_event() -> None:
    said = events.stale("sst2", "l4", 1, ["x" * 10_000] * 100)
    assert len(said.payload["reasons"]) == 20
    assert max(map(len, said.payload["reasons"])) == events.LONGEST_REASON

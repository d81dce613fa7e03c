"""What a release reads of the flow runs that it waits for, from a real server."""

import time
from functools import partial

import pytest
from prefect import flow
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.states import Cancelling, Running

from flows.workers import flow_runs
from flows.workers.flow_runs import (
    LONGEST_ANSWER,
    SILENT_SECONDS,
    WatchedRun,
    end_abandoned_runs,
    explain_loss,
    is_online,
    read_states,
)
from registry.records import Backend, GpuTarget

pytestmark = pytest.mark.slow


@flow
def waited_for() -> None:
    """Never runs: the tests only need its flow runs."""


def test_none_of_more_runs_than_one_answer_holds_looks_deleted(prefect_offline: None) -> None:
    with get_client(sync_client=True) as client:
        runs = [str(client.create_flow_run(waited_for).id) for _ in range(LONGEST_ANSWER + 1)]
        states = read_states(client, runs)
    assert set(states) == set(runs)
    assert all(state is not None for state in states.values())


def test_a_run_that_never_beat_is_lost_though_another_worker_of_its_pool_is_online(prefect_offline: None) -> None:
    target = GpuTarget("l4", Backend.TENSORRT, work_pool="shared")
    with get_client(sync_client=True) as client:
        client.create_work_pool(WorkPoolCreate(name="shared", type="process"))
        client.send_worker_heartbeat("shared", "another")
        run = client.create_flow_run(waited_for, state=Running())
        assert run.state is not None
        watched = WatchedRun(str(run.id), target, patience_seconds=600.0)
        online = partial(is_online, client)
        assert explain_loss(client, watched, run.state, online) is None
        watched.seen = time.monotonic() - SILENT_SECONDS - 1
        assert "no sign of life" in (explain_loss(client, watched, run.state, online) or "")


def test_a_run_that_was_given_up_ends_at_once_where_no_worker_is_left(
    prefect_offline: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(flow_runs, "CANCEL_SECONDS", 600.0)
    target = GpuTarget("l4", Backend.TENSORRT, work_pool="deserted")
    with get_client(sync_client=True) as client:
        run = client.create_flow_run(waited_for, state=Running())
        client.set_flow_run_state(run.id, Cancelling())
        end_abandoned_runs(client, [WatchedRun(str(run.id), target, patience_seconds=600.0)])
        state = client.read_flow_run(run.id).state
    assert state is not None
    assert state.is_cancelled()

"""Watch the flow runs that a release waits for: read their states and heartbeats, and end those that are lost."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from uuid import UUID

from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId
from prefect.client.schemas.objects import State
from prefect.events.filters import EventFilter, EventNameFilter, EventResourceFilter
from prefect.exceptions import ObjectNotFound
from prefect.states import Cancelled, Cancelling

from flows.prefect_server.settings import BEAT_SECONDS
from registry.records import GpuTarget

POLL_SECONDS = 3.0
# Three missing heartbeats are not an accident; the automations of flows/prefect_server/setup.py act first.
SILENT_SECONDS = 3 * BEAT_SECONDS + 5.0
# How long a run may stay pending whose worker has gone offline.
STARTING_SECONDS = 15.0
# A live worker learns at once that a run is cancelled, and stops it. Together with SILENT_SECONDS: two minutes.
CANCEL_SECONDS = 10.0
# Prefect answers with at most so many flow runs (PREFECT_SERVER_API_DEFAULT_LIMIT); one left out would look deleted.
LONGEST_ANSWER = 200


@dataclass
class WatchedRun:
    """A flow run to wait for; `sign` is its last sign of life, `seen` when that came (monotonic seconds)."""

    flow_run: str
    target: GpuTarget
    patience_seconds: float
    sign: object = None
    seen: float = field(default_factory=time.monotonic)


def explain_loss(client: SyncPrefectClient, run: WatchedRun, state: State, online: Callable[[str], bool]) -> str | None:
    """Explain why a run is lost; None while it shows signs of life, or it is too early to tell.

    `online` tells whether a work pool has a live worker.
    """
    target, now = run.target, time.monotonic()
    is_waiting = state.is_scheduled() or state.is_pending()
    beat = None if is_waiting else _read_heartbeat(client, run.flow_run)
    sign = (state.type, beat)
    # A live worker of the pool only counts for a run that has not begun: one that has sends heartbeats itself.
    if sign != run.sign or (is_waiting and online(target.work_pool)):
        run.sign, run.seen = sign, now
        return None
    silent = now - run.seen
    if state.is_scheduled() and silent > run.patience_seconds:
        return (
            f"no worker of pool {target.work_pool} was online for {run.patience_seconds:.0f} s: "
            f"start one with `enginery worker --target {target.name}`"
        )
    if state.is_pending() and silent > STARTING_SECONDS:
        return f"a worker of pool {target.work_pool} took the job and went offline before starting it: see its log"
    if not is_waiting and silent > SILENT_SECONDS:
        return f"its worker gave no sign of life for {silent:.0f} s: check the worker of pool {target.work_pool}"
    return None


def _read_heartbeat(client: SyncPrefectClient, flow_run: str) -> object:
    """Read the id of the run's last heartbeat, or None. Clocks differ between hosts, ids do not."""
    heartbeats = EventFilter(
        event=EventNameFilter(name=["prefect.flow-run.heartbeat"]),
        resource=EventResourceFilter(id=[f"prefect.flow-run.{flow_run}"]),
    )
    return next((event.id for event in client.read_events(heartbeats, limit=1).events), None)


def is_online(client: SyncPrefectClient, pool: str) -> bool:
    """Tell whether a work pool exists, is not paused, and has a worker that Prefect hears from."""
    try:
        if client.read_work_pool(pool).is_paused:
            return False
        return any(worker.status.value == "ONLINE" for worker in client.read_workers_for_work_pool(pool))
    except ObjectNotFound:
        return False


def read_states(client: SyncPrefectClient, flow_runs: list[str]) -> dict[str, State | None]:
    """Read the state of each run by its id; a deleted run is left out."""
    states: dict[str, State | None] = {}
    for first in range(0, len(flow_runs), LONGEST_ANSWER):
        ids = [UUID(run) for run in flow_runs[first : first + LONGEST_ANSWER]]
        runs = client.read_flow_runs(flow_run_filter=FlowRunFilter(id=FlowRunFilterId(any_=ids)))
        states |= {str(run.id): run.state for run in runs}
    return states


def end_abandoned_runs(client: SyncPrefectClient, runs: Sequence[WatchedRun]) -> None:
    """Wait until runs that were given up are cancelled.

    Their worker does that, or this process if their pool has no worker left.
    """
    deadline = time.monotonic() + CANCEL_SECONDS
    while runs:
        states = read_states(client, [run.flow_run for run in runs])
        runs = [run for run in runs if (state := states.get(run.flow_run)) is not None and not state.is_final()]
        is_late = time.monotonic() > deadline
        deserted = [run for run in runs if is_late or not is_online(client, run.target.work_pool)]
        for run in deserted:
            client.set_flow_run_state(run.flow_run, Cancelled(message="given up by its release"), force=True)
        runs = [run for run in runs if run not in deserted]
        time.sleep(POLL_SECONDS if runs else 0)


def cancel_run(client: SyncPrefectClient, flow_run: str, state: State, reason: str) -> None:
    """Cancel a queued run at once; a running one is requested to stop by its worker (see `end_abandoned_runs`)."""
    is_queued = state.is_scheduled() or state.is_pending()
    ending: State = Cancelled(message=reason) if is_queued else Cancelling(message=reason)
    client.set_flow_run_state(flow_run, ending)

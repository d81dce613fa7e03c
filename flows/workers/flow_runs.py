"""What Prefect says of the flow runs that a release waits for: states, signs of life, and the end of lost ones."""

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
# Three heartbeats that fail to come are no accident; the automations of flows/prefect_server/setup.py act first.
SILENT_SECONDS = 3 * BEAT_SECONDS + 5.0
# A run that a worker took and did not begin, after the worker itself is known to be gone.
STARTING_SECONDS = 15.0
# A worker that lives hears at once that a run is cancelled, and stops it; with the silence before it, two minutes.
CANCEL_SECONDS = 10.0
# Prefect's answer holds so many flow runs at most (PREFECT_SERVER_API_DEFAULT_LIMIT); one left out would look deleted.
LONGEST_ANSWER = 200


@dataclass
class Watched:
    """A flow run that is waited for; `sign` is the last sign of life and `seen` when it came (monotonic seconds)."""

    flow_run: str
    target: GpuTarget
    patience_seconds: float
    sign: object = None
    seen: float = field(default_factory=time.monotonic)


def why_lost(client: SyncPrefectClient, child: Watched, state: State, online: Callable[[str], bool]) -> str | None:
    """Why a run is to be given up, in words; None while there is a sign of life, or it is not yet time.

    `online` says of a work pool whether it has a worker that lives.
    """
    target, now = child.target, time.monotonic()
    waits = state.is_scheduled() or state.is_pending()
    beat = None if waits else _heartbeat(client, child.flow_run)
    sign = (state.type, beat)
    # Of a run that began, another worker of its pool says nothing: it beats itself, or it is lost.
    lives = sign != child.sign or (waits and online(target.work_pool))
    if lives:
        child.sign, child.seen = sign, now
        return None
    silent = now - child.seen
    if state.is_scheduled() and silent > child.patience_seconds:
        return (
            f"no worker of pool {target.work_pool} was online for {child.patience_seconds:.0f} s: "
            f"start one with `enginery worker --target {target.name}`"
        )
    if state.is_pending() and silent > STARTING_SECONDS:
        return f"a worker of pool {target.work_pool} took the job and went offline before it began: look at its log"
    if not waits and silent > SILENT_SECONDS:
        return f"its worker gave no sign of life for {silent:.0f} s: look at the worker of pool {target.work_pool}"
    return None


def _heartbeat(client: SyncPrefectClient, flow_run: str) -> object:
    """The id of the run's last heartbeat, or None: clocks differ between hosts, ids do not."""
    wanted = EventFilter(
        event=EventNameFilter(name=["prefect.flow-run.heartbeat"]),
        resource=EventResourceFilter(id=[f"prefect.flow-run.{flow_run}"]),
    )
    return next((event.id for event in client.read_events(wanted, limit=1).events), None)


def is_online(client: SyncPrefectClient, pool: str) -> bool:
    """Whether a work pool is there, is not paused, and has a worker that Prefect hears of."""
    try:
        if client.read_work_pool(pool).is_paused:
            return False
        return any(worker.status.value == "ONLINE" for worker in client.read_workers_for_work_pool(pool))
    except ObjectNotFound:
        return False


def read_states(client: SyncPrefectClient, flow_runs: list[str]) -> dict[str, State | None]:
    """The state of each run by its id; one that was deleted is left out."""
    states: dict[str, State | None] = {}
    for first in range(0, len(flow_runs), LONGEST_ANSWER):
        ids = [UUID(run) for run in flow_runs[first : first + LONGEST_ANSWER]]
        found = client.read_flow_runs(flow_run_filter=FlowRunFilter(id=FlowRunFilterId(any_=ids)))
        states |= {str(run.id): run.state for run in found}
    return states


def settle(client: SyncPrefectClient, given_up: Sequence[Watched]) -> None:
    """Runs that were given up end as cancelled: by their worker, or here where no worker of their pool is left."""
    deadline = time.monotonic() + CANCEL_SECONDS
    while given_up:
        states = read_states(client, [child.flow_run for child in given_up])
        given_up = [run for run in given_up if (state := states.get(run.flow_run)) is not None and not state.is_final()]
        is_late = time.monotonic() > deadline
        alone = [run for run in given_up if is_late or not is_online(client, run.target.work_pool)]
        for run in alone:
            client.set_flow_run_state(run.flow_run, Cancelled(message="given up by its release"), force=True)
        given_up = [run for run in given_up if run not in alone]
        time.sleep(POLL_SECONDS if given_up else 0)


def cancel(client: SyncPrefectClient, flow_run: str, state: State, reason: str) -> None:
    """A queued run is cancelled at once; one at work is asked to stop, which needs its worker (see `settle`)."""
    queued = state.is_scheduled() or state.is_pending()
    ending: State = Cancelled(message=reason) if queued else Cancelling(message=reason)
    client.set_flow_run_state(flow_run, ending)

"""What a Prefect server needs before deployments: work pools, and automations that mark lost runs as Crashed."""

from datetime import timedelta
from typing import Any

import httpx
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.client.schemas.objects import StateType
from prefect.events.actions import ChangeFlowRunState
from prefect.events.schemas.automations import AutomationCore, EventTrigger, Posture
from prefect.exceptions import ObjectAlreadyExists

from flows.inputs.fleet import RELEASES_POOL, Fleet, list_work_pools
from flows.prefect_server.reachable import require_prefect_server
from flows.prefect_server.settings import BEAT_SECONDS, WATCHED_TAG
from registry.errors import BadInput

# Three missed heartbeats are a crash.
SILENT_SECONDS = 3 * BEAT_SECONDS
# From a worker's claim to the first state of the flow: an interpreter, the pull steps and the imports.
NEVER_BEGAN_SECONDS = 110
_PENDING, _RUNNING = "prefect.flow-run.Pending", "prefect.flow-run.Running"
# Running counts as a sign of life too: a run that is killed in its first seconds never sends a heartbeat.
_SIGNS_OF_LIFE = {_RUNNING, "prefect.flow-run.heartbeat"}
_ENDED = {f"prefect.flow-run.{state}" for state in ("Completed", "Failed", "Cancelled", "Crashed")}
# A run that is back in the queue, or paused, sends no heartbeats and is not lost.
_PUT_BACK = {f"prefect.flow-run.{state}" for state in ("Scheduled", "AwaitingRetry", "Paused", "Suspended")}
_WAITING = {"prefect.flow-run.AwaitingConcurrencySlot"}
_IN_MEMORY = "prefect.server.concurrency.lease_storage.memory"


def set_up_server(fleet: Fleet) -> list[str]:
    """Create the work pools and automations on the server of PREFECT_API_URL, and return their names.

    Raises:
        BadInput: the server keeps leases in memory only.
        BadInput, EngineryError: as `require_prefect_server`, or as `flows.inputs.fleet.list_work_pools`.
    """
    with require_prefect_server("deployments --pools"):
        with get_client(sync_client=True) as client:
            _check_leases(client)
        return [*create_pools(fleet), *create_automations()]


def _check_leases(client: SyncPrefectClient) -> None:
    """Refuse a server that forgets at a restart who holds a slot: the slot would stay taken.

    Prefect 3.8.8 frees a slot by its lease, and leaves it taken where there is none
    (server/api/concurrency_limits_v2.py).
    """
    try:
        settings = client.request("GET", "/admin/settings").json()
    except httpx.HTTPStatusError as error:
        if error.response.status_code == httpx.codes.NOT_FOUND:
            return  # Prefect Cloud shows no settings, and manages its leases itself
        raise
    if settings.get("server", {}).get("concurrency", {}).get("lease_storage") == _IN_MEMORY:
        raise BadInput(
            "the Prefect server keeps leases in memory, so after a restart releases would wait forever: start it with "
            f"PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE={_IN_MEMORY.replace('memory', 'filesystem')}"
        )


def create_pools(fleet: Fleet) -> list[str]:
    """Create the process work pools of the fleet and of releases that do not exist yet, and return the names of all.

    Raises:
        BadInput: as `flows.inputs.fleet.list_work_pools`.
    """
    names = [RELEASES_POOL, *list_work_pools(fleet)]
    with get_client(sync_client=True) as client:
        for name in names:
            try:
                client.create_work_pool(WorkPoolCreate(name=name, type="process"))
            except ObjectAlreadyExists:
                continue
    return [f"work pool {name}" for name in names]


def create_automations() -> list[str]:
    """Create the automations that mark lost runs as Crashed, or replace those that changed, and return their names.

    An unchanged one stays: it would lose the events it has seen, and with them the runs that it watches.

    As in https://docs.prefect.io/v3/advanced/detect-zombie-flows, with a second one for runs that never began.
    """
    expected = _SIGNS_OF_LIFE | _ENDED | _PUT_BACK
    silent = make_automation("Enginery: a flow run fell silent", _SIGNS_OF_LIFE, expected, SILENT_SECONDS)
    begun = {_RUNNING} | _ENDED | _PUT_BACK | _WAITING
    never_began = make_automation("Enginery: a flow run never began", {_PENDING}, begun, NEVER_BEGAN_SECONDS)
    with get_client(sync_client=True) as client:
        for automation in (silent, never_began):
            existing = client.read_automations_by_name(automation.name)
            if [select_behavior(found) for found in existing] == [select_behavior(automation)]:
                continue
            for outdated in existing:
                client.delete_automation(outdated.id)
            client.create_automation(automation)
    return [f"automation {silent.name!r}", f"automation {never_began.name!r}"]


def select_behavior(automation: AutomationCore) -> dict[str, Any]:
    """Return the fields that decide what an automation does, comparable with `==`."""
    # Not as JSON: there a set becomes a list, in any order.
    return automation.model_dump(include={"enabled", "trigger", "actions"})


def make_automation(name: str, after: set[str], expect: set[str], seconds: int) -> AutomationCore:
    """Make an automation that marks a flow run as Crashed if no expected event follows in time.

    Args:
        name: its name on the server, by which it is found again.
        after: names of the events that start the time.
        expect: names of the events that are a sign of life, or an end.
        seconds: the time.
    """
    trigger = EventTrigger(
        match={"prefect.resource.id": ["prefect.flow-run.*"]},
        # Only runs of prefect.yaml's deployments: other flows choose the frequency of their heartbeats themselves.
        match_related={"prefect.resource.role": ["tag"], "prefect.resource.id": [f"prefect.tag.{WATCHED_TAG}"]},
        for_each={"prefect.resource.id"},
        after=after,
        expect=expect,
        posture=Posture.Proactive,
        threshold=1,
        within=timedelta(seconds=seconds),
    )
    message = f"{name.removeprefix('Enginery: ')}: nothing was heard of it for {seconds} s"
    crash = ChangeFlowRunState(name="Crashed", state=StateType.CRASHED, message=message, force=False)
    return AutomationCore(name=name, trigger=trigger, actions=[crash])

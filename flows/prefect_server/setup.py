"""What a Prefect server needs before deployments: work pools, and the automations that call lost runs crashed."""

from datetime import timedelta
from typing import Any

import httpx
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.client.schemas.objects import StateType
from prefect.events.actions import ChangeFlowRunState
from prefect.events.schemas.automations import AutomationCore, EventTrigger, Posture
from prefect.exceptions import ObjectAlreadyExists

from flows.inputs.fleet import RELEASES_POOL, Fleet, work_pools
from flows.prefect_server.reachable import prefect_answers
from flows.prefect_server.settings import BEAT_SECONDS, WATCHED_TAG
from registry.errors import BadInput

# Three beats that fail to come are a crash.
SILENT_SECONDS = 3 * BEAT_SECONDS
# From a worker's claim to the first state of the flow: an interpreter, the pull steps and the imports.
NEVER_BEGAN_SECONDS = 110
_PENDING, _RUNNING = "prefect.flow-run.Pending", "prefect.flow-run.Running"
# The first beat goes through a thread that connects first: a run that is killed in its first seconds never sends it.
_SIGNS = {_RUNNING, "prefect.flow-run.heartbeat"}
_OVER = {f"prefect.flow-run.{state}" for state in ("Completed", "Failed", "Cancelled", "Crashed")}
# A run that is put back in the queue, or paused, beats no more and is not lost.
_PUT_BACK = {f"prefect.flow-run.{state}" for state in ("Scheduled", "AwaitingRetry", "Paused", "Suspended")}
_WAITS = {"prefect.flow-run.AwaitingConcurrencySlot"}
_IN_MEMORY = "prefect.server.concurrency.lease_storage.memory"


def set_up(fleet: Fleet) -> list[str]:
    """Make pools and automations on the server of PREFECT_API_URL; the names of all.

    Raises:
        BadInput: the server keeps leases in memory only.
        BadInput, EngineryError: as `prefect_answers`, or as `flows.inputs.fleet.work_pools`.
    """
    with prefect_answers("work pools are made on"):
        with get_client(sync_client=True) as client:
            _check_leases(client)
        return [*make_pools(fleet), *watch_runs()]


def _check_leases(client: SyncPrefectClient) -> None:
    """Refuse a server that a restart makes forget who holds a slot: nobody would ever free it again.

    Prefect 3.8.8 gives a slot back by its lease, and leaves it taken where it knows of none
    (server/api/concurrency_limits_v2.py).
    """
    try:
        settings = client.request("GET", "/admin/settings").json()
    except httpx.HTTPStatusError as error:
        if error.response.status_code == httpx.codes.NOT_FOUND:
            return  # Prefect Cloud keeps its settings, and its leases, to itself
        raise
    if settings.get("server", {}).get("concurrency", {}).get("lease_storage") == _IN_MEMORY:
        raise BadInput(
            "the Prefect server keeps leases in memory: after a restart releases would wait for ever; start it with "
            f"PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE={_IN_MEMORY.replace('memory', 'filesystem')}"
        )


def make_pools(fleet: Fleet) -> list[str]:
    """Make the fleet's work pools and that of the releases, for processes, on the server of PREFECT_API_URL.

    One that is there already is left as it is. Returns the names of all.

    Raises:
        BadInput: as `flows.inputs.fleet.work_pools`.
    """
    names = [RELEASES_POOL, *work_pools(fleet)]
    with get_client(sync_client=True) as client:
        for name in names:
            try:
                client.create_work_pool(WorkPoolCreate(name=name, type="process"))
            except ObjectAlreadyExists:
                continue
    return [f"work pool {name}" for name in names]


def watch_runs() -> list[str]:
    """Make the automations that end the runs nobody ends any more, or renew those that have changed; their names.

    One that is as it should be stays: with it would go what it has heard, and with that the runs that it watches.

    As in https://docs.prefect.io/v3/advanced/detect-zombie-flows, with a second one for runs that never began.
    """
    silent = _lost("Enginery: a flow run fell silent", _SIGNS, _SIGNS | _OVER | _PUT_BACK, SILENT_SECONDS)
    begun = {_RUNNING} | _OVER | _PUT_BACK | _WAITS
    never = _lost("Enginery: a flow run never began", {_PENDING}, begun, NEVER_BEGAN_SECONDS)
    with get_client(sync_client=True) as client:
        for automation in (silent, never):
            there = client.read_automations_by_name(automation.name)
            if [_meaning(each) for each in there] == [_meaning(automation)]:
                continue
            for old in there:
                client.delete_automation(old.id)
            client.create_automation(automation)
    return [f"automation {silent.name!r}", f"automation {never.name!r}"]


def _meaning(automation: AutomationCore) -> dict[str, Any]:
    # Not as JSON: a set becomes a list there, in whatever order.
    return automation.model_dump(include={"enabled", "trigger", "actions"})


def _lost(name: str, after: set[str], expect: set[str], seconds: int) -> AutomationCore:
    trigger = EventTrigger(
        match={"prefect.resource.id": ["prefect.flow-run.*"]},
        # Runs of prefect.yaml's deployments: those that people start themselves beat as seldom as they like.
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

"""Targets to workers: start or find each one's flow run, wait, take what the awaited ones bring, give up the rest.

MLflow holds the decisions: which outcome was accepted, and which flow runs were given up. Prefect's states tell when
to look; a worker that was given up may still set one, and nobody reads it.
"""

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

import httpx
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId, FlowRunFilterTags
from prefect.client.schemas.objects import FlowRun, State
from prefect.deployments import run_deployment
from prefect.events.filters import EventFilter, EventNameFilter, EventResourceFilter
from prefect.exceptions import ObjectNotFound
from prefect.states import Cancelled, Cancelling
from pydantic import ValidationError

from flows.build_target import Judged
from flows.order import Order, OutcomeRef, read_outcome, take_outcome
from flows.publication import Made
from flows.report import Row
from flows.stages import Bench
from registry.errors import EngineryError, TornBundle
from registry.mlflow_files import RunFiles
from registry.mlflow_runs import ReleaseLog
from registry.records import GpuTarget
from tasks.interrupt import check_stopped

POLL_SECONDS = 3.0
# Prefect's shortest heartbeat; three that fail to come are no accident.
HEARTBEAT_SECONDS, SILENT_SECONDS = 30, 100.0
# A run that a worker took and did not begin, after the worker itself is known to be gone.
STARTING_SECONDS = 15.0
# A worker that lives stops a cancelled run in this time.
CANCEL_SECONDS = 30.0
# Prefect's answer holds so many flow runs at most (PREFECT_SERVER_API_DEFAULT_LIMIT); one left out would look deleted.
LONGEST_ANSWER = 200


@dataclass(frozen=True)
class Errand:
    """One target's order, and the key under which its outcome is found again; times in seconds."""

    order: Order
    key: str
    patience_seconds: float

    @property
    def target(self) -> GpuTarget:
        """What the engines are for."""
        return self.order.target


@dataclass(frozen=True)
class Office:
    """What a release that works through others has at hand."""

    bench: Bench
    log: ReleaseLog
    files: RunFiles
    run_id: str
    made: Made


@dataclass
class Child:
    """A flow run that is waited for; `sign` is the last sign of life and `seen` when it came (monotonic seconds)."""

    errand: Errand
    flow_run: str
    sign: object = None
    seen: float = field(default_factory=time.monotonic)
    abandoned: bool = False


@dataclass(frozen=True)
class Result:
    """What is known of a target; not `accepted` where nobody brought an outcome, and the rows say why."""

    judged: list[Judged]
    accepted: bool


@dataclass(frozen=True)
class FannedOut:
    """Judged engines in the order of the targets, and the targets that gave none."""

    judged: tuple[Judged, ...]
    missing: tuple[str, ...]


def fan_out(office: Office, errands: Mapping[str, Errand]) -> FannedOut:
    """The engines of every target: accepted before, or built by a worker now; a lost target sinks no other."""
    results: dict[str, Result] = {}
    waiting: dict[str, Child] = {}
    with get_client(sync_client=True) as client:
        for name, errand in errands.items():
            if (judged := _accepted(office, errand)) is not None:
                results[name] = Result(judged, accepted=True)
                continue
            try:
                waiting[name] = Child(errand, _start(client, office, errand))
            except ObjectNotFound:
                pool = errand.target.work_pool
                reason = f"Prefect has no deployment build-target/{pool}: run `prefect deploy --all`"
                results[name] = _lost(office, errand, "lost", reason)
        _wait(client, office, waiting, results)
        _settle(client, [child.flow_run for child in waiting.values() if child.abandoned])
    missing = sorted(name for name, result in results.items() if not result.accepted)
    return FannedOut(tuple(entry for name in errands for entry in results[name].judged), tuple(missing))


def _wait(client: SyncPrefectClient, office: Office, waiting: Mapping[str, Child], results: dict[str, Result]) -> None:
    """Fill `results` until every child has one."""
    while open_ones := {name: child for name, child in waiting.items() if name not in results}:
        check_stopped()
        office.bench.report(f"wait for {', '.join(open_ones)}", 1 - len(open_ones) / len(waiting))
        try:
            states = _states(client, [child.flow_run for child in open_ones.values()])
            for name, child in open_ones.items():
                if (result := _look(client, office, child, states.get(child.flow_run))) is not None:
                    results[name] = result
        except httpx.HTTPError:
            # Prefect is away: what its workers do meanwhile is not known, and counts against none of them.
            for child in open_ones.values():
                child.seen = time.monotonic()
        time.sleep(POLL_SECONDS)


def _look(client: SyncPrefectClient, office: Office, child: Child, state: State | None) -> Result | None:
    """What came of a child; None while it is to be waited for."""
    if state is not None and state.is_final():
        return _end(office, child, state)
    reason = "its flow run was deleted" if state is None else _silence(client, child, state)
    if reason is None:
        return None
    # First the record, then the rest: what the worker brings from now on is not taken, whoever asks.
    office.log.give_up(office.run_id, child.flow_run, reason)
    child.abandoned = True
    if state is not None:
        began = not (state.is_scheduled() or state.is_pending())
        client.set_flow_run_state(child.flow_run, Cancelling() if began else Cancelled(message=reason), force=True)
    return _lost(office, child.errand, "lost", reason)


def _end(office: Office, child: Child, state: State) -> Result:
    if not state.is_completed():
        words = (state.message or "no reason given").removeprefix("Flow run encountered an exception: ")
        return _lost(office, child.errand, "failed" if state.is_failed() else "lost", f"{state.name}: {words}")
    try:
        ref = _reference(child, state)
        judged = _take(office, child.errand, ref)
    except EngineryError as error:
        # The next try must not find this run again.
        office.log.give_up(office.run_id, child.flow_run, str(error))
        return _lost(office, child.errand, "failed", f"its outcome cannot be taken: {error}")
    office.log.accept(office.run_id, child.errand.target.name, child.errand.key, ref.model_dump_json())
    return Result(judged, accepted=True)


def _reference(child: Child, state: State) -> OutcomeRef:
    try:
        ref = OutcomeRef.model_validate_json(state.message or "")
    except ValidationError as error:
        raise TornBundle(f"flow run {child.flow_run} ended without saying where its outcome is") from error
    if ref.flow_run != child.flow_run:
        raise TornBundle(f"flow run {child.flow_run} points at the outcome of {ref.flow_run}")
    return ref


def _take(office: Office, errand: Errand, ref: OutcomeRef) -> list[Judged]:
    workspace, model = office.bench.workspace, office.bench.recipe.model
    outcome = read_outcome(office.files, workspace, ref, errand.target.name)
    return take_outcome(outcome, model, errand.target, office.made.graphs.made, office.files, workspace)


def _accepted(office: Office, errand: Errand) -> list[Judged] | None:
    """What an earlier try, or an earlier release, accepted for the same order; None where it is gone."""
    found = office.log.accepted(office.bench.recipe.model, errand.target.name, errand.key)
    if found is None:
        return None
    try:
        return _take(office, errand, OutcomeRef.model_validate_json(found))
    except (ValidationError, EngineryError) as error:
        office.bench.report(f"built again for {errand.target.name}, its outcome cannot be read: {error}", 0)
        return None


def _start(client: SyncPrefectClient, office: Office, errand: Errand) -> str:
    """The id of the flow run to wait for: one that a killed parent left at work, or a new one."""
    release, target = errand.order.release, errand.target
    tags, order = [f"release:{release}", f"target:{target.name}"], f"order:{errand.key[:16]}"
    earlier = client.read_flow_runs(flow_run_filter=FlowRunFilter(tags=FlowRunFilterTags(all_=tags)))
    given_up = office.log.given_up(office.run_id)
    for found in earlier:
        if str(found.id) in given_up or not _is_promising(found):
            continue
        if order in found.tags:
            return str(found.id)
        # The workers changed since it was ordered: nobody waits for it any more.
        office.log.give_up(office.run_id, str(found.id), "ordered anew")
        client.set_flow_run_state(found.id, Cancelling(message="ordered anew"))
    run: Any = run_deployment(
        f"build-target/{target.work_pool}",
        parameters={"order": errand.order.model_dump(mode="json")},
        timeout=0,
        tags=[*tags, order],
        flow_run_name=f"{target.name} of {release}",
        # Two parents that start at once share one child; the number lets a failed one be followed by another.
        idempotency_key=f"{release}-{target.name}-{errand.key[:16]}-{len(earlier)}",
        job_variables={"env": {"PREFECT_FLOWS_HEARTBEAT_FREQUENCY": str(HEARTBEAT_SECONDS)}},
    )
    return str(run.id)


def _is_promising(run: FlowRun) -> bool:
    return run.state is not None and (
        run.state.is_completed() or not (run.state.is_final() or run.state.is_cancelling())
    )


def _silence(client: SyncPrefectClient, child: Child, state: State) -> str | None:
    """Why a child is given up, in words; None while there is a sign of life, or it is not yet time."""
    target, now = child.errand.target, time.monotonic()
    waits = state.is_scheduled() or state.is_pending()
    beat = None if waits else _heartbeat(client, child.flow_run)
    sign = (state.type, beat)
    lives = sign != child.sign or (beat is None and _is_online(client, target.work_pool))
    if lives:
        child.sign, child.seen = sign, now
        return None
    silent = now - child.seen
    if state.is_scheduled() and silent > child.errand.patience_seconds:
        return (
            f"no worker of pool {target.work_pool} was online for {child.errand.patience_seconds:.0f} s: "
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


def _is_online(client: SyncPrefectClient, pool: str) -> bool:
    try:
        if client.read_work_pool(pool).is_paused:
            return False
        return any(worker.status.value == "ONLINE" for worker in client.read_workers_for_work_pool(pool))
    except ObjectNotFound:
        return False


def _states(client: SyncPrefectClient, flow_runs: list[str]) -> dict[str, State | None]:
    states: dict[str, State | None] = {}
    for first in range(0, len(flow_runs), LONGEST_ANSWER):
        ids = [UUID(run) for run in flow_runs[first : first + LONGEST_ANSWER]]
        found = client.read_flow_runs(flow_run_filter=FlowRunFilter(id=FlowRunFilterId(any_=ids)))
        states |= {str(run.id): run.state for run in found}
    return states


def _settle(client: SyncPrefectClient, flow_runs: list[str]) -> None:
    """Runs that were given up end as cancelled, also where no worker is left to end them."""
    deadline = time.monotonic() + CANCEL_SECONDS
    while flow_runs:
        states = _states(client, flow_runs)
        flow_runs = [run for run in flow_runs if (state := states.get(run)) is not None and not state.is_final()]
        if flow_runs and time.monotonic() > deadline:
            for run in flow_runs:
                client.set_flow_run_state(run, Cancelled(message="given up by its release"), force=True)
            return
        time.sleep(POLL_SECONDS if flow_runs else 0)


def _lost(office: Office, errand: Errand, state: str, reason: str) -> Result:
    recipe, target = office.bench.recipe, errand.target
    rows = [Row(recipe.model, target.name, p, target.backend, state, reason) for p in recipe.precisions]
    return Result([Judged(row) for row in rows], accepted=False)

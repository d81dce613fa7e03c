"""Targets to workers: start or find each one's flow run, wait, take what the awaited ones bring, give up the rest.

MLflow holds the decisions: which outcome was accepted, and which flow runs were given up. Prefect's states tell when
to look; a worker that was given up may still set one, and nobody reads it.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache, partial
from typing import Any

import httpx
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterTags
from prefect.client.schemas.objects import FlowRun, State
from prefect.deployments import run_deployment
from prefect.exceptions import ObjectNotFound, PrefectHTTPStatusError
from pydantic import ValidationError

from flows.prefect_server.settings import RUN_ENVIRONMENT, WATCHED_TAG
from flows.release.build_target import JudgedEngine
from flows.release.context import ReleaseContext
from flows.release.publish import SharedArtifacts
from flows.workers.flow_runs import POLL_SECONDS, Watched, cancel, is_online, read_states, settle, why_lost
from flows.workers.orders import BuildRequest, BuildResultRef, read_outcome, take_outcome
from registry.errors import EngineryError, TornBundle
from registry.mlflow.runs.run_files import OutcomeLog, RunFiles
from registry.records import GpuTarget
from tasks.execution.interrupt import check_stopped
from tasks.report.rows import EngineRow


@dataclass(frozen=True)
class TargetJob:
    """One target's order, and the key under which its outcome is found again; times in seconds."""

    order: BuildRequest
    key: str
    patience_seconds: float

    @property
    def target(self) -> GpuTarget:
        """What the engines are for."""
        return self.order.target


@dataclass(frozen=True)
class FanOut:
    """What a release that works through others has at hand."""

    context: ReleaseContext
    log: OutcomeLog
    files: RunFiles
    run_id: str
    made: SharedArtifacts


@dataclass
class TargetRun(Watched):
    """The flow run of an errand; `abandoned` once it was given up while it might be at work."""

    errand: TargetJob = field(kw_only=True)
    abandoned: bool = False


@dataclass(frozen=True)
class Result:
    """What is known of a target; not `accepted` where nobody brought an outcome, and the rows say why."""

    judged: list[JudgedEngine]
    accepted: bool


@dataclass(frozen=True)
class FanOutResult:
    """JudgedEngine engines in the order of the targets, and the targets that gave none."""

    judged: tuple[JudgedEngine, ...]
    missing: tuple[str, ...]


def fan_out(office: FanOut, errands: Mapping[str, TargetJob]) -> FanOutResult:
    """The engines of every target: accepted before, or built by a worker now; a lost target sinks no other."""
    results: dict[str, Result] = {}
    waiting: dict[str, TargetRun] = {}
    with get_client(sync_client=True) as client:
        for name, errand in errands.items():
            if (judged := _accepted(office, errand)) is not None:
                results[name] = Result(judged, accepted=True)
                continue
            try:
                flow_run = _start(client, office, errand)
                waiting[name] = TargetRun(flow_run, errand.target, errand.patience_seconds, errand=errand)
            except ObjectNotFound:
                pool = errand.target.work_pool
                reason = f"Prefect has no deployment build-target/{pool}: run `prefect deploy --all`"
                results[name] = _lost(office, errand, "lost", reason)
            except PrefectHTTPStatusError as error:
                reason = f"Prefect refused the order: {str(error).splitlines()[0]}"
                results[name] = _lost(office, errand, "failed", reason)
        _wait(client, office, waiting, results)
        settle(client, [child for child in waiting.values() if child.abandoned])
    missing = sorted(name for name, result in results.items() if not result.accepted)
    return FanOutResult(tuple(entry for name in errands for entry in results[name].judged), tuple(missing))


def _wait(
    client: SyncPrefectClient, office: FanOut, waiting: Mapping[str, TargetRun], results: dict[str, Result]
) -> None:
    """Fill `results` until every child has one."""
    while open_ones := {name: child for name, child in waiting.items() if name not in results}:
        check_stopped()
        office.context.on_progress(f"wait for {', '.join(open_ones)}", 1 - len(open_ones) / len(waiting))
        # Once a round and pool: a release may wait for a hundred runs in the queue of one pool.
        online = cache(partial(is_online, client))
        try:
            states = read_states(client, [child.flow_run for child in open_ones.values()])
            for name, child in open_ones.items():
                if (result := _look(client, office, child, states.get(child.flow_run), online)) is not None:
                    results[name] = result
        except httpx.HTTPError:
            # Prefect is away: what its workers do meanwhile is not known, and counts against none of them.
            for child in open_ones.values():
                child.seen = time.monotonic()
        time.sleep(POLL_SECONDS)


def _look(
    client: SyncPrefectClient, office: FanOut, child: TargetRun, state: State | None, online: Callable[[str], bool]
) -> Result | None:
    """What came of a child; None while it is to be waited for."""
    if state is not None and state.is_final():
        return _end(office, child, state)
    reason = "its flow run was deleted" if state is None else why_lost(client, child, state, online)
    if reason is None:
        return None
    # First the record, then the rest: what the worker brings from now on is not taken, whoever asks.
    office.log.give_up(office.run_id, child.flow_run, reason)
    child.abandoned = True
    if state is not None:
        cancel(client, child.flow_run, state, reason)
    return _lost(office, child.errand, "lost", reason)


def _end(office: FanOut, child: TargetRun, state: State) -> Result:
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


def _reference(child: TargetRun, state: State) -> BuildResultRef:
    try:
        ref = BuildResultRef.model_validate_json(state.message or "")
    except ValidationError as error:
        raise TornBundle(f"flow run {child.flow_run} ended without saying where its outcome is") from error
    if ref.flow_run != child.flow_run:
        raise TornBundle(f"flow run {child.flow_run} points at the outcome of {ref.flow_run}")
    return ref


def _take(office: FanOut, errand: TargetJob, ref: BuildResultRef) -> list[JudgedEngine]:
    workspace, model = office.context.workspace, office.context.recipe.model
    outcome = read_outcome(office.files, workspace, ref, errand.target.name)
    return take_outcome(outcome, model, errand.target, office.made.graphs.by_precision, office.files, workspace)


def _accepted(office: FanOut, errand: TargetJob) -> list[JudgedEngine] | None:
    """What an earlier try, or an earlier release, accepted for the same order; None where it is gone."""
    found = office.log.accepted(office.context.recipe.model, errand.target.name, errand.key)
    if found is None:
        return None
    try:
        return _take(office, errand, BuildResultRef.model_validate_json(found))
    except (ValidationError, EngineryError) as error:
        office.context.on_progress(f"built again for {errand.target.name}, its outcome cannot be read: {error}", 0)
        return None


def _start(client: SyncPrefectClient, office: FanOut, errand: TargetJob) -> str:
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
        if found.state is not None and not found.state.is_final():
            cancel(client, str(found.id), found.state, "ordered anew")
    run: Any = run_deployment(
        f"build-target/{target.work_pool}",
        parameters={"order": errand.order.model_dump(mode="json")},
        timeout=0,
        tags=[*tags, order, WATCHED_TAG],
        flow_run_name=f"{target.name} of {release}",
        # Two parents that start at once share one child; the number lets a failed one be followed by another.
        idempotency_key=f"{release}-{target.name}-{errand.key[:16]}-{len(earlier)}",
        job_variables={"env": RUN_ENVIRONMENT},
    )
    return str(run.id)


def _is_promising(run: FlowRun) -> bool:
    return run.state is not None and (
        run.state.is_completed() or not (run.state.is_final() or run.state.is_cancelling())
    )


def _lost(office: FanOut, errand: TargetJob, state: str, reason: str) -> Result:
    recipe, target = office.context.recipe, errand.target
    rows = [EngineRow(recipe.model, target.name, p, target.backend, state, reason) for p in recipe.precisions]
    return Result([JudgedEngine(row) for row in rows], accepted=False)

"""Fan a release out to workers: start or find each target's flow run, wait, and accept or give up its result.

MLflow holds the decisions: which result was accepted, and which flow runs were given up. Prefect's states only tell
when to look; a worker that was given up may still set one, which is never read.
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
from flows.release.context import ReleaseRun
from flows.release.scoring import SharedArtifacts
from flows.workers.build_requests import BuildRequest, BuildResultRef, read_result, receive_engines
from flows.workers.flow_runs import (
    POLL_SECONDS,
    WatchedRun,
    cancel_run,
    end_abandoned_runs,
    explain_loss,
    is_online,
    read_states,
)
from flows.workers.stage_transfer import StageTransfer
from registry.errors import EngineryError, TornBundle
from registry.mlflow.runs.run_files import OutcomeLog
from registry.records import GpuTarget, Verdict
from tasks.execution.interrupt import check_stopped
from tasks.report.rows import EngineRow

SUPERSEDED = "superseded by a newer request"


@dataclass(frozen=True)
class TargetJob:
    """One target's build request, and the key under which an earlier result is found; times in seconds."""

    request: BuildRequest
    key: str
    patience_seconds: float

    @property
    def target(self) -> GpuTarget:
        """The target that the engines are for."""
        return self.request.target


@dataclass(frozen=True)
class FanOut:
    """A release that builds on workers, how stages travel to them, and what all targets share."""

    release: ReleaseRun
    transfer: StageTransfer
    shared: SharedArtifacts

    @property
    def outcomes(self) -> OutcomeLog:
        """Which results were accepted, and which flow runs were given up."""
        return OutcomeLog(self.release.context.store)


@dataclass
class TargetRun(WatchedRun):
    """The flow run of a job; `abandoned` once it was given up while it might be at work."""

    job: TargetJob = field(kw_only=True)
    abandoned: bool = False


@dataclass(frozen=True)
class TargetResult:
    """The engines of one target; if no result was accepted, rows that say why."""

    judged: list[JudgedEngine]
    accepted: bool


@dataclass(frozen=True)
class FanOutResult:
    """The judged engines in the order of the targets, and the targets without an accepted result."""

    judged: tuple[JudgedEngine, ...]
    missing: tuple[str, ...]


def build_on_workers(fan_out: FanOut, jobs: Mapping[str, TargetJob]) -> FanOutResult:
    """Return every target's engines: accepted before, or built by a worker now. A lost target sinks no other."""
    results: dict[str, TargetResult] = {}
    runs: dict[str, TargetRun] = {}
    with get_client(sync_client=True) as client:
        for name, job in jobs.items():
            if (judged := find_accepted(fan_out, job)) is not None:
                results[name] = TargetResult(judged, accepted=True)
                continue
            try:
                runs[name] = start_run(client, fan_out, job)
            except ObjectNotFound:
                reason = f"Prefect has no deployment build-target/{job.target.work_pool}: run `prefect deploy --all`"
                results[name] = make_lost_result(fan_out, job, "lost", reason)
            except PrefectHTTPStatusError as error:
                reason = f"Prefect refused the build request: {str(error).splitlines()[0]}"
                results[name] = make_lost_result(fan_out, job, "failed", reason)
        wait_for_runs(client, fan_out, runs, results)
        end_abandoned_runs(client, [run for run in runs.values() if run.abandoned])
    missing = sorted(name for name, result in results.items() if not result.accepted)
    return FanOutResult(tuple(engine for name in jobs for engine in results[name].judged), tuple(missing))


def wait_for_runs(
    client: SyncPrefectClient, fan_out: FanOut, runs: Mapping[str, TargetRun], results: dict[str, TargetResult]
) -> None:
    """Poll the targets' runs until `results` has an entry for each."""
    while open_runs := {name: run for name, run in runs.items() if name not in results}:
        check_stopped()
        fan_out.release.context.reporter(f"wait for {', '.join(open_runs)}", 1 - len(open_runs) / len(runs))
        # Once per round and pool: a release may wait for a hundred runs in the queue of one pool.
        online = cache(partial(is_online, client))
        try:
            states = read_states(client, [run.flow_run for run in open_runs.values()])
            for name, run in open_runs.items():
                if (result := poll_target(client, fan_out, run, states.get(run.flow_run), online)) is not None:
                    results[name] = result
        except httpx.HTTPError:
            # Prefect does not answer: what its workers do meanwhile cannot be seen, and counts against none of them.
            for run in open_runs.values():
                run.seen = time.monotonic()
        time.sleep(POLL_SECONDS)


def poll_target(
    client: SyncPrefectClient, fan_out: FanOut, run: TargetRun, state: State | None, online: Callable[[str], bool]
) -> TargetResult | None:
    """Return a target's result once its run has ended or is lost, else None."""
    if state is not None and state.is_final():
        return conclude_run(fan_out, run, state)
    reason = "its flow run was deleted" if state is None else explain_loss(client, run, state, online)
    if reason is None:
        return None
    # First the record, then the rest: from now on no release accepts what the worker brings.
    fan_out.outcomes.give_up(fan_out.release.run_id, run.flow_run, reason)
    run.abandoned = True
    if state is not None:
        cancel_run(client, run.flow_run, state, reason)
    return make_lost_result(fan_out, run.job, "lost", reason)


def conclude_run(fan_out: FanOut, run: TargetRun, state: State) -> TargetResult:
    """Accept the result of a run that has ended; one that failed, or brought something else, is lost."""
    if not state.is_completed():
        reason = (state.message or "no reason given").removeprefix("Flow run encountered an exception: ")
        row_state = "failed" if state.is_failed() else "lost"
        return make_lost_result(fan_out, run.job, row_state, f"{state.name}: {reason}")
    outcomes, run_id = fan_out.outcomes, fan_out.release.run_id
    try:
        ref = parse_result_ref(run, state)
        judged = fetch_engines(fan_out, run.job, ref)
    except EngineryError as error:
        # The next try must not find this run again.
        outcomes.give_up(run_id, run.flow_run, str(error))
        return make_lost_result(fan_out, run.job, "failed", f"its result was not accepted: {error}")
    outcomes.accept(run_id, run.job.target.name, run.job.key, ref.model_dump_json())
    return TargetResult(judged, accepted=True)


def parse_result_ref(run: TargetRun, state: State) -> BuildResultRef:
    """Read from a run's final state where its result is.

    Raises:
        TornBundle: the state does not say, or refers to the result of another run.
    """
    try:
        ref = BuildResultRef.model_validate_json(state.message or "")
    except ValidationError as error:
        raise TornBundle(f"flow run {run.flow_run} ended without saying where its result is") from error
    if ref.flow_run != run.flow_run:
        raise TornBundle(f"flow run {run.flow_run} refers to the result of {ref.flow_run}")
    return ref


def fetch_engines(fan_out: FanOut, job: TargetJob, ref: BuildResultRef) -> list[JudgedEngine]:
    """Fetch and verify the result that `ref` refers to, and the engines in it."""
    result = read_result(fan_out.transfer, ref, job.target.name)
    return receive_engines(result, job.request, fan_out.shared.graphs.by_precision, fan_out.transfer)


def find_accepted(fan_out: FanOut, job: TargetJob) -> list[JudgedEngine] | None:
    """Return the engines accepted earlier under the job's key; None if there are none, or a verdict is undecided."""
    context = fan_out.release.context
    accepted = fan_out.outcomes.accepted(context.recipe.model, job.target.name, job.key)
    if accepted is None:
        return None
    try:
        ref = BuildResultRef.model_validate_json(accepted)
        engines = fetch_engines(fan_out, job, ref)
    except (ValidationError, EngineryError) as error:
        context.reporter.say(f"rebuilding for {job.target.name}, its earlier result cannot be read: {error}")
        return None
    if any(engine.verdict is Verdict.INCONCLUSIVE for engine in engines):
        # Undecided is not finished: a worker measures again, in a run of its own.
        fan_out.outcomes.give_up(fan_out.release.run_id, ref.flow_run, "a verdict was inconclusive: measured again")
        return None
    return engines


def start_run(client: SyncPrefectClient, fan_out: FanOut, job: TargetJob) -> TargetRun:
    """Start a job's flow run, or find the one that a killed parent started for the same request."""
    release, target = fan_out.release, job.target
    tags, request_tag = [f"release:{release.id}", f"target:{target.name}"], f"request:{job.key[:16]}"
    earlier = client.read_flow_runs(flow_run_filter=FlowRunFilter(tags=FlowRunFilterTags(all_=tags)))
    given_up = fan_out.outcomes.given_up(release.run_id)
    for run in earlier:
        if str(run.id) in given_up or not is_promising(run):
            continue
        if request_tag in run.tags:
            return TargetRun(str(run.id), target, job.patience_seconds, job=job)
        # The workers changed since it was requested: no release waits for it any more.
        fan_out.outcomes.give_up(release.run_id, str(run.id), SUPERSEDED)
        if run.state is not None and not run.state.is_final():
            cancel_run(client, str(run.id), run.state, SUPERSEDED)
    started: Any = run_deployment(
        f"build-target/{target.work_pool}",
        parameters={"request": job.request.model_dump(mode="json")},
        timeout=0,
        tags=[*tags, request_tag, WATCHED_TAG],
        flow_run_name=f"{target.name} of {release.id}",
        # Two parents that start at once share one run; the number lets a failed one be followed by another.
        idempotency_key=f"{release.id}-{target.name}-{job.key[:16]}-{len(earlier)}",
        job_variables={"env": RUN_ENVIRONMENT},
    )
    return TargetRun(str(started.id), target, job.patience_seconds, job=job)


def is_promising(run: FlowRun) -> bool:
    """Tell whether a run has completed or may still do so."""
    return run.state is not None and (
        run.state.is_completed() or not (run.state.is_final() or run.state.is_cancelling())
    )


def make_lost_result(fan_out: FanOut, job: TargetJob, state: str, reason: str) -> TargetResult:
    """Make the rows of a target that has no engines, "lost" or "failed" for one reason."""
    recipe, target = fan_out.release.context.recipe, job.target
    rows = [EngineRow(recipe.model, target.name, p, target.backend, state, reason) for p in recipe.precisions]
    return TargetResult([JudgedEngine(row) for row in rows], accepted=False)

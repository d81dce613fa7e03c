"""refresh-engines: find stale engines, release their recipes again, and promote what is allowed and proven."""

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import cache, partial
from pathlib import Path
from typing import cast
from uuid import UUID

import httpx
from prefect import runtime
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.objects import FlowRun
from prefect.deployments import run_deployment
from prefect.exceptions import ObjectNotFound

from flows.inputs.choices import require_recipes
from flows.inputs.fleet import Fleet, load_fleet
from flows.inputs.recipe import Recipe, load_recipe
from flows.promotion import events
from flows.promotion.auto_promote import WHO, Promotion, promote_proven
from flows.refresh.lineage import read_engines, read_facts, read_tried
from flows.refresh.results import Plan, Refreshed, RefreshRequest
from flows.refresh.staleness import Stale, Toolchain, find_stale
from flows.release.identity import pin_recipe
from flows.release.reporting import read_answered
from flows.workers.machine import read_reports
from registry.errors import EngineryError
from registry.host.clock import now
from registry.mlflow.runs.lineage import Lineage
from registry.mlflow.store import MlflowStore
from registry.promotion.rules import Decision
from registry.promotion.unrecorded import find_moved_past
from tasks.execution.interrupt import check_stopped

POLL_SECONDS = 5.0
# A day: what a release itself waits for (workers, at most for their patience) is shorter.
PATIENCE_SECONDS = 86_400.0

# What the targets of a recipe can be built with now.
ReadToolchains = Callable[[Recipe, Fleet], Mapping[str, Toolchain]]
# Releases the plans; returns for each recipe the reason why that failed, or "".
ReleasePlans = Callable[[Sequence[Plan]], Mapping[Path, str]]


def refresh_recipes(
    request: RefreshRequest, store: MlflowStore, toolchains: ReadToolchains, release: ReleasePlans
) -> list[Refreshed]:
    """Plan each recipe, release what is stale, and promote what is proven; one recipe's failure sinks no other.

    Raises:
        BadInput: the fleet file cannot be read, or there is no recipe beside it.
    """
    fleet, results = load_fleet(request.fleet), {}
    plans: list[Plan] = []
    before: dict[Path, Mapping[str, int]] = {}
    for path in request.recipes or require_recipes(request.fleet):
        try:
            plan = make_plan(path, fleet, store, toolchains, full=request.full)
            before[path] = store.aliases(plan.pinned.model)
        except EngineryError as error:
            results[path] = Refreshed(path, "failed", reason=str(error))
            continue
        if not request.dry_run:
            _emit_stale(plan.stale)
        state = "planned" if plan.targets else "waiting" if plan.unbuilt else "fresh"
        results[path] = Refreshed(path, state, plan)
        plans += [plan] if plan.targets else []
    if not request.dry_run and plans:
        for path, failure in release(plans).items():
            plan = next(plan for plan in plans if plan.recipe == path)
            results[path] = _promote_released(plan, request.fleet, store, before[path], failure)
    return list(results.values())


def make_plan(path: Path, fleet: Fleet, store: MlflowStore, toolchains: ReadToolchains, *, full: bool) -> Plan:
    """Find a recipe's stale engines and the targets to release for them.

    All precisions of a target are released together: the candidate is the fastest of them all, not of the stale ones.

    Raises:
        BadInput: the recipe or its data cannot be read.
        EngineryError: the hub or the registry does not answer.
    """
    recipe = pin_recipe(load_recipe(path))
    facts, installed = read_facts(recipe, fleet), toolchains(recipe, fleet)
    engines = read_engines(store, facts)
    existing = {(engine.target, engine.precision) for engine in engines}
    missing = [pair for pair in facts.combinations if pair not in existing and pair[0] in installed]
    stale = find_stale(facts, engines, installed, read_tried(store, recipe.model, missing))
    targets = [name for name in recipe.targets if full or name in {engine.target for engine in stale}]
    return Plan(
        path,
        recipe,
        stale,
        tuple(name for name in targets if name in installed),
        tuple(name for name in targets if name not in installed),
        find_moved_past(store, recipe.model),
    )


def pool_toolchains() -> ReadToolchains:
    """Make a reader of what the newest worker of each pool reported.

    It reads each pool once; a target whose pool has no report is left out.
    """
    newest = cache(lambda pool: read_reports(pool)[:1])

    def read_toolchains(recipe: Recipe, fleet: Fleet) -> dict[str, Toolchain]:
        return {
            target.name: Toolchain(report.host, report.backend_version, report.driver)
            for target in map(fleet.target, recipe.targets)
            for report in newest(target.work_pool)
        }

    return read_toolchains


def release_deployed(plans: Sequence[Plan], fleet: str) -> dict[Path, str]:
    """Run each recipe's deployment for its stale targets, side by side; return why each failed, or ""."""
    results: dict[Path, str] = {}
    runs = {}
    for plan in plans:
        name = f"release-engines/{plan.recipe.stem}"
        parameters = {"recipe": str(plan.recipe), "fleet": fleet, "targets": list(plan.targets)}
        try:
            # The type says that it may be awaited, which it is only inside of an event loop.
            runs[plan.recipe] = cast("FlowRun", run_deployment(name, parameters=parameters, timeout=0)).id
        except ObjectNotFound:
            results[plan.recipe] = f"Prefect has no deployment {name}: run `prefect deploy --all`"
    deadline = time.monotonic() + PATIENCE_SECONDS
    with get_client(sync_client=True) as client:
        while (waiting := [path for path in runs if path not in results]) and time.monotonic() < deadline:
            check_stopped()
            time.sleep(POLL_SECONDS)
            with suppress(httpx.HTTPError):  # Prefect does not answer: that counts against no release
                for path in waiting:
                    if (reason := _poll_release(client, runs[path])) is not None:
                        results[path] = reason
    overdue = f"its release has not ended in {PATIENCE_SECONDS / 3600:.0f} hours"
    return {plan.recipe: results.get(plan.recipe, overdue) for plan in plans}


def _poll_release(client: SyncPrefectClient, flow_run: UUID) -> str | None:
    """Return why a release failed, or "" if it succeeded; None while it runs."""
    try:
        state = client.read_flow_run(flow_run).state
    except ObjectNotFound:
        return "its flow run was deleted"
    if state is None or not state.is_final():
        return None
    return "" if state.is_completed() else f"its release is {state.name}: {state.message}"


def _emit_stale(stale: Sequence[Stale]) -> None:
    events.emit(
        events.stale(engine.model, engine.target, engine.version, [f"{engine.precision}: {engine.reason}"])
        for engine in stale
    )


def _promote_released(
    plan: Plan, fleet: Path, store: MlflowStore, before: Mapping[str, int], failure: str
) -> Refreshed:
    # Also where the release failed for some targets: each candidate is judged on its own.
    reasons = dict.fromkeys(f"{engine.target} {engine.precision}: {engine.reason}" for engine in plan.stale)
    why = f"refreshed, since {'; '.join(reasons)}"[:1000] if reasons else "refreshed in full"
    flow_run = str(runtime.flow_run.id) if runtime.flow_run.id else None
    decision = Decision(WHO, why, now(), flow_run=flow_run)
    promotions: tuple[Promotion, ...] = ()
    try:
        answered = partial(read_answered, Lineage(store), plan.pinned.model)
        promotions = promote_proven(store, plan.pinned, fleet, before, decision, answered)
    except EngineryError as error:
        failure = f"{failure}; {error}" if failure else str(error)
    return Refreshed(plan.recipe, "failed" if failure else "released", plan, failure, promotions)

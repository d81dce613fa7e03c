"""refresh-engines: what has gone stale is found, released again, and promoted where that is allowed and proven."""

import time
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import cast

import httpx
from prefect import runtime
from prefect.client.orchestration import get_client
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
from flows.release.context import now
from flows.release.identity import pin
from flows.workers.machine import read_reports
from registry.errors import EngineryError
from registry.host.home import home
from registry.mlflow.store import MlflowStore
from registry.promotion.rules import Decision
from tasks.execution.interrupt import check_stopped

POLL_SECONDS = 5.0
# A night and a day: what a release waits for itself (workers, their patience) is shorter.
PATIENCE_SECONDS = 86_400.0


Toolchains = Callable[[Recipe, Fleet], Mapping[str, Toolchain]]
# Releases what is planned; for each recipe the reason why that failed, or "".
Release = Callable[[Sequence[Plan]], Mapping[Path, str]]


def refresh(asked: RefreshRequest, store: MlflowStore, toolchains: Toolchains, release: Release) -> list[Refreshed]:
    """Plan each recipe, release what is stale, and promote what is proven; one recipe's failure sinks no other.

    Raises:
        BadInput: the fleet file cannot be read, or no recipe stands beside it.
    """
    fleet, results = load_fleet(asked.fleet), {}
    plans: list[Plan] = []
    before: dict[Path, Mapping[str, int]] = {}
    for path in asked.recipes or require_recipes(asked.fleet):
        try:
            plan = make_plan(path, fleet, store, toolchains, full=asked.full)
            before[path] = store.aliases(plan.pinned.model)
        except EngineryError as error:
            results[path] = Refreshed(path, "failed", reason=str(error))
            continue
        if not asked.dry_run:
            _announce(plan.stale)
        state = "planned" if plan.targets else "waiting" if plan.unbuilt else "fresh"
        results[path] = Refreshed(path, state, plan)
        plans += [plan] if plan.targets else []
    if not asked.dry_run and plans:
        for path, failure in release(plans).items():
            plan = next(plan for plan in plans if plan.recipe == path)
            results[path] = _conclude(plan, asked.fleet, store, before[path], failure)
    return list(results.values())


def make_plan(path: Path, fleet: Fleet, store: MlflowStore, toolchains: Toolchains, *, full: bool) -> Plan:
    """What is stale of a recipe now.

    All precisions of a target are released together: the candidate is the fastest of them all, not of the stale ones.

    Raises:
        BadInput: the recipe or its data cannot be read.
        EngineryError: the hub or the registry does not answer.
    """
    recipe = pin(load_recipe(path))
    facts, installed = read_facts(recipe, fleet), toolchains(recipe, fleet)
    engines = read_engines(store, facts)
    there = {(engine.target, engine.precision) for engine in engines}
    missing = [pair for pair in facts.wanted if pair not in there and pair[0] in installed]
    stale = find_stale(facts, engines, installed, read_tried(store, recipe.model, missing))
    wanted = [name for name in recipe.targets if full or name in {found.target for found in stale}]
    return Plan(
        path,
        recipe,
        stale,
        tuple(name for name in wanted if name in installed),
        tuple(name for name in wanted if name not in installed),
    )


def pool_toolchains() -> Toolchains:
    """What the newest worker of each target's pool reported, if one did; each pool is asked once."""
    newest = cache(lambda pool: read_reports(pool)[:1])

    def found(recipe: Recipe, fleet: Fleet) -> dict[str, Toolchain]:
        return {
            target.name: Toolchain(report.host, report.backend_version, report.driver)
            for target in map(fleet.target, recipe.targets)
            for report in newest(target.work_pool)
        }

    return found


def release_deployed(plans: Sequence[Plan], fleet: str) -> dict[Path, str]:
    """Run each recipe's deployment for its stale targets, side by side, and look at how each run ended."""
    results, runs = {}, {}
    for plan in plans:
        name = f"release-engines/{plan.recipe.stem}"
        asked = {"recipe": str(plan.recipe), "fleet": fleet, "targets": list(plan.targets)}
        try:
            # The type says that it may be awaited, which it is only inside of an event loop.
            runs[plan.recipe] = cast("FlowRun", run_deployment(name, parameters=asked, timeout=0)).id
        except ObjectNotFound:
            results[plan.recipe] = f"Prefect has no deployment {name}: run `prefect deploy --all`"
    deadline = time.monotonic() + PATIENCE_SECONDS
    with get_client(sync_client=True) as client:
        while (waiting := [path for path in runs if path not in results]) and time.monotonic() < deadline:
            check_stopped()
            time.sleep(POLL_SECONDS)
            for path in waiting:
                try:
                    state = client.read_flow_run(runs[path]).state
                except ObjectNotFound:
                    results[path] = "its flow run was deleted"
                except httpx.HTTPError:
                    break  # Prefect is away: what its workers do meanwhile counts against nobody
                else:
                    if state is not None and state.is_final():
                        results[path] = "" if state.is_completed() else f"its release is {state.name}: {state.message}"
    gone = f"its release has not ended in {PATIENCE_SECONDS / 3600:.0f} hours"
    return {plan.recipe: results.get(plan.recipe, gone) for plan in plans}


def _announce(stale: Sequence[Stale]) -> None:
    events.emit(
        events.stale(found.model, found.target, found.version, [f"{found.precision}: {found.reason}"])
        for found in stale
    )


def _conclude(plan: Plan, fleet: Path, store: MlflowStore, before: Mapping[str, int], failure: str) -> Refreshed:
    # Also where the release failed for some targets: each candidate is looked at by itself.
    reasons = dict.fromkeys(f"{found.target} {found.precision}: {found.reason}" for found in plan.stale)
    why = f"refreshed, since {'; '.join(reasons)}"[:1000] if reasons else "refreshed in full"
    flow_run = str(runtime.flow_run.id) if runtime.flow_run.id else None
    decision = Decision(WHO, why, now(), flow_run=flow_run)
    promotions: tuple[Promotion, ...] = ()
    try:
        promotions = promote_proven(store, plan.pinned, fleet, before, decision, home() / "stages")
    except EngineryError as error:
        failure = f"{failure}; {error}" if failure else str(error)
    return Refreshed(plan.recipe, "failed" if failure else "released", plan, failure, promotions)

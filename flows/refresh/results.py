"""What a refresh was requested to do, what it planned, and what became of each recipe: as values, JSON and words."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from prefect import runtime
from prefect.artifacts import create_table_artifact

from flows.inputs.recipe import Recipe
from flows.prefect_server.artifacts import warn_on_failure
from flows.promotion.auto_promote import Promotion
from flows.refresh.staleness import Stale
from registry.errors import EngineryError


class RefreshIncomplete(EngineryError):
    """Some recipes could not be planned or released; the others were."""


@dataclass(frozen=True)
class RefreshRequest:
    """Which recipes to refresh (None: all beside the fleet file), and how.

    `dry_run` only plans; `full` releases fresh recipes too.
    """

    recipes: tuple[Path, ...] | None
    fleet: Path
    dry_run: bool = False
    full: bool = False


@dataclass(frozen=True)
class Plan:
    """A recipe's stale engines, and the targets to release for them; `unbuilt` are targets that no machine builds.

    `pinned` is the recipe with the revisions that the plan is about. `moved_past` says which production aliases were
    moved past Enginery.
    """

    recipe: Path
    pinned: Recipe
    stale: tuple[Stale, ...]
    targets: tuple[str, ...]
    unbuilt: tuple[str, ...] = ()
    moved_past: tuple[str, ...] = ()


@dataclass(frozen=True)
class Refreshed:
    """The result for one recipe: `state` is fresh, planned, waiting, released or failed; `reason` is why it failed.

    A recipe that waits is stale, and no machine that reported builds it.
    """

    recipe: Path
    state: str
    plan: Plan | None = None
    reason: str = ""
    promotions: tuple[Promotion, ...] = ()


def refresh_json(results: Sequence[Refreshed]) -> list[dict[str, object]]:
    """Make the list that `refresh --json` prints."""
    return [
        {
            "recipe": str(result.recipe),
            "state": result.state,
            "reason": result.reason,
            "targets": list(result.plan.targets) if result.plan else [],
            "unbuilt": list(result.plan.unbuilt) if result.plan else [],
            "moved_past": list(result.plan.moved_past) if result.plan else [],
            "stale": [_stale_json(engine) for engine in result.plan.stale] if result.plan else [],
            "promotions": [vars(promotion) for promotion in result.promotions],
        }
        for result in results
    ]


def _stale_json(engine: Stale) -> dict[str, object]:
    return {**vars(engine), "precision": engine.precision.value}


def show_refresh(results: Sequence[Refreshed]) -> None:
    """Show on the flow run's page what a refresh found stale, and what became of it."""
    if not runtime.flow_run.id:
        return
    with warn_on_failure("the refresh"):
        create_table_artifact(key="refresh", table=refresh_rows(results), description="what is stale, and why")


def refresh_rows(results: Sequence[Refreshed]) -> list[dict[str, object]]:
    """Make one row per stale engine and promotion, and one for each recipe without any."""
    table: list[dict[str, object]] = []
    for result in results:
        said = "; ".join(filter(None, [result.reason, *(result.plan.moved_past if result.plan else ())]))
        recipe = {"recipe": str(result.recipe), "state": result.state, "said": said}
        stale = result.plan.stale if result.plan else ()
        for engine in stale:
            where = {"target": engine.target, "precision": engine.precision.value, "version": engine.version or ""}
            table.append({**recipe, **where, "why": engine.reason})
        for promotion in result.promotions:
            where = {"target": promotion.target, "precision": "", "version": promotion.version}
            table.append({**recipe, **where, "why": f"{_describe_outcome(promotion)}: {promotion.reason}"})
        if not stale and not result.promotions:
            table.append({**recipe, "target": "", "precision": "", "version": "", "why": ""})
    return table


def describe_refresh(result: Refreshed) -> str:
    """Describe in one line what became of a recipe."""
    plan, parts = result.plan, [result.state]
    if plan is not None and plan.targets:
        parts.append(f"targets {', '.join(plan.targets)}")
    if plan is not None and plan.unbuilt:
        parts.append(f"no machine builds {', '.join(plan.unbuilt)}")
    for promotion in result.promotions:
        engine = f"{promotion.target} version {promotion.version}"
        parts.append(f"{engine} {_describe_outcome(promotion)}: {promotion.reason}")
    parts += plan.moved_past if plan else ()
    return "; ".join([*parts, *filter(None, [result.reason])])


def _describe_outcome(promotion: Promotion) -> str:
    return "promoted" if promotion.promoted else "left to a person"

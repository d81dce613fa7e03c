"""TODO: flows/refresh/results.py."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prefect import runtime
from prefect.artifacts import (
    create_table_artifact,
)

from flows.inputs.recipe import Recipe
from flows.prefect_server.pages import warn_on_failure
from flows.promotion.auto_promote import Promotion
from flows.refresh.staleness import Stale
from registry.errors import EngineryError


class RefreshIncomplete(EngineryError):
    """Some recipes could not be looked at or released; the others were."""


@dataclass(frozen=True)
class RefreshRequest:
    """What is to be refreshed: recipes (None: all beside the fleet file), only as a plan, or whatever their state."""

    recipes: tuple[Path, ...] | None
    fleet: Path
    dry_run: bool = False
    full: bool = False


@dataclass(frozen=True)
class Plan:
    """What is stale of a recipe, and the targets to be released for it; `unbuilt` are stale where no machine builds.

    `pinned` is the recipe with the revisions that were looked at.
    """

    recipe: Path
    pinned: Recipe
    stale: tuple[Stale, ...]
    targets: tuple[str, ...]
    unbuilt: tuple[str, ...] = ()


@dataclass(frozen=True)
class Refreshed:
    """What became of a recipe: `state` is fresh, planned, waiting, released or failed, and `reason` why it failed.

    What waits is stale, and no machine that is known builds it.
    """

    recipe: Path
    state: str
    plan: Plan | None = None
    reason: str = ""
    promotions: tuple[Promotion, ...] = ()


def as_json(results: Sequence[Refreshed]) -> list[dict[str, object]]:
    """The list that `refresh --json` ends with."""
    return [
        {
            "recipe": str(each.recipe),
            "state": each.state,
            "reason": each.reason,
            "targets": list(each.plan.targets) if each.plan else [],
            "unbuilt": list(each.plan.unbuilt) if each.plan else [],
            "stale": [_stale_json(found) for found in each.plan.stale] if each.plan else [],
            "promotions": [vars(promotion) for promotion in each.promotions],
        }
        for each in results
    ]


def _stale_json(found: Stale) -> dict[str, object]:
    return {**vars(found), "precision": found.precision.value}


def refresh_artifacts(results: Sequence[Refreshed]) -> None:
    """Show on its flow run's page what a refresh found stale, and what became of it."""
    if not runtime.flow_run.id:
        return
    with warn_on_failure("the refresh"):
        create_table_artifact(key="refresh", table=refresh_rows(results), description="what is stale, and why")


def refresh_rows(results: Sequence[Refreshed]) -> list[dict[str, object]]:
    """One row a stale engine, and one for each recipe without any."""
    table: list[dict[str, object]] = []
    for each in results:
        said = {"recipe": str(each.recipe), "state": each.state, "said": each.reason}
        stale = each.plan.stale if each.plan else ()
        for found in stale:
            reason = {"target": found.target, "precision": found.precision.value, "version": found.version or ""}
            table.append({**said, **reason, "why": found.reason})
        for promotion in each.promotions:
            why = f"{'promoted' if promotion.promoted else 'left to a person'}: {promotion.reason}"
            table.append(
                {**said, "target": promotion.target, "precision": "", "version": promotion.version, "why": why}
            )
        if not stale and not each.promotions:
            table.append({**said, "target": "", "precision": "", "version": "", "why": ""})
    return table


def describe_refresh(refreshed: Any) -> str:
    """What became of a recipe, as one line."""
    plan, said = refreshed.plan, [refreshed.state]
    if plan is not None and plan.targets:
        said.append(f"targets {', '.join(plan.targets)}")
    if plan is not None and plan.unbuilt:
        said.append(f"no machine builds {', '.join(plan.unbuilt)}")
    for promotion in refreshed.promotions:
        outcome = "promoted" if promotion.promoted else "left to a person"
        said.append(f"{promotion.target} version {promotion.version} {outcome}: {promotion.reason}")
    return "; ".join([*said, *filter(None, [refreshed.reason])])

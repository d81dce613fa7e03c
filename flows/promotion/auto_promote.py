"""Promotion without a person: only what a recipe allows, what is new, and what is proven no worse than what serves."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from flows.inputs.fleet import Fleet, load_fleet
from flows.inputs.recipe import Recipe
from flows.promotion.decisions import promote_targets
from registry.errors import EngineryError
from registry.names import candidate_alias, production_alias
from registry.promotion.rules import Decision
from registry.records import Verdict
from registry.store import Store
from tasks.measurement.against_production import Known, judge_against_production
from tasks.measurement.row_results import RowResults
from tasks.verdicts.against_production import read_measured
from tasks.verdicts.gates import overall

WHO = "refresh-engines"
# Reads what a version of the model answered row by row; None where its run did not keep that.
ReadAnswered = Callable[[int], RowResults | None]


@dataclass(frozen=True)
class Promotion:
    """What became of a target's new candidate, and why."""

    target: str
    version: int
    promoted: bool
    reason: str


def promote_proven(
    store: Store,
    recipe: Recipe,
    fleet: Path,
    before: Mapping[str, int],
    decision: Decision,
    answered: ReadAnswered,
) -> tuple[Promotion, ...]:
    """Promote each target's candidate that is new since `before` (its aliases then), where it is proven no worse.

    `decision` says who decides, why, when and in which flow run; the evidence is added to its reason. `answered` reads
    what a version answered row by row.
    """
    machines = load_fleet(fleet)
    now = store.aliases(recipe.model)
    results = []
    for target in recipe.targets:
        candidate = now.get(candidate_alias(target))
        if candidate is None or candidate in (before.get(candidate_alias(target)), now.get(production_alias(target))):
            continue
        try:
            refusal, evidence = _judge_candidate(store, recipe, machines, target, candidate, answered)
            if refusal is None:
                proven = replace(decision, why=f"{decision.why}; {evidence}")
                promote_targets(store, recipe.model, [target], candidate, proven, fleet)
        except EngineryError as error:
            refusal = str(error)
        results.append(Promotion(target, candidate, refusal is None, refusal or evidence))
    return tuple(results)


def _judge_candidate(
    store: Store, recipe: Recipe, fleet: Fleet, target: str, candidate: int, answered: ReadAnswered
) -> tuple[str | None, str]:
    """Return why the candidate is left to a person (None: it is not), and the evidence."""
    if not recipe.auto_promote:
        return "the recipe leaves promotion to a person (auto_promote: false)", ""
    if fleet.rules(target).protected:
        return "the target is protected: two people have to promote it", ""
    serving = store.aliased(recipe.model, production_alias(target))
    if serving is None:
        return "nothing is in production yet: a person has to make the first promotion", ""
    events = store.events(recipe.model, alias=production_alias(target))
    if any(event.to_version == candidate for event in events):
        return "it was in production before, and somebody moved on from it", ""
    ours, theirs = (
        Known(read_measured(store.manifest(recipe.model, version)), answered(version))
        for version in (candidate, serving)
    )
    results = judge_against_production(recipe.model_task.metrics[0], recipe.gates.loss_max, ours, theirs)
    verdict, reason = overall(results)
    return (None if verdict is Verdict.PASSED else f"{verdict}: {reason}"), reason

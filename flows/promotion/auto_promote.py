"""Promotion without a person: only what a recipe allows, what is new, and what is proven no worse than what serves."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from calibration_data.reader import load_split
from flows.inputs.fleet import Fleet, load_fleet
from flows.inputs.recipe import Recipe
from flows.promotion.decisions import promote_targets
from registry.digest import file_sha256
from registry.errors import EngineryError
from registry.names import candidate_alias, production_alias
from registry.promotion.rules import Decision
from registry.records import EngineManifest, Verdict
from registry.store import Store
from tasks.measurement.answers import ANSWERS_FILES, read_answers
from tasks.model_tasks.contract import Answers
from tasks.verdicts.against_production import compare, read_measured
from tasks.verdicts.gates import find, overall
from tasks.verdicts.intervals import PairedLoss, compare_scores

WHO = "refresh-engines"


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
    stages: Path,
) -> tuple[Promotion, ...]:
    """Promote each target's candidate that is new since `before` (its aliases then), where it is proven no worse.

    `decision` says who decides, why, when and in which flow run; the evidence is added to its reason. `stages` is where
    raw answers may still lie.
    """
    machines = load_fleet(fleet)
    now = store.aliases(recipe.model)
    results = []
    for target in recipe.targets:
        candidate = now.get(candidate_alias(target))
        if candidate is None or candidate in (before.get(candidate_alias(target)), now.get(production_alias(target))):
            continue
        try:
            refusal, evidence = _judge_candidate(store, recipe, machines, target, candidate, stages)
            if refusal is None:
                proven = replace(decision, why=f"{decision.why}; {evidence}")
                promote_targets(store, recipe.model, [target], candidate, proven, fleet)
        except EngineryError as error:
            refusal = str(error)
        results.append(Promotion(target, candidate, refusal is None, refusal or evidence))
    return tuple(results)


def _judge_candidate(
    store: Store, recipe: Recipe, fleet: Fleet, target: str, candidate: int, stages: Path
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
    ours, theirs = store.manifest(recipe.model, candidate), store.manifest(recipe.model, serving)
    results = compare(
        read_measured(ours),
        read_measured(theirs),
        metric=recipe.model_task.metrics[0].name,
        loss_max=recipe.gates.loss_max,
        paired=_paired(recipe, ours, theirs, stages),
        higher_is_better=recipe.model_task.metrics[0].higher_is_better,
    )
    verdict, reason = overall(results)
    return (None if verdict is Verdict.PASSED else f"{verdict}: {reason}"), reason


def _paired(recipe: Recipe, ours: EngineManifest, theirs: EngineManifest, stages: Path) -> PairedLoss | None:
    """Return the paired loss on the evaluation rows; None where an engine's answers, or those rows, are gone."""
    spec, task = recipe.data.evaluation, recipe.model_task
    rows = load_split(recipe.dataset, task, spec.split, samples=spec.samples, seed=spec.seed)
    if {rows.digest} != {ours.evaluation_set, theirs.evaluation_set}:
        return None
    metric = task.metrics[0]
    answers = [_read_answers(manifest, metric.name, stages) for manifest in (theirs, ours)]
    if any(each is None or len(each) != len(rows.targets) for each in answers):
        return None
    aligned = [task.align_rows(rows, manifest.source) for manifest in (theirs, ours)]
    before, after = (
        metric.score(each or (), own.targets, answers[0] or ()) for each, own in zip(answers, aligned, strict=True)
    )
    better = metric.higher_is_better
    return compare_scores(before, after, metric.aggregate, higher_is_better=better, groups=aligned[1].groups)


def _read_answers(manifest: EngineManifest, metric: str, stages: Path) -> Answers | None:
    quality = find(manifest.measurements, metric)
    if quality is None or quality.subject != "engine":
        return None
    # Searched by content: a stage's folder is named by its inputs.
    files = sorted((stages / "evaluate").glob(f"*/{ANSWERS_FILES}"))
    file = next((file for file in files if file_sha256(file) == quality.raw_digest), None)
    return None if file is None else read_answers(file)

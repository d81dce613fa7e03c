"""Promotion without a person: only what a recipe allows, what is new, and what is proven no worse than what serves."""

import datetime
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from calibration_data.reader import load_split
from flows.inputs.fleet import Fleet, load_fleet
from flows.inputs.recipe import Recipe
from flows.promotion.decisions import promote
from flows.release.identity import dataset_ref
from registry.digest import file_sha256
from registry.errors import EngineryError
from registry.names import candidate_alias, production_alias
from registry.promotion.rules import Decision
from registry.records import EngineManifest, Verdict
from registry.store import Store
from tasks.verdicts.against_production import Measured, compare
from tasks.verdicts.gates import find, overall
from tasks.verdicts.intervals import PairedLoss, paired_loss

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
    decided: tuple[str, datetime.datetime, str | None],
    stages: Path,
) -> tuple[Promotion, ...]:
    """Promote each target's candidate that is new since `before` (its aliases then), where it is proven no worse.

    `decided` is why, when, and the flow run that decides. `stages` is where raw answers may still lie.
    """
    why, at, flow_run = decided
    machines = load_fleet(fleet)
    now = store.aliases(recipe.model)
    results = []
    for target in recipe.targets:
        candidate = now.get(candidate_alias(target))
        if candidate is None or candidate in (before.get(candidate_alias(target)), now.get(production_alias(target))):
            continue
        try:
            refusal, evidence = _look(store, recipe, machines, target, candidate, stages)
            if refusal is None:
                decision = Decision(WHO, f"{why}; {evidence}", at, flow_run=flow_run)
                promote(store, recipe.model, [target], candidate, decision, fleet)
        except EngineryError as error:
            refusal = str(error)
        results.append(Promotion(target, candidate, refusal is None, refusal or evidence))
    return tuple(results)


def _look(
    store: Store, recipe: Recipe, fleet: Fleet, target: str, candidate: int, stages: Path
) -> tuple[str | None, str]:
    """Why the candidate is left to a person, or None; and what was found."""
    if not recipe.auto_promote:
        return "the recipe leaves promotion to a person (auto_promote: false)", ""
    if fleet.rules(target).protected:
        return "the target is protected: two people promote it", ""
    serving = store.aliased(recipe.model, production_alias(target))
    if serving is None:
        return "nothing is in production yet: the first promotion is a person's", ""
    events = store.events(recipe.model, alias=production_alias(target))
    if any(event.to_version == candidate for event in events):
        return "it was in production before, and somebody moved on from it", ""
    ours, theirs = store.manifest(recipe.model, candidate), store.manifest(recipe.model, serving)
    results = compare(
        _measured(ours),
        _measured(theirs),
        loss_max=recipe.gates.accuracy_loss_max,
        paired=_paired(recipe, ours, theirs, stages),
    )
    verdict, reason = overall(results)
    return (None if verdict is Verdict.PASSED else f"{verdict}: {reason}"), reason


def _measured(manifest: EngineManifest) -> Measured:
    profile = next(iter(manifest.build.profiles), None)
    shape = (profile.batch.opt, profile.sequence.opt) if profile else (0, 0)
    return Measured(manifest.measurements, manifest.evaluation_set, manifest.source.revision, shape)


def _paired(recipe: Recipe, ours: EngineManifest, theirs: EngineManifest, stages: Path) -> PairedLoss | None:
    """The paired loss on the evaluation rows; None where an engine's answers, or those rows, are not here any more."""
    answers = [_answers(manifest, stages) for manifest in (theirs, ours)]
    spec = recipe.data.evaluation
    rows = load_split(dataset_ref(recipe), spec.split, samples=spec.samples, seed=spec.seed)
    if {rows.digest} != {ours.evaluation_set, theirs.evaluation_set}:
        return None
    found = [each == np.asarray(rows.labels) for each in answers if each is not None and len(each) == len(rows.labels)]
    return paired_loss(*found) if len(found) == len(answers) else None


def _answers(manifest: EngineManifest, stages: Path) -> NDArray[np.int64] | None:
    accuracy = find(manifest.measurements, "accuracy")
    if accuracy is None or accuracy.subject != "engine":
        return None
    # Found by what is in it: a stage's folder is named by what it was made of.
    same = (file for file in _files(stages) if file_sha256(file) == accuracy.raw_digest)
    file = next(same, None)
    return None if file is None else np.load(file, allow_pickle=False)


def _files(stages: Path) -> Sequence[Path]:
    return sorted((stages / "evaluate").glob("*/predictions.npy"))

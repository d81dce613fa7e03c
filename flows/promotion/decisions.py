"""Promote and roll back by target names, as the command line and the flows do; Prefect is told what came of it."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from flows.inputs.choices import ALL
from flows.inputs.fleet import load_fleet
from flows.promotion import events
from registry.errors import BadInput, PromotionRefused
from registry.names import CANDIDATE, PRODUCTION, candidate_alias, production_alias
from registry.promotion import promote as promotion
from registry.promotion.rules import APPROVE, Decision, TargetRules
from registry.records import PromotionEvent
from registry.store import Store


def promote(
    store: Store, model: str, targets: Sequence[str], version: int | None, decision: Decision, fleet: Path
) -> tuple[PromotionEvent, ...]:
    """Move production to `version`, or to each target's candidate; `targets` may be `["all"]` that have one.

    Raises:
        BadInput: no candidate, one version for several targets, or a target that the fleet file does not have.
        PromotionRefused, NotFound, TornBundle, DigestMismatch: as `registry.promotion.promote.promote`.
    """
    chosen = _targets(store, model, targets, CANDIDATE)
    if version is None:
        versions = _candidates(store, model, chosen)
    elif len(chosen) == 1:
        versions = {chosen[0]: version}
    else:
        raise BadInput(f"version {version} was built for one target: name that one, or leave the version out")
    rules = _rules(fleet, chosen)
    try:
        done = promotion.promote(store, model, versions, decision, rules)
    except PromotionRefused as refusal:
        _tell_refusal(model, versions, decision, refusal)
        raise
    _tell_moves(store, chosen, done)
    return done


def roll_back(
    store: Store, model: str, targets: Sequence[str], decision: Decision, fleet: Path
) -> tuple[PromotionEvent, ...]:
    """Move production back to the version before; `targets` may be `["all"]` that are in production.

    Raises:
        BadInput: nothing to go back to, or a target that the fleet file does not have.
        PromotionRefused, NotFound, TornBundle, DigestMismatch: as `registry.promotion.promote.rollback`.
    """
    chosen = _targets(store, model, targets, PRODUCTION)
    rules = _rules(fleet, chosen)
    try:
        done = promotion.rollback(store, model, chosen, decision, rules)
    except PromotionRefused as refusal:
        _tell_refusal(model, dict.fromkeys(chosen), decision, refusal)
        raise
    _tell_moves(store, chosen, done)
    return done


def describe_event(event: PromotionEvent) -> str:
    """What became of one target, in one line."""
    if event.action == APPROVE:
        return (
            f"{event.alias}: version {event.to_version} approved by {event.who}; "
            "it moves when someone else promotes it too"
        )
    before = "nothing" if event.from_version is None else f"version {event.from_version}"
    return f"{event.alias}: {before} -> version {event.to_version} ({event.outcome})"


def _targets(store: Store, model: str, given: Sequence[str], prefix: str) -> list[str]:
    """The targets named, or all that have an alias with this prefix."""
    if ALL not in given:
        return list(given)
    if list(given) != [ALL]:
        raise BadInput("target `all` stands for every target: name no other beside it")
    found = sorted(alias.removeprefix(prefix) for alias in store.aliases(model) if alias.startswith(prefix))
    if not found:
        raise BadInput(f"{model} has no {prefix.removesuffix('-')} for any target: see `enginery list {model}`")
    return found


def _candidates(store: Store, model: str, targets: Sequence[str]) -> dict[str, int]:
    aliases = store.aliases(model)
    if missing := [target for target in targets if candidate_alias(target) not in aliases]:
        raise BadInput(
            f"{model} has no candidate for {', '.join(missing)}: no engine of it passed its gates; name a --version"
        )
    return {target: aliases[candidate_alias(target)] for target in targets}


def _rules(fleet: Path, targets: Sequence[str]) -> dict[str, TargetRules]:
    # Without the fleet nobody knows which targets are protected: its absence is an error, not the absence of rules.
    loaded = load_fleet(fleet)
    return {target: loaded.rules(target) for target in targets}


def _tell_moves(store: Store, targets: Sequence[str], done: Sequence[PromotionEvent]) -> None:
    of_alias = {production_alias(target): target for target in targets}
    made = (
        events.moved(each, of_alias[each.alias], store.version(each.model, each.to_version).release) for each in done
    )
    events.emit(event for event in made if event is not None)


def _tell_refusal(
    model: str, versions: Mapping[str, int | None], decision: Decision, refusal: PromotionRefused
) -> None:
    events.emit(
        events.refused(model, target, version, decision.who, decision.why, str(refusal))
        for target, version in versions.items()
    )

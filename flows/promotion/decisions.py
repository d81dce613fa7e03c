"""Promote and roll back by target names, for the command line and the flows, and send the result to Prefect."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from flows.inputs.choices import ALL
from flows.inputs.fleet import load_fleet
from flows.promotion import events
from registry.errors import BadInput, PromotionRefused
from registry.names import CANDIDATE, PRODUCTION, candidate_alias, check_version, production_alias
from registry.promotion import promote as promotion
from registry.promotion.rules import APPROVE, Decision, TargetRules
from registry.records import PromotionEvent, Verdict
from registry.store import Store, require_engines


def promote_targets(
    store: Store, model: str, targets: Sequence[str], version: int | None, decision: Decision, fleet: Path
) -> tuple[PromotionEvent, ...]:
    """Move production to `version`, or to each target's candidate; `targets` may be `["all"]` that have one.

    Raises:
        NotFound: the registry has no engine of `model`.
        BadInput: no candidate, one version for several targets, a version that cannot exist, or a target that the fleet
            file does not have.
        PromotionRefused, NotFound, TornBundle, DigestMismatch: as `registry.promotion.promote.promote`.
    """
    require_engines(store, model)
    chosen = _resolve_targets(store, model, targets, CANDIDATE)
    if version is None:
        versions = _read_candidates(store, model, chosen)
    elif len(chosen) == 1:
        versions = {chosen[0]: check_version(version)}
    else:
        raise BadInput(f"version {version} was built for one target: name that one, or leave the version out")
    rules = _load_rules(fleet, chosen)
    try:
        moves = promotion.promote(store, model, versions, decision, rules)
    except PromotionRefused as refusal:
        _emit_refusal(model, versions, decision, refusal)
        raise
    _emit_moves(store, chosen, moves)
    return moves


def roll_back_targets(
    store: Store, model: str, targets: Sequence[str], decision: Decision, fleet: Path
) -> tuple[PromotionEvent, ...]:
    """Move production back to the version before; `targets` may be `["all"]` that are in production.

    Raises:
        NotFound: the registry has no engine of `model`.
        BadInput: there is no version to go back to, or a target that the fleet file does not have.
        PromotionRefused, NotFound, TornBundle, DigestMismatch: as `registry.promotion.promote.rollback`.
    """
    require_engines(store, model)
    chosen = _resolve_targets(store, model, targets, PRODUCTION)
    rules = _load_rules(fleet, chosen)
    try:
        moves = promotion.rollback(store, model, chosen, decision, rules)
    except PromotionRefused as refusal:
        _emit_refusal(model, dict.fromkeys(chosen), decision, refusal)
        raise
    _emit_moves(store, chosen, moves)
    return moves


def describe_event(event: PromotionEvent) -> str:
    """Describe in one line what became of one target."""
    if event.action == APPROVE:
        return (
            f"{event.alias}: version {event.to_version} approved by {event.who}; "
            "it moves when someone else promotes it too"
        )
    before = "nothing" if event.from_version is None else f"version {event.from_version}"
    return f"{event.alias}: {before} -> version {event.to_version} ({event.outcome})"


def _resolve_targets(store: Store, model: str, names: Sequence[str], prefix: str) -> list[str]:
    """Return the named targets; for `all`, every target that has an alias with this prefix."""
    if ALL not in names:
        return list(names)
    if list(names) != [ALL]:
        raise BadInput("target `all` stands for every target: do not name others beside it")
    targets = sorted(alias.removeprefix(prefix) for alias in store.aliases(model) if alias.startswith(prefix))
    if not targets:
        raise BadInput(f"{model} has no {prefix.removesuffix('-')} for any target: see `enginery list {model}`")
    return targets


def _read_candidates(store: Store, model: str, targets: Sequence[str]) -> dict[str, int]:
    aliases = store.aliases(model)
    if missing := [target for target in targets if candidate_alias(target) not in aliases]:
        raise BadInput("; ".join(_explain_no_candidate(store, model, target) for target in missing))
    return {target: aliases[candidate_alias(target)] for target in targets}


def _explain_no_candidate(store: Store, model: str, target: str) -> str:
    """Say which engine of a target is best, why it is no candidate, and what can be done."""
    engines = [engine for engine in store.versions(model) if engine.target == target]
    if not engines:
        targets = ", ".join(sorted({engine.target for engine in store.versions(model)}))
        return f"{model} has no engine for {target}: it has engines for {targets}"
    order = (Verdict.PASSED, Verdict.INCONCLUSIVE, Verdict.UNMEASURED, Verdict.FAILED)
    best = min(engines, key=lambda engine: (order.index(engine.verdict), -engine.version))
    if best.verdict is Verdict.PASSED:
        return (
            f"{model} has no candidate for {target}: promote --version {best.version} ({best.precision}), which passed"
        )
    return (
        f"{model} has no candidate for {target}: no engine passed its gates. The best is version {best.version} "
        f"({best.precision}, {best.verdict}: {best.reason}). Release again to measure it again, or promote it with "
        f"--version {best.version} --waiver 'your reason'"
    )


def _load_rules(fleet: Path, targets: Sequence[str]) -> dict[str, TargetRules]:
    # Only the fleet file says which targets are protected: a missing file is an error, not an absence of rules.
    loaded = load_fleet(fleet)
    return {target: loaded.rules(target) for target in targets}


def _emit_moves(store: Store, targets: Sequence[str], moves: Sequence[PromotionEvent]) -> None:
    of_alias = {production_alias(target): target for target in targets}
    engine_events = (
        events.moved(move, of_alias[move.alias], store.version(move.model, move.to_version).release) for move in moves
    )
    events.emit(event for event in engine_events if event is not None)


def _emit_refusal(
    model: str, versions: Mapping[str, int | None], decision: Decision, refusal: PromotionRefused
) -> None:
    events.emit(
        events.refused(model, target, version, decision.who, decision.why, str(refusal))
        for target, version in versions.items()
    )

"""Promote, roll back and history: under the model's lease (registry/mlflow/leases.py), by the rules in rules.py."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from uuid import uuid4

from registry.errors import BadInput, NotFound
from registry.names import candidate_alias, check_name, production_alias
from registry.promotion.moves import move_all, record_approvals, settle_pending
from registry.promotion.rules import (
    APPROVE,
    PENDING,
    PROMOTE,
    UNCHANGED,
    Decision,
    TargetRules,
    check_decision,
    check_newer,
    check_served,
    check_served_before,
    check_verdict,
    other_approver,
    version_before,
)
from registry.records import EngineVersion, PromotionEvent, Verdict
from registry.store import Store

_NO_RULES = TargetRules()


@dataclass(frozen=True)
class _Move:
    """What is to happen to one alias: all but the words of the decision."""

    engine: EngineVersion
    action: str
    current: int | None
    waiver: str | None = None
    approved_by: str | None = None


def promote(
    store: Store, model: str, versions: Mapping[str, int], decision: Decision, rules: Mapping[str, TargetRules]
) -> tuple[PromotionEvent, ...]:
    """Point `production-<target>` at a version for each target of `versions`, all or none; one event each.

    What is in production already is left alone, and its event says `unchanged` (it is not recorded). Where a
    protected target lacks its second approver, nothing moves: the approval is recorded, and those events are
    returned. A target that `rules` leaves out has none. The waiver is recorded only where it was needed.

    Raises:
        PromotionRefused: a gate did not pass and no waiver covers it, an engine is older than the one in
            production or built for another TensorRT than is served there, the same person approves twice,
            someone else promotes at the same time, or an alias did not move.
        BadInput: another target's engine, or no target, name or reason given.
        NotFound, TornBundle, DigestMismatch: as `Store.version` and `Store.manifest`.
    """
    check_decision(decision)
    aliases = _aliases(versions)
    with store.lock(model) as lease:
        settle_pending(store, model, lease)
        moves = []
        for target, alias in aliases.items():
            engine, current = _engine_for(store, model, target, versions[target]), _in_production(store, model, alias)
            moves.append(_promotion(store, engine, current, decision, rules.get(target, _NO_RULES)))
        if approvals := [move for move in moves if move.action == APPROVE]:
            return record_approvals(store, lease, _records(approvals, decision, lease.fencing))
        events = _records(moves, decision, lease.fencing)
        moved = move_all(store, lease, [event for event in events if event.from_version != event.to_version])
        return tuple(moved.get(event.event, replace(event, outcome=UNCHANGED)) for event in events)


def rollback(
    store: Store, model: str, targets: Sequence[str], decision: Decision, rules: Mapping[str, TargetRules]
) -> tuple[PromotionEvent, ...]:
    """Point each `production-<target>` back at the version before the promotion now in force, all or none.

    Another rollback goes one further back. Where an alias was moved by hand, that is undone first. One person is
    enough, also for a protected target: it was approved when it was promoted, and going back must be quick.

    Raises:
        BadInput: no promotion with a version before it is in force, or no target, name or reason given.
        PromotionRefused: the version before is not fit to serve, or as for `promote`.
        NotFound, TornBundle, DigestMismatch: as `Store.version` and `Store.manifest`.
    """
    check_decision(decision)
    aliases = _aliases(targets)
    with store.lock(model) as lease:
        settle_pending(store, model, lease)
        moves = [
            _rollback(store, model, target, store.aliased(model, alias), rules.get(target, _NO_RULES))
            for target, alias in aliases.items()
        ]
        return tuple(move_all(store, lease, _records(moves, decision, lease.fencing)).values())


def nominate(store: Store, model: str, target: str, version: int) -> EngineVersion:
    """Point `candidate-<target>` at a version; this is no promotion, and leaves no record.

    Raises:
        BadInput: another target's engine.
        NotFound, TornBundle, DigestMismatch: as `Store.version` and `Store.manifest`.
    """
    alias = candidate_alias(target)
    with store.lock(model) as lease:
        engine = _engine_for(store, model, target, version)
        with lease.guard():
            store.set_alias(model, alias, version)
    return engine


def history(store: Store, model: str, *, newest: int | None = None) -> tuple[PromotionEvent, ...]:
    """Every approval, promotion and rollback of a model, oldest first, waivers and failures included."""
    return store.events(check_name(model, what="model"), newest=newest)


def settle(store: Store, model: str) -> None:
    """Finish, or undo, what a promotion that was killed left pending; every operation begins with this.

    Raises:
        PromotionRefused: another promotion of the model is running.
    """
    with store.lock(model) as lease:
        settle_pending(store, model, lease)


def _aliases(targets: Iterable[str]) -> dict[str, str]:
    names = list(targets)
    if not names or len(set(names)) != len(names):
        raise BadInput(f"the targets are {', '.join(names) or 'none'}: name at least one, and each once")
    return {target: production_alias(target) for target in names}


def _engine_for(store: Store, model: str, target: str, version: int) -> EngineVersion:
    engine = store.checked(model, version)
    if engine.target != target:
        raise BadInput(f"{model} version {version} was built for {engine.target}, not for {target}: name another")
    return engine


def _in_production(store: Store, model: str, alias: str) -> EngineVersion | None:
    try:
        return store.resolve(model, alias)
    except NotFound:
        return None


def _promotion(
    store: Store, engine: EngineVersion, current: EngineVersion | None, decision: Decision, rules: TargetRules
) -> _Move:
    serving = current.version if current else None
    if engine.version == serving:
        return _Move(engine, PROMOTE, serving)
    check_verdict(engine, decision.waiver)
    check_served(engine, rules)
    if current is not None:
        check_newer(engine, current)
    waiver = None if engine.verdict is Verdict.PASSED else decision.waiver
    if not rules.protected:
        return _Move(engine, PROMOTE, serving, waiver)
    other = other_approver(store.events(engine.model, alias=production_alias(engine.target)), engine, decision.who)
    return _Move(engine, PROMOTE if other else APPROVE, serving, waiver, other)


def _rollback(store: Store, model: str, target: str, current: int | None, rules: TargetRules) -> _Move:
    alias = production_alias(target)
    events = store.events(model, alias=alias)
    if (back := version_before(events, current)) is None:
        raise BadInput(f"{model} has no recorded version before the one behind {alias}: promote a version instead")
    action, version = back
    engine = _engine_for(store, model, target, version)
    check_served_before(engine, events)
    check_served(engine, rules)
    return _Move(engine, action, current)


def _records(moves: Sequence[_Move], decision: Decision, fencing: int) -> list[PromotionEvent]:
    operation = uuid4().hex
    return [
        PromotionEvent(
            # The history's order: by turn, then by place; the rest keeps the turns of unshared leases apart.
            event=f"{fencing:012d}-{place:03d}-{operation[:12]}",
            model=move.engine.model,
            alias=production_alias(move.engine.target),
            action=move.action,
            from_version=move.current,
            to_version=move.engine.version,
            who=decision.who,
            why=decision.why,
            evidence=_evidence(move.engine),
            at=decision.at.isoformat(),
            outcome=PENDING,
            operation=operation,
            digest=move.engine.digest,
            fencing=fencing,
            waiver=move.waiver,
            flow_run=decision.flow_run,
            approved_by=move.approved_by,
        )
        for place, move in enumerate(moves)
    ]


def _evidence(engine: EngineVersion) -> str:
    return f"{engine.verdict}: {engine.reason[:1000]} (engine sha256 {engine.digest}, release {engine.release})"

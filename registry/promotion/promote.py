"""Promote engines, roll them back, and read the history of a model.

Every promotion and rollback follows these steps:

1. The decision and the targets are checked before the registry is read.
2. The model's lease is taken (registry/mlflow/leases.py): one process at a time changes a model's aliases.
3. What a killed promotion left pending is finished or undone.
4. The rules in rules.py decide for each target what happens to its alias. One refusal ends the operation before any
   alias has moved.
5. Where a protected target lacks its second approver, the approval is recorded and nothing moves, on no target.
6. Otherwise the aliases of all targets move, or none (moves.py), and every move is recorded with its evidence.

For example, `promote(store, "sst2", {"l4": 7}, decision, rules)` points `production-l4` at version 7. Candidate
aliases say which engine a release proposes: moving one is no promotion and leaves no record (`nominate`).
"""

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
    check_served_before,
    check_serving_version,
    check_verdict,
    find_other_approver,
    find_recorded_version,
    find_version_before,
)
from registry.records import EngineVersion, PromotionEvent, Verdict
from registry.store import ServingStore, Store

_NO_RULES = TargetRules()


@dataclass(frozen=True)
class _Move:
    """The planned change of one alias, without the decision's words."""

    engine: EngineVersion
    action: str
    current: int | None
    waiver: str | None = None
    approved_by: str | None = None


def promote(
    store: Store, model: str, versions: Mapping[str, int], decision: Decision, rules: Mapping[str, TargetRules]
) -> tuple[PromotionEvent, ...]:
    """Point `production-<target>` at a version for each target of `versions`, all or none.

    A target absent from `rules` has no requirements beyond the gates. The waiver is recorded only where it was needed.

    Returns:
        One event per target. A version that is in production already gets an event `unchanged`, which is not recorded.
        Where a protected target lacks its second approver, only the recorded approvals are returned.

    Raises:
        PromotionRefused: a rule says no, someone else promotes at the same time, or an alias did not move.
        BadInput: an engine of another target, or the targets, the name or the reason are missing.
        NotFound, TornBundle, DigestMismatch: as `Store.version` and `Store.manifest`.
    """
    check_decision(decision)
    aliases = _map_aliases(versions)
    with store.lock(model) as lease:
        settle_pending(store, model, lease)
        moves = []
        for target, alias in aliases.items():
            engine = _load_engine(store, model, target, versions[target])
            current = _load_current(store, model, alias)
            moves.append(_plan_promotion(store, engine, current, decision, rules.get(target, _NO_RULES)))
        if approvals := [move for move in moves if move.action == APPROVE]:
            return record_approvals(store, lease, _make_events(approvals, decision, lease.fencing))
        events = _make_events(moves, decision, lease.fencing)
        moved = move_all(store, lease, [event for event in events if event.from_version != event.to_version])
        return tuple(moved.get(event.event, replace(event, outcome=UNCHANGED)) for event in events)


def rollback(
    store: Store, model: str, targets: Sequence[str], decision: Decision, rules: Mapping[str, TargetRules]
) -> tuple[PromotionEvent, ...]:
    """Point each `production-<target>` back at the version before the promotion now in force, all or none.

    One person is enough, also for a protected target: the version was approved when it was promoted, and going back
    must be quick.

    Raises:
        BadInput: there is no version to go back to, or the targets, the name or the reason are missing.
        PromotionRefused: the version before may not serve, or as for `promote`.
        NotFound, TornBundle, DigestMismatch: as `Store.version` and `Store.manifest`.
    """
    check_decision(decision)
    aliases = _map_aliases(targets)
    with store.lock(model) as lease:
        settle_pending(store, model, lease)
        moves = [
            _plan_rollback(store, model, target, store.aliased(model, alias), rules.get(target, _NO_RULES))
            for target, alias in aliases.items()
        ]
        return tuple(move_all(store, lease, _make_events(moves, decision, lease.fencing)).values())


def nominate(store: Store, model: str, target: str, version: int) -> None:
    """Point `candidate-<target>` at a version, without a record.

    Raises:
        BadInput: the engine was built for another target.
        NotFound, TornBundle, DigestMismatch: as `Store.version` and `Store.manifest`.
    """
    alias = candidate_alias(target)
    with store.lock(model) as lease:
        _load_engine(store, model, target, version)
        with lease.guard():
            store.set_alias(model, alias, version)


def read_history(store: ServingStore, model: str, *, newest: int | None = None) -> tuple[PromotionEvent, ...]:
    """Return every approval, promotion and rollback of a model, oldest first, failures included."""
    return store.events(check_name(model, what="model"), newest=newest)


def _map_aliases(targets: Iterable[str]) -> dict[str, str]:
    names = list(targets)
    if not names or len(set(names)) != len(names):
        raise BadInput(f"the targets are {', '.join(names) or 'missing'}: name at least one, and each only once")
    return {target: production_alias(target) for target in names}


def _load_engine(store: Store, model: str, target: str, version: int) -> EngineVersion:
    engine = store.checked(model, version)
    if engine.target != target:
        raise BadInput(
            f"{model} version {version} was built for {engine.target}, not for {target}: name another version"
        )
    return engine


def _load_current(store: Store, model: str, alias: str) -> EngineVersion | None:
    try:
        return store.resolve(model, alias)
    except NotFound:
        return None


def _plan_promotion(
    store: Store, engine: EngineVersion, current: EngineVersion | None, decision: Decision, rules: TargetRules
) -> _Move:
    current_version = current.version if current else None
    if engine.version == current_version:
        # Where somebody moved the alias by hand, what it points at is judged and recorded now.
        events = store.events(engine.model, alias=production_alias(engine.target))
        current_version = find_recorded_version(events)
        if current_version == engine.version:
            return _Move(engine, PROMOTE, current_version)
    check_verdict(engine, decision.waiver)
    check_serving_version(engine, rules)
    if current is not None:
        check_newer(engine, current)
    waiver = None if engine.verdict is Verdict.PASSED else decision.waiver
    if not rules.protected:
        return _Move(engine, PROMOTE, current_version, waiver)
    other = find_other_approver(store.events(engine.model, alias=production_alias(engine.target)), engine, decision.who)
    return _Move(engine, PROMOTE if other else APPROVE, current_version, waiver, other)


def _plan_rollback(store: Store, model: str, target: str, current: int | None, rules: TargetRules) -> _Move:
    alias = production_alias(target)
    events = store.events(model, alias=alias)
    if (step := find_version_before(events, current)) is None:
        raise BadInput(f"{model} has no recorded version before the one at {alias}: promote a version instead")
    action, version = step
    engine = _load_engine(store, model, target, version)
    check_served_before(engine, events)
    check_serving_version(engine, rules)
    return _Move(engine, action, current)


def _make_events(moves: Sequence[_Move], decision: Decision, fencing: int) -> list[PromotionEvent]:
    operation = uuid4().hex
    return [
        PromotionEvent(
            # Sorted by name, events are in order: by turn, then by position. The operation's id tells turns of unshared
            # leases apart.
            event=f"{fencing:012d}-{position:03d}-{operation[:12]}",
            model=move.engine.model,
            alias=production_alias(move.engine.target),
            action=move.action,
            from_version=move.current,
            to_version=move.engine.version,
            who=decision.who,
            why=decision.why,
            evidence=_describe_evidence(move.engine),
            at=decision.at.isoformat(),
            outcome=PENDING,
            operation=operation,
            digest=move.engine.digest,
            fencing=fencing,
            waiver=move.waiver,
            flow_run=decision.flow_run,
            approved_by=move.approved_by,
        )
        for position, move in enumerate(moves)
    ]


def _describe_evidence(engine: EngineVersion) -> str:
    return f"{engine.verdict}: {engine.reason[:1000]} (engine sha256 {engine.digest}, release {engine.release})"

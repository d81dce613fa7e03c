"""Promote, roll back and history: the only code that moves a production alias.

MLflow's aliases have no compare-and-swap and keep no history. So, under the model's lock: the record is
written (pending), the alias moves, it is read back, and the record gets its outcome. A record left
pending by a crash is settled by what the alias says, before the next operation.
"""

from collections.abc import Callable
from dataclasses import replace
from datetime import datetime
from uuid import uuid4

from registry.errors import BadInput, PromotionRefused
from registry.manifest import check_agrees
from registry.names import check_name
from registry.records import EngineVersion, PromotionEvent, Verdict
from registry.store import Store

Clock = Callable[[], datetime]

PENDING, DONE, FAILED, UNCHANGED = "pending", "done", "failed", "unchanged"
PROMOTE, ROLLBACK = "promote", "rollback"


def production_alias(target: str) -> str:
    """The alias that servers of `target` ask for."""
    return check_name(f"production-{check_name(target, what='target')}", what="alias")


def candidate_alias(target: str) -> str:
    """The alias of the engine that would be promoted next."""
    return check_name(f"candidate-{check_name(target, what='target')}", what="alias")


def promote(
    store: Store,
    model: str,
    target: str,
    version: int,
    *,
    who: str,
    why: str,
    clock: Clock,
    waiver: str | None = None,
    flow_run: str | None = None,
) -> PromotionEvent:
    """Point `production-<target>` at `version`, with a record; the record is returned.

    What is in production already is left alone, and the event says `unchanged` (it is not recorded). `waiver`
    is the reason to let an unmeasured or inconclusive engine through: recorded only where needed.

    Raises:
        PromotionRefused: a gate did not pass and no waiver covers it, the engine is older than the one in
            production, or the alias did not move.
        BadInput: another target's engine, or no name or reason given.
        NotFound, TornBundle, DigestMismatch: as `Store.version` and `Store.manifest`.
    """
    alias = production_alias(target)
    _check_words(who=who, why=why, waiver=waiver)
    with store.lock(model):
        _settle(store, model)
        engine = _engine_for(store, model, target, version)
        current = store.aliases(model).get(alias)
        needed = None if engine.verdict is Verdict.PASSED else waiver
        event = PromotionEvent(
            event=uuid4().hex,
            model=model,
            alias=alias,
            action=PROMOTE,
            from_version=current,
            to_version=version,
            who=who,
            why=why,
            evidence=_evidence(engine),
            at=clock().isoformat(),
            outcome=PENDING,
            waiver=needed,
            flow_run=flow_run,
        )
        if current == version:
            return replace(event, outcome=UNCHANGED, waiver=None)
        _check_verdict(engine, waiver)
        if current is not None:
            _check_newer(engine, store.version(model, current))
        return _move(store, event)


def rollback(store: Store, model: str, target: str, *, who: str, why: str, clock: Clock) -> PromotionEvent:
    """Point `production-<target>` back at the version recorded before the promotion now in force.

    Another rollback goes one further back. Where the alias was moved by hand, that is undone first.

    Raises:
        BadInput: no promotion with a version before it is in force, or no name or reason given.
        PromotionRefused: the version before failed its gates, or the alias did not move.
        NotFound, TornBundle, DigestMismatch: as `Store.version` and `Store.manifest`.
    """
    alias = production_alias(target)
    _check_words(who=who, why=why, waiver=None)
    with store.lock(model):
        _settle(store, model)
        current = store.aliases(model).get(alias)
        previous = _previous(store.events(model), alias, current)
        if previous is None:
            raise BadInput(f"{model} has no recorded version before the one behind {alias}: promote a version instead")
        engine = _engine_for(store, model, target, previous)
        if engine.verdict is Verdict.FAILED:
            raise PromotionRefused(f"{model} version {previous} failed its gates: {engine.reason}; promote another")
        return _move(
            store,
            PromotionEvent(
                event=uuid4().hex,
                model=model,
                alias=alias,
                action=ROLLBACK,
                from_version=current,
                to_version=previous,
                who=who,
                why=why,
                evidence=_evidence(engine),
                at=clock().isoformat(),
                outcome=PENDING,
            ),
        )


def nominate(store: Store, model: str, target: str, version: int) -> EngineVersion:
    """Point `candidate-<target>` at a version; this is no promotion, and leaves no record.

    Raises:
        BadInput: another target's engine.
        NotFound, TornBundle, DigestMismatch: as `Store.version` and `Store.manifest`.
    """
    alias = candidate_alias(target)
    with store.lock(model):
        engine = _engine_for(store, model, target, version)
        store.set_alias(model, alias, version)
    return engine


def history(store: Store, model: str) -> tuple[PromotionEvent, ...]:
    """Every promotion and rollback of a model, oldest first, waivers and failures included."""
    return store.events(check_name(model, what="model"))


def _engine_for(store: Store, model: str, target: str, version: int) -> EngineVersion:
    engine = store.version(model, version)
    if engine.target != target:
        raise BadInput(f"{model} version {version} was built for {engine.target}, not for {target}: name another")
    # Tags can be edited in MLflow's own pages; the manifest is what the release wrote.
    check_agrees(engine, store.manifest(model, version))
    return engine


def _check_words(*, who: str, why: str, waiver: str | None) -> None:
    for name, text in (("who", who), ("why", why), ("waiver", waiver)):
        if text is not None and not text.strip():
            raise BadInput(f"{name} is empty: a promotion is recorded with a name and a reason")


def _check_verdict(engine: EngineVersion, waiver: str | None) -> None:
    if engine.verdict is Verdict.PASSED or (engine.verdict is not Verdict.FAILED and waiver):
        return
    way_out = "it cannot be waived" if engine.verdict is Verdict.FAILED else "measure it, or give a waiver's reason"
    raise PromotionRefused(
        f"{engine.model} version {engine.version} is {engine.verdict} for {engine.target}: {engine.reason}; {way_out}"
    )


def _check_newer(engine: EngineVersion, current: EngineVersion) -> None:
    # A replayed old release verifies perfectly; only its place in the order gives it away.
    if engine.sequence < current.sequence:
        raise PromotionRefused(
            f"{engine.model} version {engine.version} (sequence {engine.sequence}) is older than version "
            f"{current.version} (sequence {current.sequence}) in production: use rollback to go back"
        )


def _evidence(engine: EngineVersion) -> str:
    return f"{engine.verdict}: {engine.reason[:1000]} (engine sha256 {engine.digest}, release {engine.release})"


def _move(store: Store, event: PromotionEvent) -> PromotionEvent:
    outcome = FAILED
    store.append_event(event)
    try:
        store.set_alias(event.model, event.alias, event.to_version)
    finally:
        # Also after an error: the alias, read back, says what happened. A crash here is left to _settle.
        outcome = _outcome(store, event)
        store.finish_event(event.model, event.event, outcome)
    if outcome == FAILED:
        raise PromotionRefused(
            f"{event.alias} of {event.model} did not move to version {event.to_version}: another client set "
            "it at the same time; look at the history and try again"
        )
    return replace(event, outcome=outcome)


def _outcome(store: Store, event: PromotionEvent) -> str:
    return DONE if store.aliases(event.model).get(event.alias) == event.to_version else FAILED


def _settle(store: Store, model: str) -> None:
    for event in store.events(model):
        if event.outcome == PENDING:
            store.finish_event(model, event.event, _outcome(store, event))


def _previous(events: tuple[PromotionEvent, ...], alias: str, current: int | None) -> int | None:
    in_force: list[PromotionEvent] = []
    for event in events:
        if event.alias != alias or event.outcome != DONE:
            continue
        if event.action == PROMOTE:
            in_force.append(event)
        elif in_force and in_force[-1].to_version != event.to_version:
            in_force.pop()
    if not in_force:
        return None
    # Where alias and record disagree, someone moved the alias by hand: back to what the record says.
    last = in_force[-1]
    return last.from_version if last.to_version == current else last.to_version

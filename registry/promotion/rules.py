"""The rules that decide promotions and rollbacks, from records alone: nothing here reads a registry.

A promotion of an engine to a target follows these rules:

1. Every decision names who decides and gives a reason. An empty waiver is refused (`check_decision`).
2. The engine passed its gates. A waiver admits an engine whose gates were inconclusive or not measured; it never
   admits an engine that failed one (`check_verdict`).
3. The serving hosts run the TensorRT that built the engine, because an engine loads only on its own version
   (`check_serving_version`).
4. The engine is not older than the one in production. A replayed old release verifies perfectly, so only its
   sequence number gives it away (`check_newer`).
5. A protected target moves forward only when two people promote the same engine: the first promotion is recorded as
   an approval, for example Ana's on Monday, and the second one by Ben moves the alias (`find_other_approver`).

A rollback follows rules 1 and 3, and these:

6. It goes back to the version before the promotion now in force, and each further rollback goes one promotion further
   back. Where someone moved the alias by hand, that is undone first (`find_version_before`).
7. The version it goes back to never failed a gate, and it passed its gates or was promoted with a waiver. So what
   someone once set by hand does not come back (`check_served_before`).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from registry.errors import BadInput, PromotionRefused
from registry.host.tensorrt_releases import is_release_of
from registry.records import EngineVersion, PromotionEvent, Verdict

# Outcomes: done, failed (the alias never moved), undone (it moved, and went back with its operation), unchanged.
PENDING, DONE, FAILED, UNDONE, UNCHANGED = "pending", "done", "failed", "undone", "unchanged"
# Actions: a restore puts back the recorded version after someone moved the alias by hand; an approval moves nothing.
PROMOTE, ROLLBACK, RESTORE, APPROVE = "promote", "rollback", "restore", "approve"


@dataclass(frozen=True)
class TargetRules:
    """A target's requirements beyond the gates.

    `serving` is the backend's version on the serving hosts, or its first parts ("10.13"); None requires nothing.
    A `protected` target moves forward only when two people promote the same engine.
    """

    serving: str | None = None
    protected: bool = False


@dataclass(frozen=True)
class Decision:
    """A decision to promote or roll back: who, why and when. `waiver` is the reason to admit an unproven engine."""

    who: str
    why: str
    at: datetime
    waiver: str | None = None
    flow_run: str | None = None


def check_decision(decision: Decision) -> None:
    """Check rule 1: a decision names who decides and gives a reason.

    Raises:
        BadInput: the name, the reason or the waiver is empty.
    """
    for field, text in (("who", decision.who), ("why", decision.why), ("waiver", decision.waiver)):
        if text is not None and not text.strip():
            raise BadInput(f"{field} is empty: a promotion is recorded with a name and a reason")


def check_verdict(engine: EngineVersion, waiver: str | None) -> None:
    """Check rule 2: the engine passed its gates, or a waiver covers what was not proven.

    Raises:
        PromotionRefused: neither is true; the message holds the gate's own reason.
    """
    if engine.verdict is Verdict.PASSED or (engine.verdict is not Verdict.FAILED and waiver):
        return
    way_out = "a failed gate cannot be waived" if engine.verdict is Verdict.FAILED else "measure it, or give a waiver"
    raise PromotionRefused(
        f"{engine.model} version {engine.version} is {engine.verdict} for {engine.target}: {engine.reason}; {way_out}"
    )


def check_serving_version(engine: EngineVersion, rules: TargetRules) -> None:
    """Check rule 3: the serving hosts run the TensorRT that built the engine.

    Raises:
        PromotionRefused: they run another version.
    """
    if rules.serving is not None and not is_release_of(engine.backend_version, rules.serving):
        raise PromotionRefused(
            f"{engine.model} version {engine.version} was built with {engine.backend} {engine.backend_version}, and "
            f"{engine.target} serves {rules.serving}: build it with that version, or change `serving` in the fleet file"
        )


def check_newer(engine: EngineVersion, current: EngineVersion) -> None:
    """Check rule 4: the engine is not older than the one in production.

    Raises:
        PromotionRefused: its sequence is lower than that of the engine in production.
    """
    if engine.sequence < current.sequence:
        raise PromotionRefused(
            f"{engine.model} version {engine.version} (sequence {engine.sequence}) is older than version "
            f"{current.version} (sequence {current.sequence}) in production: use rollback to go back"
        )


def find_other_approver(events: Sequence[PromotionEvent], engine: EngineVersion, who: str) -> str | None:
    """Return who else approved this engine since the alias last moved (rule 5); None if nobody did.

    Args:
        events: the alias's, oldest first.
        engine: the engine to promote.
        who: the person who promotes it now.

    Raises:
        PromotionRefused: `who` is the only approver so far, and cannot approve twice.
    """
    moves = [index for index, event in enumerate(events) if event.outcome == DONE and event.action != APPROVE]
    since_last_move = events[moves[-1] + 1 :] if moves else events
    approvers = [
        event.who
        for event in since_last_move
        if (event.action, event.outcome) == (APPROVE, DONE)
        and (event.to_version, event.digest) == (engine.version, engine.digest)
    ]
    others = [name for name in approvers if _normalize_name(name) != _normalize_name(who)]
    if approvers and not others:
        raise PromotionRefused(
            f"{who} has already approved {engine.model} version {engine.version} for {engine.target}, which is a "
            "protected target: someone else must promote it too"
        )
    return others[-1] if others else None


def find_version_before(events: Sequence[PromotionEvent], current: int | None) -> tuple[str, int] | None:
    """Return the action and version of an alias's next rollback (rule 6); None where there is no version to go to.

    Args:
        events: the alias's, oldest first.
        current: the version that the alias points at.
    """
    undone = 0
    for event in reversed(events):
        if event.outcome != DONE or event.action not in (PROMOTE, ROLLBACK):
            continue
        if event.action == ROLLBACK:
            undone += 1
        elif undone:
            undone -= 1
        elif event.to_version != current:
            return RESTORE, event.to_version
        elif event.from_version is not None:
            return ROLLBACK, event.from_version
        else:
            return None
    return None


def find_recorded_version(events: Sequence[PromotionEvent]) -> int | None:
    """Return the version that an alias was last moved to; None where it never was.

    Args:
        events: the alias's, oldest first.
    """
    moves = (event.to_version for event in reversed(events) if event.outcome == DONE and event.action != APPROVE)
    return next(moves, None)


def describe_moved_past(alias: str, version: int, events: Sequence[PromotionEvent]) -> str | None:
    """Say that an alias was moved past Enginery; None where the history knows the version that it points at.

    A pending move counts as known: its record is written before its alias moves.

    Args:
        alias: a production alias.
        version: the version that it points at.
        events: the alias's, oldest first.
    """
    recorded = find_recorded_version(events)
    pending = {event.to_version for event in events if event.outcome == PENDING and event.action != APPROVE}
    if version == recorded or version in pending:
        return None
    known = "the history has no move of it" if recorded is None else f"the history's last move is to {recorded}"
    return f"{alias} points at version {version}, but {known}: moved past Enginery"


def check_served_before(engine: EngineVersion, events: Sequence[PromotionEvent]) -> None:
    """Check rule 7: the engine may serve again.

    Raises:
        PromotionRefused: it failed a gate, or it passed none and no promotion ever admitted it.
    """
    promoted = any(
        (event.action, event.outcome, event.to_version) == (PROMOTE, DONE, engine.version) for event in events
    )
    if engine.verdict is Verdict.FAILED or not (promoted or engine.verdict is Verdict.PASSED):
        raise PromotionRefused(
            f"{engine.model} version {engine.version} served before, but is {engine.verdict}: {engine.reason}; "
            "promote another version"
        )


def _normalize_name(name: str) -> str:
    return " ".join(name.split()).casefold()

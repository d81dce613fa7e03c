"""The rules of promotion: what may serve, who must agree, and what a rollback goes back to; they read no registry."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from registry.errors import BadInput, PromotionRefused
from registry.host.tensorrt_releases import is_release_of
from registry.records import EngineVersion, PromotionEvent, Verdict

# Outcomes: done, failed (the alias never moved), undone (it moved, and went back with its operation).
PENDING, DONE, FAILED, UNDONE, UNCHANGED = "pending", "done", "failed", "undone", "unchanged"
# Actions: a restore puts back what history says after someone moved the alias by hand; an approval moves nothing.
PROMOTE, ROLLBACK, RESTORE, APPROVE = "promote", "rollback", "restore", "approve"


@dataclass(frozen=True)
class TargetRules:
    """What the fleet asks of a target beyond the gates.

    `serving` is the backend's version on the serving hosts, or its first parts ("10.13"); None asks nothing.
    A `protected` target moves forward only when two people promote the same engine.
    """

    serving: str | None = None
    protected: bool = False


@dataclass(frozen=True)
class Decision:
    """Who promotes or rolls back, why and when; `waiver` is the reason to let an unproven engine through."""

    who: str
    why: str
    at: datetime
    waiver: str | None = None
    flow_run: str | None = None


def check_decision(decision: Decision) -> None:
    """A decision has a name and a reason.

    Raises:
        BadInput: one of its words is empty.
    """
    for name, words in (("who", decision.who), ("why", decision.why), ("waiver", decision.waiver)):
        if words is not None and not words.strip():
            raise BadInput(f"{name} is empty: a promotion is recorded with a name and a reason")


def check_verdict(engine: EngineVersion, waiver: str | None) -> None:
    """Its gates passed; what was not measured, or not conclusively, needs a waiver, and a failure has none.

    Raises:
        PromotionRefused: with the gate's own reason.
    """
    if engine.verdict is Verdict.PASSED or (engine.verdict is not Verdict.FAILED and waiver):
        return
    way_out = "it cannot be waived" if engine.verdict is Verdict.FAILED else "measure it, or give a waiver's reason"
    raise PromotionRefused(
        f"{engine.model} version {engine.version} is {engine.verdict} for {engine.target}: {engine.reason}; {way_out}"
    )


def check_newer(engine: EngineVersion, current: EngineVersion) -> None:
    """An old release verifies perfectly when replayed; only its place in the order gives it away.

    Raises:
        PromotionRefused: it is of a lower sequence than the engine in production.
    """
    if engine.sequence < current.sequence:
        raise PromotionRefused(
            f"{engine.model} version {engine.version} (sequence {engine.sequence}) is older than version "
            f"{current.version} (sequence {current.sequence}) in production: use rollback to go back"
        )


def check_served(engine: EngineVersion, rules: TargetRules) -> None:
    """The serving hosts run the TensorRT that built it: an engine loads on its own version only.

    Raises:
        PromotionRefused: they run another one.
    """
    if rules.serving is not None and not is_release_of(engine.backend_version, rules.serving):
        raise PromotionRefused(
            f"{engine.model} version {engine.version} was built with {engine.backend} {engine.backend_version}, and "
            f"{engine.target} serves {rules.serving}: build it with that, or change `serving` in the fleet file"
        )


def other_approver(events: Sequence[PromotionEvent], engine: EngineVersion, who: str) -> str | None:
    """Who else approved this engine for an alias since the alias last moved; `events` are that alias's.

    Raises:
        PromotionRefused: `who` alone has approved it, and may not do so twice.
    """
    moves = [place for place, event in enumerate(events) if event.outcome == DONE and event.action != APPROVE]
    standing = events[moves[-1] + 1 :] if moves else events
    approvers = [
        event.who
        for event in standing
        if (event.action, event.outcome) == (APPROVE, DONE)
        and (event.to_version, event.digest) == (engine.version, engine.digest)
    ]
    others = [name for name in approvers if _person(name) != _person(who)]
    if approvers and not others:
        raise PromotionRefused(
            f"{who} approved {engine.model} version {engine.version} for {engine.target} already, and the target is "
            "protected: someone else must promote it too"
        )
    return others[-1] if others else None


def version_before(events: Sequence[PromotionEvent], current: int | None) -> tuple[str, int] | None:
    """The action and version of the next rollback of an alias, or None; `events` are that alias's, oldest first.

    Each rollback goes one promotion further back. Where someone moved the alias by hand, that is put right first.
    """
    back = 0
    for event in reversed(events):
        if event.outcome != DONE or event.action not in (PROMOTE, ROLLBACK):
            continue
        if event.action == ROLLBACK:
            back += 1
        elif back:
            back -= 1
        elif event.to_version != current:
            return RESTORE, event.to_version
        elif event.from_version is not None:
            return ROLLBACK, event.from_version
        else:
            return None
    return None


def check_served_before(engine: EngineVersion, events: Sequence[PromotionEvent]) -> None:
    """A rollback goes back to what a promotion let through, not to what someone set by hand.

    Raises:
        PromotionRefused: its gates failed, or they did not pass and no waiver ever promoted it.
    """
    promoted = any(
        (event.action, event.outcome, event.to_version) == (PROMOTE, DONE, engine.version) for event in events
    )
    if engine.verdict is Verdict.FAILED or not (promoted or engine.verdict is Verdict.PASSED):
        raise PromotionRefused(
            f"{engine.model} version {engine.version} served before, but is {engine.verdict}: {engine.reason}; "
            "promote another one"
        )


def _person(name: str) -> str:
    return " ".join(name.split()).casefold()

"""Promotions and rollbacks of one target at a time by named people, and the history in short."""

from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from registry.promotion import promote as promotion
from registry.promotion.promote import read_history
from registry.promotion.rules import Decision, TargetRules
from registry.records import PromotionEvent
from registry.store import Store

GUARDED = TargetRules(protected=True)
AT = datetime(2026, 11, 23, 12, 0, tzinfo=UTC)
ANA = Decision("ana", "faster", AT)
BEN = replace(ANA, who="ben")


def promote(store: Store, target: str, version: int, rules: TargetRules | None = None, **words: Any) -> PromotionEvent:
    """Promote one target, by ana unless `who` is given."""
    decision = replace(ANA, **words)
    (event,) = promotion.promote(store, "sst2", {target: version}, decision, {target: rules or TargetRules()})
    return event


def rollback(store: Store, target: str, rules: TargetRules | None = None, **words: Any) -> PromotionEvent:
    """Roll one target back, by ana unless `who` is given."""
    (event,) = promotion.rollback(store, "sst2", [target], replace(ANA, **words), {target: rules or TargetRules()})
    return event


def outcomes(store: Store) -> list[tuple[str, int | None, int, str]]:
    """Return (action, from, to, outcome) of every event, oldest first."""
    return [
        (event.action, event.from_version, event.to_version, event.outcome) for event in read_history(store, "sst2")
    ]

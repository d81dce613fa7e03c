"""Move production aliases, the only place that does: write the record, move the alias, read it back.

MLflow's aliases have no compare-and-swap and no history. So these steps run under a lease's guard:

1. The records of all targets are written as pending.
2. The aliases move.
3. The aliases are read back, and the records get their outcome. If one alias did not move, those that did go back:
   an operation moves all of its aliases or none.

What a crash left pending is settled by step 3 before the next operation.
"""

from collections.abc import Sequence
from dataclasses import replace

from registry.errors import EngineryError, NotFound, PromotionRefused, TornBundle
from registry.promotion.rules import APPROVE, DONE, FAILED, PENDING, UNDONE
from registry.records import PromotionEvent
from registry.store import Lease, Store


def settle_pending(store: Store, model: str, lease: Lease) -> None:
    """Finish or undo what a killed promotion left pending."""
    if pending := store.events(model, outcome=PENDING):
        with lease.guard():
            for operation in dict.fromkeys(event.operation for event in pending):
                _conclude(store, [event for event in pending if event.operation == operation])


def record_approvals(store: Store, lease: Lease, events: Sequence[PromotionEvent]) -> tuple[PromotionEvent, ...]:
    """Record approvals, which move nothing."""
    with lease.guard():
        for event in events:
            store.append_event(event)
            store.finish_event(event.model, event.event, DONE)
    return tuple(replace(event, outcome=DONE) for event in events)


def move_all(store: Store, lease: Lease, events: Sequence[PromotionEvent]) -> dict[str, PromotionEvent]:
    """Move every alias or none.

    Returns:
        The events by event id, with their outcome, which is `done`.

    Raises:
        PromotionRefused: an alias did not move and the others went back, or another process holds the lease by now.
    """
    written: list[PromotionEvent] = []
    settled: dict[str, PromotionEvent] = {}
    problem: EngineryError | None = None
    with lease.guard():
        try:
            for event in events:
                store.append_event(event)
                written.append(event)
            for event in events:
                store.set_alias(event.model, event.alias, event.to_version)
        except EngineryError as error:
            problem = error
        finally:
            # Also after an error: only the aliases, read back, show what happened. A crash is left to settle_pending.
            settled = _conclude(store, written)
    outcomes = {event.alias: settled[event.event].outcome if event.event in settled else FAILED for event in events}
    if unmoved := [alias for alias, outcome in outcomes.items() if outcome == FAILED]:
        raise PromotionRefused(
            f"{', '.join(unmoved)} of {events[0].model} did not move, so no alias did: "
            f"{problem or 'another client set it at the same time'}; see `enginery history {events[0].model}`, and try "
            "again"
        ) from problem
    return settled


def _conclude(store: Store, events: Sequence[PromotionEvent]) -> dict[str, PromotionEvent]:
    """Give the pending events of one operation the outcome that their aliases show."""
    moved = {
        event.event
        for event in events
        if event.action != APPROVE and store.aliased(event.model, event.alias) == event.to_version
    }
    outcomes = dict.fromkeys(moved, DONE)
    if len(moved) < len(events):
        outcomes = {event.event: UNDONE if event.event in moved else FAILED for event in events}
        for event in events:
            if event.event in moved:
                _put_back(store, event)
    for event in events:
        store.finish_event(event.model, event.event, outcomes[event.event])
    return {event.event: replace(event, outcome=outcomes[event.event]) for event in events}


def _put_back(store: Store, event: PromotionEvent) -> None:
    if event.from_version is not None:
        try:
            store.set_alias(event.model, event.alias, event.from_version)
        except (NotFound, TornBundle):
            # Someone deleted that version in MLflow: serve nothing rather than half a promotion, and block nothing.
            pass
        else:
            return
    store.delete_alias(event.model, event.alias)

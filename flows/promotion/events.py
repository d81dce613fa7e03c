"""Send what happens to engines to Prefect, as events that automations wait for.

They are posted, not handed to `prefect.events.emit_event`: its thread opens a web socket, retries for seconds while a
server is down, and cannot tell whether an event arrived. A command of one second must neither wait nor lose its events.
"""

import logging
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from registry.host.clock import now
from registry.promotion.rules import DONE, PROMOTE, RESTORE, ROLLBACK
from registry.records import PromotionEvent

PROMOTED, REFUSED, ROLLED_BACK = "enginery.engine.promoted", "enginery.engine.refused", "enginery.engine.rolled-back"
STALE = "enginery.engine.stale"
_OF_ACTION = {PROMOTE: PROMOTED, ROLLBACK: ROLLED_BACK, RESTORE: ROLLED_BACK}
# Prefect refuses an event of more than 1.5 MB, and a notification should not be a page of reasons.
LONGEST_REASON = 4000
_PATIENCE_SECONDS = 5.0
_log = logging.getLogger("enginery.events")


@dataclass(frozen=True)
class EngineEvent:
    """One event of the engine that serves a model on a target."""

    event: str
    model: str
    target: str
    payload: Mapping[str, Any]

    @property
    def resource(self) -> dict[str, str]:
        """The labels that automations match on."""
        resource = f"enginery.engine.{self.model}.{self.target}"
        name = f"{self.model} on {self.target}"
        return {
            "prefect.resource.id": resource,
            "prefect.resource.name": name,
            "enginery.model": self.model,
            "enginery.target": self.target,
        }


def moved(event: PromotionEvent, target: str, release: str) -> EngineEvent | None:
    """Make the event of a promotion or rollback; None for an approval, and if no alias moved.

    `release` is the id of the release of the engine that the alias points at now.
    """
    if event.outcome != DONE or (kind := _OF_ACTION.get(event.action)) is None:
        return None
    payload = {
        "from": event.from_version,
        "to": event.to_version,
        "who": event.who,
        "why": event.why,
        "digest": event.digest,
        "release": release,
    }
    return EngineEvent(kind, event.model, target, payload)


def refused(model: str, target: str, version: int | None, who: str, why: str, reason: str) -> EngineEvent:
    """Make the event of a promotion or rollback (to `version`) that the rules refused, with their `reason`."""
    payload = {"to": version, "who": who, "why": why, "reason": reason[:LONGEST_REASON]}
    return EngineEvent(REFUSED, model, target, payload)


def stale(model: str, target: str, version: int | None, reasons: Sequence[str]) -> EngineEvent:
    """Make the event of a stale engine, with the reasons; `version` is None if it has none yet."""
    payload = {"version": version, "reasons": [reason[:LONGEST_REASON] for reason in reasons[:20]]}
    return EngineEvent(STALE, model, target, payload)


def emit(events: Iterable[EngineEvent]) -> bool:
    """Post events to the Prefect server of PREFECT_API_URL, and return whether it accepted them.

    Without a server the events are not even made. Never raises: what they report has happened already, and is in the
    registry's own history.
    """
    if not os.environ.get("PREFECT_API_URL"):
        return False
    try:
        if batch := list(events):
            _post_events(batch)
    except Exception as error:  # noqa: BLE001 - a promotion that is done must not look failed
        _log.warning("could not send the events of these engines to Prefect: %s", error)
        return False
    return bool(batch)


def _post_events(events: Sequence[EngineEvent]) -> None:
    # These imports take seconds, which only a process with a Prefect server pays for.
    from prefect import runtime
    from prefect.client.orchestration import get_client
    from prefect.events.schemas.events import Event

    run = runtime.flow_run.id
    related = [{"prefect.resource.id": f"prefect.flow-run.{run}", "prefect.resource.role": "flow-run"}] if run else []
    at = now()
    posted = [
        Event.model_validate(
            {
                "event": event.event,
                "resource": event.resource,
                "related": related,
                "payload": event.payload,
                "occurred": at,
            }
        )
        for event in events
    ]
    with get_client(sync_client=True, httpx_settings={"timeout": _PATIENCE_SECONDS}) as client:
        client.request("POST", "/events", json=[event.model_dump(mode="json") for event in posted])

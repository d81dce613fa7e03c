"""What happens to engines in production, as Prefect events that automations wait for.

They are posted, not handed to `prefect.events.emit_event`: its thread opens a web socket, tries again for seconds while
a server is down, and cannot say whether an event arrived. A command of one second must not wait, nor lose what it did.
"""

import datetime
import logging
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from registry.promotion.rules import DONE, PROMOTE, RESTORE, ROLLBACK
from registry.records import PromotionEvent

PROMOTED, REFUSED, ROLLED_BACK = "enginery.engine.promoted", "enginery.engine.refused", "enginery.engine.rolled-back"
STALE = "enginery.engine.stale"
_OF_ACTION = {PROMOTE: PROMOTED, ROLLBACK: ROLLED_BACK, RESTORE: ROLLED_BACK}
# Prefect refuses an event of more than 1.5 MB, and nobody reads a page of reasons in a notification.
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
        """What automations match on."""
        resource = f"enginery.engine.{self.model}.{self.target}"
        name = f"{self.model} on {self.target}"
        return {
            "prefect.resource.id": resource,
            "prefect.resource.name": name,
            "enginery.model": self.model,
            "enginery.target": self.target,
        }


def moved(event: PromotionEvent, target: str, release: str) -> EngineEvent | None:
    """The event of a promotion or rollback that moved an alias; None of an approval, and where nothing moved.

    `release` is the id of the release that made the engine behind the alias now.
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
    """A promotion or rollback that the rules turned down; `reason` is their sentence, `version` what was asked for."""
    payload = {"to": version, "who": who, "why": why, "reason": reason[:LONGEST_REASON]}
    return EngineEvent(REFUSED, model, target, payload)


def stale(model: str, target: str, version: int | None, reasons: Sequence[str]) -> EngineEvent:
    """An engine that would come out otherwise if it were made today, and why; None: there is no version of it yet."""
    payload = {"version": version, "reasons": [reason[:LONGEST_REASON] for reason in reasons[:20]]}
    return EngineEvent(STALE, model, target, payload)


def emit(events: Iterable[EngineEvent]) -> bool:
    """Tell the Prefect server of PREFECT_API_URL; whether it took them. Without a server they are not even made.

    Never raises: what is told of has happened already, and stands in the registry's own history.
    """
    if not os.environ.get("PREFECT_API_URL"):
        return False
    try:
        if told := list(events):
            _post(told)
    except Exception as error:  # noqa: BLE001 - a promotion that is done must not look failed
        _log.warning("Prefect was not told what became of the engines: %s", error)
        return False
    return bool(told)


def _post(events: Sequence[EngineEvent]) -> None:
    # Seconds that only a process with a Prefect server pays.
    from prefect import runtime
    from prefect.client.orchestration import get_client
    from prefect.events.schemas.events import Event

    run = runtime.flow_run.id
    related = [{"prefect.resource.id": f"prefect.flow-run.{run}", "prefect.resource.role": "flow-run"}] if run else []
    at = datetime.datetime.now(datetime.UTC)
    made = [
        Event.model_validate(
            {
                "event": each.event,
                "resource": each.resource,
                "related": related,
                "payload": each.payload,
                "occurred": at,
            }
        )
        for each in events
    ]
    with get_client(sync_client=True, httpx_settings={"timeout": _PATIENCE_SECONDS}) as client:
        client.request("POST", "/events", json=[event.model_dump(mode="json") for event in made])

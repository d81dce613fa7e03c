"""promote-engine and rollback-engine: the two commands as deployments, for a UI and for automations."""

import datetime
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from prefect import State, flow, get_run_logger, runtime
from prefect.states import Completed, Failed

from flows.commands.console import FLEET, open_store
from flows.inputs.choices import TargetOrAll
from flows.promotion import decisions
from registry.errors import EngineryError
from registry.promotion.rules import Decision
from registry.records import PromotionEvent


@flow(name="promote-engine", flow_run_name="{model} on {targets}", persist_result=False)
def promote_engine(
    model: str,
    targets: list[TargetOrAll],
    why: str,
    who: str,
    version: int | None = None,
    waiver: str | None = None,
    fleet: str = str(FLEET),
) -> State[Any]:
    """Move production to a version whose gates passed, the candidate by default; several targets, or `all`, together.

    A refusal ends Failed with the one sentence that says why.
    """
    try:
        store = open_store()
        moved = decisions.promote(store, model, targets, version, _decision(who, why, waiver), Path(fleet))
    except EngineryError as error:
        return Failed(message=str(error))
    return _told(moved)


@flow(name="rollback-engine", flow_run_name="{model} on {targets}", persist_result=False)
def rollback_engine(model: str, targets: list[TargetOrAll], why: str, who: str, fleet: str = str(FLEET)) -> State[Any]:
    """Move production back to the version before; several targets, or `all`, together."""
    try:
        moved = decisions.roll_back(open_store(), model, targets, _decision(who, why, None), Path(fleet))
    except EngineryError as error:
        return Failed(message=str(error))
    return _told(moved)


def _decision(who: str, why: str, waiver: str | None) -> Decision:
    # A form sends an empty text for what was left empty.
    return Decision(who, why, datetime.datetime.now(datetime.UTC), waiver or None, str(runtime.flow_run.id))


def _told(moved: Sequence[PromotionEvent]) -> State[Any]:
    log = get_run_logger()
    for event in moved:
        log.info("%s %s: %s", event.model, decisions.in_words(event), event.evidence)
    return Completed(message="; ".join(map(decisions.in_words, moved)))

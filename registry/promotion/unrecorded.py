"""Notice production aliases that MLflow's own pages or API moved: no gate was passed, and no history written.

Only production aliases have a history: releases move candidate aliases without one, and other aliases are people's own.
"""

from registry.errors import BadInput, TornBundle, Unrecorded
from registry.names import PRODUCTION
from registry.promotion.rules import describe_moved_past
from registry.records import EngineVersion
from registry.store import ServingStore

# Enough events to include the last move among approvals and refusals.
RECENT_EVENTS = 50


def resolve_recorded(store: ServingStore, model: str, alias: str) -> EngineVersion:
    """Return the version that a production alias points at.

    Raises:
        Unrecorded: the history does not know that version as the alias's.
        NotFound: no such model or alias.
    """
    engine, problem = _look_at(store, model, alias)
    if problem is not None:
        target = alias.removeprefix(PRODUCTION)
        raise Unrecorded(
            f"{model}: {problem}; find out who moved it, then run `enginery rollback {model} --target {target}` or "
            f"`enginery promote {model} --target {target} --version {engine.version}`, or accept it with "
            "--allow-unrecorded"
        )
    return engine


def find_moved_past(store: ServingStore, model: str) -> tuple[str, ...]:
    """Return a sentence for each production alias of a model that was moved past Enginery, or cannot be judged."""
    aliases = sorted(alias for alias in store.aliases(model) if alias.startswith(PRODUCTION))
    return tuple(problem for alias in aliases if (problem := _find_problem(store, model, alias)) is not None)


def _find_problem(store: ServingStore, model: str, alias: str) -> str | None:
    try:
        return _look_at(store, model, alias)[1]
    except (BadInput, TornBundle) as error:  # an edited row or event says nothing about the other aliases
        return f"{alias}: {error}"


def _look_at(store: ServingStore, model: str, alias: str) -> tuple[EngineVersion, str | None]:
    engine, problem = _look_once(store, model, alias)
    # A promotion may have moved the alias between the two reads: then a second look finds alias and history agreed.
    return (engine, None) if problem is None else _look_once(store, model, alias)


def _look_once(store: ServingStore, model: str, alias: str) -> tuple[EngineVersion, str | None]:
    engine = store.resolve(model, alias)
    events = store.events(model, alias=alias, newest=RECENT_EVENTS)
    return engine, describe_moved_past(alias, engine.version, events)

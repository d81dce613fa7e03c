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
    """Return a sentence for each production alias of a model that was moved past Enginery, whatever it points at."""

    def look(alias: str) -> str | None:
        version = store.aliases(model).get(alias)
        try:
            return None if version is None else _explain(store, model, alias, version)
        except (BadInput, TornBundle) as error:  # an edited event says nothing about the other aliases
            return f"{alias}: {error}"

    aliases = sorted(alias for alias in store.aliases(model) if alias.startswith(PRODUCTION))
    # Twice, as in `_look_at`.
    return tuple(problem for alias in aliases if look(alias) and (problem := look(alias)))


def _look_at(store: ServingStore, model: str, alias: str) -> tuple[EngineVersion, str | None]:
    engine = store.resolve(model, alias)
    problem = _explain(store, model, alias, engine.version)
    if problem is None:
        return engine, None
    # A promotion may have moved the alias between the two reads: then a second look finds alias and history agreed.
    engine = store.resolve(model, alias)
    return engine, _explain(store, model, alias, engine.version)


def _explain(store: ServingStore, model: str, alias: str, version: int) -> str | None:
    return describe_moved_past(alias, version, store.events(model, alias=alias, newest=RECENT_EVENTS))

"""Processes that promote: each with a store of its own, on a registry named by its address."""

import contextlib
import multiprocessing
import os
import random
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from registry.errors import BadInput, PromotionRefused
from registry.mlflow.leases import PostgresLeases
from registry.mlflow.store import MlflowStore
from registry.promotion.promote import promote, rollback
from registry.promotion.rules import Decision
from registry.records import EngineVersion, PromotionEvent
from registry.store import Store

MODEL = "sst2"
# The versions that tests publish; forward goes to a later one, back goes by rollback.
VERSIONS = {"l4": (1, 2, 3), "h100": (4, 5)}

# One process imports MLflow, and all others are its forks; it holds no connection that they could share.
_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["tests.support.promoters"])


@dataclass(frozen=True)
class Registry:
    """Where a registry is, as one host sees it; `database` is the one behind a server."""

    uri: str
    folder: Path
    model: str = MODEL
    database: str | None = None
    home: str = "home"

    def store(self, kind: type[MlflowStore] = MlflowStore) -> MlflowStore:
        artifacts = None if self.database else self.folder / "artifacts"
        return kind(self.uri, self.folder / self.home, artifacts, self.database)

    def on_host(self, number: int) -> "Registry":
        """The same registry from a host that shares no folder with the others."""
        return replace(self, home=f"host{number}")


def decision(who: str) -> Decision:
    return Decision(who, "a test", datetime.now(UTC))


@contextlib.contextmanager
def running(target: Any, *arguments: object) -> Iterator[BaseProcess]:
    """A process, gone with the block."""
    process = _CONTEXT.Process(target=target, args=arguments, daemon=True)
    process.start()
    try:
        yield process
    finally:
        process.kill()
        process.join()


def results() -> Any:
    """A queue that processes of `running` may be given."""
    return _CONTEXT.Queue()


def barrier(parties: int) -> Any:
    """Where so many processes wait for each other."""
    return _CONTEXT.Barrier(parties)


def keep_promoting(registry: Registry, seed: int, start: Any, seconds: float, told: Any) -> None:
    """Promote and roll back, one target or both, for so many seconds; tell every event that was said to be done."""
    store, choose, done = registry.store(), random.Random(seed), []  # noqa: S311 - no secret
    store.versions(registry.model)
    start.wait()
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        targets = choose.choice([["l4"], ["h100"], ["l4", "h100"]])
        try:
            if choose.random() < 0.5:
                versions = {target: choose.choice(VERSIONS[target]) for target in targets}
                events = promote(store, registry.model, versions, decision(f"promoter {seed}"), {})
            else:
                events = rollback(store, registry.model, targets, decision(f"promoter {seed}"), {})
            done += [event.event for event in events if event.outcome == "done"]
        except BadInput:
            pass  # nothing to roll back to
        except PromotionRefused as refusal:
            if "use rollback to go back" not in str(refusal):
                raise
        time.sleep(choose.uniform(0.0, 0.3))  # who comes back at once would mostly win against who polls
    told.put(done)


def do_once(registry: Registry, version: int | None, start: Any, told: Any) -> None:
    """Promote `version` for l4 at the same time as others, or roll back for None; tell what came of it."""
    store = registry.store()
    store.versions(registry.model)
    start.wait()
    try:
        events = (
            rollback(store, registry.model, ["l4"], decision("racer"), {})
            if version is None
            else promote(store, registry.model, {"l4": version}, decision("racer"), {})
        )
        told.put([event.event for event in events if event.outcome == "done"])
    except (BadInput, PromotionRefused):
        told.put([])


class _DyingStore(MlflowStore):
    """Kills its process after so many calls that write."""

    writes_left = 0

    def _one_more(self) -> None:
        if self.writes_left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        self.writes_left -= 1

    def append_event(self, event: PromotionEvent) -> None:
        self._one_more()
        super().append_event(event)

    def set_alias(self, model: str, alias: str, version: int) -> None:
        self._one_more()
        super().set_alias(model, alias, version)

    def finish_event(self, model: str, event_id: str, outcome: str) -> None:
        self._one_more()
        super().finish_event(model, event_id, outcome)


def promote_and_die(registry: Registry, writes: int) -> None:
    """Move both targets, and be killed after so many writes."""
    store = registry.store(_DyingStore)
    assert isinstance(store, _DyingStore)
    store.writes_left = writes
    if isinstance(store.leases, PostgresLeases):
        store.leases = PostgresLeases(
            registry.database or registry.uri, seconds=0.2
        )  # so that the test need not wait for half a minute
    promote(store, registry.model, {"l4": 2, "h100": 5}, decision("victim"), {})


class _PausingStore(MlflowStore):
    """Stops its process when everything is checked and nothing is written."""

    def checked(self, model: str, version: int) -> EngineVersion:
        found = super().checked(model, version)
        os.kill(os.getpid(), signal.SIGSTOP)
        return found


def pause_then_promote(registry: Registry, version: int, told: Any) -> None:
    """Stand still between the check and the move, with a lease that is over at once; tell the refusal."""
    store = registry.store(_PausingStore)
    store.leases = PostgresLeases(registry.database or registry.uri, seconds=0.0)
    try:
        told.put([event.event for event in promote(store, registry.model, {"l4": version}, decision("sleeper"), {})])
    except PromotionRefused as refusal:
        told.put(str(refusal))


def disagreement(store: Store, model: str = MODEL) -> str | None:
    """What history and aliases contradict each other in; call it under the model's lock."""
    events, aliases = store.events(model), store.aliases(model)
    points_at: dict[str, int] = {}
    for event in events:
        if event.outcome == "pending":
            return f"pending under the lock: {event}"
        if event.outcome == "done":
            if event.from_version != points_at.get(event.alias):
                return f"{event} comes from {points_at.get(event.alias)}"
            points_at[event.alias] = event.to_version
    return None if points_at == aliases else f"the history says {points_at}, the aliases {aliases}"

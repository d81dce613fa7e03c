"""Processes that promote: each with its own store, on a registry named by its URI."""

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
# The versions that tests publish; promotion goes to a later one, rollback to an earlier one.
VERSIONS = {"l4": (1, 2, 3), "h100": (4, 5)}

# One process imports MLflow, and all others are its forks; it opens no connection that they would share.
_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["tests.support.promoters"])


@dataclass(frozen=True)
class Registry:
    """A registry as one host sees it; `database` is the one behind a server."""

    uri: str
    folder: Path
    model: str = MODEL
    database: str | None = None
    home: str = "home"

    def store(self, kind: type[MlflowStore] = MlflowStore) -> MlflowStore:
        artifacts = None if self.database else self.folder / "artifacts"
        return kind(self.uri, self.folder / self.home, artifacts, self.database)

    def on_host(self, number: int) -> "Registry":
        """Return the same registry as seen by a host that shares no folder with the others."""
        return replace(self, home=f"host{number}")


def decide(who: str) -> Decision:
    return Decision(who, "a test", datetime.now(UTC))


@contextlib.contextmanager
def running(target: Any, *arguments: object) -> Iterator[BaseProcess]:
    """Run `target` in a process, which is killed when the block ends."""
    process = _CONTEXT.Process(target=target, args=arguments, daemon=True)
    process.start()
    try:
        yield process
    finally:
        process.kill()
        process.join()


def make_queue() -> Any:
    """Return a queue for the arguments of `running`."""
    return _CONTEXT.Queue()


def make_barrier(parties: int) -> Any:
    """Return a barrier at which so many processes wait for each other."""
    return _CONTEXT.Barrier(parties)


def keep_promoting(registry: Registry, seed: int, start: Any, seconds: float, results: Any) -> None:
    """Promote and roll back, one target or both, for so many seconds; put the ids of all completed events."""
    store, choose, done = registry.store(), random.Random(seed), []  # noqa: S311 - no secret
    store.versions(registry.model)
    start.wait()
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        targets = choose.choice([["l4"], ["h100"], ["l4", "h100"]])
        try:
            if choose.random() < 0.5:
                versions = {target: choose.choice(VERSIONS[target]) for target in targets}
                events = promote(store, registry.model, versions, decide(f"promoter {seed}"), {})
            else:
                events = rollback(store, registry.model, targets, decide(f"promoter {seed}"), {})
            done += [event.event for event in events if event.outcome == "done"]
        except BadInput:
            pass  # nothing to roll back to
        except PromotionRefused as refusal:
            if "use rollback to go back" not in str(refusal):
                raise
        time.sleep(choose.uniform(0.0, 0.3))  # without a pause it would mostly win against those that poll
    results.put(done)


def do_once(registry: Registry, version: int | None, start: Any, results: Any) -> None:
    """Promote `version` for l4 at the same time as others, or roll back for None; put the ids of completed events."""
    store = registry.store()
    store.versions(registry.model)
    start.wait()
    try:
        events = (
            rollback(store, registry.model, ["l4"], decide("racer"), {})
            if version is None
            else promote(store, registry.model, {"l4": version}, decide("racer"), {})
        )
        results.put([event.event for event in events if event.outcome == "done"])
    except (BadInput, PromotionRefused):
        results.put([])


class _DyingStore(MlflowStore):
    """A store that kills its process after so many writes."""

    writes_left = 0

    def _count_write(self) -> None:
        if self.writes_left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        self.writes_left -= 1

    def append_event(self, event: PromotionEvent) -> None:
        self._count_write()
        super().append_event(event)

    def set_alias(self, model: str, alias: str, version: int) -> None:
        self._count_write()
        super().set_alias(model, alias, version)

    def finish_event(self, model: str, event_id: str, outcome: str) -> None:
        self._count_write()
        super().finish_event(model, event_id, outcome)


def promote_and_die(registry: Registry, writes: int) -> None:
    """Promote both targets, and be killed after so many writes."""
    store = registry.store(_DyingStore)
    assert isinstance(store, _DyingStore)
    store.writes_left = writes
    if isinstance(store.leases, PostgresLeases):
        # The default would make the test wait for half a minute.
        store.leases = PostgresLeases(registry.database or registry.uri, seconds=0.2)
    promote(store, registry.model, {"l4": 2, "h100": 5}, decide("victim"), {})


class _PausingStore(MlflowStore):
    """A store that stops its process after everything is checked and before anything is written."""

    def checked(self, model: str, version: int) -> EngineVersion:
        engine = super().checked(model, version)
        os.kill(os.getpid(), signal.SIGSTOP)
        return engine


def pause_then_promote(registry: Registry, version: int, results: Any) -> None:
    """Be stopped between check and promotion, with a lease that ends at once; put the refusal."""
    store = registry.store(_PausingStore)
    store.leases = PostgresLeases(registry.database or registry.uri, seconds=0.0)
    try:
        results.put([event.event for event in promote(store, registry.model, {"l4": version}, decide("sleeper"), {})])
    except PromotionRefused as refusal:
        results.put(str(refusal))


def find_disagreement(store: Store, model: str = MODEL) -> str | None:
    """Return where history and aliases contradict each other, or None; call it under the model's lock."""
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

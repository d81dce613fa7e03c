"""Moves that go wrong, by stores that fail at a chosen call: all aliases move or none, and history says which."""

from typing import Any

import pytest

from registry.errors import BadInput, EngineryError, PromotionRefused
from registry.promotion import promote as promotion
from registry.promotion.moves import settle_pending
from registry.promotion.promote import read_history
from tests.support.deciding import ANA, GUARDED, outcomes, promote, rollback
from tests.support.memory_store import MemoryStore


def settle(store: MemoryStore) -> None:
    """Do what every promotion does first."""
    with store.lock("sst2") as lease:
        settle_pending(store, "sst2", lease)


class HalfStore(MemoryStore):
    """Moves no alias of h100 forward."""

    def set_alias(self, model: str, alias: str, version: int) -> None:
        if alias == "production-h100" and version == 4:
            raise EngineryError("the registry is away")
        super().set_alias(model, alias, version)


@pytest.mark.parametrize("before", [{}, {"l4": 1, "h100": 2}])
def test_targets_that_moved_go_back_when_another_does_not(before: dict[str, int], manifest_factory: Any) -> None:
    store = HalfStore()
    for number, target in enumerate(("l4", "h100", "l4", "h100"), start=1):
        store.publish(*manifest_factory(bytes([number]), sequence=number, target=target))
    if before:
        promotion.promote(store, "sst2", before, ANA, {})
    with pytest.raises(
        PromotionRefused, match="production-h100 of sst2 did not move, so no alias did: the registry is away"
    ):
        promotion.promote(store, "sst2", {"l4": 3, "h100": 4}, ANA, {})
    assert store.aliases("sst2") == {f"production-{target}": version for target, version in before.items()}
    assert [(e.to_version, e.outcome) for e in read_history(store, "sst2")[-2:]] == [(3, "undone"), (4, "failed")]
    # What was undone is not there to go back to.
    with pytest.raises(BadInput, match="no recorded version"):
        rollback(store, "l4")


class LateErrorStore(MemoryStore):
    """The alias moves, and the answer is an error: a 5xx after the commit."""

    def set_alias(self, model: str, alias: str, version: int) -> None:
        super().set_alias(model, alias, version)
        raise EngineryError("502")


def test_move_whose_answer_was_an_error_is_done(manifest_factory: Any) -> None:
    store = LateErrorStore()
    store.publish(*manifest_factory())
    assert promote(store, "l4", 1).outcome == "done"
    assert outcomes(store) == [("promote", None, 1, "done")]


class Crash(BaseException):
    """Like a killed process: nothing after it runs."""


class CrashingStore(MemoryStore):
    """Dies in `set_alias`, before or after the alias moved, so that not even the outcome is written."""

    dies: str | None = None

    def set_alias(self, model: str, alias: str, version: int) -> None:
        if self.dies != "before":
            super().set_alias(model, alias, version)
        if self.dies:
            raise Crash

    def finish_event(self, model: str, event_id: str, outcome: str) -> None:
        if self.dies:
            raise Crash
        super().finish_event(model, event_id, outcome)


@pytest.mark.parametrize(("dies", "outcome"), [("before", "failed"), ("after", "done")])
def test_event_left_by_a_crash_is_settled_by_the_alias(dies: str, outcome: str, manifest_factory: Any) -> None:
    store = CrashingStore()
    for number in (1, 2):
        store.publish(*manifest_factory(bytes([number]), sequence=number))
    store.dies = dies
    with pytest.raises(Crash):
        promote(store, "l4", 1)
    assert outcomes(store) == [("promote", None, 1, "pending")]
    store.dies = None
    promote(store, "l4", 2)
    assert outcomes(store)[0] == ("promote", None, 1, outcome)
    assert store.aliases("sst2") == {"production-l4": 2}


class DiesBetweenStore(MemoryStore):
    """Dies when the second alias is to move, and answers nothing after."""

    dead = False

    def set_alias(self, model: str, alias: str, version: int) -> None:
        if alias == "production-h100":
            self.dead = True
            raise Crash
        super().set_alias(model, alias, version)

    def aliased(self, model: str, alias: str) -> int | None:
        if self.dead:
            raise Crash
        return super().aliased(model, alias)


def test_operation_that_died_half_way_is_undone_as_a_whole(manifest_factory: Any) -> None:
    store = DiesBetweenStore()
    for number, target in enumerate(("l4", "h100"), start=1):
        store.publish(*manifest_factory(bytes([number]), sequence=number, target=target))
    with pytest.raises(Crash):
        promotion.promote(store, "sst2", {"l4": 1, "h100": 2}, ANA, {})
    assert store.aliases("sst2") == {"production-l4": 1}
    store.dead = False
    settle(store)
    assert store.aliases("sst2") == {}
    assert [event.outcome for event in read_history(store, "sst2")] == ["undone", "failed"]
    settle(store)


def test_undoing_to_a_deleted_version_leaves_no_alias_and_no_deadlock(manifest_factory: Any) -> None:
    store = DiesBetweenStore()
    for number, target in enumerate(("l4", "h100", "l4"), start=1):
        store.publish(*manifest_factory(bytes([number]), sequence=number, target=target))
    promote(store, "l4", 1)
    with pytest.raises(Crash):
        promotion.promote(store, "sst2", {"l4": 3, "h100": 2}, ANA, {})
    store.dead = False
    del store.rows["sst2", 1]  # by hand, in MLflow's pages
    settle(store)
    assert store.aliases("sst2") == {}
    assert [event.outcome for event in read_history(store, "sst2")] == ["done", "undone", "failed"]
    assert promote(store, "l4", 3).outcome == "done"


def test_approval_that_died_before_its_outcome_does_not_count(manifest_factory: Any) -> None:
    store = CrashingStore()
    store.publish(*manifest_factory())
    store.dies = "before"
    with pytest.raises(Crash):
        promote(store, "l4", 1, GUARDED)
    store.dies = None
    assert promote(store, "l4", 1, GUARDED, who="ben").action == "approve"
    assert [event.outcome for event in read_history(store, "sst2")] == ["failed", "done"]


class DeafStore(MemoryStore):
    """Says yes, and moves nothing: another client wrote last."""

    def set_alias(self, model: str, alias: str, version: int) -> None:
        assert self.version(model, version)
        assert alias


def test_alias_that_did_not_move_is_a_failure(manifest_factory: Any) -> None:
    store = DeafStore()
    store.publish(*manifest_factory())
    with pytest.raises(PromotionRefused, match="did not move"):
        promote(store, "l4", 1)
    assert outcomes(store) == [("promote", None, 1, "failed")]


class BrokenStore(MemoryStore):
    def set_alias(self, model: str, alias: str, version: int) -> None:
        raise ConnectionError(f"{model} {alias} {version}")


def test_registry_error_is_recorded_as_failed_and_reaches_the_caller(manifest_factory: Any) -> None:
    store = BrokenStore()
    store.publish(*manifest_factory())
    with pytest.raises(ConnectionError):
        promote(store, "l4", 1)
    assert [event.outcome for event in read_history(store, "sst2")] == ["failed"]

"""The rules of promotion, in memory; the contract suite holds MLflow to the same."""

from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest

from registry import promotion
from registry.errors import BadInput, BadName, DigestMismatch, NotFound, PromotionRefused
from registry.promotion import history, nominate
from registry.records import PromotionEvent, Verdict
from registry.rules import Decision, TargetRules
from registry.store import Store
from tests.unit.memory_store import MemoryStore

AT = datetime(2026, 11, 23, 12, 0, tzinfo=UTC)
ANA = Decision("ana", "faster", AT)
BEN = replace(ANA, who="ben")


def promote(store: Store, target: str, version: int, rules: TargetRules | None = None, **words: Any) -> PromotionEvent:
    """One target, by ana where no one else is named."""
    decision = replace(ANA, **words)
    (event,) = promotion.promote(store, "sst2", {target: version}, decision, {target: rules or TargetRules()})
    return event


def rollback(store: Store, target: str, rules: TargetRules | None = None, **words: Any) -> PromotionEvent:
    (event,) = promotion.rollback(store, "sst2", [target], replace(ANA, **words), {target: rules or TargetRules()})
    return event


@pytest.fixture
def registry(memory_store: MemoryStore, manifest_factory: Any) -> MemoryStore:
    """Versions 1, 2 and 3 for l4, each of a later release and passed."""
    for number in (1, 2, 3):
        memory_store.publish(*manifest_factory(bytes([number]), sequence=number))
    return memory_store


def outcomes(store: Store) -> list[tuple[str, int | None, int, str]]:
    return [(e.action, e.from_version, e.to_version, e.outcome) for e in history(store, "sst2")]


def test_promotion_moves_the_alias_and_is_recorded(store: Store, manifest_factory: Any) -> None:
    store.publish(*manifest_factory())
    event = promote(store, "l4", 1, flow_run="run-9")
    assert store.resolve("sst2", "production-l4").version == 1
    assert history(store, "sst2") == (event,)
    assert (event.outcome, event.who, event.why, event.flow_run) == ("done", "ana", "faster", "run-9")
    assert (event.at, event.waiver) == (AT.isoformat(), None)
    assert "every gate passed" in event.evidence


@pytest.mark.parametrize("verdict", [Verdict.UNMEASURED, Verdict.INCONCLUSIVE, Verdict.FAILED])
def test_engine_that_no_gate_passed_is_refused_with_its_reason(
    verdict: Verdict, memory_store: MemoryStore, manifest_factory: Any
) -> None:
    memory_store.publish(*manifest_factory(verdict=verdict, reason="p99 was not measured"))
    with pytest.raises(PromotionRefused, match="p99 was not measured"):
        promote(memory_store, "l4", 1)
    assert memory_store.aliases("sst2") == {}
    assert history(memory_store, "sst2") == ()


@pytest.mark.parametrize("verdict", [Verdict.UNMEASURED, Verdict.INCONCLUSIVE])
def test_waiver_lets_an_unproven_engine_through_and_shows(
    verdict: Verdict, memory_store: MemoryStore, manifest_factory: Any
) -> None:
    memory_store.publish(*manifest_factory(verdict=verdict, reason="no GPU here"))
    promote(memory_store, "l4", 1, waiver="measured by hand")
    assert [(event.who, event.waiver) for event in history(memory_store, "sst2")] == [("ana", "measured by hand")]


def test_failed_engine_cannot_be_waived(memory_store: MemoryStore, manifest_factory: Any) -> None:
    memory_store.publish(*manifest_factory(verdict=Verdict.FAILED, reason="accuracy fell"))
    with pytest.raises(PromotionRefused, match="cannot be waived"):
        promote(memory_store, "l4", 1, waiver="please")


def test_waiver_of_a_passed_engine_is_not_recorded(registry: MemoryStore) -> None:
    assert promote(registry, "l4", 1, waiver="not needed").waiver is None


def test_verdict_edited_in_the_registry_is_found_out(memory_store: MemoryStore, manifest_factory: Any) -> None:
    memory_store.publish(*manifest_factory(verdict=Verdict.FAILED))
    memory_store.rows["sst2", 1] = replace(memory_store.rows["sst2", 1], verdict=Verdict.PASSED)
    with pytest.raises(DigestMismatch, match="verdict"):
        promote(memory_store, "l4", 1)


def test_other_target_is_refused(registry: MemoryStore) -> None:
    with pytest.raises(BadInput, match="built for l4"):
        promote(registry, "h100", 1)
    with pytest.raises(BadName):
        promote(registry, "../l4", 1)
    with pytest.raises(NotFound):
        promote(registry, "l4", 9)


@pytest.mark.parametrize("words", [{"who": " "}, {"why": ""}, {"waiver": " "}])
def test_promotion_needs_a_name_and_a_reason(words: dict[str, Any], registry: MemoryStore) -> None:
    with pytest.raises(BadInput, match="is empty"):
        promote(registry, "l4", 1, **words)


def test_promoting_what_is_in_production_says_so_and_records_nothing(registry: MemoryStore) -> None:
    promote(registry, "l4", 1)
    assert promote(registry, "l4", 1).outcome == "unchanged"
    assert outcomes(registry) == [("promote", None, 1, "done")]


def test_older_release_is_refused(registry: MemoryStore) -> None:
    promote(registry, "l4", 2)
    with pytest.raises(PromotionRefused, match="older"):
        promote(registry, "l4", 1)
    assert registry.aliases("sst2") == {"production-l4": 2}


def test_rollback_goes_further_back_each_time_until_there_is_nothing(registry: MemoryStore) -> None:
    for number in (1, 2, 3):
        promote(registry, "l4", number)
    assert rollback(registry, "l4").to_version == 2
    assert rollback(registry, "l4").to_version == 1
    with pytest.raises(BadInput, match="no recorded version"):
        rollback(registry, "l4")
    assert registry.aliases("sst2") == {"production-l4": 1}
    promote(registry, "l4", 3)
    assert rollback(registry, "l4").to_version == 1


def test_rollback_without_history_is_refused(registry: MemoryStore) -> None:
    with pytest.raises(BadInput, match="no recorded version"):
        rollback(registry, "l4")


def test_rollback_of_one_target_leaves_the_other(registry: MemoryStore, manifest_factory: Any) -> None:
    for number in (4, 5):
        registry.publish(*manifest_factory(bytes([number]), sequence=number, target="h100"))
    for target, number in (("l4", 1), ("h100", 4), ("l4", 2), ("h100", 5)):
        promote(registry, target, number)
    rollback(registry, "l4")
    assert registry.aliases("sst2") == {"production-l4": 1, "production-h100": 5}


def test_rollback_undoes_an_alias_moved_by_hand(registry: MemoryStore) -> None:
    promote(registry, "l4", 1)
    promote(registry, "l4", 2)
    registry.set_alias("sst2", "production-l4", 3)
    assert rollback(registry, "l4").to_version == 2
    assert rollback(registry, "l4").to_version == 1


def test_rollback_never_reaches_a_failed_engine(memory_store: MemoryStore, manifest_factory: Any) -> None:
    memory_store.publish(*manifest_factory(b"bad", verdict=Verdict.FAILED, reason="accuracy fell"))
    memory_store.publish(*manifest_factory(b"good", sequence=2))
    memory_store.set_alias("sst2", "production-l4", 1)
    promote(memory_store, "l4", 2)
    with pytest.raises(PromotionRefused, match="accuracy fell"):
        rollback(memory_store, "l4")


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
    assert [event.outcome for event in history(store, "sst2")] == ["failed"]


def test_candidate_is_nominated_without_a_record(registry: MemoryStore) -> None:
    assert nominate(registry, "sst2", "l4", 3).version == 3
    assert registry.aliases("sst2") == {"candidate-l4": 3}
    assert history(registry, "sst2") == ()


def test_rollback_without_its_promotion_is_no_reason_to_go_back(registry: MemoryStore) -> None:
    stray = replace(promote(registry, "l4", 1), event="e", action="rollback", outcome="done")
    registry.append_event(stray)
    with pytest.raises(BadInput, match="no recorded version"):
        rollback(registry, "l4")

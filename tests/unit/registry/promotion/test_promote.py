"""The rules of promotion, in memory; the contract suite holds MLflow to the same."""

from dataclasses import replace
from typing import Any

import pytest

from registry.errors import BadInput, BadName, DigestMismatch, NotFound, PromotionRefused
from registry.promotion import promote as promotion
from registry.promotion.promote import nominate, read_history
from registry.promotion.rules import TargetRules
from registry.promotion.unrecorded import find_moved_past
from registry.records import Verdict
from registry.store import Store
from tests.support.deciding import ANA, AT, BEN, GUARDED, outcomes, promote, rollback
from tests.support.memory_store import MemoryStore


@pytest.fixture
def registry(memory_store: MemoryStore, manifest_factory: Any) -> MemoryStore:
    """Versions 1, 2 and 3 for l4, each of a later release and passed."""
    for number in (1, 2, 3):
        memory_store.publish(*manifest_factory(bytes([number]), sequence=number))
    return memory_store


def test_promotion_moves_the_alias_and_is_recorded(store: Store, manifest_factory: Any) -> None:
    store.publish(*manifest_factory())
    event = promote(store, "l4", 1, flow_run="run-9")
    assert store.resolve("sst2", "production-l4").version == 1
    assert read_history(store, "sst2") == (event,)
    assert (event.outcome, event.who, event.why, event.flow_run) == ("done", "ana", "faster", "run-9")
    assert (event.at, event.waiver) == (AT.isoformat(), None)
    assert "every gate passed" in event.evidence


@pytest.mark.parametrize("verdict", [Verdict.UNMEASURED, Verdict.INCONCLUSIVE, Verdict.FAILED])
def test_unproven_engine_is_refused_with_its_reason(
    verdict: Verdict, memory_store: MemoryStore, manifest_factory: Any
) -> None:
    memory_store.publish(*manifest_factory(verdict=verdict, reason="p99 was not measured"))
    with pytest.raises(PromotionRefused, match="p99 was not measured"):
        promote(memory_store, "l4", 1)
    assert memory_store.aliases("sst2") == {}
    assert read_history(memory_store, "sst2") == ()


@pytest.mark.parametrize("verdict", [Verdict.UNMEASURED, Verdict.INCONCLUSIVE])
def test_waiver_admits_an_unproven_engine_and_is_recorded(
    verdict: Verdict, memory_store: MemoryStore, manifest_factory: Any
) -> None:
    memory_store.publish(*manifest_factory(verdict=verdict, reason="no GPU here"))
    promote(memory_store, "l4", 1, waiver="measured by hand")
    assert [(event.who, event.waiver) for event in read_history(memory_store, "sst2")] == [("ana", "measured by hand")]


def test_failed_engine_cannot_be_waived(memory_store: MemoryStore, manifest_factory: Any) -> None:
    memory_store.publish(*manifest_factory(verdict=Verdict.FAILED, reason="accuracy fell"))
    with pytest.raises(PromotionRefused, match="cannot be waived"):
        promote(memory_store, "l4", 1, waiver="please")


def test_waiver_of_a_passed_engine_is_not_recorded(registry: MemoryStore) -> None:
    assert promote(registry, "l4", 1, waiver="not needed").waiver is None


def test_verdict_edited_in_the_registry_is_detected(memory_store: MemoryStore, manifest_factory: Any) -> None:
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


def test_promoting_the_current_version_changes_and_records_nothing(registry: MemoryStore) -> None:
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


def test_version_that_was_set_by_hand_is_judged_and_recorded_when_it_is_promoted(registry: MemoryStore) -> None:
    promote(registry, "l4", 1)
    registry.set_alias("sst2", "production-l4", 3)
    assert find_moved_past(registry, "sst2") == (
        "production-l4 points at version 3, but the history's last move is to 1: moved past Enginery",
    )
    event = promote(registry, "l4", 3)
    assert (event.from_version, event.to_version, event.outcome) == (1, 3, "done")
    assert find_moved_past(registry, "sst2") == ()
    assert rollback(registry, "l4").to_version == 1


def test_unproven_version_that_was_set_by_hand_is_not_recorded(
    memory_store: MemoryStore, manifest_factory: Any
) -> None:
    memory_store.publish(*manifest_factory(verdict=Verdict.UNMEASURED, reason="no GPU here"))
    memory_store.set_alias("sst2", "production-l4", 1)
    with pytest.raises(PromotionRefused, match="no GPU here"):
        promote(memory_store, "l4", 1)
    assert find_moved_past(memory_store, "sst2") == (
        "production-l4 points at version 1, but the history has no move of it: moved past Enginery",
    )


def test_an_alias_that_was_set_to_what_cannot_be_read_is_noticed_too(registry: MemoryStore) -> None:
    promote(registry, "l4", 1)
    registry._aliases["sst2"]["production-l4"] = 77
    assert find_moved_past(registry, "sst2") == (
        "production-l4 points at version 77, but the history's last move is to 1: moved past Enginery",
    )


def test_candidates_and_approvals_are_no_moves(registry: MemoryStore) -> None:
    nominate(registry, "sst2", "l4", 2)
    promote(registry, "l4", 1)
    promote(registry, "l4", 2, GUARDED)
    assert outcomes(registry)[-1] == ("approve", 1, 2, "done")
    assert find_moved_past(registry, "sst2") == find_moved_past(registry, "unknown") == ()


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


def test_rollback_of_a_move_by_hand_is_a_restore(registry: MemoryStore) -> None:
    promote(registry, "l4", 2)
    registry.set_alias("sst2", "production-l4", 3)
    assert rollback(registry, "l4").action == "restore"


def test_rollback_skips_a_version_only_set_by_hand(memory_store: MemoryStore, manifest_factory: Any) -> None:
    memory_store.publish(*manifest_factory(b"1", verdict=Verdict.UNMEASURED, reason="no GPU here"))
    memory_store.publish(*manifest_factory(b"2", sequence=2))
    memory_store.set_alias("sst2", "production-l4", 1)
    promote(memory_store, "l4", 2)
    with pytest.raises(PromotionRefused, match="no GPU here"):
        rollback(memory_store, "l4")


def test_rollback_goes_to_a_waived_version(memory_store: MemoryStore, manifest_factory: Any) -> None:
    memory_store.publish(*manifest_factory(b"1", verdict=Verdict.UNMEASURED, reason="no GPU here"))
    memory_store.publish(*manifest_factory(b"2", sequence=2))
    promote(memory_store, "l4", 1, waiver="measured by hand")
    promote(memory_store, "l4", 2)
    assert rollback(memory_store, "l4").to_version == 1


# The engines of the fixtures are built with TensorRT 11.0.
@pytest.mark.parametrize("serving", ["11", "11.0"])
def test_engine_of_the_served_tensorrt_is_promoted(serving: str, registry: MemoryStore) -> None:
    assert promote(registry, "l4", 1, TargetRules(serving=serving)).outcome == "done"


@pytest.mark.parametrize("serving", ["10", "11.1", "11.0.0", "1"])
def test_engine_of_another_tensorrt_is_refused(serving: str, registry: MemoryStore) -> None:
    with pytest.raises(PromotionRefused, match=rf"tensorrt 11\.0, and l4 serves {serving}"):
        promote(registry, "l4", 1, TargetRules(serving=serving))
    promote(registry, "l4", 1)
    promote(registry, "l4", 2)
    with pytest.raises(PromotionRefused, match="serves"):
        rollback(registry, "l4", TargetRules(serving=serving))
    assert registry.aliases("sst2") == {"production-l4": 2}


def test_protected_target_moves_when_two_people_promote_the_same_engine(store: Store, manifest_factory: Any) -> None:
    store.publish(*manifest_factory())
    assert promote(store, "l4", 1, GUARDED).action == "approve"
    assert store.aliases("sst2") == {}
    moved = promote(store, "l4", 1, GUARDED, who="ben")
    assert (moved.action, moved.outcome, moved.who, moved.approved_by) == ("promote", "done", "ben", "ana")
    assert store.aliases("sst2") == {"production-l4": 1}
    assert [(e.action, e.who, e.outcome) for e in read_history(store, "sst2")] == [
        ("approve", "ana", "done"),
        ("promote", "ben", "done"),
    ]


@pytest.mark.parametrize("who", ["ana", " Ana ", "ANA"])
def test_nobody_is_their_own_second_approver(who: str, registry: MemoryStore) -> None:
    promote(registry, "l4", 1, GUARDED)
    with pytest.raises(PromotionRefused, match="someone else"):
        promote(registry, "l4", 1, GUARDED, who=who)
    assert registry.aliases("sst2") == {}


def test_approval_counts_for_one_version_only(registry: MemoryStore) -> None:
    promote(registry, "l4", 1, GUARDED)
    assert promote(registry, "l4", 2, GUARDED, who="ben").action == "approve"
    assert registry.aliases("sst2") == {}
    assert promote(registry, "l4", 2, GUARDED).approved_by == "ben"


def test_approval_counts_for_the_same_bytes_only(registry: MemoryStore) -> None:
    promote(registry, "l4", 1, GUARDED)
    (approval,) = read_history(registry, "sst2")
    registry._events["sst2"] = [replace(approval, digest="0" * 64)]
    assert promote(registry, "l4", 1, GUARDED, who="ben").action == "approve"


def test_approval_is_used_up_by_the_move_and_by_a_rollback(registry: MemoryStore) -> None:
    promote(registry, "l4", 1)
    promote(registry, "l4", 2, GUARDED)
    promote(registry, "l4", 2, GUARDED, who="ben")
    promote(registry, "l4", 3, GUARDED)
    assert rollback(registry, "l4", GUARDED, who="cleo").to_version == 1
    for version in (2, 3):
        assert promote(registry, "l4", version, GUARDED, who="ben").action == "approve"
    assert registry.aliases("sst2") == {"production-l4": 1}


def test_approval_is_refused_like_a_promotion(memory_store: MemoryStore, manifest_factory: Any) -> None:
    memory_store.publish(*manifest_factory(verdict=Verdict.UNMEASURED, reason="no GPU here"))
    with pytest.raises(PromotionRefused, match="no GPU here"):
        promote(memory_store, "l4", 1, GUARDED)
    assert promote(memory_store, "l4", 1, GUARDED, waiver="canary").waiver == "canary"
    with pytest.raises(PromotionRefused, match="no GPU here"):
        promote(memory_store, "l4", 1, GUARDED, who="ben")


@pytest.fixture
def fleet(store: Store, manifest_factory: Any) -> Store:
    """Versions 1 and 3 for l4, 2 and 4 for h100."""
    for number, target in enumerate(("l4", "h100", "l4", "h100"), start=1):
        store.publish(*manifest_factory(bytes([number]), sequence=number, target=target))
    return store


def test_several_targets_move_and_go_back_together(fleet: Store) -> None:
    promotion.promote(fleet, "sst2", {"l4": 1, "h100": 2}, ANA, {})
    events = promotion.promote(fleet, "sst2", {"l4": 3, "h100": 4}, ANA, {})
    assert len({event.operation for event in events}) == 1
    assert fleet.aliases("sst2") == {"production-l4": 3, "production-h100": 4}
    assert [event.to_version for event in promotion.rollback(fleet, "sst2", ["l4", "h100"], ANA, {})] == [1, 2]
    assert fleet.aliases("sst2") == {"production-l4": 1, "production-h100": 2}
    assert {event.outcome for event in read_history(fleet, "sst2")} == {"done"}


def test_refusal_of_one_target_moves_none(fleet: Store) -> None:
    promote(fleet, "h100", 4)
    with pytest.raises(PromotionRefused, match="older"):
        promotion.promote(fleet, "sst2", {"l4": 1, "h100": 2}, ANA, {})
    with pytest.raises(BadInput, match="no recorded version"):
        promotion.rollback(fleet, "sst2", ["h100", "l4"], ANA, {})
    assert fleet.aliases("sst2") == {"production-h100": 4}


def test_unchanged_target_stays_while_others_move(fleet: Store) -> None:
    promote(fleet, "l4", 1)
    events = promotion.promote(fleet, "sst2", {"l4": 1, "h100": 2}, ANA, {})
    assert [event.outcome for event in events] == ["unchanged", "done"]
    assert len(read_history(fleet, "sst2")) == 2


def test_nothing_moves_until_each_protected_target_is_approved(fleet: Store) -> None:
    versions, rules = {"l4": 1, "h100": 2}, {"h100": GUARDED}
    (approval,) = promotion.promote(fleet, "sst2", versions, ANA, rules)
    assert (approval.alias, approval.action) == ("production-h100", "approve")
    assert fleet.aliases("sst2") == {}
    assert len(promotion.promote(fleet, "sst2", versions, BEN, rules)) == 2
    assert fleet.aliases("sst2") == {"production-l4": 1, "production-h100": 2}


@pytest.mark.parametrize("targets", [[], ["l4", "l4"]])
def test_targets_are_named_once_and_at_least_one(targets: list[str], registry: MemoryStore) -> None:
    with pytest.raises(BadInput, match="the targets are"):
        promotion.rollback(registry, "sst2", targets, ANA, {})
    with pytest.raises(BadInput, match="the targets are"):
        promotion.promote(registry, "sst2", {}, ANA, {})


def test_history_is_in_order_of_turns_when_the_clock_goes_back(fleet: Store) -> None:
    for day, version in ((23, 1), (1, 3)):
        promote(fleet, "l4", version, at=AT.replace(day=day))
    assert [event.to_version for event in read_history(fleet, "sst2")] == [1, 3]
    assert rollback(fleet, "l4", at=AT.replace(year=1970)).to_version == 1
    assert read_history(fleet, "sst2")[-1].action == "rollback"


def test_candidate_is_nominated_without_a_record(registry: MemoryStore) -> None:
    nominate(registry, "sst2", "l4", 3)
    assert registry.aliases("sst2") == {"candidate-l4": 3}
    assert read_history(registry, "sst2") == ()


def test_rollback_without_its_promotion_does_not_count(registry: MemoryStore) -> None:
    stray = replace(promote(registry, "l4", 1), event="e", action="rollback", outcome="done")
    registry.append_event(stray)
    with pytest.raises(BadInput, match="no recorded version"):
        rollback(registry, "l4")

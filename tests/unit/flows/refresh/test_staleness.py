"""Every reason for which an engine goes stale, alone; and what is no reason."""

from dataclasses import replace

import pytest

from flows.refresh.staleness import Engine, Facts, Stale, Toolchain, find_stale
from registry.records import Precision

FP32, FP16, INT8 = Precision.FP32, Precision.FP16, Precision.INT8
FACTS = Facts(
    model="sst2",
    source_revision="a" * 40,
    calibration_set="c" * 64,
    evaluation_set="e" * 64,
    profiles="[1]",
    combinations=(("cpu", FP32), ("l4", FP32), ("l4", INT8)),
    format_version=2,
    stand_ins=(FP16,),
)
CPU = Engine("cpu", FP32, 1, "a" * 40, None, "e" * 64, "[1]", "1.32.0", format_version=2)
L4 = Engine("l4", FP32, 2, "a" * 40, None, "e" * 64, "[1]", "11.4.0", "580.10", format_version=2)
L4_INT8 = replace(L4, precision=INT8, version=3, calibration_set="c" * 64)
ENGINES = (CPU, L4, L4_INT8)
TOOLCHAINS = {"cpu": Toolchain("ada", "1.32.0"), "l4": Toolchain("lovelace", "11.4.0", "580.10")}


def stale(
    facts: Facts = FACTS, engines: tuple[Engine, ...] = ENGINES, toolchains: dict[str, Toolchain] = TOOLCHAINS
) -> tuple[Stale, ...]:
    return find_stale(facts, engines, toolchains)


def versions(found: tuple[Stale, ...]) -> list[int | None]:
    return [each.version for each in found]


def test_nothing_is_stale_where_nothing_changed() -> None:
    assert stale() == ()


def test_a_moved_source_makes_every_engine_stale() -> None:
    found = stale(replace(FACTS, source_revision="b" * 40))
    assert versions(found) == [1, 2, 3]
    assert found[0] == Stale("sst2", "cpu", FP32, 1, "the source is bbbbbbbbbbbb, it was made of aaaaaaaaaaaa")


def test_a_new_calibration_set_makes_only_calibrated_engines_stale() -> None:
    found = stale(replace(FACTS, calibration_set="d" * 64))
    assert versions(found) == [3]
    assert "calibration set is dddddddddddd, it was calibrated on cccccccccccc" in found[0].reason


def test_other_evaluation_data_makes_every_engine_stale() -> None:
    found = stale(replace(FACTS, evaluation_set="f" * 64))
    assert versions(found) == [1, 2, 3]
    assert {"evaluation data" in each.reason for each in found} == {True}


def test_other_profiles_make_every_engine_stale() -> None:
    assert versions(stale(replace(FACTS, profiles="[2]"))) == [1, 2, 3]


def test_a_new_backend_version_makes_the_engines_of_its_target_stale() -> None:
    found = stale(toolchains={**TOOLCHAINS, "l4": Toolchain("lovelace", "11.5.0", "580.10")})
    assert versions(found) == [2, 3]
    assert found[0].reason == "lovelace builds with 11.5.0, it was built with 11.4.0"


def test_an_older_backend_version_is_another_one_too() -> None:
    assert versions(stale(toolchains={**TOOLCHAINS, "l4": Toolchain("lovelace", "11.3.0", "580.10")})) == [2, 3]


def test_a_new_driver_makes_stale_what_was_measured_with_another() -> None:
    found = stale(toolchains={**TOOLCHAINS, "l4": Toolchain("lovelace", "11.4.0", "590.01")})
    assert versions(found) == [2, 3]
    assert found[0].reason == "lovelace has driver 590.01, it was measured with 580.10"


@pytest.mark.parametrize(("measured", "reported"), [(None, "590.01"), ("580.10", None), (None, None)])
def test_a_driver_that_nobody_knows_is_no_reason(measured: str | None, reported: str | None) -> None:
    engines = (CPU, replace(L4, driver=measured), replace(L4_INT8, driver=measured))
    assert stale(engines=engines, toolchains={**TOOLCHAINS, "l4": Toolchain("x", "11.4.0", reported)}) == ()


def test_a_manifest_format_that_is_too_old_is_a_reason() -> None:
    found = stale(engines=(replace(CPU, format_version=1), L4, L4_INT8))
    assert versions(found) == [1]
    assert found[0].reason == "its manifest has format 1, the present one is 2"


@pytest.mark.parametrize("newer", [2, 3, None])
def test_a_present_a_newer_or_no_manifest_is_no_reason(newer: int | None) -> None:
    assert stale(engines=(replace(CPU, format_version=newer), L4, L4_INT8)) == ()


def test_a_version_that_was_deleted_is_a_reason() -> None:
    found = stale(engines=(replace(CPU, in_registry=False, format_version=None), L4, L4_INT8))
    assert [each.reason for each in found] == ["version 1 is no longer in the registry"]


def test_a_precision_that_is_new_in_the_recipe_lacks_its_engine() -> None:
    found = stale(engines=(CPU, L4))
    assert [(each.target, each.precision, each.version) for each in found] == [("l4", INT8, None)]
    assert "no engine of it yet" in found[0].reason


def test_a_target_that_is_new_in_the_recipe_lacks_all_its_engines() -> None:
    assert [(each.target, each.precision) for each in stale(engines=(CPU,))] == [("l4", FP32), ("l4", INT8)]


def test_a_target_that_no_machine_builds_lacks_nothing() -> None:
    assert stale(engines=(CPU,), toolchains={"cpu": TOOLCHAINS["cpu"]}) == ()


def test_what_a_target_that_no_machine_builds_has_can_still_be_stale() -> None:
    found = find_stale(replace(FACTS, source_revision="b" * 40), ENGINES, {})
    assert versions(found) == [1, 2, 3]


def test_what_was_tried_in_vain_is_not_tried_each_night() -> None:
    assert find_stale(FACTS, (CPU, L4), TOOLCHAINS, [("l4", INT8)]) == ()
    assert versions(find_stale(replace(FACTS, source_revision="b" * 40), (CPU, L4), TOOLCHAINS, [("l4", INT8)])) == [
        1,
        2,
    ]


def test_what_a_gate_failed_counts_as_made_and_goes_stale_like_the_rest() -> None:
    failed = replace(L4_INT8, version=None, format_version=None)
    assert stale(engines=(CPU, L4, failed)) == ()
    found = stale(replace(FACTS, calibration_set="d" * 64), engines=(CPU, L4, failed))
    assert [(each.precision, each.version) for each in found] == [(INT8, None)]


def test_what_stands_in_for_a_refused_precision_goes_stale_too() -> None:
    stand_in = replace(L4, precision=FP16, version=4, evaluation_set="f" * 64)
    assert [(each.precision, each.version) for each in stale(engines=(*ENGINES, stand_in))] == [(FP16, 4)]
    assert stale(replace(FACTS, stand_ins=()), engines=(*ENGINES, stand_in)) == ()


def test_engines_of_targets_that_left_the_recipe_are_left_alone() -> None:
    gone = replace(L4, target="t4", source_revision="z" * 40)
    assert stale(engines=(*ENGINES, gone)) == ()


def test_an_engine_that_does_not_say_what_it_was_made_of_is_stale() -> None:
    found = stale(engines=(replace(CPU, source_revision=""), L4, L4_INT8))
    assert "made of not recorded" in found[0].reason


def test_all_reasons_are_said_at_once() -> None:
    facts = replace(FACTS, source_revision="b" * 40, evaluation_set="f" * 64)
    found = stale(facts, toolchains={**TOOLCHAINS, "l4": Toolchain("x", "11.5.0", "590.01")})
    assert found[1].reason.count("; ") == 3

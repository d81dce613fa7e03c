"""A candidate against production: proven no worse, proven worse, neither, or not comparable."""

from dataclasses import replace

import numpy as np
import pytest

from registry.records import Machine, Measurement, Verdict
from tasks.verdicts.against_production import Measured, compare, is_undecided_over_production, read_measured
from tasks.verdicts.intervals import PairedLoss, paired_loss
from tests.support.manifests import ManifestFactory

L4 = Machine("x86", 8, "NVIDIA L4", "580.10")
PASSED, FAILED, INCONCLUSIVE, UNMEASURED = (
    Verdict.PASSED,
    Verdict.FAILED,
    Verdict.INCONCLUSIVE,
    Verdict.UNMEASURED,
)


def figure(metric: str, value: float, low: float | None, high: float | None, raw: str | None = None) -> Measurement:
    return Measurement(metric, value, "", 872, "engine", "d" * 64, L4, low, high, raw)


def measured(
    accuracy: tuple[float, float, float] = (0.90, 0.88, 0.92),
    loss: tuple[float, float, float] = (0.004, 0.001, 0.007),
    p50: tuple[float, float, float] = (2.0, 1.98, 2.02),
    p99: tuple[float, float | None, float | None] = (3.0, 2.95, 3.05),
    raw: str = "1" * 64,
) -> Measured:
    return Measured(
        (
            figure("accuracy", *accuracy, raw),
            figure("accuracy_loss", *loss),
            figure("latency_p50_ms", *p50),
            figure("latency_p99_ms", *p99),
        ),
        evaluation_set="e" * 64,
        source_revision="a" * 40,
        shape=(("batch", 8), ("sequence", 64)),
    )


def verdicts(candidate: Measured, production: Measured, paired: PairedLoss | None = None) -> list[Verdict]:
    return [
        result.verdict for result in compare(candidate, production, metric="accuracy", loss_max=0.01, paired=paired)
    ]


def test_an_engine_is_no_worse_than_one_that_measured_the_same() -> None:
    assert verdicts(measured(raw="2" * 64), measured()) == [PASSED] * 3


def test_the_same_answers_need_no_statistics() -> None:
    wide = (0.90, 0.50, 0.99)
    assert verdicts(measured(wide, loss=wide), measured(wide, loss=wide))[0] is PASSED


@pytest.mark.parametrize(("higher_is_better", "verdict"), [(True, FAILED), (False, PASSED)])
def test_of_another_source_fewer_errors_are_better(higher_is_better: bool, verdict: Verdict) -> None:
    low, high = measured((0.10, 0.09, 0.11), raw="2" * 64), measured((0.20, 0.19, 0.21))
    results = compare(
        replace(low, source_revision="b" * 40),
        high,
        metric="accuracy",
        loss_max=0.01,
        higher_is_better=higher_is_better,
    )
    assert results[0].verdict is verdict


@pytest.mark.parametrize(
    ("loss", "verdict"),
    [((0.03, 0.025, 0.035), FAILED), ((0.012, 0.009, 0.015), INCONCLUSIVE), ((0.004, 0.001, 0.007), PASSED)],
)
def test_losses_against_the_same_fp32_are_taken_as_far_apart_as_possible(
    loss: tuple[float, float, float], verdict: Verdict
) -> None:
    assert verdicts(measured(loss=loss, raw="2" * 64), measured())[0] is verdict


def test_accuracies_decide_where_the_sources_differ() -> None:
    new = replace(measured(raw="2" * 64), source_revision="b" * 40)
    assert verdicts(new, measured())[0] is INCONCLUSIVE
    sharp = replace(measured((0.95, 0.94, 0.96), raw="2" * 64), source_revision="b" * 40)
    assert verdicts(sharp, measured())[0] is PASSED
    worse = replace(measured((0.80, 0.78, 0.82), raw="2" * 64), source_revision="b" * 40)
    assert verdicts(worse, measured())[0] is FAILED


def test_a_paired_test_decides_where_the_answers_are_stored() -> None:
    right = np.ones(1000, bool)
    mostly = right.copy()
    mostly[:50] = False
    wide = replace(measured(raw="2" * 64), source_revision="b" * 40)
    assert verdicts(wide, measured(), paired_loss(right, right))[0] is PASSED
    assert verdicts(wide, measured(), paired_loss(right, mostly))[0] is FAILED


def test_other_evaluation_data_is_not_comparable() -> None:
    assert verdicts(replace(measured(), evaluation_set="f" * 64), measured())[0] is UNMEASURED


@pytest.mark.parametrize(
    ("p50", "verdict"),
    [
        ((2.5, 2.45, 2.55), FAILED),
        ((2.15, 2.0, 2.3), INCONCLUSIVE),
        ((2.1, 2.09, 2.11), PASSED),
        ((1.0, 0.9, 1.1), PASSED),
    ],
)
def test_a_call_time_must_be_proven_no_slower(p50: tuple[float, float, float], verdict: Verdict) -> None:
    assert verdicts(measured(p50=p50), measured())[1] is verdict


@pytest.mark.parametrize("p99", [(3.0, 2.9, None), (3.0, 2.9, float("nan")), (3.0, None, None)])
def test_a_bound_that_is_missing_proves_nothing(p99: tuple[float, float | None, float | None]) -> None:
    assert verdicts(measured(p99=p99), measured())[2] is INCONCLUSIVE
    assert verdicts(measured(), measured(p99=(3.0, None, 3.1)))[2] is INCONCLUSIVE


def test_another_kind_of_machine_is_not_comparable() -> None:
    there = measured()
    t4 = replace(
        there, measurements=tuple(replace(m, measured_on=replace(L4, gpu="Tesla T4")) for m in there.measurements)
    )
    results = compare(measured(), t4, metric="accuracy", loss_max=0.01)
    assert [result.verdict for result in results] == [PASSED, UNMEASURED, UNMEASURED]
    assert "measured on NVIDIA L4, production on Tesla T4" in results[1].reason


def test_a_newer_driver_is_the_same_machine() -> None:
    there = measured()
    newer = tuple(replace(m, measured_on=replace(L4, driver="590")) for m in there.measurements)
    assert verdicts(measured(), replace(there, measurements=newer)) == [PASSED] * 3


def test_other_shapes_are_not_comparable() -> None:
    other = replace(measured(), shape=(("batch", 1), ("sequence", 64)))
    assert verdicts(other, measured()) == [PASSED, UNMEASURED, UNMEASURED]


def test_figures_of_the_onnx_graph_count_for_nothing() -> None:
    there = measured()
    graph = replace(there, measurements=tuple(replace(m, subject="onnx-graph") for m in there.measurements))
    assert verdicts(measured(), graph) == [UNMEASURED] * 3
    assert verdicts(graph, measured()) == [UNMEASURED] * 3
    assert verdicts(replace(there, measurements=()), measured()) == [UNMEASURED] * 3


def test_a_figure_that_is_nan_is_unmeasured() -> None:
    nothing = measured(p50=(float("nan"), 1.9, 2.1))
    assert verdicts(nothing, measured())[1] is UNMEASURED


def beside(low: float, high: float | None, metric: str = "p50_over_production", against: str = "p" * 64) -> Measured:
    """A candidate that its release timed beside production's engine, which was a third as fast when it was new."""
    there = measured(p50=(6.0, 5.9, 6.1), p99=(9.0, 8.9, 9.1))
    ratio = replace(figure(metric, (low + (high or low)) / 2, low, high), against=against)
    return replace(there, measurements=(*there.measurements, ratio))


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [(0.9, 1.04, PASSED), (1.06, 1.2, FAILED), (0.98, 1.08, INCONCLUSIVE), (0.5, None, INCONCLUSIVE)],
)
def test_calls_that_were_timed_side_by_side_decide_and_not_old_figures(
    low: float, high: float | None, verdict: Verdict
) -> None:
    production = replace(measured(), digest="p" * 64)
    result = compare(beside(low, high), production, metric="accuracy", loss_max=0.01)[1]
    assert result.verdict is verdict
    assert "timed side by side" in result.reason
    assert ("it regressed" in result.reason) == (verdict is FAILED)


def test_calls_beside_another_engine_than_the_one_in_production_decide_nothing() -> None:
    production = replace(measured(), digest="q" * 64)
    result = compare(beside(0.9, 1.0), production, metric="accuracy", loss_max=0.01)[1]
    assert result.verdict is FAILED
    assert "each by its own release" in result.reason


def test_p99_is_held_to_a_wider_limit() -> None:
    production = replace(measured(), digest="p" * 64)
    result = compare(beside(0.9, 1.09, "p99_over_production"), production, metric="accuracy", loss_max=0.01)[2]
    assert result.verdict is PASSED


def test_only_an_open_p50_needs_more_calls() -> None:
    assert is_undecided_over_production(beside(0.98, 1.08).measurements)
    assert not is_undecided_over_production(beside(0.9, 1.04).measurements)
    assert not is_undecided_over_production(beside(0.5, 1.5, "p99_over_production").measurements)


def test_a_manifest_says_what_was_measured_and_with_which_calls(manifest_factory: ManifestFactory) -> None:
    manifest, _ = manifest_factory()
    found = read_measured(manifest)
    assert found.measurements == manifest.measurements
    assert (found.digest, found.evaluation_set) == (manifest.build.digest, manifest.evaluation_set)
    assert dict(found.shape) == {"batch": 8, "sequence": 64}
    assert read_measured(replace(manifest, build=replace(manifest.build, profiles=()))).shape == ()

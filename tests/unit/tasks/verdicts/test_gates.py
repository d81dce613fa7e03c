"""Gates: a missing measurement never passes, and an interval passes only as a whole."""

import math
from dataclasses import replace

import pytest

from registry.records import GateResult, Machine, Measurement, Verdict
from tasks.verdicts.gates import MEGABYTE, Limits, find, judge, overall

PASSED, FAILED = Verdict.PASSED, Verdict.FAILED
INCONCLUSIVE, UNMEASURED = Verdict.INCONCLUSIVE, Verdict.UNMEASURED
LIMITS = Limits("accuracy", loss_max=0.01, latency_p99_ms_max=10.0, speedup_min=1.0, size_mb_max=5.0)
NAN, INF = math.nan, math.inf


def figure(
    metric: str, value: float, low: float | None = None, high: float | None = None, *, subject: str = "engine"
) -> Measurement:
    return Measurement(metric, value, "unit", 500, subject, "d" * 64, Machine("x86", 2), low, high)


GOOD = (
    figure("accuracy_loss", 0.0, -0.005, 0.005),
    figure("latency_p99_ms", 5.0, 4.5, 5.5),
    figure("latency_under_load", 0.0),
    figure("speedup", 2.0, 1.9, 2.1),
)


def verdicts(
    *changed: Measurement, without: str = "", limits: Limits = LIMITS, size: int = MEGABYTE
) -> dict[str, Verdict]:
    """Judge GOOD, with the figures of `changed` in place of their namesakes; verdict by gate."""
    replaced = {without, *(measurement.metric for measurement in changed)}
    unchanged = [measurement for measurement in GOOD if measurement.metric not in replaced]
    results = judge([*unchanged, *changed], limits, size_bytes=size, is_baseline=False)
    return {result.gate: result.verdict for result in results}


def test_good_figures_pass_every_gate() -> None:
    assert verdicts() == dict.fromkeys(("accuracy_loss", "latency_p99", "speedup", "size_mb"), PASSED)


def test_no_measurement_at_all_passes_nothing_but_size() -> None:
    results = judge([], LIMITS, size_bytes=1, is_baseline=False)
    assert {result.gate: result.verdict for result in results} == {
        "accuracy_loss": UNMEASURED,
        "latency_p99": UNMEASURED,
        "speedup": UNMEASURED,
        "size_mb": PASSED,
    }
    assert overall(results)[0] is UNMEASURED


@pytest.mark.parametrize(
    ("metric", "gate"), [("accuracy_loss", "accuracy_loss"), ("latency_p99_ms", "latency_p99"), ("speedup", "speedup")]
)
@pytest.mark.parametrize("value", [NAN, INF, -INF, None])
def test_a_figure_that_is_absent_or_not_finite_is_unmeasured(metric: str, gate: str, value: float | None) -> None:
    expected = verdicts() | {gate: UNMEASURED}
    if value is None:
        assert verdicts(without=metric) == expected
    else:
        assert verdicts(figure(metric, value, 0.0, 0.0)) == expected


@pytest.mark.parametrize("value", [0.0, 5.0])
@pytest.mark.parametrize(("low", "high"), [(NAN, NAN), (-INF, INF)])
def test_bounds_that_are_not_numbers_never_pass(value: float, low: float, high: float) -> None:
    metrics = ("accuracy_loss", "latency_p99_ms", "speedup")
    assert verdicts(*(figure(metric, value, low, high) for metric in metrics)) == {
        "accuracy_loss": INCONCLUSIVE,
        "latency_p99": INCONCLUSIVE,
        "speedup": INCONCLUSIVE,
        "size_mb": PASSED,
    }


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [
        (-0.02, 0.0, PASSED),
        (-0.01, 0.01, PASSED),
        (-0.01, 0.0101, INCONCLUSIVE),
        (0.01, 0.02, INCONCLUSIVE),
        (0.0101, 0.02, FAILED),
        (None, 0.02, INCONCLUSIVE),
        (None, None, PASSED),
    ],
)
def test_accuracy_passes_only_with_its_whole_interval(low: float | None, high: float | None, verdict: Verdict) -> None:
    assert verdicts(figure("accuracy_loss", 0.005, low, high))["accuracy_loss"] is verdict


@pytest.mark.parametrize(
    ("low", "high", "verdict"), [(0.02, 0.05, FAILED), (-0.5, -0.1, UNMEASURED), (0.0, 0.05, UNMEASURED)]
)
def test_accuracy_of_the_onnx_graph_can_fail_an_engine_and_never_pass_it(
    low: float, high: float, verdict: Verdict
) -> None:
    assert verdicts(figure("accuracy_loss", low, low, high, subject="onnx-graph"))["accuracy_loss"] is verdict


@pytest.mark.parametrize("metric", ["latency_p99_ms", "speedup"])
def test_speed_of_anything_but_the_engine_is_no_measurement(metric: str) -> None:
    gates = verdicts(figure(metric, 5.0, 5.0, 5.0, subject="onnx-graph"))
    assert gates[metric.removesuffix("_ms")] is UNMEASURED


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [
        (7.0, 8.0, PASSED),
        (7.0, 10.0, PASSED),
        (7.0, 10.1, INCONCLUSIVE),
        (10.0, 13.0, INCONCLUSIVE),
        (10.1, 13.0, FAILED),
        (7.0, None, INCONCLUSIVE),
        (7.0, INF, INCONCLUSIVE),
        (7.0, NAN, INCONCLUSIVE),
        (NAN, 13.0, INCONCLUSIVE),
    ],
)
def test_p99_passes_only_with_its_whole_interval(low: float | None, high: float | None, verdict: Verdict) -> None:
    assert verdicts(figure("latency_p99_ms", 8.0, low, high))["latency_p99"] is verdict


@pytest.mark.parametrize("load", [0.3, 1.0, NAN])
def test_a_limit_that_holds_beside_other_work_is_held_and_one_that_does_not_may_still_be(load: float) -> None:
    under_load = figure("latency_under_load", load)
    fast, slow = figure("latency_p99_ms", 8.0, 7.0, 9.0), figure("latency_p99_ms", 12.0, 11.0, 13.0)
    assert verdicts(fast, under_load)["latency_p99"] is PASSED
    assert verdicts(slow, under_load)["latency_p99"] is INCONCLUSIVE
    assert verdicts(slow, without="latency_under_load")["latency_p99"] is FAILED


def test_latency_must_be_measured_even_without_a_limit() -> None:
    free = replace(LIMITS, latency_p99_ms_max=None)
    assert verdicts(figure("latency_p99_ms", 1e6), limits=free)["latency_p99"] is PASSED
    assert verdicts(without="latency_p99_ms", limits=free)["latency_p99"] is UNMEASURED


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [
        (1.0, 1.2, PASSED),
        (0.99, 1.2, INCONCLUSIVE),
        (0.8, 1.0, INCONCLUSIVE),
        (0.8, 0.99, FAILED),
    ],
)
def test_speedup_passes_only_with_its_whole_interval(low: float, high: float, verdict: Verdict) -> None:
    assert verdicts(figure("speedup", 1.0, low, high))["speedup"] is verdict


@pytest.mark.parametrize(
    ("size", "verdict"), [(5 * MEGABYTE, PASSED), (5 * MEGABYTE + 1, FAILED), (50 * MEGABYTE, FAILED), (0, PASSED)]
)
def test_a_size_over_its_limit_fails(size: int, verdict: Verdict) -> None:
    assert verdicts(size=size)["size_mb"] is verdict


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [(0.0, 0.01, PASSED), (0.0, 0.011, INCONCLUSIVE), (0.011, 0.02, FAILED), (0.01, 0.02, INCONCLUSIVE)],
)
def test_answers_that_depend_on_their_batch_pass_only_with_the_whole_interval(
    low: float, high: float, verdict: Verdict
) -> None:
    limits = replace(LIMITS, batch_flips_max=0.01)
    flips = figure("batch_flips", 0.01, low, high)
    assert verdicts(flips, limits=limits)["batch_flips"] is verdict
    assert verdicts(replace(flips, subject="onnx-graph"), limits=limits)["batch_flips"] is UNMEASURED
    assert verdicts(limits=limits)["batch_flips"] is UNMEASURED


@pytest.mark.parametrize(("quality", "loss"), [(0.0, 0.0), (0.1, -0.1), (-0.1, 0.1)])
def test_of_nothing_that_fp32_has_right_nothing_can_be_lost(quality: float, loss: float) -> None:
    figures = (figure("accuracy", quality), figure("accuracy_loss", loss, -0.2, 0.0), *GOOD[1:])
    (result, *_) = judge(figures, LIMITS, size_bytes=1, is_baseline=False)
    assert (result.gate, result.verdict) == ("accuracy_loss", UNMEASURED)
    assert f"fp32 itself has accuracy {quality + loss:.2%}" in result.reason
    (error_rate, *_) = judge(figures, replace(LIMITS, higher_is_better=False), size_bytes=1, is_baseline=False)
    assert error_rate.verdict is PASSED
    some = (figure("accuracy", 0.3), *GOOD)
    assert judge(some, LIMITS, size_bytes=1, is_baseline=False)[0].verdict is PASSED


def test_a_limit_that_is_not_set_is_no_gate() -> None:
    assert set(verdicts(limits=Limits("accuracy", 0.01), size=10**12)) == {"accuracy_loss", "latency_p99"}


def test_the_baseline_has_no_speedup_gate() -> None:
    results = judge(GOOD[:3], LIMITS, size_bytes=1, is_baseline=True)
    assert [result.gate for result in results] == ["accuracy_loss", "latency_p99", "size_mb"]
    assert overall(results)[0] is PASSED


def test_no_results_are_unmeasured() -> None:
    assert overall([]) == (UNMEASURED, "no gate was evaluated")


def test_the_worst_verdict_wins_with_the_reasons_of_its_kind_only() -> None:
    worst_first = [FAILED, UNMEASURED, INCONCLUSIVE, PASSED]
    for worst in range(4):
        results = [GateResult(f"g{n}", verdict, f"r{n}") for n, verdict in enumerate(worst_first[worst:])]
        assert overall(results[::-1]) == (worst_first[worst], "r0")
    failed = [GateResult("a", FAILED, "one"), GateResult("b", PASSED, "two"), GateResult("c", FAILED, "three")]
    assert overall(failed) == (FAILED, "one; three")
    passed = [GateResult("a", PASSED, "one"), GateResult("b", PASSED, "two")]
    assert overall(passed) == (PASSED, "one; two")


def test_every_reason_has_its_figure_and_its_limit() -> None:
    reasons = {result.gate: result.reason for result in judge(GOOD, LIMITS, size_bytes=6 * MEGABYTE, is_baseline=False)}
    assert "+0.00% (95 % bounds -0.50% to +0.50%), limit 1.00%" in reasons["accuracy_loss"]
    assert reasons["latency_p99"] == "p99 5.00 ms (4.50 to 5.50), limit 10 ms"
    assert "speed-up over fp32 2.00 (1.90 to 2.10), minimum 1" in reasons["speedup"]
    assert reasons["size_mb"] == "6.0 MB, limit 5 MB"


def test_find_returns_the_first_of_a_metric_or_none() -> None:
    assert find(GOOD, "speedup") is GOOD[3]
    assert find(GOOD, "flips") is None


def test_an_undecided_loss_says_how_many_rows_would_decide_it() -> None:
    close = judge([figure("accuracy_loss", 0.005, -0.005, 0.015)], LIMITS, size_bytes=1, is_baseline=False)[0]
    assert "500 rows are too few to prove it; about 4,600 rows would decide it" in close.reason
    at = judge([figure("accuracy_loss", 0.01, 0.0, 0.02)], LIMITS, size_bytes=1, is_baseline=False)[0]
    assert "more rows would hardly decide it" in at.reason

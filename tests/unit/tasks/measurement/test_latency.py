"""Latency windows: interleaved in time, raw times stored, real tokens fed."""

import hashlib
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from registry.records import Machine, Tensor
from tasks.measurement.foreign_load import LoadCounters
from tasks.measurement.gpu_load import GpuState
from tasks.measurement.latency import Probes, interleave, make_feed, measure_until_decided
from tasks.measurement.latency_figures import LatencyRule, latency_measurements
from tasks.measurement.windows import LatencyPlan, Windows, load_windows, save_benchmark, save_windows
from tasks.model_tasks.inputs.texts import FeedDict
from tasks.verdicts.gates import Limits, find
from tasks.verdicts.intervals import ratio_interval

PLAN = LatencyPlan(windows=4, iterations=5, warmup=3, sizes=(("batch", 2), ("sequence", 3)))
FEED: FeedDict = {"input_ids": np.ones((2, 3), dtype=np.int64)}


@dataclass
class Timeline:
    """A clock that only sessions advance, and the order in which they ran."""

    now: float = 0.0
    drift: float = 0.0
    calls: list[str] = field(default_factory=list)

    def clock(self) -> float:
        return self.now


@dataclass
class Session:
    """Takes `seconds` per call on a machine that slows down by `timeline.drift` of itself each second."""

    name: str
    seconds: float
    timeline: Timeline

    def run(self, feed: FeedDict) -> list[NDArray[np.float32]]:
        assert feed is FEED
        self.timeline.calls.append(self.name)
        self.timeline.now += self.seconds * (1 + self.timeline.drift * self.timeline.now)
        return []


def sessions(timeline: Timeline, **seconds: float) -> dict[str, Session]:
    return {name: Session(name, duration, timeline) for name, duration in seconds.items()}


def test_windows_reverse_after_the_warm_up_of_all() -> None:
    timeline, done = Timeline(), list[float]()
    interleave(sessions(timeline, A=1, B=2, C=3), FEED, PLAN, done.append, timeline.clock)
    warm, timed = timeline.calls[:9], timeline.calls[9:]
    assert "".join(warm) == "AAABBBCCC"
    assert len(timed) == 3 * PLAN.windows * PLAN.iterations
    assert "".join(timed[:: PLAN.iterations]) == "ABCCBAABCCBA"
    assert "".join(timed) == "".join(5 * name for name in "ABCCBAABCCBA")
    assert done == [0.25, 0.5, 0.75, 1.0]


def test_every_call_is_timed_by_itself() -> None:
    timeline = Timeline()
    times = interleave(sessions(timeline, A=1, B=2), FEED, PLAN, clock=timeline.clock)
    assert {name: (seconds.shape, seconds.dtype) for name, seconds in times.items()} == {
        "A": ((4, 5), np.dtype(np.float64)),
        "B": ((4, 5), np.dtype(np.float64)),
    }
    np.testing.assert_array_equal(times["A"], 1)
    np.testing.assert_array_equal(times["B"], 2)


@pytest.mark.parametrize("drift", [1e-4, -1e-4])
def test_a_drift_linear_in_time_cancels_in_the_ratio(drift: float) -> None:
    """Of two equally fast sessions the first would always win on a machine that gets slower, were the order kept."""
    timeline, plan = Timeline(drift=drift), replace(PLAN, windows=10)
    times = interleave(sessions(timeline, A=1, B=1), FEED, plan, clock=timeline.clock)
    first, second = (np.median(times[name], axis=1) for name in "AB")
    ratio, low, high = ratio_interval(first, second)
    assert abs(np.median(first / second) - 1) < 1e-4
    assert ratio == pytest.approx(1, abs=2e-5)
    assert low < 1 < high
    # Within a single window, or with the order kept, the drift is plain to see.
    assert abs(first[0] / second[0] - 1) > 3e-4


@pytest.mark.parametrize(("batch", "sequence"), [(1, 4), (8, 32), (3, 7), (64, 128)])
def test_a_make_feed_has_the_planned_shape_and_no_padding(batch: int, sequence: int) -> None:
    tokens = [np.array([[101, 7, 8, 102]]), np.array([[101, 9, 102]])]
    rows = [{"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": 0 * ids} for ids in tokens]
    inputs = [Tensor(name, "int64", ("batch_size", "sequence_length")) for name in rows[0]]
    feed = make_feed(rows, inputs, {"batch": batch, "sequence": sequence})
    assert list(feed) == ["input_ids", "attention_mask", "token_type_ids"]
    assert all(value.shape == (batch, sequence) and value.dtype == np.int64 for value in feed.values())
    assert feed["attention_mask"].all()
    joined = [101, 7, 8, 102, 101, 9, 102]
    assert feed["input_ids"].ravel().tolist() == [joined[n % 7] for n in range(batch * sequence)]


HOST = Machine("x86", 2)


@dataclass
class Load:
    """Other work that a list foretells, group by group; then none."""

    busy: list[bool] = field(default_factory=list)
    reads: int = 0
    busy_seconds: float = 0.0

    def read(self) -> LoadCounters:
        group, is_end = divmod(self.reads, 2)
        self.busy_seconds += bool(is_end and group < len(self.busy) and self.busy[group])
        self.reads += 1
        return LoadCounters(
            at=float(self.reads),
            pressure=self.reads,
            busy=self.busy_seconds,
            steal=0,
            cpu=2 * self.reads,
            waited=0,
            ran=0,
        )


def measure(
    timeline: Timeline,
    seconds: dict[str, float],
    limits: Limits | None,
    *,
    kept: Windows | None = None,
    load: Load | None = None,
    plan: LatencyPlan = PLAN,
    promotes: bool = False,
) -> Windows:
    """Measure sessions against the baseline A."""
    empty = Windows.empty(seconds, "A", plan)
    return measure_until_decided(
        sessions(timeline, **seconds),
        FEED,
        empty if kept is None else replace(kept, plan=plan),
        LatencyRule(limits, HOST, promotes=promotes),
        probes=Probes(timeline.clock, (load or Load()).read),
    )


SPEEDUP = Limits("accuracy", 0.01, speedup_min=1.0)


def test_a_clear_case_is_over_at_the_first_look() -> None:
    windows = measure(Timeline(), {"A": 2, "B": 1}, SPEEDUP)
    assert {name: times.shape for name, times in windows.times.items()} == {"A": (4, 5), "B": (4, 5)}


@dataclass
class Noisy(Session):
    """As fast as the baseline, but for what chance does to each of its windows, or of its calls."""

    each_call: bool = False

    def run(self, feed: FeedDict) -> list[NDArray[np.float32]]:
        calls = self.timeline.calls.count(self.name)
        seed = calls if self.each_call else calls // PLAN.iterations
        self.seconds = float(np.exp(np.random.default_rng([seed, ord(self.name)]).normal(0, 0.1)))
        return super().run(feed)


@pytest.mark.parametrize(("limits", "promotes"), [(Limits("none", 0, latency_p99_ms_max=1e6), False), (None, True)])
def test_a_p99_needs_the_calls_that_bound_it(limits: Limits | None, promotes: bool) -> None:
    timeline, plan = Timeline(), replace(PLAN, seconds_max=1e9)
    windows = measure_until_decided(
        {name: Noisy(name, 1, timeline, each_call=True) for name in "AB"},
        FEED,
        Windows.empty("AB", "A", plan),
        LatencyRule(limits, HOST, promotes=promotes),
        probes=Probes(timeline.clock, Load().read),
    )
    for name in "AB":
        p99 = find(latency_measurements(windows, name, HOST), "latency_p99_ms")
        assert p99
        assert p99.high
        assert p99.samples >= 459  # LoadGen's least


def test_undecided_engines_are_timed_on_and_a_later_run_goes_on_with_them(tmp_path: Path) -> None:
    timeline, plan = Timeline(), replace(PLAN, seconds_max=500)
    three: dict[str, Session] = sessions(timeline, A=1, B=0.25) | {"C": Noisy("C", 1, timeline)}
    rule = LatencyRule(SPEEDUP, HOST)

    def go_on(windows: Windows, names: str) -> Windows:
        timed = {name: three[name] for name in names}
        return measure_until_decided(timed, FEED, windows, rule, probes=Probes(timeline.clock, Load().read))

    first = go_on(Windows.empty("ABC", "A", plan), "ABC")
    assert rule(first) == ("C",)
    assert len(first.times["B"]) == 4
    assert first.count == len(first.times["A"]) == len(first.times["C"]) > 4
    save_windows(first, tmp_path / "kept")
    kept = load_windows(tmp_path / "kept", Windows.empty("ABC", "A", plan))
    timeline.calls.clear()
    again = go_on(kept, "AC")
    assert again.count > first.count
    assert set(timeline.calls) == {"A", "C"}
    for name in "ABC":
        np.testing.assert_array_equal(again.times[name][: len(first.times[name])], first.times[name])
    assert load_windows(tmp_path / "kept", Windows.empty("AD", "A", plan)).count == 0
    (tmp_path / "kept").write_bytes(b"PK torn")
    assert load_windows(tmp_path / "kept", Windows.empty("ABC", "A", plan)).count == 0


def test_the_looks_end_even_where_nothing_is_ever_decided() -> None:
    timeline, plan = Timeline(), replace(PLAN, seconds_max=1e9)
    windows = measure_until_decided(
        sessions(timeline, A=1) | {"B": Noisy("B", 1, timeline)},
        FEED,
        Windows.empty("AB", "A", plan),
        LatencyRule(SPEEDUP, HOST),
        probes=Probes(timeline.clock, Load().read),
    )
    assert windows.count == 4 * 27


def test_the_first_look_is_measured_however_little_time_there_is() -> None:
    windows = measure(Timeline(), {"A": 1, "B": 1.001}, SPEEDUP, plan=replace(PLAN, seconds_max=0.001))
    assert windows.count == 4


def test_windows_beside_other_work_are_left_out_of_an_engine_alone_and_kept_for_the_ratio() -> None:
    load = Load([True, False, False, True])
    limits = replace(SPEEDUP, latency_p99_ms_max=1.0)
    windows = measure(Timeline(), {"A": 2, "B": 1}, limits, load=load, plan=replace(PLAN, seconds_max=200))
    dropped = int(windows.disturbed.sum())
    assert windows.disturbed[:8].tolist() == [True, True, False, False, False, False, True, True]
    figures = latency_measurements(windows, "B", HOST)
    p50, speedup = find(figures, "latency_p50_ms"), find(figures, "speedup")
    assert p50
    assert speedup
    assert p50.samples == (windows.count - dropped) * PLAN.iterations
    assert speedup.value == pytest.approx(2)
    assert f"{dropped} of {windows.count} windows were disturbed" in windows.describe_dropped()
    assert windows.describe_dropped().endswith("(other processes used the CPUs in 4)")


def test_a_slowed_gpu_is_dropped_and_how_it_ran_is_told_and_kept(tmp_path: Path) -> None:
    quiet = GpuState(1980, 300, 50, power_capped=False, slowed=(), others=0)
    hot = GpuState(1200, 500, 90, power_capped=True, slowed=("the GPU slowed down because it was hot",), others=0)
    states, timeline = iter([quiet, hot, quiet, quiet]), Timeline()
    windows = measure_until_decided(
        sessions(timeline, A=2, B=1),
        FEED,
        Windows.empty("AB", "A", replace(PLAN, windows=8)),
        LatencyRule(SPEEDUP, HOST),
        probes=Probes(timeline.clock, Load().read, lambda: next(states)),
    )
    assert windows.disturbed.tolist() == [False, False, True, True, False, False, False, False]
    assert windows.describe_dropped() == "2 of 8 windows were disturbed (the GPU slowed down because it was hot in 2)"
    save_windows(windows, tmp_path / "kept")
    kept = load_windows(tmp_path / "kept", Windows.empty("AB", "A", windows.plan))
    told = {figure.metric: figure for figure in latency_measurements(kept, "B", HOST)}
    clock, capped = told["gpu_sm_clock_mhz"], told["gpu_power_capped"]
    assert (clock.value, clock.low, clock.high, capped.value) == (1785, 1200, 1980, 0.25)
    assert not [name for name in figures_on_a_cpu() if name.startswith("gpu")]


def figures_on_a_cpu() -> list[str]:
    windows = measure(Timeline(), {"A": 2, "B": 1}, SPEEDUP)
    return [figure.metric for figure in latency_measurements(windows, "B", HOST)]


def test_a_machine_that_is_always_busy_decides_a_speedup_and_fails_no_limit() -> None:
    plan, busy = replace(PLAN, seconds_max=2000), Load([True] * 10_000)
    windows = measure(Timeline(), {"A": 2, "B": 1}, SPEEDUP, load=busy, plan=plan)
    assert windows.count == 4
    windows = measure(Timeline(), {"A": 2, "B": 1}, replace(SPEEDUP, latency_p99_ms_max=1.0), load=busy, plan=plan)
    under_load = find(latency_measurements(windows, "B", HOST), "latency_under_load")
    assert under_load
    assert under_load.value == 1
    assert windows.describe_dropped()


def test_raw_times_are_saved_with_the_digest_of_their_bytes(tmp_path: Path) -> None:
    times = {name * 64: np.random.default_rng(ord(name)).random((4, 5)) for name in "ba"}
    windows = Windows(
        "b" * 64, PLAN, times, np.array([False, True, False, False]), {"load": 1}, np.full((4, 4), np.nan)
    )
    saved = save_benchmark(windows, undecided=(), measured_on=HOST, boundary="host", into=tmp_path)
    assert saved.engine_digests == ("a" * 64, "b" * 64)
    for digest, seconds in times.items():
        np.testing.assert_array_equal(saved.seconds(digest), seconds)
        content = (tmp_path / f"{digest}.npy").read_bytes()
        assert saved.raw_digest(digest) == hashlib.sha256(content).hexdigest()
    assert saved.raw_digest("a" * 64) != saved.raw_digest("b" * 64)
    assert replace(saved, directory=Path("/elsewhere")) == saved
    again = saved.windows()
    assert (again.baseline, again.plan, again.reasons) == (windows.baseline, PLAN, {"load": 1})
    np.testing.assert_array_equal(again.disturbed, windows.disturbed)


def test_production_is_timed_as_long_as_any_and_compared_in_the_same_windows() -> None:
    timeline, plan = Timeline(), replace(PLAN, seconds_max=500)
    engines: dict[str, Session] = sessions(timeline, A=1, B=0.5, P=0.4) | {"C": Noisy("C", 1, timeline)}
    rule = LatencyRule(SPEEDUP, HOST, judged=("A", "B", "C"))
    empty = Windows.empty("ABPC", "A", plan, production="P")
    windows = measure_until_decided(engines, FEED, empty, rule, probes=Probes(timeline.clock, Load().read))
    assert rule(windows) == ("C",)  # and never production, which nobody judges
    assert windows.count == len(windows.times["P"]) == len(windows.times["C"]) > len(windows.times["B"])
    ratio = find(latency_measurements(windows, "B", HOST), "p50_over_production")
    p99 = find(latency_measurements(windows, "A", HOST), "p99_over_production")
    assert ratio
    assert p99
    assert ratio.against == "P"
    assert ratio.value == pytest.approx(1.25)
    assert p99.value == pytest.approx(2.5)
    assert find(latency_measurements(windows, "P", HOST), "p50_over_production") is None


@pytest.mark.parametrize("promotes", [False, True])
def test_a_recipe_that_promotes_measures_until_production_is_told_apart(promotes: bool) -> None:
    """B is 4 % slower than production, less than what is allowed, and three times as fast as the baseline."""
    timeline, plan = Timeline(), replace(PLAN, seconds_max=1e9)
    engines: dict[str, Session] = sessions(timeline, A=3, P=1) | {"B": Noisy("B", 1.04, timeline, each_call=True)}
    rule = LatencyRule(replace(SPEEDUP, speedup_min=2.0), HOST, promotes=promotes, judged=("B",))
    empty = Windows.empty("APB", "A", plan, production="P")
    windows = measure_until_decided(engines, FEED, empty, rule, probes=Probes(timeline.clock, Load().read))
    assert (windows.count > plan.windows) == promotes


def test_what_fails_a_gate_is_measured_no_longer() -> None:
    limits = replace(SPEEDUP, latency_p99_ms_max=1e6)  # twenty calls cannot bound p99
    windows = measure(Timeline(), {"A": 1, "B": 2}, limits, plan=replace(PLAN, seconds_max=1e9))
    assert len(windows.times["B"]) == PLAN.windows < len(windows.times["A"])


def test_production_is_kept_with_the_raw_times(tmp_path: Path) -> None:
    windows = measure(Timeline(), {"A": 1, "B": 2}, None)
    windows = replace(windows, production="B")
    benchmark = save_benchmark(windows, undecided=(), measured_on=HOST, boundary="", into=tmp_path)
    assert benchmark.windows().production == "B"

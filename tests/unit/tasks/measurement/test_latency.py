"""Latency windows: interleaved in time, raw times stored, real tokens fed."""

import hashlib
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from registry.records import Machine, Tensor
from tasks.measurement.latency import LatencyPlan, interleave, latency_feed, save_benchmark
from tasks.model_tasks.inputs.texts import FeedDict
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
def test_a_latency_feed_has_the_planned_shape_and_no_padding(batch: int, sequence: int) -> None:
    tokens = [np.array([[101, 7, 8, 102]]), np.array([[101, 9, 102]])]
    rows = [{"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": 0 * ids} for ids in tokens]
    inputs = [Tensor(name, "int64", ("batch_size", "sequence_length")) for name in rows[0]]
    feed = latency_feed(rows, inputs, replace(PLAN, sizes=(("batch", batch), ("sequence", sequence))))
    assert list(feed) == ["input_ids", "attention_mask", "token_type_ids"]
    assert all(value.shape == (batch, sequence) and value.dtype == np.int64 for value in feed.values())
    assert feed["attention_mask"].all()
    joined = [101, 7, 8, 102, 101, 9, 102]
    assert feed["input_ids"].ravel().tolist() == [joined[n % 7] for n in range(batch * sequence)]


def test_raw_times_are_saved_with_the_digest_of_their_bytes(tmp_path: Path) -> None:
    times = {name * 64: np.random.default_rng(ord(name)).random((4, 5)) for name in "ba"}
    saved = save_benchmark(
        times, baseline_digest="b" * 64, plan=PLAN, measured_on=Machine("x86", 2), boundary="host", into=tmp_path
    )
    assert saved.engine_digests == ("a" * 64, "b" * 64)
    for digest, seconds in times.items():
        np.testing.assert_array_equal(saved.seconds(digest), seconds)
        content = (tmp_path / f"{digest}.npy").read_bytes()
        assert saved.raw_digest(digest) == hashlib.sha256(content).hexdigest()
    assert saved.raw_digest("a" * 64) != saved.raw_digest("b" * 64)
    assert replace(saved, directory=Path("/elsewhere")) == saved

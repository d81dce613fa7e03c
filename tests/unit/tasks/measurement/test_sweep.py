"""A sweep over the sizes of a profile: opt first, interleaved, within its time, and raw times behind each median."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from registry.digest import record_tree
from registry.records import AxisRange, Machine, ShapeProfile
from tasks.backends.contract import PhaseTimes
from tasks.measurement.sweep import MOST_CALLS, Sweep, list_sizes, sweep

PROFILE = ShapeProfile.of(batch=AxisRange(1, 8, 32), sequence=AxisRange(4, 32, 64))
FEEDS = [{"x": np.zeros(size)} for size in (8, 1, 32)]


@dataclass
class Timeline:
    now: float = 0.0
    order: list[str] = field(default_factory=list)


@dataclass
class Session:
    """Takes `seconds` for each value of a feed."""

    name: str
    seconds: float
    timeline: Timeline

    def run(self, feed: dict[str, NDArray[Any]]) -> list[NDArray[Any]]:
        self.timeline.now += self.seconds * feed["x"].size
        self.timeline.order.append(self.name)
        return []


class GpuSession(Session):
    def phase_times(self) -> PhaseTimes:
        return PhaseTimes(0.1, 0.2, 0.3)


def test_the_judged_size_comes_first_and_each_combination_once() -> None:
    sizes = list_sizes(PROFILE)
    assert sizes[0] == (("batch", 8), ("sequence", 32))
    assert len(sizes) == len(set(sizes)) == 9
    products = [batch * sequence for (_, batch), (_, sequence) in sizes[1:]]
    assert products == sorted(products)


def test_a_fixed_axis_and_a_third_one_add_no_sizes() -> None:
    profile = ShapeProfile.of(batch=AxisRange(2, 2, 2), sequence=AxisRange(4, 8, 16), past=AxisRange(1, 5, 9))
    assert {dict(sizes)["past"] for sizes in list_sizes(profile)} == {5}
    assert len(list_sizes(profile)) == 3


def test_engines_are_timed_in_turns_whose_order_reverses() -> None:
    timeline = Timeline()
    timed = sweep(
        {"A": Session("A", 1, timeline), "B": Session("B", 2, timeline)}, FEEDS, 1e9, clock=lambda: timeline.now
    )
    assert "".join(timeline.order[:10]) == "ABABBAABBA"
    assert timed["A"].shape == (3, MOST_CALLS, 5)
    np.testing.assert_array_equal(timed["B"][:, :, 0], np.repeat([[16.0], [2.0], [64.0]], MOST_CALLS, axis=1))
    assert np.isnan(timed["A"][:, :, 1:]).all()


def test_what_does_not_fit_into_the_time_is_left_out_and_the_judged_size_never() -> None:
    timeline = Timeline()
    timed = sweep({"A": Session("A", 1, timeline)}, FEEDS, 0.001, clock=lambda: timeline.now)
    assert np.isfinite(timed["A"][:, :, 0]).sum(axis=1).tolist() == [3, 0, 0]


def test_a_gpu_tells_its_phases_and_a_cuda_graph_is_timed_beside_the_plain_call(tmp_path: Path) -> None:
    timeline = Timeline()
    timed = sweep(
        {"a" * 64: GpuSession("A", 1, timeline)},
        FEEDS,
        1e9,
        open_graph=lambda _, place: None if place == 1 else Session("graph", 0.5, timeline),
        clock=lambda: timeline.now,
    )
    np.save(tmp_path / f"{'a' * 64}.npy", timed["a" * 64])
    sizes = tuple((("batch", size),) for size in (8, 1, 32))
    found = Sweep(("a" * 64,), sizes, Machine("x86", 2, "NVIDIA L4"), record_tree(tmp_path), tmp_path)
    medians = [(each.p50_ms, each.cuda_graph_p50_ms) for each in found.times("a" * 64)]
    assert medians == [(8000, 4000), (1000, None), (32_000, 16_000)]
    figures = {each.metric: each.value for each in found.measurements("a" * 64)}
    assert figures == {
        "gpu_upload_ms": 100,
        "gpu_compute_ms": pytest.approx(200),
        "gpu_download_ms": pytest.approx(300),
        "latency_cuda_graph_p50_ms": 4000,
    }

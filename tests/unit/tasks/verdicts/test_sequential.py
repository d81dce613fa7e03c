"""Looks are paid for: LoadGen's counts, the error at the margin over all looks, and calls that depend on each other."""

import numpy as np
import pytest

from tasks.verdicts.sequential import (
    BLOCKS,
    ERROR,
    LOOKS,
    PERIODS,
    bound_quantile,
    bound_ratio,
    count_slow,
    estimate_design_effect,
    find_look,
    find_ratio_looks,
    list_looks,
)


def test_looks_are_at_counts_that_no_figure_changes() -> None:
    assert list_looks(6) == (6, 18, 54, 162, 486)
    assert [find_look(windows, 6) for windows in (0, 5, 6, 17, 18, 485, 486, 10_000)] == [0, 0, 6, 6, 18, 162, 486, 486]
    assert pytest.approx(0.05) == LOOKS * ERROR


@pytest.mark.parametrize(
    ("share", "over", "calls"),
    [(0.01, 0, 459), (0.01, 1, 662), (0.01, 10, 2010), (0.1, 0, 44), (0.1, 1, 64), (0.1, 10, 197)],
)
def test_the_counts_are_those_of_loadgen(share: float, over: int, calls: int) -> None:
    assert count_slow(calls, share)[0] == over
    assert count_slow(calls - 1, share)[0] == over - 1


@pytest.mark.parametrize(("over", "calls"), [(0, 459), (1, 662), (10, 2010)])
def test_the_upper_bound_of_p99_is_at_most_a_limit_exactly_where_loadgen_passes_it(over: int, calls: int) -> None:
    ordered = np.linspace(1, 2, calls)
    # One call a window, dealt to the blocks in turn: slow calls are spread as evenly as can be.
    times = np.concatenate([ordered[block::BLOCKS] for block in range(BLOCKS)]).reshape(-1, 1)
    assert bound_quantile(times, 0.99)[2] == ordered[calls - 1 - over]
    fewer = bound_quantile(times[1:], 0.99)[2]
    assert fewer == (np.inf if over == 0 else ordered[calls - over])


def test_few_calls_fail_a_limit_and_cannot_pass_it() -> None:
    value, low, high = bound_quantile(np.linspace(9.0, 9.1, 60).reshape(6, 10), 0.99)
    assert 9 < low < value
    assert high == float("inf")


def test_slow_calls_that_come_in_a_burst_count_as_fewer() -> None:
    calls = np.tile(np.linspace(1, 1.1, 40), (40, 1))
    calls[:, 0] += 1  # every window has one slow call of 40
    spread, clumped = calls.copy(), calls.copy()
    clumped[:, 0] -= 1
    clumped[20, :] += 1  # the same number of slow calls, in one window
    assert estimate_design_effect(spread > 1.5) == 1
    assert estimate_design_effect(clumped > 1.5) > 10
    assert bound_quantile(clumped, 0.99)[2] > bound_quantile(spread, 0.99)[2]


@pytest.mark.parametrize("slow", [False, True])
def test_calls_that_are_all_alike_have_no_design_effect(slow: bool) -> None:
    assert estimate_design_effect(np.full((6, 5), slow)) == 1
    assert bound_quantile(np.ones((100, 10)), 0.99) == (1, 1, 1)


def test_windows_of_one_block_count_as_one() -> None:
    """A burst over many windows shows in neighbours: taken as independent they would prove more than they do."""
    noise = np.exp(np.repeat(np.random.default_rng(1).normal(0, 0.1, PERIODS), 9))
    ratio, low, high = bound_ratio(noise, np.ones_like(noise), np.full_like(noise, 2.0))
    _, own_low, own_high = bound_ratio(noise[::9], np.ones(PERIODS), np.full(PERIODS, 18.0))
    assert low < ratio < high
    assert (low, high) == pytest.approx((own_low, own_high))


def test_of_equal_engines_at_most_one_in_twenty_is_called_faster_or_slower_over_all_looks() -> None:
    random, called, seconds = np.random.default_rng(2), {"faster": 0, "slower": 0}, np.full(162, 60.0)
    looks = find_ratio_looks(seconds, 6)
    assert len(looks) == LOOKS
    for _ in range(500):
        noise = np.exp(random.normal(0, 0.1, 162))
        bounds = [bound_ratio(noise[:count], np.ones(count), seconds[:count]) for count in looks]
        called["faster"] += any(low > 1 for _, low, _ in bounds)
        called["slower"] += any(high < 1 for *_, high in bounds)
    # Five looks spend 5 % on both sides together; the error of 500 trials is 1 %.
    assert 0.01 * 500 < sum(called.values()) <= 0.06 * 500


@pytest.mark.parametrize(
    ("seconds", "windows", "looks"),
    [
        (0.0625, 800, (6, 18, 400, 800)),  # quick engines wait for the seconds
        (0.16, 500, (6, 18, 158, 314)),
        (1.5, 40, (6, 18, 24, 36)),
        (30.0, 200, (6, 18, 24, 36, 162)),  # slow ones for the windows
        (1.0, 5, ()),
    ],
)
def test_a_look_at_a_speedup_waits_for_its_windows_and_its_seconds(
    seconds: float, windows: int, looks: tuple[int, ...]
) -> None:
    assert find_ratio_looks(np.full(windows, seconds), 6) == looks


def test_what_one_second_shows_proves_only_what_a_host_cannot_turn_round() -> None:
    fast, slow, short, long = np.full(6, 1 / 1.19), np.full(6, 1 / 0.84), np.full(6, 0.16), np.full(6, 10.0)
    for own in (fast, slow):
        _, low, high = bound_ratio(np.ones(6), own, short)
        assert low < 1 < high
    assert bound_ratio(np.ones(6), fast, long)[1] > 1
    assert bound_ratio(np.ones(6), slow, long)[2] < 1
    assert bound_ratio(np.ones(6), fast / 2, short)[1] > 1  # a clear case


def test_a_host_that_is_slow_for_seconds_calls_an_engine_at_its_limit_faster_or_slower_in_few_cases() -> None:
    """A window is 0.16 s; for 2 s on average int8 is 1.19 times as fast as fp32, for the next 2 s 0.84 times."""
    random, seconds, called = np.random.default_rng(3), np.full(375, 0.16), 0
    looks = find_ratio_looks(seconds, 6)
    middle = np.log(1.19 * 0.84) / 2
    for _ in range(300):
        ends = np.cumsum(random.exponential(2.0, 200))
        state = (np.searchsorted(ends, np.cumsum(seconds)) + random.integers(2)) % 2
        ratios = np.exp(np.where(state == 1, np.log(1.19), np.log(0.84)) - middle + random.normal(0, 0.03, 375))
        bounds = [bound_ratio(ratios[:count], np.ones(count), seconds[:count])[1:] for count in looks]
        called += any(low > 1 or high < 1 for low, high in bounds)
    assert called <= 0.05 * 300

"""How often a speed-up is judged wrongly on a host with two speeds: `python -m benchmarks.two_speeds [--trials N]`.

A shared host was fast and slow by turns, a second and more at a time, with call times (median ms) of the sample's
engines that were measured there; how long it stays is varied. Judged are the looks of a release within its 60 s, and
beside them the rule before, which looked at counts of windows whatever time they took.
"""

import argparse
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from tasks.verdicts.intervals import ratio_interval
from tasks.verdicts.sequential import BLOCKS, ERROR, bound_ratio, find_ratio_looks, list_looks

FIRST, ITERATIONS, SECONDS_MAX = 6, 5, 58.0
FAST_MS = {"int8-dynamic": 6.7, "int8": 11.8, "fp32": 14.1}
SLOW_MS = {"int8-dynamic": 9.2, "int8": 20.5, "fp32": 17.3}
# What a window's median differs by chance.
NOISE = 0.03
Looks = Iterator[tuple[int, float, float]]
"""The windows of each look, and the bounds there."""
random = np.random.default_rng(0)


def draw_windows(
    fast: float, slow: float, seconds: float
) -> tuple[NDArray[np.float64], dict[str, NDArray[np.float64]]]:
    """Return the seconds that each window takes, and each engine's speed-up in it; stays are exponential."""
    count = int(4 * seconds / min(fast + slow, seconds)) + 20
    starts_slow = random.random() < slow / (fast + slow)
    stays = random.exponential([slow, fast] if starts_slow else [fast, slow], (count, 2))
    ends, took, medians = np.cumsum(stays.ravel()), list[float](), {name: list[float]() for name in FAST_MS}
    now = 0.0
    while now < seconds:
        started, order = now, list(FAST_MS)
        for name in order if len(took) % 2 == 0 else reversed(order):
            is_slow = (int(np.searchsorted(ends, now)) % 2 == 0) == starts_slow
            medians[name].append((SLOW_MS if is_slow else FAST_MS)[name] / 1000 * np.exp(random.normal(0, NOISE)))
            now += ITERATIONS * medians[name][-1]
        took.append(now - started)
    baseline = np.array(medians["fp32"])
    return np.array(took), {name: baseline / np.array(own) for name, own in medians.items() if name != "fp32"}


def look_by_time(ratios: NDArray[np.float64], seconds: NDArray[np.float64]) -> Looks:
    """Yield what a release sees."""
    for count in find_ratio_looks(seconds, FIRST):
        yield count, *bound_ratio(ratios[:count], np.ones(count), seconds[:count])[1:]


def look_by_count(ratios: NDArray[np.float64], seconds: NDArray[np.float64]) -> Looks:
    """Yield what a release saw before: blocks of windows, whatever time they took."""
    for count in list_looks(FIRST):
        if count <= len(seconds):
            blocks = np.array([np.log(each).mean() for each in np.array_split(ratios[:count], min(count, BLOCKS))])
            yield count, *ratio_interval(np.exp(blocks), np.ones(len(blocks)), level=1 - ERROR)[1:]


def judge(looks: Looks, limit: float, seconds: NDArray[np.float64]) -> tuple[str, float]:
    """Return the verdict and the seconds that it took."""
    for count, low, high in looks:
        if low >= limit or high < limit:
            return "passed" if low >= limit else "failed", float(seconds[:count].sum())
    return "open", SECONDS_MAX


def simulate(fast: float, slow: float, trials: int) -> None:
    """Print what both rules do at int8's margin, at a limit of 1, and with the clear case."""
    _, long = draw_windows(fast, slow, min(2_000 * (fast + slow), 40_000))
    truths = {name: float(np.exp(np.log(ratios).mean())) for name, ratios in long.items()}
    cases = {
        f"int8 at its limit of {truths['int8']:.3f}": ("int8", truths["int8"]),
        f"int8, {truths['int8']:.3f} times as fast, limit 1": ("int8", 1.0),
        f"int8-dynamic, {truths['int8-dynamic']:.2f} times as fast, limit 1": ("int8-dynamic", 1.0),
    }
    drawn = [draw_windows(fast, slow, SECONDS_MAX) for _ in range(trials)]
    for case, (engine, limit) in cases.items():
        print(f"fast for {fast:g} s, slow for {slow:g} s; {case}:")
        for rule, look in (("now", look_by_time), ("before", look_by_count)):
            print(f"  {rule}: {describe([judge(look(r[engine], s), limit, s) for s, r in drawn])}")


def describe(results: list[tuple[str, float]]) -> str:
    """Say how often each verdict came, and after how many seconds."""
    verdicts = ("passed", "failed", "open")
    shares = ", ".join(f"{each} {np.mean([verdict == each for verdict, _ in results]):.1%}" for each in verdicts)
    took = [seconds for verdict, seconds in results if verdict != "open"]
    return shares + (f"; decided after {np.median(took):.1f} s, at most {max(took):.1f} s" if took else "")


def main() -> None:
    """Run all of it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=2000)
    chosen = parser.parse_args()
    for fast, slow in ((1e6, 1e-6), (0.5, 0.5), (1.1, 0.5), (2.0, 2.0), (4.4, 2.0), (5.0, 5.0), (11.0, 5.0)):
        simulate(fast, slow, chosen.trials)


if __name__ == "__main__":
    main()

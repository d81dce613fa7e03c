"""How often verdicts on latency are right: `python -m benchmarks.verdicts [--quick] [--raw FILE]`.

On this machine, with whatever else runs on it: one engine with itself (A/A), a slowdown of 5 % and a factor of 2 that
are planted, each decided as a release decides. Beside A/A the method of a peer: 10 warm-ups, 20 calls of one engine and
then of the other, means compared. Then simulated: the error at the margin, the power and the coverage, with the looks
as a release makes them and noise of known shape, and noise drawn from the windows that A/A has just recorded.
`benchmarks.two_speeds` simulates a host that is slow by turns.
"""

import argparse
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray

from registry.records import Machine
from tasks.measurement.evaluate import Runs
from tasks.measurement.latency import Probes, measure_until_decided
from tasks.measurement.latency_figures import LatencyRule, latency_measurements
from tasks.measurement.windows import LatencyPlan, Windows
from tasks.model_tasks.contract import Feed
from tasks.verdicts.gates import Limits, find
from tasks.verdicts.sequential import SPANS, bound_quantile, bound_ratio, find_ratio_looks, list_looks

WIDTH, LAYERS, BATCH = 512, 8, 16
PEER_WARMUP, PEER_REPEATS = 10, 20
FIRST, ITERATIONS = 6, 5
# What a window of the sample's engines takes.
WINDOW_SECONDS = 0.163
Noise = Callable[[int], NDArray[np.float64]]
"""The logarithms of so many windows' ratios, around 0."""
random = np.random.default_rng(0)


class Slower:
    """A session whose calls take `factor` times as long: it waits busily, as an engine computes."""

    def __init__(self, session: Runs, factor: float) -> None:
        self.session, self.factor = session, factor

    def run(self, feed: Feed) -> Any:
        """Run once, and wait."""
        started = time.perf_counter()
        answers = self.session.run(feed)
        until = started + self.factor * (time.perf_counter() - started)
        while time.perf_counter() < until:
            pass
        return answers


class Network:
    """A perceptron in ONNX Runtime, of a few ms a call."""

    def __init__(self) -> None:
        weights = np.random.default_rng(1).normal(0, 0.05, (WIDTH, WIDTH)).astype(np.float32)
        shape = [BATCH, WIDTH]
        nodes = [
            node
            for layer in range(LAYERS)
            for node in (
                onnx.helper.make_node("MatMul", [f"x{layer}", "w"], [f"y{layer}"]),
                onnx.helper.make_node("Tanh", [f"y{layer}"], [f"x{layer + 1}"]),
            )
        ]
        values = [onnx.helper.make_tensor_value_info(f"x{n}", onnx.TensorProto.FLOAT, shape) for n in (0, LAYERS)]
        graph = onnx.helper.make_graph(
            nodes, "perceptron", values[:1], values[1:], [onnx.numpy_helper.from_array(weights, "w")]
        )
        model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self.session = onnxruntime.InferenceSession(model.SerializeToString(), options)

    def run(self, feed: Feed) -> Any:
        """Run once."""
        return self.session.run(None, feed)


def decide(
    sessions: dict[str, Runs], feed: Feed, seconds_max: float, probes: Probes | None = None
) -> tuple[str, Windows, float]:
    """Return what is called ("faster", "slower" or "undecided"), the windows and the seconds that they took."""
    plan, started = LatencyPlan(FIRST, ITERATIONS, 10, (("batch", BATCH),), seconds_max), time.perf_counter()
    rule = LatencyRule(Limits("none", 0, speedup_min=1.0), Machine("here", 2))
    windows = measure_until_decided(sessions, feed, Windows.empty(sessions, "A", plan), rule, probes=probes)
    speedup = find(latency_measurements(windows, "B", rule.machine), "speedup")
    if speedup is None or speedup.low is None or speedup.high is None:
        raise ValueError("no speed-up was measured")
    verdict = "faster" if speedup.low >= 1 else "slower" if speedup.high < 1 else "undecided"
    return verdict, windows, time.perf_counter() - started


def compare_means(sessions: dict[str, Runs], feed: Feed) -> float:
    """Return how many times as long B takes as A by the peer's method."""
    means = []
    for session in sessions.values():
        times = []
        for _ in range(PEER_WARMUP + PEER_REPEATS):
            started = time.perf_counter()
            session.run(feed)
            times.append(time.perf_counter() - started)
        means.append(np.mean(times[PEER_WARMUP:]))
    return float(means[1] / means[0])


def run_here(comparisons: int, trials: int, seconds_max: float, raw: Path | None) -> list[NDArray[np.float64]]:
    """Compare on this machine, and return the log ratios of each A/A comparison's windows."""
    feed = {"x0": np.random.default_rng(2).normal(size=(BATCH, WIDTH)).astype(np.float32)}
    sessions: dict[str, Runs] = {"A": Network(), "B": Network()}
    called, peer, recorded, dropped, measured = Counter[str](), list[float](), list[NDArray[np.float64]](), 0, 0
    for _ in range(comparisons):
        peer.append(compare_means(sessions, feed))
        verdict, windows, _ = decide(sessions, feed, seconds_max)
        called[verdict] += 1
        dropped, measured = dropped + int(windows.disturbed.sum()), measured + windows.count
        own, baseline = (np.median(windows.times[name], axis=1) for name in "BA")
        recorded.append(np.log(baseline / own))
    if raw is not None:
        np.savez(raw, *recorded)
    wrong = called["faster"] + called["slower"]
    print(f"A/A, {comparisons} times, at most {seconds_max:g} s each: called different {wrong / comparisons:.1%}")
    print(f"  windows beside other work {dropped} of {measured}: {dropped / measured:.0%}")
    for share in (0.02, 0.05):
        print(f"  peer: means further apart than {share:.0%}: {np.mean(np.abs(np.log(peer)) > share):.1%}")
    for name, factor in (("5 % slower", 1.05), ("twice as slow", 2.0)):
        planted: dict[str, Runs] = {"A": sessions["A"], "B": Slower(sessions["B"], factor)}
        results = [decide(planted, feed, 60) for _ in range(trials)]
        found = np.mean([verdict == "slower" for verdict, _, _ in results])
        seconds = [taken for *_, taken in results]
        print(f"planted, {name}, {trials} times: found {found:.1%}, median {np.median(seconds):.1f} s, ", end="")
        print(f"longest {max(seconds):.1f} s")
    return recorded


def list_noises(recorded: list[NDArray[np.float64]]) -> Iterator[tuple[str, Noise]]:
    """Yield noise of the log ratio: interleaving leaves of a drift or a throttling only what changes in a window."""
    yield "independent, 10 %", lambda n: random.normal(0, 0.1, n)
    yield "heavy tails (t, 3 degrees)", lambda n: 0.06 * random.standard_t(3, n)
    yield (
        "bursts of 8 windows, 50 %",
        lambda n: (
            random.normal(0, 0.05, n) + np.repeat(random.random(n // 8 + 1) < 0.1, 8)[:n] * random.normal(0, 0.5, n)
        ),
    )
    yield (
        "throttling, drift",
        lambda n: (
            random.normal(0, 0.05, n)
            + 0.02 * (-1) ** np.arange(n) * np.linspace(0, 1, n)
            + 0.3 * (random.random(n) < 0.01)
            - 0.3 * (random.random(n) < 0.01)
        ),
    )
    if long := [trace for trace in recorded if len(trace) >= FIRST * 9]:

        def draw(n: int) -> NDArray[np.float64]:
            # Pieces of 9 windows as they were recorded, each with a sign of its own: of equal engines either is A.
            pieces = []
            for _ in range(n // 9 + 1):
                trace = long[random.integers(len(long))]
                start = random.integers(len(trace) - 8)
                pieces.append(random.choice([-1, 1]) * trace[start : start + 9])
            return np.concatenate(pieces)[:n]

        yield f"recorded here, {len(long)} traces", draw


def simulate_ratio(name: str, noise: Noise, trials: int) -> None:
    """Print what a speed-up limit of 1 does at ratio 1 and at 1.05, and how often the interval covers."""
    seconds = np.full(int(SPANS[-1] / WINDOW_SECONDS) + 2, WINDOW_SECONDS)
    looks = find_ratio_looks(seconds, FIRST)
    for truth in (1.0, 1.05, 1.1):
        ends, covers, ended = Counter[str](), [0, 0], 0
        for _ in range(trials):
            ratios = np.exp(noise(looks[-1])) * truth
            bounds = [bound_ratio(ratios[:count], np.ones(count), seconds[:count])[1:] for count in looks]
            covers[0] += all(low <= truth <= high for low, high in bounds)
            at = next((n for n, (low, high) in enumerate(bounds) if low >= 1 or high < 1), len(looks) - 1)
            low, high = bounds[at]
            covers[1] += low <= truth <= high
            ends["passed" if low >= 1 else "failed" if high < 1 else "open"] += 1
            ended += looks[at]
        print(
            f"speed-up {truth:g}, limit 1, {name}: passed {ends['passed'] / trials:.1%}, failed "
            f"{ends['failed'] / trials:.1%}, open {ends['open'] / trials:.1%}, mean windows {ended / trials:.0f}; "
            f"covers at all looks {covers[0] / trials:.1%}, at the last {covers[1] / trials:.1%}"
        )


def simulate_p99(trials: int) -> None:
    """Print what a p99 limit does at the margin and at half of it, for calls alone and calls that are slow together."""
    looks = list_looks(FIRST)
    for name, together in (("independent calls", 1), ("slow by windows of 5", ITERATIONS)):
        for share in (1.0, 0.5):
            ends, ended = Counter[str](), 0
            for _ in range(trials):
                slow = random.random((looks[-1], ITERATIONS // together)) < 0.01
                tail = np.repeat(slow, together, axis=1)
                # p99 is 1 exactly: 1 % of the calls are above, by an exponential tail.
                calls = np.where(tail, 1 + random.exponential(0.2, tail.shape), random.uniform(0.5, 1, tail.shape))
                verdict, at = judge_p99(calls * share, looks)
                ends[verdict], ended = ends[verdict] + 1, ended + at
            print(
                f"p99 at {share:g} of its limit, {name}: passed {ends['passed'] / trials:.1%}, failed "
                f"{ends['failed'] / trials:.1%}, open {ends['open'] / trials:.1%}, mean calls "
                f"{ITERATIONS * ended / trials:.0f}"
            )


def judge_p99(calls: NDArray[np.float64], looks: tuple[int, ...]) -> tuple[str, int]:
    """Return the verdict on a limit of 1, and the windows that it took."""
    for count in looks:
        _, low, high = bound_quantile(calls[:count], 0.99)
        if high <= 1:
            return "passed", count
        if low > 1:
            return "failed", count
    return "open", looks[-1]


def main() -> None:
    """Run all of it; --quick is a tenth of the trials."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a tenth of the trials and comparisons")
    parser.add_argument("--comparisons", type=int, default=200)
    parser.add_argument("--trials", type=int, default=5000)
    parser.add_argument("--planted", type=int, default=100)
    parser.add_argument("--seconds-max", type=float, default=5.0, help="of each A/A comparison")
    parser.add_argument("--raw", type=Path, help="keep the windows of A/A in this .npz")
    parser.add_argument("--recorded", type=Path, help="only simulate, with the windows that --raw kept there")
    chosen = parser.parse_args()
    part = 10 if chosen.quick else 1
    if chosen.recorded is None:
        recorded = run_here(chosen.comparisons // part, chosen.planted // part, chosen.seconds_max, chosen.raw)
    else:
        recorded = list(np.load(chosen.recorded, allow_pickle=False).values())
    for name, noise in list_noises(recorded):
        simulate_ratio(name, noise, chosen.trials // part)
    simulate_p99(chosen.trials // part)


if __name__ == "__main__":
    main()

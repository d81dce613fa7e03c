"""How often verdicts on accuracy are right: `python -m benchmarks.accuracy_verdicts [--quick]`.

Simulated rows that an engine loses or wins against fp32, judged as a release judges them: with one look, with a second
look at four times the rows, and at the number of rows that a release names. Then F1, whose bounds are a bootstrap's.
"""

import argparse
from collections import Counter
from functools import cache

import numpy as np

from tasks.model_tasks.contract import OfSums
from tasks.verdicts.deciding_rows import count_rows
from tasks.verdicts.intervals import Numbers, PairedLoss, bound_loss, compare_scores
from tasks.verdicts.row_looks import bound_at_look, find_z

random = np.random.default_rng(0)
Count = tuple[int, int, int]
"""How many rows are lost, won, and there at all."""


@cache
def judge(lost: int, won: int, rows: int, margin: float, looks: int) -> str:
    """Return what one look says."""
    z = find_z(looks)
    if bound_loss(lost, won, rows, z) <= margin:
        return "passed"
    return "failed" if -bound_loss(won, lost, rows, z) > margin else "open"


def draw(rows: int, loss: float, flipped: float) -> Count:
    """Draw how many of so many rows are lost and won."""
    lost, won, _ = random.multinomial(rows, [(flipped + loss) / 2, (flipped - loss) / 2, 1 - flipped])
    return int(lost), int(won), rows


def simulate_looks(trials: int) -> None:
    """Print how often engines pass and fail: with one look at the first rows, and with a second at four times as many.

    At the margin no more than 5 % may pass.
    """
    for first, margin, flipped in ((500, 0.02, 0.04), (2000, 0.01, 0.02), (2000, 0.01, 0.06), (200, 0.05, 0.10)):
        for share in (0.0, 0.5, 1.0, 2.0):
            ends, rows = {1: Counter[str](), 2: Counter[str]()}, 0
            for _ in range(trials):
                one, rest = (draw(count, share * margin, flipped) for count in (first, 3 * first))
                ends[1][judge(*one, margin, 1)] += 1
                verdict = judge(*one, margin, 2)
                rows += first
                if verdict == "open":
                    rows += 4 * first  # all of them run again
                    verdict = judge(*(a + b for a, b in zip(one, rest, strict=True)), margin, 2)
                ends[2][verdict] += 1
            shown = "; ".join(
                f"{looks} look{'s' * (looks > 1)}: passed {counts['passed'] / trials:.1%}, failed "
                f"{counts['failed'] / trials:.1%}, open {counts['open'] / trials:.1%}"
                for looks, counts in ends.items()
            )
            print(
                f"loss {share:g} x {margin:.0%}, {flipped:.0%} flipped, {first} rows: {shown}; {rows / trials:.0f} rows"
            )


def simulate_named_rows(trials: int) -> None:
    """Print how often as many rows decide as a release names, from the true shares and from those of an open look."""
    for margin, flipped, share in ((0.02, 0.04, 0.5), (0.01, 0.02, 0.5), (0.01, 0.06, 0.5), (0.01, 0.06, 2.0)):
        loss = share * margin
        rows, expected = int(np.ceil(count_rows(loss, flipped, margin))), "passed" if share < 1 else "failed"
        right = np.mean([judge(*draw(rows, loss, flipped), margin, 1) == expected for _ in range(trials)])
        ends, named = Counter[str](), list[int]()
        while len(named) < trials:
            one = draw(rows // 4, loss, flipped)
            seen = (one[0] - one[1]) / one[2]
            if judge(*one, margin, 1) != "open" or np.isclose(seen, margin):
                continue
            wanted = int(np.ceil(count_rows(seen, (one[0] + one[1]) / one[2], margin)))
            named.append(wanted)
            rest = draw(max(min(wanted, 10**7) - one[2], 0), loss, flipped)
            ends[judge(*(a + b for a, b in zip(one, rest, strict=True)), margin, 1)] += 1
        print(
            f"loss {share:g} x {margin:.0%}, {flipped:.0%} flipped: {rows} rows named, {expected} {right:.1%}; from an "
            f"open look at {rows // 4}: median {np.median(named):.0f} named, passed "
            f"{ends['passed'] / trials:.1%}, failed {ends['failed'] / trials:.1%}, open {ends['open'] / trials:.1%}"
        )


def find_f1(sums: Numbers) -> Numbers:
    """Return F1 of sums of (hits, found, true), as a task of entities or questions counts them."""
    hits, found, true = np.moveaxis(sums, -1, 0)
    f1: Numbers = 2 * hits / np.maximum(found + true, 1e-9)
    return f1


def draw_counts(rows: int, share: float, lost: float) -> tuple[Numbers, Numbers]:
    """Draw the counts of fp32's rows, and those of an engine that misses `lost` of what fp32 hits, and wins as much."""
    true = random.integers(0, 4, rows) + 1.0
    hits = random.binomial(true.astype(int), share)
    missed = random.binomial(hits, lost)
    won = random.binomial((true - hits).astype(int), 0.02)
    reference = np.stack([hits, true, true], axis=1).astype(float)
    return reference, np.stack([hits - missed + won, true, true], axis=1).astype(float)


def simulate_f1(trials: int) -> None:
    """Print how often an engine passes whose F1 loses exactly the limit."""
    first, share, lost = 200, 0.85, 0.03
    margin = share * lost - (1 - share) * 0.02
    passed = Counter[int]()
    for _ in range(trials):
        reference, engine = draw_counts(4 * first, share, lost)
        for looks in (1, 2):
            for rows in (first, 4 * first)[:looks]:
                loss: PairedLoss = compare_scores(reference[:rows], engine[:rows], OfSums(find_f1))
                if bound_at_look(loss, looks, rows).high <= margin:
                    passed[looks] += 1
                    break
    print(
        f"F1 at its limit of {margin:.2%}, {first} rows, {trials} trials: passed with one look "
        f"{passed[1] / trials:.1%}, with two {passed[2] / trials:.1%}"
    )


def main() -> None:
    """Run all of it; --quick is a tenth of the trials."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a tenth of the trials")
    parser.add_argument("--trials", type=int, default=5000)
    parser.add_argument("--trials-f1", type=int, default=2000)
    chosen = parser.parse_args()
    part = 10 if chosen.quick else 1
    simulate_looks(chosen.trials // part)
    simulate_named_rows(chosen.trials // part)
    simulate_f1(chosen.trials_f1 // part)


if __name__ == "__main__":
    main()

"""Intervals cover the truth as often as they promise."""

import math
from itertools import pairwise

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import optimize, stats

from tasks.model_tasks.contract import OfSums
from tasks.verdicts import intervals
from tasks.verdicts.intervals import (
    RESAMPLES,
    PairedLoss,
    bootstrap_interval,
    compare_scores,
    paired_loss,
    quantile_interval,
    ratio_interval,
    score_interval,
    share_interval,
)


def loss_of(lost: int, won: int, rows: int, *, both_wrong: int = 0) -> PairedLoss:
    """paired_loss of rows where `lost` flip to wrong and `won` to right, shuffled."""
    reference, candidate = np.ones(rows, dtype=bool), np.ones(rows, dtype=bool)
    candidate[:lost] = False
    reference[lost : lost + won] = False
    reference[lost + won : lost + won + both_wrong] = candidate[lost + won : lost + won + both_wrong] = False
    order = np.random.default_rng(0).permutation(rows)
    return paired_loss(reference[order], candidate[order])


@pytest.mark.parametrize(
    ("p_lost", "p_won", "rows"),
    [
        (0.0, 0.0, 50),
        (0.01, 0.0, 200),  # Agresti and Min: 0.87
        (0.02, 0.0, 200),
        (0.05, 0.01, 50),
        (0.02, 0.01, 200),
        (0.05, 0.05, 200),
        (0.3, 0.05, 50),
        (0.005, 0.005, 1000),
        (0.02, 0.01, 2400),
    ],
)
def test_the_upper_bound_of_the_loss_covers_the_true_loss_as_often_as_it_says(
    p_lost: float, p_won: float, rows: int
) -> None:
    random, truth, runs = np.random.default_rng(20261123), p_lost - p_won, 2000
    drawn = random.multinomial(rows, [p_lost, p_won, 1 - p_lost - p_won], size=runs)
    distinct, counts = np.unique(drawn, axis=0, return_counts=True)
    losses = [loss_of(int(lost), int(won), rows) for lost, won, _ in distinct]
    above = np.array([loss.high >= truth for loss in losses]) @ counts / runs
    below = np.array([loss.low <= truth for loss in losses]) @ counts / runs
    assert above >= 0.935  # this bound passes engines
    assert below >= 0.92  # this one only fails them sooner


def test_no_flips_are_no_proof_of_no_loss() -> None:
    loss = loss_of(0, 0, 200)
    assert (loss.loss, loss.flips, loss.mcnemar_p) == (0.0, 0, 1.0)
    # The exact bound of a share never seen in 200 rows is 1 - 0.05 ** (1 / 200), 1.49 %.
    assert 0.012 < loss.high < 0.016
    assert loss.low == -loss.high
    assert loss_of(0, 0, 2000).high < loss.high


@pytest.mark.parametrize(("lost", "won"), [(0, 0), (3, 0), (7, 3), (3, 7), (0, 50), (50, 50), (100, 0), (0, 100)])
def test_swapping_the_two_models_mirrors_the_loss(lost: int, won: int) -> None:
    one, other = loss_of(lost, won, 100), loss_of(won, lost, 100)
    assert (one.loss, one.low, one.high) == (-other.loss, -other.high, -other.low)
    assert one.mcnemar_p == other.mcnemar_p
    assert -1 <= one.low <= one.loss <= one.high <= 1
    assert one.low < one.high


def test_every_table_of_few_rows_has_finite_ordered_bounds() -> None:
    for rows in (1, 2, 7):
        for lost in range(rows + 1):
            for won in range(rows - lost + 1):
                loss = loss_of(lost, won, rows)
                assert -1 <= loss.low <= loss.loss <= loss.high <= 1


@pytest.mark.parametrize(("lost", "won", "rows"), [(7, 3, 200), (3, 7, 200), (12, 1, 60), (1, 12, 60), (40, 30, 2400)])
def test_the_bound_is_where_the_score_test_of_the_most_likely_shares_turns(lost: int, won: int, rows: int) -> None:
    """Tango's closed form against a likelihood maximized by search, given that the loss is the bound."""
    bound = loss_of(lost, won, rows).high

    def surprise(share: float) -> float:
        unchanged = rows - lost - won
        return -float(lost * np.log(share + bound) + won * np.log(share) + unchanged * np.log(1 - 2 * share - bound))

    likely = optimize.minimize_scalar(
        surprise, bounds=(1e-12, (1 - bound) / 2 - 1e-12), method="bounded", options={"xatol": 1e-12}
    ).x
    deviation = math.sqrt(rows * (2 * likely + bound - bound**2))
    assert (rows * bound - (lost - won)) / deviation == pytest.approx(1.6448536, rel=1e-4)


def test_one_more_lost_row_never_lowers_a_bound() -> None:
    losses = [loss_of(lost, 5, 200) for lost in range(100)]
    assert all(a.high < b.high and a.low < b.low for a, b in pairwise(losses))


def test_rows_that_both_get_wrong_are_rows_too() -> None:
    assert loss_of(7, 3, 200, both_wrong=80) == loss_of(7, 3, 200)


@pytest.mark.parametrize(("lost", "won"), [(1, 0), (7, 3), (12, 2), (0, 9), (40, 40)])
def test_mcnemar_is_the_exact_binomial_test_of_the_flips(lost: int, won: int) -> None:
    few = min(lost, won)
    by_hand = min(1.0, 2 * sum(math.comb(lost + won, k) for k in range(few + 1)) / 2 ** (lost + won))
    loss = loss_of(lost, won, 300)
    assert loss.mcnemar_p == pytest.approx(by_hand)
    assert loss.mcnemar_p == pytest.approx(stats.binomtest(won, lost + won, 0.5).pvalue)
    assert loss.flips == lost + won


def test_the_interval_of_an_accuracy_is_wilsons() -> None:
    low, high = share_interval(np.arange(100) < 90)
    z = 1.959963984540054
    middle, half = (0.9 + z**2 / 200) / (1 + z**2 / 100), z * math.sqrt(0.09 / 100 + z**2 / 40000) / (1 + z**2 / 100)
    assert (low, high) == pytest.approx((middle - half, middle + half))
    assert share_interval(np.ones(50, dtype=bool))[0] < 0.95


def test_p99_has_an_upper_bound_from_368_calls_on() -> None:
    """1 - 0.99 ** n >= 0.975 first holds at 368: only then is the largest call likely enough to be beyond p99."""
    assert 1 - 0.99**367 < 0.975 <= 1 - 0.99**368
    bounded = [n for n in range(20, 600) if math.isfinite(quantile_interval(np.arange(float(n)), 0.99)[2])]
    assert bounded == list(range(368, 600))


def test_the_interval_of_a_quantile_is_two_order_statistics_of_any_order() -> None:
    samples = np.random.default_rng(0).permutation(np.arange(1.0, 101.0))
    value, low, high = quantile_interval(samples, 0.5)
    # Tables of order statistics: the 40th and the 61st of 100 hold the median with 96.5 %.
    assert (value, low, high) == (50.5, 40.0, 61.0)


@pytest.mark.parametrize(("q", "n"), [(0.5, 20), (0.5, 200), (0.99, 400), (0.99, 1000), (0.99, 5000)])
def test_the_interval_of_a_quantile_covers_it(q: float, n: int) -> None:
    """Exactly: the quantile lies between two order statistics as often as a binomial count between their ranks."""
    _, low, high = quantile_interval(np.arange(1.0, n + 1.0), q)
    assert stats.binom.cdf(high - 1, n, q) - stats.binom.cdf(low - 1, n, q) >= 0.95


def windows(random: np.random.Generator, count: int, ratio: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Window medians of a baseline that takes `ratio` times as long, under a load that both see."""
    load = random.uniform(1.0, 2.0, count)
    return ratio * load * random.lognormal(0, 0.05, count), load * random.lognormal(0, 0.05, count)


@pytest.mark.parametrize("count", [4, 10])
def test_the_interval_of_a_ratio_covers_the_truth_also_with_few_windows(count: int) -> None:
    random, covered, runs = np.random.default_rng(20261123), 0, 400
    for _ in range(runs):
        ratio, low, high = ratio_interval(*windows(random, count, 1.5))
        assert low <= ratio <= high
        covered += low <= 1.5 <= high
    assert covered / runs >= 0.93


def test_the_interval_of_a_ratio_turns_round_with_the_ratio() -> None:
    one, other = windows(np.random.default_rng(0), 10, 2.0)
    ratio, low, high = ratio_interval(one, other)
    assert ratio_interval(other, one) == pytest.approx((1 / ratio, 1 / high, 1 / low))


def test_windows_that_agree_to_the_bit_have_an_interval_of_no_width() -> None:
    assert ratio_interval(np.full(4, 3.0), np.full(4, 2.0)) == pytest.approx((1.5, 1.5, 1.5))


def f1(sums: NDArray[np.float64]) -> NDArray[np.float64]:
    """Micro-F1 of sums of (true positives, false positives, false negatives)."""
    figure: NDArray[np.float64] = 2 * sums[..., 0] / np.maximum(2 * sums[..., 0] + sums[..., 1] + sums[..., 2], 1)
    return figure


def draw_counts(random: np.random.Generator, rows: int, recall: float = 0.8) -> NDArray[np.float64]:
    """(true positives, false positives, false negatives) of rows with up to 6 entities."""
    entities = random.integers(0, 7, rows)
    found = random.binomial(entities, recall)
    return np.stack([found, random.binomial(3, 0.1, rows), entities - found], axis=1).astype(np.float64)


def test_the_bootstrap_of_sums_is_scipys_of_rows() -> None:
    counts = draw_counts(np.random.default_rng(1), 150)
    figure, low, high = bootstrap_interval(lambda drawn: f1(drawn @ counts), np.arange(150), level=0.9)
    theirs = stats.bootstrap(
        (np.arange(150),),
        lambda rows, axis: f1(counts[rows].sum(axis=axis if axis >= 0 else rows.ndim + axis)),
        confidence_level=0.9,
        method="BCa",
        n_resamples=RESAMPLES,
        rng=np.random.default_rng(0),
    ).confidence_interval
    assert figure == pytest.approx(f1(counts.sum(axis=0)))
    assert (low, high) == pytest.approx((theirs.low, theirs.high))
    assert low < figure < high


def test_a_jackknife_of_blocks_gives_nearly_the_bounds_of_one_of_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    counts = draw_counts(np.random.default_rng(6), 400)
    figure, low, high = score_interval(counts, OfSums(f1))
    monkeypatch.setattr(intervals, "MOST_LEFT_OUT", 50)
    assert score_interval(counts, OfSums(f1)) == pytest.approx((figure, low, high), abs=0.05 * (high - low))


@pytest.mark.parametrize(("rows", "harm"), [(100, 0.02), (400, 0.05), (400, 0.0)])
def test_the_bound_of_a_loss_of_f1_covers_the_true_loss_as_often_as_it_says(rows: int, harm: float) -> None:
    random, runs = np.random.default_rng(7), 200

    def draw(rows: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        before = draw_counts(random, rows)
        lost = random.binomial(before[:, 0].astype(int), harm + 0.02)
        won = random.binomial(before[:, 2].astype(int), 0.08)
        return before, before + np.stack([won - lost, np.zeros(rows), lost - won], axis=1)

    before, after = draw(1_000_000)
    truth = float(f1(before.sum(axis=0)) - f1(after.sum(axis=0)))
    losses = [compare_scores(*draw(rows), OfSums(f1)) for _ in range(runs)]
    assert sum(loss.high >= truth for loss in losses) / runs >= 0.91
    assert sum(loss.low <= truth for loss in losses) / runs >= 0.91


def test_rows_of_which_none_changed_prove_no_more_than_for_accuracy() -> None:
    counts = draw_counts(np.random.default_rng(2), 200)
    loss = compare_scores(counts, counts, OfSums(f1))
    assert (loss.loss, loss.flips, loss.mcnemar_p) == (0.0, 0, None)
    assert loss.high == pytest.approx(loss_of(0, 0, 200).high)


def test_of_a_metric_that_should_be_low_more_is_a_loss() -> None:
    errors = np.stack([np.arange(100) % 3, np.full(100, 9)], axis=1).astype(np.float64)
    worse = errors + np.array([1.0, 0.0])

    def error_rate(sums: NDArray[np.float64]) -> NDArray[np.float64]:
        rate: NDArray[np.float64] = sums[..., 0] / sums[..., 1]
        return rate

    loss = compare_scores(errors, worse, OfSums(error_rate), higher_is_better=False)
    assert loss.loss == pytest.approx(1 / 9)
    assert compare_scores(errors, worse, OfSums(error_rate)).loss == pytest.approx(-1 / 9)


def test_right_and_wrong_is_tested_exactly_and_not_resampled() -> None:
    before, after = np.ones((300, 1)), (np.arange(300) >= 12).astype(np.float64)[:, None]
    assert compare_scores(before, after, None) == loss_of(12, 0, 300)
    assert score_interval(after, None) == (0.96, *share_interval(np.arange(300) >= 12))


def draw_groups(draw: np.random.Generator, groups: int, rows: int, loss: float) -> tuple[NDArray[np.float64], ...]:
    """Rows of right and wrong before and after: in a group that is harmed all rows are lost together."""
    before = np.ones((groups * rows, 1))
    after = np.repeat(draw.random(groups) >= loss, rows).astype(np.float64)[:, None]
    return before, after


def test_the_bound_over_groups_covers_where_rows_of_a_group_flip_together() -> None:
    draw, loss, groups, rows = np.random.default_rng(4), 0.1, 60, 10
    names = [f"document {at // rows}" for at in range(groups * rows)]
    alone, together = 0, 0
    for _ in range(200):
        before, after = draw_groups(draw, groups, rows, loss)
        alone += compare_scores(before, after, None).high >= loss
        together += compare_scores(before, after, None, groups=names).high >= loss
    assert together / 200 >= 0.90
    assert alone / 200 < 0.80


def test_groups_of_one_row_are_rows() -> None:
    scores = np.random.default_rng(5).random((80, 2)) + 1
    changed = scores * np.linspace(0.9, 1.0, 80)[:, None]
    names = [str(at) for at in range(80)]

    def ratio(sums: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.asarray(sums[..., 0] / sums[..., 1])

    order = np.argsort(names)  # groups are drawn in the order of their names
    plain = compare_scores(scores[order], changed[order], OfSums(ratio))
    grouped = compare_scores(scores, changed, OfSums(ratio), groups=names)
    assert (grouped.loss, grouped.low, grouped.high) == pytest.approx((plain.loss, plain.low, plain.high))
    assert score_interval(scores, OfSums(ratio), names) == pytest.approx(score_interval(scores[order], OfSums(ratio)))


def test_the_mean_over_groups_weighs_rows_and_not_groups_alike() -> None:
    scores = np.array([[1.0]] * 30 + [[0.0]] * 10)
    value, low, high = score_interval(scores, None, ["a"] * 30 + [f"b{at}" for at in range(10)])
    assert value == 0.75
    assert low < value < high


def test_flips_count_rows_where_groups_are_drawn() -> None:
    before, after = np.ones((40, 1)), np.ones((40, 1))
    after[:3] = 0
    found = compare_scores(before, after, None, groups=[str(at // 2) for at in range(40)])
    assert (found.flips, found.rows, found.mcnemar_p) == (3, 40, None)

"""A second look at a loss: both looks together err no more often than one would."""

from dataclasses import replace

import numpy as np
import pytest

from tasks.verdicts.intervals import PairedLoss, compare_scores, paired_loss
from tasks.verdicts.row_looks import bound_at_look, find_z


def test_a_loss_that_is_looked_at_once_keeps_its_bounds() -> None:
    loss = paired_loss(np.arange(100) >= 3, np.arange(100) >= 9)
    assert bound_at_look(loss, 1, 100) == loss


def test_a_loss_that_is_looked_at_twice_has_wider_bounds_and_the_same_figure() -> None:
    loss = paired_loss(np.arange(100) >= 3, np.arange(100) >= 9)
    wider = bound_at_look(loss, 2, 100)
    assert (wider.loss, wider.flips) == (loss.loss, loss.flips)
    assert wider.low < loss.low < loss.high < wider.high


def test_without_a_flip_the_bound_is_that_of_no_change_in_as_many_rows() -> None:
    right, z = np.ones(100, dtype=bool), find_z(2)
    assert bound_at_look(paired_loss(right, right), 2, 100).high == pytest.approx(z**2 / (100 + z**2), rel=1e-6)
    bootstrapped = PairedLoss(0.0, 0.0, 0.0, 0, None, 100)
    assert bound_at_look(bootstrapped, 2, 50).high == pytest.approx(z**2 / (50 + z**2))


def test_the_bounds_of_a_bootstrap_grow_as_a_normal_distributions_would() -> None:
    random = np.random.default_rng(0)
    before, after = ((random.random((400, 1)) < share).astype(float) for share in (0.9, 0.88))
    loss = compare_scores(before, after, lambda scores, counts: (counts @ scores)[:, 0] / 400)
    wider = bound_at_look(loss, 2, 400)
    assert (wider.high - loss.loss) / (loss.high - loss.loss) == pytest.approx(1.96 / 1.645, rel=1e-3)
    assert (loss.loss - wider.low) / (loss.loss - loss.low) == pytest.approx(1.96 / 1.645, rel=1e-3)


@pytest.mark.parametrize(("first", "all_rows"), [(200, 800), (400, 600)])
def test_at_the_margin_both_looks_pass_at_most_one_in_twenty(first: int, all_rows: int) -> None:
    margin, flipped, random, passed, trials = 0.02, 0.06, np.random.default_rng(0), 0, 1500
    lost = (flipped + margin) / 2
    for _ in range(trials):
        draws = random.random(all_rows)
        for rows in (first, all_rows):
            seen = draws[:rows]
            counted = int((seen < lost).sum()), int(((seen >= lost) & (seen < flipped)).sum())
            loss = paired_loss(np.arange(rows) >= counted[1], np.arange(rows) < rows - counted[0])
            if bound_at_look(loss, 2, rows).high <= margin:
                passed += 1
                break
    assert passed / trials <= 0.05


def test_the_counts_of_a_loss_are_read_back_exactly() -> None:
    for lost in range(4):
        for won in range(4):
            loss = paired_loss(np.arange(50) >= won, np.arange(50) < 50 - lost)
            other = paired_loss(np.arange(50) >= lost, np.arange(50) < 50 - won)
            assert bound_at_look(loss, 2, 50).high == pytest.approx(-bound_at_look(replace(other), 2, 50).low)

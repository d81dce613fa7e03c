"""Mean average precision: pycocotools' own figure, of any resample of the rows, with an interval that covers."""

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from tasks.model_tasks.images.average_precision import (
    MAP_50,
    MEAN_AVERAGE_PRECISION,
    MOST_BOXES,
    find_other_boxes,
    is_another_detection,
    match_boxes,
    measure_overlaps,
    score_boxes,
)
from tasks.verdicts.intervals import compare_scores, score_interval
from tests.support.boxes import answer_targets, draw_targets, measure_by_coco


def answer(*boxes: tuple[float, ...]) -> NDArray[np.float32]:
    return np.array(boxes, dtype=np.float32).reshape(-1, 6)


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("seed", range(4))
def test_the_figures_are_those_of_pycocotools(seed: int, ties: bool) -> None:
    pytest.importorskip("pycocotools")
    random = np.random.default_rng(seed)
    targets = draw_targets(random, 60)
    answers = answer_targets(random, targets, ties=ties)
    scores = score_boxes(answers, targets, answers)
    expected = measure_by_coco(answers, targets)
    assert 0.1 < expected[0] < 0.9
    assert MEAN_AVERAGE_PRECISION.figure(scores) == pytest.approx(expected[0], abs=1e-12)
    assert MAP_50.figure(scores) == pytest.approx(expected[1], abs=1e-12)


def test_the_figure_of_a_resample_is_that_of_its_rows() -> None:
    random = np.random.default_rng(5)
    targets = draw_targets(random, 40)
    answers = answer_targets(random, targets)
    counts = random.multinomial(40, [1 / 40] * 40, size=8)
    assert MEAN_AVERAGE_PRECISION.aggregate is not None
    scores = score_boxes(answers, targets, answers)
    found = MEAN_AVERAGE_PRECISION.aggregate(scores, counts.astype(np.float64))
    each = [MEAN_AVERAGE_PRECISION.figure(np.repeat(scores, times, axis=0)) for times in counts]
    np.testing.assert_allclose(found, each, atol=1e-12)
    assert len(set(each)) == len(each)


def test_a_class_of_which_nothing_was_drawn_is_left_out() -> None:
    targets = [{"labels": [0], "boxes": [[0, 0, 10, 10]]}, {"labels": [1], "boxes": [[0, 0, 10, 10]]}]
    answers = [answer((0, 0.9, 0, 0, 10, 10)), answer()]
    scores = score_boxes(answers, targets, answers)
    assert MEAN_AVERAGE_PRECISION.aggregate is not None
    figures = MEAN_AVERAGE_PRECISION.aggregate(scores, np.array([[1.0, 1.0], [2.0, 0.0], [0.0, 2.0], [0.0, 0.0]]))
    assert figures.tolist() == [0.5, 1.0, 0.0, 0.0]


def test_no_answer_at_all_is_a_figure_of_zero() -> None:
    targets = draw_targets(np.random.default_rng(0), 5)
    nothing = [answer() for _ in targets]
    assert MEAN_AVERAGE_PRECISION.figure(score_boxes(nothing, targets, nothing)) == 0.0


def test_the_second_box_of_one_thing_is_wrong() -> None:
    box = np.array([[0.0, 0, 10, 10]])
    assert match_boxes(np.vstack([box, box]), box).all(axis=1).tolist() == [True, False]
    assert match_boxes(box, np.zeros((0, 4))).any() == np.False_


def test_overlaps_are_intersection_over_union() -> None:
    one = np.array([[0, 0, 10, 10], [5, 5, 5, 5]])
    others = np.array([[0, 0, 10, 10], [5, 0, 15, 10], [20, 20, 30, 30], [5, 5, 5, 5]])
    assert measure_overlaps(one, others)[0].tolist() == [1.0, pytest.approx(1 / 3), 0.0, 0.0]
    assert measure_overlaps(one, others)[1].tolist() == [0.0] * 4


def test_only_the_surest_boxes_of_an_image_count() -> None:
    target = {"labels": [0], "boxes": [[0, 0, 10, 10]]}
    strays = [(0, 0.5, 50.0, 50.0, 60.0, 60.0)] * MOST_BOXES
    late = [answer(*strays, (0, 0.4, 0, 0, 10, 10))]
    assert MEAN_AVERAGE_PRECISION.figure(score_boxes(late, [target], late)) == 0.0
    early = [answer(*strays[1:], (0, 0.4, 0, 0, 10, 10))]
    assert MEAN_AVERAGE_PRECISION.figure(score_boxes(early, [target], early)) == pytest.approx(1 / MOST_BOXES)


def draw_losers(random: np.random.Generator, rows: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Scores of rows before, and after a harm that moves boxes."""
    targets = draw_targets(random, rows)
    before = answer_targets(random, targets, shift=0.7)
    after = [row.copy() for row in before]
    for row in after:
        row[:, 2:] += random.normal(0, 0.6, row[:, 2:].shape)
    return score_boxes(before, targets, before), score_boxes(after, targets, before)


@pytest.mark.slow
def test_the_bound_of_a_loss_covers_the_true_loss_as_often_as_it_says() -> None:
    random, runs, metric = np.random.default_rng(7), 60, MEAN_AVERAGE_PRECISION
    before, after = draw_losers(random, 4000)
    truth = metric.figure(before) - metric.figure(after)
    losses = [compare_scores(*draw_losers(random, 40), metric.aggregate) for _ in range(runs)]
    assert truth > 0.03
    assert sum(loss.high >= truth for loss in losses) / runs >= 0.88
    assert sum(loss.low <= truth for loss in losses) / runs >= 0.75
    assert sum(loss.low >= truth for loss in losses) > 0


def test_nothing_lost_proves_no_more_than_for_a_share() -> None:
    random = np.random.default_rng(3)
    targets = draw_targets(random, 60)
    answers = answer_targets(random, targets)
    scores = score_boxes(answers, targets, answers)
    loss = compare_scores(scores, scores, MEAN_AVERAGE_PRECISION.aggregate, changes=find_other_boxes)
    assert (loss.loss, loss.flips, loss.mcnemar_p) == (0.0, 0, None)
    assert loss.high > 0.04
    figure, low, high = score_interval(scores, MEAN_AVERAGE_PRECISION.aggregate)
    assert low < figure < high


def test_a_row_flips_where_its_sure_boxes_do_and_not_where_a_score_moves() -> None:
    targets: list[dict[str, Any]] = [{"labels": [0], "boxes": [[0, 0, 10, 10]]}] * 4
    before = [answer((0, 0.9, 0, 0, 10, 10), (0, 0.1, 50, 50, 60, 60))] * 4
    after = [
        answer((0, 0.8, 0, 0, 10, 10), (0, 0.2, 50, 50, 60, 60)),
        answer((0, 0.4, 0, 0, 10, 10)),
        answer((0, 0.9, 0, 0, 10, 40)),
        answer((0, 0.9, 0, 0, 10, 10), (0, 0.6, 50, 50, 60, 60)),
    ]
    one, other = (score_boxes(each, targets, before) for each in (before, after))
    assert find_other_boxes(one, other).tolist() == [False, True, True, True]


def test_answers_alone_and_in_a_batch_differ_by_sure_boxes_of_other_classes_or_places() -> None:
    one = answer((0, 0.9, 0, 0, 10, 10), (1, 0.7, 20, 20, 30, 30))
    assert not is_another_detection(one, one[::-1].copy())
    assert not is_another_detection(answer(), answer((0, 0.3, 0, 0, 10, 10)))
    assert is_another_detection(one, one[:1])
    assert is_another_detection(one, answer((1, 0.9, 0, 0, 10, 10), (0, 0.7, 20, 20, 30, 30)))
    assert is_another_detection(one, answer((0, 0.9, 0, 0, 10, 12), (1, 0.7, 20, 20, 30, 30)))

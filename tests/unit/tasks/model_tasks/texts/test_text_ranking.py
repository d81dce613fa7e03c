"""Rerankers behind the contract: nDCG of each query, which is what gates and intervals draw."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import ndcg_score

from calibration_data.reader import Rows, draw_behind, load_split
from calibration_data.splits import DatasetRef
from registry.errors import BadInput
from registry.records import ModelSource
from tasks.model_tasks.texts.text_regression import NDCG, RELEVANCE_SPEARMAN, TEXT_RANKING
from tasks.verdicts.intervals import compare_scores, score_interval

SOURCE = ModelSource("ranker", "org/ranker", "b" * 40, "text-ranking", ())
COLUMNS = (("query", "question"), ("text", "answer"), ("score", "label"))


def make_rows(queries: int, texts: int) -> Rows:
    draw = np.random.default_rng(0)
    inputs = tuple((f"query {at // texts}", f"text {at}") for at in range(queries * texts))
    relevance = tuple(float(grade) for grade in draw.integers(0, 4, len(inputs)))
    return Rows(inputs, relevance, None, 0, "d" * 64, "the data")


def test_ndcg_is_the_mean_over_queries_of_scikit_learns() -> None:
    rows = TEXT_RANKING.align_rows(make_rows(30, 14), SOURCE)
    answers = np.random.default_rng(1).integers(0, 6, len(rows.inputs)).astype(np.float32)  # with ties
    shuffled = np.random.default_rng(2).permutation(len(rows.inputs))
    scores = NDCG.score([answers[at] for at in shuffled], [rows.targets[at] for at in shuffled], [])
    relevance = np.array([grade for _, grade in rows.targets]).reshape(30, 14)
    figure, low, high = score_interval(scores, NDCG.aggregate, [rows.groups[at] for at in shuffled])
    assert figure == pytest.approx(ndcg_score(relevance, answers.reshape(30, 14), k=10))
    assert low < figure < high


def test_texts_that_are_scored_alike_share_their_places() -> None:
    scores = NDCG.score([np.array(0.0)] * 2, [(0.0, 1.0), (0.0, 0.0)], [])
    assert scores.sum(axis=0).tolist() == pytest.approx([(1 + 1 / np.log2(3)) / 2, 1])


def test_a_query_whose_texts_are_as_relevant_counts_as_none_and_proves_nothing() -> None:
    same = Rows(tuple(("same", f"text {at}") for at in range(5)), (0.0,) * 5, None, 0, "d" * 64)
    telling = make_rows(25, 4)
    rows = TEXT_RANKING.align_rows(
        replace(telling, inputs=telling.inputs + same.inputs, targets=telling.targets + same.targets), SOURCE
    )
    answers = list(np.random.default_rng(1).random(len(rows.inputs)))
    assert NDCG.score(answers, rows.targets, answers)[-5:].tolist() == [[0, 0]] * 5
    alone = Rows(("a", "b"), (), None, 0, "d" * 64)
    assert TEXT_RANKING.align_rows(replace(alone, inputs=()), SOURCE).groups == ()
    assert len(set(rows.groups[-5:])) == 1
    assert len(set(rows.groups)) == len({query for query, _ in telling.inputs}) + 1


def test_intervals_draw_whole_queries() -> None:
    rows = TEXT_RANKING.align_rows(make_rows(40, 10), SOURCE)
    exact = [np.array(relevance) for _, relevance in rows.targets]
    worse = [answer if at >= 100 else -answer for at, answer in enumerate(exact)]
    before, after = (NDCG.score(each, rows.targets, exact) for each in (exact, worse))
    loss = compare_scores(before, after, NDCG.aggregate, groups=rows.groups)
    assert 0 < loss.low < loss.loss < loss.high
    assert loss.high - loss.low > 0.05  # of 40 queries, not of 400 rows


def test_spearman_is_over_all_rows_whatever_their_query() -> None:
    rows = TEXT_RANKING.align_rows(make_rows(30, 4), SOURCE)
    answers = [np.array(relevance) for _, relevance in rows.targets]
    scores = RELEVANCE_SPEARMAN.score(answers, rows.targets, answers)
    assert RELEVANCE_SPEARMAN.figure(scores) == pytest.approx(1)


@pytest.mark.parametrize("score", [-1, "much", None, True, float("nan"), "inf"])
def test_a_relevance_is_a_number_that_is_not_negative(score: object) -> None:
    row = {"query": "who", "text": "Ada", "score": score}
    assert TEXT_RANKING.read_row(row, None) is None
    assert "in data.score" in TEXT_RANKING.explain_row(row)
    assert "data.query" in TEXT_RANKING.explain_row(row | {"query": " "})
    assert TEXT_RANKING.read_row(row | {"score": "2.0"}, None) == (("who", "Ada"), 2.0)


def test_a_question_is_a_query_and_a_text() -> None:
    assert TEXT_RANKING.read_question("who ||| Ada") == ("who", "Ada")
    with pytest.raises(BadInput, match="give two texts"):
        TEXT_RANKING.read_question("who")


def test_rows_of_a_query_are_drawn_together(tmp_path: Path) -> None:
    frame = pd.DataFrame(
        [(f"q{at % 40}", f"text {at}", at % 3) for at in range(400)], columns=list(dict(COLUMNS).values())
    )
    frame.to_csv(tmp_path / "train.csv", index=False)
    ref = DatasetRef(str(tmp_path), COLUMNS, drawn_by="query")
    drawn = load_split(ref, TEXT_RANKING, "train", samples=100)
    assert [len({query for query, _ in drawn.inputs[at : at + 10]}) for at in range(0, 100, 10)] == [1] * 10
    assert drawn.groups == tuple(f"group {query}" for query, _ in drawn.inputs)
    held = draw_behind(ref, TEXT_RANKING, "train", after=100, samples=250, seed=0, apart_from=())
    assert len(set(held.groups)) == 25
    assert not set(held.groups) & set(drawn.groups)
    assert load_split(ref, TEXT_RANKING, "train", samples=50).inputs == drawn.inputs[:50]

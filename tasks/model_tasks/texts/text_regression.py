"""A text or a pair of texts in, a number out: graders, judged by Spearman, and rerankers, judged by nDCG by query."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from calibration_data.reader import Rows
from registry.errors import BadInput
from registry.records import ModelSource
from tasks.model_tasks.contract import Answers, Encoder, Metric, OfSums, Scores, ShownAnswer
from tasks.model_tasks.inputs.texts import EXAMPLE_TEXTS, check_text, is_text, read_number
from tasks.model_tasks.labels import check_head, show_value
from tasks.model_tasks.scores import SPEARMAN, compute_ratio, score_ranks
from tasks.model_tasks.texts.text_task import BETWEEN, TextTask, split_pair

# The column whose rows of one value are ranked against each other.
QUERY = "query"
BEST = 10
# Groups of rows are named so where their query tells nothing, so that together they count as one.
ONE_RELEVANCE = "queries of one relevance"


def score_rankings(answers: Answers, targets: Sequence[Any], _reference: Answers) -> Scores:
    """Return a row's parts of its query's nDCG@10, and of one query: (nDCG / rows, 1 / rows), [rows, 2].

    A target is (the query's number, the relevance); gains are the relevances. Rows that the model scores alike share
    the mean of their places (McSherry and Najork, ECIR 2008). A query whose rows are all as relevant counts as none.
    """
    from sklearn.metrics import ndcg_score  # a second, which planning a release does not need

    query, relevance = np.asarray(targets, dtype=np.float64).T
    given, scores = np.asarray(answers, dtype=np.float64), np.zeros((len(answers), 2))
    order = np.argsort(query, kind="stable")
    for rows in np.split(order, np.flatnonzero(np.diff(query[order])) + 1):
        if np.ptp(relevance[rows]) > 0:
            scores[rows] = np.array([ndcg_score([relevance[rows]], [given[rows]], k=BEST), 1.0]) / len(rows)
    return scores


def score_relevance_ranks(answers: Answers, targets: Sequence[Any], reference: Answers) -> Scores:
    """Return what Spearman's rho adds up, over all rows whatever their query."""
    return score_ranks(answers, [relevance for _, relevance in targets], reference)


NDCG = Metric("ndcg_at_10", "nDCG", score_rankings, OfSums(compute_ratio))
RELEVANCE_SPEARMAN = replace(SPEARMAN, score=score_relevance_ranks)


@dataclass(frozen=True)
class ScoredText:
    """The number that the model gives a text, or a pair of them."""

    text: str
    score: float

    @property
    def line(self) -> str:
        """The answer for a terminal."""
        return f"{self.score:.4g}  {self.text}"


@dataclass(frozen=True)
class TextRegression(TextTask):
    """One number per text or pair; output 0 of the graph is [batch, 1], as it is, without a sigmoid."""

    name: str = "text-regression"
    columns: tuple[str, ...] = ("text", "score")
    optional_columns: tuple[str, ...] = ("text_pair",)
    row_needs: str = "a text that is not empty, or two, and a number"
    answer_axes: tuple[str, ...] = ("batch", "width")
    export_task: str = "text-classification"
    metrics: tuple[Metric, ...] = (SPEARMAN,)

    def read_row(
        self, row: Mapping[str, Any], _classes: Sequence[str] | None
    ) -> tuple[str | tuple[str, ...], float] | None:
        """Return (text or pair, number) where each text has words, and the number is finite."""
        texts = [row[name] for name in ("text", "text_pair") if name in row]
        score = read_number(row["score"])
        if not all(map(is_text, texts)) or score is None:
            return None
        return (texts[0] if len(texts) == 1 else tuple(texts)), score

    def explain_row(self, row: Mapping[str, Any]) -> str:
        """Return what is wrong with the texts or the number of a row."""
        for column in ("text", "text_pair"):
            if column in row and not is_text(row[column]):
                return f"the {column} is {show_value(row[column])}: name the column of the texts in data.{column}"
        return f"the score is {show_value(row['score'])}: name the column of numbers in data.score"

    def align_rows(self, rows: Rows, source: ModelSource) -> Rows:  # noqa: ARG002
        """Return the rows as they are."""
        return rows

    def check_checkpoint(self, config: Mapping[str, Any]) -> None:
        """Check that the checkpoint gives one number per text.

        Raises:
            BadInput: it has another head or none, or gives labels.
        """
        check_head(config, self.name, "ForSequenceClassification")
        outputs = len(config.get("id2label") or range(config.get("num_labels") or 2))
        if outputs != 1:
            raise BadInput(f"the checkpoint gives {outputs} numbers per text, not one: use task: text-classification")

    def read_question(self, text: str) -> str | tuple[str, ...]:
        """Return a text, or the two of "one ||| other".

        Raises:
            BadInput: one is empty or too long.
        """
        texts = tuple(text.split(BETWEEN, 1))
        for each in texts:
            check_text(each)
        return texts[0] if len(texts) == 1 else texts

    def answers(self, outputs: Sequence[NDArray[Any]], inputs: Sequence[Any], encoder: Encoder) -> Answers:  # noqa: ARG002
        """Return the number of each text, float32 []."""
        return list(outputs[0].reshape(len(outputs[0]), -1)[:, 0].astype(np.float32))

    def show(
        self,
        outputs: Sequence[NDArray[Any]],
        inputs: Sequence[Any],
        questions: Sequence[str],
        classes: Sequence[str],  # noqa: ARG002
        encoder: Encoder,
    ) -> list[ShownAnswer]:
        """Return the number of each text."""
        numbers = self.answers(outputs, inputs, encoder)
        return [ScoredText(text, float(number)) for text, number in zip(questions, numbers, strict=True)]


@dataclass(frozen=True)
class TextRanking(TextRegression):
    """A reranker: one number per query and text, by which the texts of a query are ranked."""

    name: str = "text-ranking"
    columns: tuple[str, ...] = (QUERY, "text", "score")
    optional_columns: tuple[str, ...] = ()
    row_needs: str = "a query and a text that are not empty, and a relevance of 0 or more"
    metrics: tuple[Metric, ...] = (NDCG, RELEVANCE_SPEARMAN)

    @property
    def example_inputs(self) -> tuple[Any, ...]:
        """A query with a text."""
        return (EXAMPLE_TEXTS,)

    def read_row(
        self, row: Mapping[str, Any], _classes: Sequence[str] | None
    ) -> tuple[str | tuple[str, ...], float] | None:
        """Return ((query, text), relevance) where both have words, and the relevance is finite and not negative."""
        texts, score = (row[QUERY], row["text"]), read_number(row["score"])
        return (texts, score) if all(map(is_text, texts)) and score is not None and score >= 0 else None

    def explain_row(self, row: Mapping[str, Any]) -> str:
        """Return what is wrong with the texts or the relevance of a row."""
        for column in (QUERY, "text"):
            if not is_text(row[column]):
                return f"the {column} is {show_value(row[column])}: name the column of the texts in data.{column}"
        return (
            f"the relevance is {show_value(row['score'])}: name the column of numbers from 0, more where a text fits "
            "its query better, in data.score"
        )

    def align_rows(self, rows: Rows, source: ModelSource) -> Rows:  # noqa: ARG002
        """Return the rows with (number of the query, relevance) as targets, and a group for each query that counts."""
        queries = [query for query, _ in rows.inputs]
        numbers = {query: float(number) for number, query in enumerate(dict.fromkeys(queries))}
        grades = Counter(query for query, _ in set(zip(queries, rows.targets, strict=True)))
        return replace(
            rows,
            targets=tuple((numbers[query], score) for query, score in zip(queries, rows.targets, strict=True)),
            groups=tuple(f"query {query}" if grades[query] > 1 else ONE_RELEVANCE for query in queries),
        )

    def read_question(self, text: str) -> tuple[str, ...]:
        """Return the query and the text of "query ||| text".

        Raises:
            BadInput: there are not two, or one is empty or too long.
        """
        pair = split_pair(text, example=f"who wrote it{BETWEEN}It was written by Ada.")
        for each in pair:
            check_text(each)
        return pair


TEXT_REGRESSION = TextRegression()
TEXT_RANKING = TextRanking()

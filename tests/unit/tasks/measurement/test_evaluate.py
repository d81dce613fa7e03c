"""Accuracy: every row once, in any order and any batch; an answer that is no number is no answer."""

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from registry.errors import MeasurementError
from registry.records import AxisRange
from tasks.measurement.evaluate import LARGEST_BATCH, Evaluation, evaluate
from tasks.model_tasks.inputs.texts import FeedDict, TextEncoder, open_text_encoder
from tasks.model_tasks.scores import ACCURACY
from tasks.model_tasks.texts.text_classification import TEXT_CLASSIFICATION
from tests.support.tiny import WORDS, write_tokenizer


class ByTokens:
    """Logits of 5 classes that depend on a row's own tokens and not on its batch; a second output that is NaN."""

    def __init__(self, spoil: float | None = None) -> None:
        self.spoil, self.rows, self.largest = spoil, 0, 0

    def run(self, feed: FeedDict) -> list[NDArray[np.float32]]:
        ids, mask = feed["input_ids"], feed["attention_mask"]
        self.rows, self.largest = self.rows + len(ids), max(self.largest, len(ids))
        logits = np.eye(5, dtype=np.float32)[(ids * mask).sum(axis=1) % 5]
        if self.spoil is not None and self.rows > LARGEST_BATCH:
            logits[-1, 2] = self.spoil
        return [logits, np.full((1, 1), np.nan, dtype=np.float32)]


@pytest.fixture
def encoder(tmp_path: Path) -> TextEncoder:
    write_tokenizer(tmp_path)
    return open_text_encoder(tmp_path, ["attention_mask", "input_ids"], {"sequence": 16})


def texts(count: int) -> list[str]:
    """Rows of 1 to 12 words of the tiny vocabulary and beyond it, most of them different."""
    random = np.random.default_rng(0)
    return [" ".join(random.choice([*WORDS, "unheard"], size=random.integers(1, 13))) for _ in range(count)]


@pytest.fixture
def into(tmp_path: Path) -> Path:
    folder = tmp_path / "evaluation"
    folder.mkdir()
    return folder


def judge(encoder: TextEncoder, rows: list[str], into: Path) -> Evaluation:
    return evaluate(ByTokens(), TEXT_CLASSIFICATION, encoder, rows, subject_digest="d" * 64, into=into)


def test_answers_stand_in_the_order_of_the_rows_whatever_the_batches(encoder: TextEncoder, into: Path) -> None:
    rows = texts(100)
    alone = [int(ByTokens().run(encoder.encode([row]))[0].argmax()) for row in rows]
    assert len(set(alone)) > 1
    assert [int(answer) for answer in judge(encoder, rows, into).answers()] == alone


def test_accuracy_does_not_depend_on_the_order_of_the_rows(encoder: TextEncoder, into: Path) -> None:
    rows = texts(100)
    labels = [int(label) for label in np.random.default_rng(1).integers(0, 5, 100)]
    before = judge(encoder, rows, into).answers()
    order = np.random.default_rng(2).permutation(100)
    after = judge(encoder, [rows[n] for n in order], into).answers()
    accuracy = ACCURACY.score(before, labels, before).mean()
    assert ACCURACY.score(after, [labels[n] for n in order], before).mean() == accuracy
    assert 0 < accuracy < 1
    assert after == [before[n] for n in order]


def test_progress_names_the_batching_and_ends_at_one(encoder: TextEncoder, into: Path) -> None:
    done: dict[str, list[float]] = {}
    evaluate(
        ByTokens(),
        TEXT_CLASSIFICATION,
        encoder,
        texts(70),
        subject_digest="d" * 64,
        into=into,
        on_progress=lambda phase, fraction: done.setdefault(phase, []).append(fraction),
    )
    assert done["evaluate by-length"] == [32 / 70, 64 / 70, 1.0]
    assert {phase: shares[-1] for phase, shares in done.items()} == {
        "evaluate alone": 1.0,
        "evaluate by-length": 1.0,
        "evaluate padded": 1.0,
    }


@pytest.mark.parametrize("size", [1, 7, 64])
def test_the_size_of_a_batch_changes_no_answer(encoder: TextEncoder, into: Path, size: int) -> None:
    rows, session, batch = texts(50), ByTokens(), AxisRange(1, size, size)
    expected = judge(encoder, rows, into).answers()
    found = evaluate(session, TEXT_CLASSIFICATION, encoder, rows, subject_digest="d" * 64, into=into, batch=batch)
    np.testing.assert_array_equal(found.answers(), expected)
    assert session.largest <= min(size, LARGEST_BATCH)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_one_logit_that_is_no_number_voids_the_evaluation(encoder: TextEncoder, into: Path, value: float) -> None:
    with pytest.raises(MeasurementError, match="the graph dddddddddddd gave NaN or infinite outputs"):
        evaluate(ByTokens(value), TEXT_CLASSIFICATION, encoder, texts(70), subject_digest="d" * 64, into=into)
    assert list(into.iterdir()) == []


def test_batches_hold_every_position_once_with_its_text(encoder: TextEncoder) -> None:
    rows = texts(75)
    found = [
        (position, text)
        for positions, group in encoder.batches(rows, 32)
        for position, text in zip(positions, group, strict=True)
    ]
    assert sorted(found) == list(enumerate(rows))

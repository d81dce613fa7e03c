"""Sentence encoders behind the contract: vectors against fp32's, and pairs against what people say."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy

from registry.errors import BadInput
from tasks.measurement.measurements import find_worst
from tasks.model_tasks.contract import Metric
from tasks.model_tasks.scores import SPEARMAN
from tasks.model_tasks.texts.sentence_embedding import COSINE, FEATURE_EXTRACTION, SENTENCE_SIMILARITY, PairEncoder
from tests.support.tiny import write_tokenizer


@pytest.fixture
def encoder(tmp_path: Path) -> PairEncoder:
    write_tokenizer(tmp_path)
    return SENTENCE_SIMILARITY.open_encoder(tmp_path, ["input_ids", "attention_mask"], {"sequence": 8})


def aggregate(metric: Metric, scores: np.ndarray[Any, Any]) -> float:
    return metric.figure(scores)


def test_vectors_are_judged_by_their_cosine_to_those_of_fp32() -> None:
    exact = [np.array(vector, dtype=np.float32) for vector in ([1.0, 0.0], [0.0, 2.0], [3.0, 3.0])]
    made = [np.array(vector, dtype=np.float32) for vector in ([5.0, 0.0], [1.0, 1.0], [0.0, 0.0])]
    scores = COSINE.score(made, [None] * 3, exact)
    assert scores[:, 0] == pytest.approx([1.0, np.sqrt(0.5), 0.0])
    assert aggregate(COSINE, scores) == pytest.approx((1 + np.sqrt(0.5)) / 3)
    assert find_worst(COSINE, scores) == pytest.approx(0.0)
    assert aggregate(COSINE, COSINE.score(exact, [None] * 3, exact)) == pytest.approx(1.0)


@pytest.mark.parametrize("ties", [False, True])
def test_similarity_is_scipys_spearman(ties: bool) -> None:
    random = np.random.default_rng(0)
    truth = random.integers(0, 6, 80).astype(float) if ties else random.random(80)
    given = list(truth + random.normal(size=80))
    scores = SPEARMAN.score(given, list(truth), given)
    assert aggregate(SPEARMAN, scores) == pytest.approx(scipy.stats.spearmanr(given, truth).statistic)
    assert aggregate(SPEARMAN, SPEARMAN.score([np.ones(())] * 80, list(truth), given)) == 0.0


def test_a_pair_is_two_rows_and_a_batch_has_room_for_both(encoder: PairEncoder) -> None:
    pairs = [("a film", "the music"), ("good", "bad library"), ("fine", "poor")]
    assert encoder.encode(pairs)["input_ids"].shape == (6, 4)
    groups = list(encoder.batches(pairs, 4))
    assert [len(positions) for positions, _ in groups] == [2, 1]
    assert sorted(position for positions, _ in groups for position in positions) == [0, 1, 2]
    outputs = [np.array([[1, 0], [1, 1], [1, 0], [1, 0], [-1, -1], [0, 1]], dtype=np.float32)]
    assert SENTENCE_SIMILARITY.answers(outputs, pairs, encoder) == pytest.approx([1.0, -1.0, 0.0])
    with pytest.raises(BadInput, match="a pair is two rows of the graph"):
        SENTENCE_SIMILARITY.check_shapes({}, {"batch": 1, "sequence": 8})


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"text": "a", "text_pair": None, "score": 1}, "the text_pair is NoneType None"),
        ({"text": " ", "text_pair": "b", "score": 1}, "the text is str ' '"),
        ({"text": "a", "text_pair": "b", "score": "one"}, "the score is str 'one'"),
        ({"text": "a", "text_pair": "b", "score": float("nan")}, "the score is float nan"),
        ({"text": "a", "text_pair": "b", "score": True}, "the score is bool True"),
    ],
)
def test_a_pair_has_two_texts_and_a_number(row: dict[str, Any], words: str) -> None:
    assert SENTENCE_SIMILARITY.read_row(row, None) is None
    assert words in SENTENCE_SIMILARITY.explain_row(row)


def test_a_row_for_features_needs_a_text_and_no_truth() -> None:
    assert FEATURE_EXTRACTION.read_row({"text": "a film"}, None) == ("a film", None)
    assert FEATURE_EXTRACTION.read_row({"text": 3}, None) is None
    assert "the text is int 3" in FEATURE_EXTRACTION.explain_row({"text": 3})


def test_two_texts_are_asked_with_a_sign_between_them(encoder: PairEncoder) -> None:
    assert SENTENCE_SIMILARITY.read_question("a film ||| a movie") == ("a film", "a movie")
    with pytest.raises(BadInput, match=r"give two texts with '\|\|\|' between them"):
        SENTENCE_SIMILARITY.read_question("a film")
    with pytest.raises(BadInput, match="empty text"):
        SENTENCE_SIMILARITY.read_question("a film |||  ")
    outputs = [np.array([[1.0, 0.0], [1.0, 0.0]], dtype=np.float32)]
    (shown,) = SENTENCE_SIMILARITY.show(outputs, [("a", "b")], ["a ||| b"], (), encoder)
    assert shown.line == "1.000  a ||| b"


@pytest.mark.parametrize("name", ["BertForSequenceClassification", "BertForMaskedLM", "GPT2LMHeadModel"])
def test_a_checkpoint_with_a_head_is_refused(name: str) -> None:
    with pytest.raises(BadInput, match="no encoder without a head"):
        FEATURE_EXTRACTION.check_checkpoint({"architectures": [name]})
    FEATURE_EXTRACTION.check_checkpoint({"architectures": ["BertModel"]})

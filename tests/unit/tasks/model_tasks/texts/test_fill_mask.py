"""Masked language models behind the contract: one masked token a text, always the same; never all logits kept."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer
from tokenizers.models import WordLevel

from registry.errors import BadInput
from tasks.model_tasks.texts.fill_mask import (
    FILL_MASK,
    PSEUDO_PERPLEXITY,
    TOP_1_ACCURACY,
    MaskedText,
    MaskEncoder,
    compute_log_probabilities,
)
from tests.support.tiny import SPECIAL, WORDS, write_tokenizer

MASK = SPECIAL.index("[MASK]")
TEXTS = ["a good film", "the music of the library", "editor", "bad music and a poor film for the library"]


def number_of(word: str) -> int:
    return (SPECIAL + WORDS).index(word)


@pytest.fixture
def encoder(tmp_path: Path) -> MaskEncoder:
    write_tokenizer(tmp_path)
    return FILL_MASK.open_encoder(tmp_path, ["input_ids", "attention_mask"], {"sequence": 12})


def logits_for(encoder: MaskEncoder, rows: list[MaskedText], seed: int = 0) -> np.ndarray[Any, Any]:
    shape = (*encoder.encode(rows)["input_ids"].shape, len(SPECIAL + WORDS))
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def test_each_text_has_one_masked_token_that_is_no_special_one(encoder: MaskEncoder) -> None:
    feed, masked = encoder.encode(TEXTS), encoder.find_masked(TEXTS)
    plain = encoder.texts.encode(TEXTS)["input_ids"]
    assert (feed["input_ids"] == MASK).sum(axis=1).tolist() == [1] * len(TEXTS)
    changed = np.argwhere(feed["input_ids"] != encoder.texts.encode(TEXTS)["input_ids"])
    assert changed.tolist() == [[row, position] for row, position in enumerate(masked.positions)]
    assert [int(plain[row, at]) for row, at in enumerate(masked.positions)] == list(masked.ids)
    assert all(number is not None and number >= len(SPECIAL) for number in masked.ids)


def test_a_text_is_masked_alike_alone_and_in_any_batch(encoder: MaskEncoder) -> None:
    together = encoder.find_masked(TEXTS[::-1])
    alone = [encoder.find_masked([text]).positions[0] for text in TEXTS[::-1]]
    assert alone == list(together.positions)


def test_a_row_may_bring_its_mask_and_the_token_behind_it(encoder: MaskEncoder) -> None:
    masked = encoder.find_masked([("a [MASK] film", "good")])
    assert (masked.positions, masked.ids) == ((2,), (number_of("good"),))
    assert encoder.encode([("a [MASK] film", "good")])["input_ids"][0, 2] == MASK


def test_a_token_behind_a_mask_must_be_one_token(encoder: MaskEncoder) -> None:
    with pytest.raises(BadInput, match=r"is 2 tokens, and a mask stands for one"):
        encoder.encode([("a [MASK] film", "good music")])


def test_a_mask_behind_the_cut_is_refused(encoder: MaskEncoder) -> None:
    with pytest.raises(BadInput, match=r"among its first 12 tokens"):
        encoder.encode([("a good film " * 6 + "[MASK]", "good")])


def test_a_text_without_tokens_is_refused(encoder: MaskEncoder) -> None:
    with pytest.raises(BadInput, match="no token that could be masked"):
        encoder.encode(["\u200b"])


def test_a_tokenizer_without_a_mask_is_refused(tmp_path: Path) -> None:
    Tokenizer(WordLevel({"[UNK]": 0}, unk_token="[UNK]")).save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(BadInput, match=r"has no token \[MASK\] or <mask>"):
        FILL_MASK.open_encoder(tmp_path, ["input_ids"], {})


def test_two_numbers_a_row_are_kept_of_all_logits(encoder: MaskEncoder) -> None:
    (kept,) = FILL_MASK.reduce_outputs([logits_for(encoder, [*TEXTS])], TEXTS, encoder)
    assert kept.shape == (len(TEXTS), 2)


def test_answers_are_right_where_the_masked_token_is_the_most_likely(encoder: MaskEncoder) -> None:
    masked, logits = encoder.find_masked(TEXTS), logits_for(encoder, [*TEXTS])
    for row in (0, 2):
        logits[row, masked.positions[row], masked.ids[row]] = 9.0
    wrong = number_of("fine")  # in no text
    for row in (1, 3):
        logits[row, masked.positions[row], wrong] = 9.0
    answers = FILL_MASK.answers(FILL_MASK.reduce_outputs([logits], TEXTS, encoder), TEXTS, encoder)
    assert TOP_1_ACCURACY.score(answers, [], answers).tolist() == [[1], [0], [1], [0]]
    expected = [compute_log_probabilities(logits[row, at])[masked.ids[row]] for row, at in enumerate(masked.positions)]
    scores = PSEUDO_PERPLEXITY.score(answers, [], answers)
    assert PSEUDO_PERPLEXITY.figure(scores) == pytest.approx(np.exp(-np.mean(expected)))


def test_a_model_that_knows_nothing_is_as_perplexed_as_the_vocabulary_is_large(encoder: MaskEncoder) -> None:
    logits = np.zeros_like(logits_for(encoder, [*TEXTS]))
    answers = FILL_MASK.answers(FILL_MASK.reduce_outputs([logits], TEXTS, encoder), TEXTS, encoder)
    scores = PSEUDO_PERPLEXITY.score(answers, [], answers)
    assert PSEUDO_PERPLEXITY.figure(scores) == pytest.approx(len(SPECIAL + WORDS))


def test_log_probabilities_of_large_logits_are_finite() -> None:
    assert compute_log_probabilities(np.array([3e38, -3e38, 0.0], dtype=np.float32)).tolist()[0] == 0.0


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"text": " "}, "name the column of the texts"),
        ({"text": "a [MASK] film"}, "name the column of what stands behind it in data.token"),
        ({"text": "a film", "token": "good"}, "has no mask"),
        ({"text": "a <mask> film", "token": None}, "name the column of the tokens"),
    ],
)
def test_a_row_that_is_not_usable_is_explained(row: dict[str, Any], reason: str) -> None:
    assert FILL_MASK.read_row(row, None) is None
    assert reason in FILL_MASK.explain_row(row)


def test_usable_rows_are_read() -> None:
    assert FILL_MASK.read_row({"text": "a film"}, None) == ("a film", None)
    assert FILL_MASK.read_row({"text": "a [MASK]", "token": "film"}, None) == (("a [MASK]", "film"), None)


def test_answers_show_the_likeliest_tokens_and_the_mask(encoder: MaskEncoder) -> None:
    questions = ["a [MASK] film", "music"]
    logits = logits_for(encoder, [*questions])
    logits[0, 2, number_of("good")] = 30.0
    first, second = FILL_MASK.show([logits], questions, questions, (), encoder)
    assert first.line.startswith("good (100%), ")
    assert first.line.endswith("  a [MASK] film")
    assert second.line.endswith("  [MASK]")


def test_another_head_is_refused() -> None:
    FILL_MASK.check_checkpoint({"architectures": ["BertForMaskedLM"], "model_type": "bert"})
    with pytest.raises(BadInput, match="no head for fill-mask"):
        FILL_MASK.check_checkpoint({"architectures": ["BertModel"], "model_type": "bert"})

"""Written texts: what rows are, what checkpoints are, and figures that are sacrebleu's own."""

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rouge_score.rouge_scorer import RougeScorer
from sacrebleu.metrics import bleu, chrf

from registry.errors import BadInput
from tasks.model_tasks.contract import Answers
from tasks.model_tasks.inputs.written import WritingEncoder
from tasks.model_tasks.texts.text2text_generation import TEXT2TEXT_GENERATION
from tasks.model_tasks.texts.written_scores import BLEU_4, CHRF, ROUGE_L
from tests.support.tiny import SPECIAL, WORDS
from tests.support.writers import write_special_tokenizer

T5 = {"model_type": "t5", "architectures": ["T5ForConditionalGeneration"], "is_encoder_decoder": True}
SOME_WORDS = ("the", "cat", "sat", "on", "a", "mat", "très", "loin", "12", "x")


def draw_corpus(seed: int, rows: int) -> tuple[list[str], list[str]]:
    """Draw texts that were written, some with nothing, and those that were wanted."""
    draw = random.Random(seed)  # noqa: S311  # rows, not secrets
    written, wanted = (
        [" ".join(draw.choices(SOME_WORDS, k=draw.randint(least, 9))) for _ in range(rows)] for least in (0, 1)
    )
    return written, wanted


def as_answers(texts: list[str]) -> Answers:
    return [np.frombuffer(text.encode(), dtype=np.uint8) for text in texts]


@pytest.mark.parametrize("rows", [1, 2, 30])
@pytest.mark.parametrize("seed", range(8))
def test_sums_over_rows_give_sacrebleus_figures_of_the_corpus(rows: int, seed: int) -> None:
    written, wanted = draw_corpus(seed, rows)
    answers = as_answers(written)
    for metric, theirs in ((CHRF, chrf.CHRF()), (BLEU_4, bleu.BLEU())):
        scores = metric.score(answers, wanted, answers)
        expected = theirs.corpus_score(written, [wanted]).score / 100
        assert metric.figure(scores) == pytest.approx(expected, abs=1e-9)


def test_figures_are_of_each_resample_at_once() -> None:
    written, wanted = draw_corpus(0, 20)
    answers, counts = as_answers(written), np.random.default_rng(0).multinomial(20, [0.05] * 20, size=5)
    for metric in (CHRF, BLEU_4, ROUGE_L):
        scores = metric.score(answers, wanted, answers)
        assert metric.aggregate is not None
        each = [metric.figure(np.repeat(scores, times, axis=0)) for times in counts]
        np.testing.assert_allclose(metric.aggregate(scores, counts.astype(np.float64)), each)


def test_rouge_is_the_mean_of_the_rows_f1() -> None:
    written, wanted = draw_corpus(1, 12)
    answers = as_answers(written)
    mean = np.mean(
        [RougeScorer(["rougeL"]).score(a, b)["rougeL"].fmeasure for a, b in zip(wanted, written, strict=True)]
    )
    figure = ROUGE_L.figure(ROUGE_L.score(answers, wanted, answers))
    assert float(figure) == pytest.approx(float(mean))


def test_a_perfect_text_scores_one_and_nothing_scores_zero() -> None:
    texts = ["the cat sat on a mat and ran", "a second row of five words"]
    for metric in (CHRF, BLEU_4):
        for answers, expected in ((as_answers(texts), 1.0), (as_answers(["", ""]), 0.0)):
            assert metric.figure(metric.score(answers, texts, answers)) == pytest.approx(expected)


def test_what_was_written_is_read_without_special_tokens(tmp_path: Path) -> None:
    write_special_tokenizer(tmp_path)
    encoder = TEXT2TEXT_GENERATION.open_encoder(tmp_path, ("input_ids", "attention_mask"), {"sequence": 16})
    numbers = {token: number for number, token in enumerate(SPECIAL + WORDS)}
    tokens = np.array(
        [
            [numbers[token] for token in ("a", "good", "film", "[SEP]")],
            [numbers[token] for token in ("music", "[SEP]", "[PAD]", "[PAD]")],
            [numbers[token] for token in ("[SEP]", "[PAD]", "[PAD]", "[PAD]")],
        ]
    )
    outputs = [tokens, np.zeros(tokens.shape, dtype=np.float32)]
    questions = ["x", "y", "z"]
    answers = TEXT2TEXT_GENERATION.answers(outputs, questions, encoder)
    assert [answer.tobytes().decode() for answer in answers] == ["a good film", "music", ""]
    shown = TEXT2TEXT_GENERATION.show(outputs, questions, questions, (), encoder)
    assert [each.line for each in shown] == ["a good film  x", "music  y", "(nothing written)  z"]
    assert isinstance(encoder, WritingEncoder)


@pytest.mark.parametrize(
    ("config", "sentence"),
    [
        ({"model_type": "bert", "architectures": ["BertForMaskedLM"]}, "BertForMaskedLM, which has no head"),
        ({**T5, "architectures": ["T5EncoderModel"]}, "T5EncoderModel, which has no head"),
        ({**T5, "is_encoder_decoder": False}, "has no encoder and decoder"),
        ({"model_type": "gpt2"}, "has no encoder and decoder"),
    ],
)
def test_a_checkpoint_of_another_kind_is_refused(config: dict[str, Any], sentence: str) -> None:
    with pytest.raises(BadInput, match=sentence):
        TEXT2TEXT_GENERATION.check_checkpoint(config)


def test_checkpoints_that_write_text_are_taken() -> None:
    TEXT2TEXT_GENERATION.check_checkpoint(T5)
    marian = {"model_type": "marian", "architectures": ["MarianMTModel"], "is_encoder_decoder": True}
    TEXT2TEXT_GENERATION.check_checkpoint(marian)


@pytest.mark.parametrize(("largest", "what"), [({"sequence": 65}, "texts of 65"), ({"new_tokens": 65}, "65 new")])
def test_more_tokens_than_positions_are_refused(largest: dict[str, int], what: str) -> None:
    with pytest.raises(BadInput, match=what):
        TEXT2TEXT_GENERATION.check_shapes({"max_position_embeddings": 64}, largest)


@pytest.mark.parametrize(
    "row", [{"text": "", "target": "a"}, {"text": "a", "target": None}, {"text": 3, "target": "a"}]
)
def test_a_row_without_two_texts_is_refused_by_name(row: dict[str, Any]) -> None:
    assert TEXT2TEXT_GENERATION.read_row(row, None) is None
    assert "name the column of the texts in data." in TEXT2TEXT_GENERATION.explain_row(row)

"""Edits that turn a transcript into the right one, as jiwer counts them, with and without Whisper's normalizer."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from tasks.model_tasks.contract import Answers, Metric, OfSums, Scores
from tasks.model_tasks.scores import compute_ratio


def _count_edits(
    answers: Answers,
    targets: Sequence[Any],
    count: Callable[[str, str], tuple[int, int]],
    normalize: Callable[[str], str] = str.casefold,
) -> Scores:
    """Return (edits, length of the transcript) of each row, [rows, 2]; letters' case is no difference."""
    texts = (np.asarray(answer, dtype=np.uint8).tobytes().decode() for answer in answers)
    return np.array(
        [count(normalize(str(target)), normalize(text)) for text, target in zip(texts, targets, strict=True)],
        dtype=np.float64,
    )


def _count_words(target: str, text: str) -> tuple[int, int]:
    import jiwer  # native code, which planning a release does not need

    if not target:  # jiwer refuses it; a normalizer may leave nothing
        return len(text.split()), 0
    found = jiwer.process_words(target, text)
    wrong = found.substitutions + found.deletions
    return wrong + found.insertions, found.hits + wrong


def _count_characters(target: str, text: str) -> tuple[int, int]:
    import jiwer  # native code, which planning a release does not need

    if not target:
        return len(text), 0
    found = jiwer.process_characters(target, text)
    wrong = found.substitutions + found.deletions
    return wrong + found.insertions, found.hits + wrong


def score_words(answers: Answers, targets: Sequence[Any], _reference: Answers) -> Scores:
    """Return (word edits, words of the transcript) of each row, [rows, 2], as jiwer counts them."""
    return _count_edits(answers, targets, _count_words)


def score_characters(answers: Answers, targets: Sequence[Any], _reference: Answers) -> Scores:
    """Return (character edits, characters of the transcript) of each row, [rows, 2], as jiwer counts them."""
    return _count_edits(answers, targets, _count_characters)


def _make_normalizer() -> Callable[[str], str]:
    """Return Whisper's basic normalizer: without case, punctuation, and what stands in brackets.

    Radford et al., "Robust speech recognition via large-scale weak supervision" (2022), appendix C.
    """
    from transformers.models.whisper.english_normalizer import BasicTextNormalizer  # not where a release is planned

    normalizer = BasicTextNormalizer()
    return lambda text: str(normalizer(text)).strip()


def score_normalized_words(answers: Answers, targets: Sequence[Any], _reference: Answers) -> Scores:
    """Return (word edits, words) of each row, [rows, 2], of what Whisper's normalizer leaves."""
    return _count_edits(answers, targets, _count_words, _make_normalizer())


def score_normalized_characters(answers: Answers, targets: Sequence[Any], _reference: Answers) -> Scores:
    """Return (character edits, characters) of each row, [rows, 2], of what Whisper's normalizer leaves."""
    return _count_edits(answers, targets, _count_characters, _make_normalizer())


WORD_ERROR_RATE = Metric("wer", "share", score_words, OfSums(compute_ratio), higher_is_better=False)
CHARACTER_ERROR_RATE = Metric("cer", "share", score_characters, OfSums(compute_ratio), higher_is_better=False)
NORMALIZED_WORD_ERROR_RATE = Metric(
    "wer", "share", score_normalized_words, OfSums(compute_ratio), higher_is_better=False
)
NORMALIZED_CHARACTER_ERROR_RATE = Metric(
    "cer", "share", score_normalized_characters, OfSums(compute_ratio), higher_is_better=False
)

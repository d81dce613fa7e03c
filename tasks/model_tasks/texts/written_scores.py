"""What written texts are judged by: counts per row whose sums give the corpus figures that sacrebleu computes.

chrF and BLEU are figures of a corpus: their counts are added up over rows first, and so a bootstrap draws rows.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from tasks.model_tasks.contract import Answers, Metric, OfSums, Scores
from tasks.model_tasks.scores import compute_ratio

# chrF2 and BLEU with sacrebleu's defaults.
CHARACTERS, BETA, WORDS = 6, 2, 4


def read_texts(answers: Answers) -> list[str]:
    """Return answers, which are UTF-8 bytes, as texts."""
    return [np.asarray(answer, dtype=np.uint8).tobytes().decode() for answer in answers]


def score_characters(answers: Answers, targets: Sequence[Any], _reference: Answers) -> Scores:
    """Return for each length of 1 to 6 characters the n-grams written, wanted and in both, [rows, 18]."""
    from sacrebleu.metrics.helpers import extract_all_char_ngrams  # planning a release does not need it

    rows = []
    for text, target in zip(read_texts(answers), targets, strict=True):
        pairs = zip(
            extract_all_char_ngrams(text, CHARACTERS), extract_all_char_ngrams(str(target), CHARACTERS), strict=True
        )
        # Not written where nothing of that length is wanted, as sacrebleu has it.
        rows.append(
            [
                count
                for written, wanted in pairs
                for count in (written.total() if wanted else 0, wanted.total(), (written & wanted).total())
            ]
        )
    return np.array(rows, dtype=np.float64)


def compute_chrf(sums: Scores) -> Scores:
    """Return chrF2, 0 to 1, of sums [..., 18] as `score_characters` gives them.

    Popović, "chrF: character n-gram F-score for automatic MT evaluation" (WMT 2015), averaged over the lengths that
    both texts have, as `sacrebleu.metrics.CHRF` does.
    """
    written, wanted, both = np.moveaxis(sums.reshape(*sums.shape[:-1], CHARACTERS, 3), -1, 0)
    counted = (written > 0) & (wanted > 0)
    lengths = np.maximum(counted.sum(axis=-1), 1)
    precision, recall = (
        np.divide(both, of, out=np.zeros_like(both), where=counted).sum(axis=-1) / lengths for of in (written, wanted)
    )
    weighted = BETA**2 * precision + recall
    chrf: Scores = np.divide(
        (1 + BETA**2) * precision * recall, weighted, out=np.zeros_like(weighted), where=weighted > 0
    )
    return chrf


def score_words(answers: Answers, targets: Sequence[Any], _reference: Answers) -> Scores:
    """Return (right, written) for n-grams of 1 to 4 words, and the words written and wanted, [rows, 10]."""
    from sacrebleu.metrics.bleu import BLEU  # planning a release does not need it

    bleu = BLEU(effective_order=True)
    found = (
        bleu.sentence_score(text, [str(target)]) for text, target in zip(read_texts(answers), targets, strict=True)
    )
    rows = [[*score.counts, *score.totals, score.sys_len, score.ref_len] for score in found]
    return np.array(rows, dtype=np.float64)


def compute_bleu(sums: Scores) -> Scores:
    """Return BLEU-4, 0 to 1, of sums [..., 10] as `score_words` gives them.

    Papineni et al., "BLEU: a method for automatic evaluation of machine translation" (ACL 2002), with exponential
    smoothing of lengths of which no n-gram is right, as `sacrebleu.metrics.BLEU` does.
    """
    right, written = sums[..., :WORDS], sums[..., WORDS : 2 * WORDS]
    length, wanted = sums[..., 2 * WORDS], sums[..., 2 * WORDS + 1]
    is_missed = (right == 0) & (written > 0)
    smoothed = np.where(is_missed, 0.5 ** np.cumsum(is_missed, axis=-1), right)
    precision = np.divide(smoothed, written, out=np.zeros_like(smoothed), where=written > 0)
    logarithms = np.log(precision, out=np.full_like(precision, -np.inf), where=precision > 0)
    shortness = np.divide(wanted, length, out=np.ones_like(length), where=length > 0)
    bleu: Scores = np.exp(logarithms.mean(axis=-1) + np.minimum(0.0, 1.0 - shortness))
    return np.where(right.any(axis=-1), bleu, 0.0)


def score_subsequences(answers: Answers, targets: Sequence[Any], _reference: Answers) -> Scores:
    """Return ROUGE-L's F1 of each row, as rouge-score computes it without stemming, and 1, [rows, 2].

    It compares words of the letters a to z and digits, so that texts in other scripts have none.
    """
    from rouge_score.rouge_scorer import RougeScorer  # planning a release does not need it

    scorer = RougeScorer(["rougeL"])
    texts = zip(read_texts(answers), targets, strict=True)
    return np.array([[scorer.score(str(target), text)["rougeL"].fmeasure, 1.0] for text, target in texts])


CHRF = Metric("chrf", "share", score_characters, OfSums(compute_chrf))
BLEU_4 = Metric("bleu", "share", score_words, OfSums(compute_bleu))
ROUGE_L = Metric("rouge_l", "share", score_subsequences, OfSums(compute_ratio))

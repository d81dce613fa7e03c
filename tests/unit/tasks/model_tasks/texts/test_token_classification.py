"""Token classification behind the contract: words, tags, whole entities, and words that were cut off."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from seqeval.metrics import f1_score
from tokenizers import Tokenizer, models, pre_tokenizers

from calibration_data.reader import Rows
from registry.errors import BadInput
from registry.records import ModelSource
from tasks.model_tasks.inputs.words import WordEncoder, open_word_encoder
from tasks.model_tasks.texts.token_classification import (
    CUT,
    ENTITY_F1,
    TAG_ACCURACY,
    TOKEN_CLASSIFICATION,
    TaggedText,
    Tags,
    find_entities,
)
from tests.support.tiny import write_tokenizer

CLASSES = ("O", "B-PER", "I-PER", "B-LOC", "I-LOC")
SOURCE = ModelSource("ner", "org/ner", "b" * 40, "token-classification", CLASSES)


@pytest.fixture
def encoder(tmp_path: Path) -> WordEncoder:
    write_tokenizer(tmp_path)
    return open_word_encoder(tmp_path, ["input_ids", "attention_mask"], {"sequence": 8})


def logits_of(tags: list[list[int]]) -> np.ndarray[Any, Any]:
    """Logits whose argmax are these tags, a token each."""
    return np.stack([np.eye(len(CLASSES), dtype=np.float32)[row] for row in tags])


def test_the_first_token_of_a_word_answers_for_it(encoder: WordEncoder) -> None:
    # [CLS] film ##s good [SEP]: "films" is two tokens.
    words = [("films", "good")]
    assert encoder.encode(words)["input_ids"].shape == (1, 5)
    (answer,) = TOKEN_CLASSIFICATION.answers([logits_of([[0, 1, 2, 3, 0]])], words, encoder)
    assert answer.tolist() == [1, 3]


def test_a_word_that_was_cut_off_has_no_answer_and_is_not_scored(encoder: WordEncoder) -> None:
    words = [("good",) * 7, ("bad",)]
    answers = TOKEN_CLASSIFICATION.answers([logits_of([[1] * 8, [3] * 8])], words, encoder)
    assert [answer.tolist() for answer in answers] == [[1] * 6 + [CUT], [3]]
    targets = [Tags((1,) * 7, CLASSES), Tags((0,), CLASSES)]
    assert TAG_ACCURACY.score(answers, targets, answers).tolist() == [[6.0, 6.0], [0.0, 1.0]]
    assert ENTITY_F1.score(answers, targets, answers).tolist() == [[6.0, 0.0, 0.0], [0.0, 1.0, 0.0]]


def test_f1_is_seqevals_whatever_the_tags() -> None:
    random = np.random.default_rng(0)
    truth = [random.integers(0, 5, length) for length in random.integers(1, 15, 60)]
    given = [np.where(random.random(len(row)) < 0.8, row, random.integers(0, 5, len(row))) for row in truth]
    targets = [Tags(tuple(row.tolist()), CLASSES) for row in truth]
    ours = ENTITY_F1.figure(ENTITY_F1.score(given, targets, given))
    names = [[[CLASSES[tag] for tag in row] for row in rows] for rows in (truth, given)]
    assert float(ours) == pytest.approx(f1_score(*names))
    assert 0 < ours < 1


def test_where_tags_say_nothing_of_chunks_each_word_is_one() -> None:
    assert find_entities([0, 1, 1, 2], ("O", "NOUN", "VERB")) == {("NOUN", 1, 1), ("NOUN", 2, 2), ("VERB", 3, 3)}
    assert find_entities([1, 2, 0, 1], CLASSES) == {("PER", 0, 1), ("PER", 3, 3)}


@pytest.mark.parametrize(
    ("words", "tags", "reason"),
    [
        ("a film", [0, 0], "the words are str 'a film': name the column with lists of words in data.words"),
        ([], [], "the words are list"),
        (["a", " "], [0, 0], "the words are list"),
        (["a", "b"], [0], "there are 2 words and 1 tags: give each word one"),
        (["a"], "O", "the tags are str 'O': name the column with lists of tags in data.tags"),
        (["a"], [9], r"the tags are list \[9\]: give whole numbers"),
        (["a"], [0.5], "the tags are list"),
        (["a"], [None], "the tags are list"),
    ],
)
def test_a_row_has_words_and_as_many_tags(words: Any, tags: Any, reason: str) -> None:
    row = {"words": words, "tags": tags}
    assert TOKEN_CLASSIFICATION.read_row(row, CLASSES) is None
    with pytest.raises(BadInput, match=reason):
        raise BadInput(TOKEN_CLASSIFICATION.explain_row(row))


def test_tags_are_numbered_as_the_model_does() -> None:
    rows = Rows((("a", "b"), ("c",)), ((1, 0), (2,)), ("o", "b-loc", "I-PER"), 0, "d" * 64, "the data")
    targets = TOKEN_CLASSIFICATION.align_rows(rows, SOURCE).targets
    assert targets == (Tags((3, 0), CLASSES), Tags((2,), CLASSES))
    strange = Rows((("a",),), (("B-ORG",),), None, 0, "d" * 64, "the data")
    with pytest.raises(BadInput, match=r"the labels of the data \(B-ORG\) are not among the classes of ner"):
        TOKEN_CLASSIFICATION.align_rows(strange, SOURCE)


def test_entities_are_shown_as_they_stand_in_the_text(encoder: WordEncoder) -> None:
    text = "the film, good"
    words = TOKEN_CLASSIFICATION.read_question(text)
    assert words == ("the", "film", ",", "good")
    (shown,) = TOKEN_CLASSIFICATION.show([8 * logits_of([[0, 1, 2, 0, 3, 0]])], [words], [text], CLASSES, encoder)
    assert isinstance(shown, TaggedText)
    assert [(entity.text, entity.type, entity.start) for entity in shown.entities] == [
        ("the film", "PER", 0),
        ("good", "LOC", 10),
    ]
    assert shown.line.startswith("PER 'the film' (100%), LOC 'good'")
    with pytest.raises(BadInput, match="empty text"):
        TOKEN_CLASSIFICATION.read_question(" \n")


def test_a_byte_level_tokenizer_puts_a_space_before_each_word(tmp_path: Path) -> None:
    """RoBERTa's: without it a word in a list gets other tokens than in a text."""
    vocabulary = {token: number for number, token in enumerate(["[PAD]", "Ġ", "a", "Ġa", "b"])}
    tokenizer = Tokenizer(models.BPE(vocabulary, [("Ġ", "a")]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    feed = open_word_encoder(tmp_path, ["input_ids"], {"sequence": 8}).encode([("a", "a")])
    assert feed["input_ids"].tolist() == [[3, 3]]

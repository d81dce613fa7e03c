"""A long context is read in spans that overlap; nothing of it is lost, and no span is longer than the model takes."""

from itertools import pairwise
from pathlib import Path

import pytest

from tasks.model_tasks.inputs.spans import MOST_SPANS, SpanEncoder, open_span_encoder
from tests.support.tiny import write_tokenizer

NAMES = ["input_ids", "attention_mask"]
LONG = " ".join(["good", "bad", "fine", "poor", "film", "music", "library", "editor"] * 6)


@pytest.fixture
def encoder(tmp_path: Path) -> SpanEncoder:
    write_tokenizer(tmp_path)
    return open_span_encoder(tmp_path, NAMES, {"sequence": 16})


def test_every_word_of_a_long_context_is_in_a_span(encoder: SpanEncoder) -> None:
    (spans,) = encoder.find_spans([("the film", LONG)])
    assert len(spans) > 3
    seen = {offsets for span in spans for offsets in span.encoding.offsets[slice(*span.context)]}
    words = LONG.split()
    starts = [sum(len(word) + 1 for word in words[:at]) for at in range(len(words))]
    assert seen >= {(start, start + len(word)) for start, word in zip(starts, words, strict=True)}
    for one, other in pairwise(spans):
        end, begin = one.encoding.offsets[one.context[1] - 1][1], other.encoding.offsets[other.context[0]][0]
        assert begin < end


def test_rows_are_spans_of_at_most_the_longest_sequence(encoder: SpanEncoder) -> None:
    inputs = [("the film", LONG), ("good", "a film")]
    spans = encoder.find_spans(inputs)
    feed = encoder.encode(inputs)
    rows = sum(map(len, spans))
    assert feed["input_ids"].shape == (rows, 16)
    assert feed["attention_mask"].sum(axis=1).tolist() == [len(span.encoding.ids) for each in spans for span in each]
    assert feed["attention_mask"][-1].sum() < 16


def test_a_batch_has_at_most_so_many_spans(encoder: SpanEncoder) -> None:
    inputs = [("the film", LONG), ("good", "a film"), ("bad", LONG), ("fine", "music")]
    most = len(encoder.find_spans(inputs[:1])[0]) + 1
    groups = list(encoder.batches(inputs, most))
    assert sorted(position for positions, _ in groups for position in positions) == [0, 1, 2, 3]
    assert all(len(encoder.encode(group)["input_ids"]) <= most for _, group in groups)
    assert len(groups) > 1


def test_of_an_endless_context_a_batch_of_spans_is_read(tmp_path: Path) -> None:
    write_tokenizer(tmp_path)
    few = open_span_encoder(tmp_path, NAMES, {"sequence": 16, "batch": 2})
    assert len(few.encode([("good", LONG)])["input_ids"]) == 2
    many = open_span_encoder(tmp_path, NAMES, {"sequence": 16})
    assert len(many.encode([("good", " ".join([LONG] * 20))])["input_ids"]) == MOST_SPANS


def test_a_question_takes_at_most_half_of_a_span(encoder: SpanEncoder) -> None:
    (spans,) = encoder.find_spans([(LONG, "the music")])
    (span,) = spans
    assert [number for number in span.encoding.sequence_ids if number == 0] == [0] * 8
    first, behind = span.context
    assert span.encoding.tokens[first:behind] == ["the", "music"]

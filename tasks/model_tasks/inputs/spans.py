"""Questions with their context to feed dicts: a long context becomes several spans that overlap, one row each."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from tasks.model_tasks.contract import Feed
from tasks.model_tasks.inputs.texts import TextEncoder, open_text_encoder

if TYPE_CHECKING:
    from tokenizers import Encoding

# Question and context.
Passage = Sequence[str]
# A quarter of a span is in the next one too, so that an answer at an end is whole in one of them. transformers'
# example has 128 of 384 tokens (examples/pytorch/question-answering/run_qa.py, `doc_stride`).
OVERLAP_SHARE = 0.25
# A question takes at most half of a span.
QUESTION_SHARE = 0.5
MOST_SPANS = 32


@dataclass(frozen=True)
class Span:
    """A piece of a context as the model sees it: `context` are the first token of it and the one behind the last."""

    encoding: "Encoding"
    context: tuple[int, int]


@dataclass(frozen=True)
class SpanEncoder:
    """Encodes passages as spans of at most `longest` tokens, and the first `most_spans` spans of each."""

    texts: TextEncoder
    longest: int
    most_spans: int

    def encode(self, inputs: Sequence[Passage]) -> Feed:
        """Return int64 arrays [spans of all inputs, most tokens]; padding has mask 0."""
        spans = [span for spans in self.find_spans(inputs) for span in spans]
        most = max(len(span.encoding.ids) for span in spans)
        padding = self.texts.tokenizer.padding or {}
        for span in spans:
            span.encoding.pad(most, pad_id=padding.get("pad_id", 0), pad_token=padding.get("pad_token", "[PAD]"))
        return dict(self.texts.collect([span.encoding for span in spans]))

    def batches(self, inputs: Sequence[Passage], size: int) -> Iterator[tuple[list[int], list[Passage]]]:
        """Yield passages of about the same length together, of at most `size` spans."""
        order = sorted(range(len(inputs)), key=lambda position: sum(map(len, inputs[position])))
        positions: list[int] = []
        taken = 0
        for position in order:
            spans = len(self.find_spans([inputs[position]])[0])
            if positions and taken + spans > size:
                yield positions, [inputs[each] for each in positions]
                positions, taken = [], 0
            positions.append(position)
            taken += spans
        if positions:
            yield positions, [inputs[each] for each in positions]

    def find_spans(self, inputs: Sequence[Passage]) -> list[list[Span]]:
        """Return the spans of each passage, in the order of the rows that `encode` makes; not padded."""
        tokenizer = self.texts.tokenizer
        tokenizer.no_padding()
        tokenizer.no_truncation()
        questions = tokenizer.encode_batch([question for question, _ in inputs], add_special_tokens=False)
        cut = [
            question[: offsets[most - 1][1]] if len(offsets := encoding.offsets) > most else question
            for (question, _), encoding in zip(inputs, questions, strict=True)
            for most in [max(1, int(QUESTION_SHARE * self.longest))]
        ]
        overlap = int(OVERLAP_SHARE * (1 - QUESTION_SHARE) * self.longest)
        tokenizer.enable_truncation(self.longest, stride=overlap, strategy="only_second")
        pairs = [(question, context) for question, (_, context) in zip(cut, inputs, strict=True)]
        return [
            [_make_span(each) for each in [encoding, *encoding.overflowing][: self.most_spans]]
            for encoding in tokenizer.encode_batch(pairs)
        ]


def _make_span(encoding: "Encoding") -> Span:
    inside = np.flatnonzero(np.array([number == 1 for number in encoding.sequence_ids]))
    return Span(encoding, (int(inside[0]), int(inside[-1]) + 1) if inside.size else (0, 0))


def open_span_encoder(folder: Path, input_names: Sequence[str], largest: Mapping[str, int]) -> SpanEncoder:
    """Open the encoder of a folder that holds tokenizer.json; spans have at most `largest["sequence"]` tokens.

    Of a passage as many spans are read as a batch has room for, `largest["batch"]`.

    Raises:
        BadInput: as `open_text_encoder`.
    """
    texts = open_text_encoder(folder, input_names, largest)
    longest = largest.get("sequence", texts.tokenizer.truncation["max_length"])
    return SpanEncoder(texts, longest, min(MOST_SPANS, largest.get("batch", MOST_SPANS)))

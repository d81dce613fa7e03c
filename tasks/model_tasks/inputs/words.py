"""Words to feed dicts: a tag per word is asked for, and the tokenizer makes several tokens of a word."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from tasks.model_tasks.contract import EncodedSizes
from tasks.model_tasks.inputs.texts import FeedDict, TextEncoder, measure_texts, open_text_encoder

if TYPE_CHECKING:
    from tokenizers import Encoding

# As the corpora of the field are cut: a word, or one sign that is none.
_WORD = re.compile(r"\w+|[^\w\s]")
Words = Sequence[str]


@dataclass(frozen=True)
class WordEncoder:
    """Encodes rows of words, cut at the tokenizer's longest sequence."""

    texts: TextEncoder

    def encode(self, inputs: Sequence[Words]) -> FeedDict:
        """Return int64 arrays [len(inputs), most tokens]; padding has mask 0."""
        return self.texts.collect(self._encode_words(inputs))

    def batches(self, inputs: Sequence[Words], size: int) -> Iterator[tuple[list[int], list[Words]]]:
        """Yield rows with about as many words together, as (their positions, the rows)."""
        order = sorted(range(len(inputs)), key=lambda position: len(inputs[position]))
        for start in range(0, len(order), size):
            positions = order[start : start + size]
            yield positions, [inputs[position] for position in positions]

    def find_first_tokens(self, inputs: Sequence[Words]) -> list[NDArray[np.int64]]:
        """Return for each row the position of the first token of each word, int64 [words]; -1 where it was cut off.

        As transformers' examples label tokens: the first of a word speaks for it
        (https://huggingface.co/docs/transformers/tasks/token_classification).
        """
        found = []
        for words, encoding in zip(inputs, self._encode_words(inputs), strict=True):
            first = np.full(len(words), -1, dtype=np.int64)
            for position, word in reversed(list(enumerate(encoding.word_ids))):
                if word is not None:
                    first[word] = position
            found.append(first)
        return found

    def _encode_words(self, inputs: Sequence[Words]) -> "list[Encoding]":
        rows = [list(words) for words in inputs]
        encodings: list[Encoding] = self.texts.tokenizer.encode_batch(rows, is_pretokenized=True)
        return encodings


def open_word_encoder(folder: Path, input_names: Sequence[str], largest: Mapping[str, int]) -> WordEncoder:
    """Open the encoder of a folder that holds tokenizer.json; rows are cut at `largest["sequence"]` tokens.

    A byte-level tokenizer puts a space before each word, as transformers demands for words (`add_prefix_space`).

    Raises:
        BadInput: as `open_text_encoder`.
    """
    texts = open_text_encoder(folder, input_names, largest)
    if hasattr(texts.tokenizer.pre_tokenizer, "add_prefix_space"):
        texts.tokenizer.pre_tokenizer.add_prefix_space = True
    return WordEncoder(texts)


def measure_words(folder: Path, inputs: Sequence[Words], largest: Mapping[str, int]) -> EncodedSizes:
    """Encode rows of words with a tokenizer.json that nobody has tried, as texts.

    Raises:
        BadInput: as `measure_texts`.
    """
    return measure_texts(folder, [" ".join(words) for words in inputs], largest)


def split_words(text: str) -> tuple[tuple[str, ...], tuple[tuple[int, int], ...]]:
    """Return the words of a text, each sign a word of its own, and where each begins and ends."""
    found = list(_WORD.finditer(text))
    return tuple(match.group() for match in found), tuple(match.span() for match in found)


def read_words(value: Any) -> tuple[str, ...] | None:
    """Return a row's words where they are a list of texts, none of them empty."""
    if not isinstance(value, list | tuple) or not value:
        return None
    return tuple(value) if all(isinstance(word, str) and word.strip() for word in value) else None

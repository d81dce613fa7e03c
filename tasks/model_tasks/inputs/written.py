"""Inputs of models that write: encoded as the model reads them, and decoded from the tokens that it wrote."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from tasks.model_tasks.contract import Answers, Encoder, Feed

if TYPE_CHECKING:
    from tokenizers import Tokenizer


@dataclass(frozen=True)
class WritingEncoder:
    """Encodes what is read, texts or audio, and decodes what was written of it."""

    reads: Encoder
    tokenizer: "Tokenizer"

    def encode(self, inputs: Sequence[Any]) -> Feed:
        """Return the feed of the encoder."""
        return self.reads.encode(inputs)

    def batches(self, inputs: Sequence[Any], size: int) -> Iterator[tuple[list[int], list[Any]]]:
        """Yield inputs that need little padding together."""
        return self.reads.batches(inputs, size)


def decode_written(outputs: Sequence[NDArray[Any]], encoder: Encoder) -> list[str]:
    """Return the text of each row of tokens, output 0 [batch, tokens], without special tokens."""
    if not isinstance(encoder, WritingEncoder):
        raise TypeError(f"{type(encoder).__name__} decodes nothing that was written")
    texts: list[str] = encoder.tokenizer.decode_batch(outputs[0].tolist(), skip_special_tokens=True)
    return [text.strip() for text in texts]


def encode_answers(texts: Sequence[str]) -> Answers:
    """Return texts as answers: UTF-8, uint8 [bytes]."""
    return [np.frombuffer(text.encode(), dtype=np.uint8) for text in texts]

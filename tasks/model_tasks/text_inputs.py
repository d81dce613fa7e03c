"""Text to feed dicts, with the same tokenizer.json that the serving side reads."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from registry.errors import BadInput

FeedDict = dict[str, NDArray[np.int64]]
# The feed of a BERT-like graph; graphs bind what they have of these by name, in any order.
TEXT_INPUTS = ("input_ids", "attention_mask", "token_type_ids")


@dataclass(frozen=True)
class TextEncoder:
    """Encodes texts for a graph whose inputs are `input_names`, cut at `max_length` tokens."""

    tokenizer: Tokenizer
    input_names: tuple[str, ...]

    def encode(self, texts: Sequence[str]) -> FeedDict:
        """Feed dict of int64 arrays [len(texts), longest text in tokens]; padding has mask 0."""
        encodings = self.tokenizer.encode_batch(list(texts))
        columns = {
            "input_ids": [encoding.ids for encoding in encodings],
            "attention_mask": [encoding.attention_mask for encoding in encodings],
            "token_type_ids": [encoding.type_ids for encoding in encodings],
        }
        return {name: np.asarray(columns[name], dtype=np.int64) for name in self.input_names}


def text_encoder(checkpoint: Path, input_names: Sequence[str], *, max_length: int) -> TextEncoder:
    """The encoder of a checkpoint folder that holds tokenizer.json.

    Raises:
        BadInput: no tokenizer.json, or the graph has inputs that text does not give.
    """
    file = checkpoint / "tokenizer.json"
    if not file.is_file():
        raise BadInput(f"{checkpoint} has no tokenizer.json: save the checkpoint with its fast tokenizer")
    if strange := sorted(set(input_names) - set(TEXT_INPUTS)):
        raise BadInput(f"the graph wants inputs {', '.join(strange)}, which text does not give: only {TEXT_INPUTS}")
    tokenizer = Tokenizer.from_file(str(file))
    padding = tokenizer.padding or {}
    tokenizer.enable_truncation(max_length)
    pad_token = str(padding.get("pad_token", "[PAD]"))
    pad_id = tokenizer.token_to_id(pad_token)
    tokenizer.enable_padding(pad_id=0 if pad_id is None else pad_id, pad_token=pad_token)
    return TextEncoder(tokenizer, tuple(input_names))


def batches(texts: Sequence[str], size: int) -> Iterator[tuple[list[int], list[str]]]:
    """Texts of similar length together (less padding), as (their positions, the texts)."""
    order = sorted(range(len(texts)), key=lambda position: len(texts[position]))
    for start in range(0, len(order), size):
        positions = order[start : start + size]
        yield positions, [texts[position] for position in positions]

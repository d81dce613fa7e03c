"""Text to feed dicts, with the same tokenizer.json that the serving side reads."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from registry.errors import BadInput, first_line
from tasks.model_tasks.contract import EncodedSizes, GraphInputs

if TYPE_CHECKING:
    from tokenizers import Encoding, Tokenizer

FeedDict = dict[str, NDArray[np.int64]]
# The feed of a BERT-like graph; graphs bind what they have of these by name, in any order.
TEXT_INPUTS = ("input_ids", "attention_mask", "token_type_ids")
TOKEN_INPUTS = GraphInputs(TEXT_INPUTS, ("batch", "sequence"), are_tokens=True)
TOKENIZER = "tokenizer.json"
# Models whose first usable position stands behind the id of the padding.
BEHIND_PADDING = ("roberta", "xlm-roberta", "camembert", "mpnet", "longformer")
# In characters. The tokenizer reads all of a text before it cuts it: so many take 1 s and 170 MB, ten times them 9 s.
LONGEST_TEXT = 1_000_000
EXAMPLE_TEXTS = ("a text", "Another, longer text; it has 2 clauses.")
# Where no profile says how long a text may be.
UNLIMITED_TOKENS = 512


@dataclass(frozen=True)
class TextEncoder:
    """Encodes texts or pairs of them for a graph with `input_names`, cut at the tokenizer's longest sequence."""

    tokenizer: "Tokenizer"
    input_names: tuple[str, ...]

    def encode(self, inputs: Sequence[str | Sequence[str]]) -> FeedDict:
        """Return int64 arrays [len(inputs), longest text or pair in tokens]; padding has mask 0."""
        texts = [each if isinstance(each, str) else tuple(each) for each in inputs]
        return self.collect(self.tokenizer.encode_batch(texts))

    def collect(self, encodings: "Sequence[Encoding]") -> FeedDict:
        """Return what the graph takes of padded encodings, int64 [len(encodings), tokens] each."""
        columns = {
            "input_ids": [encoding.ids for encoding in encodings],
            "attention_mask": [encoding.attention_mask for encoding in encodings],
            "token_type_ids": [encoding.type_ids for encoding in encodings],
        }
        return {name: np.asarray(columns[name], dtype=np.int64) for name in self.input_names}

    def batches(self, inputs: Sequence[Any], size: int) -> Iterator[tuple[list[int], list[Any]]]:
        """Yield texts of similar length together (less padding), as (their positions, the texts)."""
        lengths = [len(each) if isinstance(each, str) else sum(map(len, each)) for each in inputs]
        order = sorted(range(len(inputs)), key=lambda position: lengths[position])
        for start in range(0, len(order), size):
            positions = order[start : start + size]
            yield positions, [inputs[position] for position in positions]


def open_text_encoder(checkpoint: Path, input_names: Sequence[str], largest: Mapping[str, int]) -> TextEncoder:
    """Open the encoder of a folder that holds tokenizer.json; texts are cut at `largest["sequence"]` tokens.

    Raises:
        BadInput: no tokenizer.json, or the graph has inputs that text does not give.
    """
    from tokenizers import Tokenizer  # native code, which planning a release does not need

    file = checkpoint / "tokenizer.json"
    if not file.is_file():
        raise BadInput(f"{checkpoint} has no tokenizer.json: save the checkpoint with its fast tokenizer")
    if strange := sorted(set(input_names) - set(TEXT_INPUTS)):
        raise BadInput(
            f"the graph has inputs {', '.join(strange)}, which text does not give: only {', '.join(TEXT_INPUTS)}"
        )
    tokenizer = Tokenizer.from_file(str(file))
    padding = tokenizer.padding or {}
    tokenizer.enable_truncation(largest.get("sequence", UNLIMITED_TOKENS))
    pad_token = str(padding.get("pad_token", "[PAD]"))
    pad_id = tokenizer.token_to_id(pad_token)
    tokenizer.enable_padding(pad_id=0 if pad_id is None else pad_id, pad_token=pad_token)
    return TextEncoder(tokenizer, tuple(input_names))


def find_padding(checkpoint: Path) -> int | None:
    """Return the id of what the encoder of a folder pads with; None where its tokenizer has no token for that.

    Raises:
        BadInput: no tokenizer.json.
    """
    tokenizer = open_text_encoder(checkpoint, (), {}).tokenizer
    padding = tokenizer.padding
    is_there = tokenizer.token_to_id(padding["pad_token"]) == padding["pad_id"]
    return int(padding["pad_id"]) if is_there else None


def is_text(value: object) -> bool:
    """Tell whether a value is a text that is neither empty nor too long."""
    return isinstance(value, str) and bool(value.strip()) and len(value) <= LONGEST_TEXT


def read_number(value: object) -> float | None:
    """Return a number that is finite, also one that a file without types holds as text; None for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return number if np.isfinite(number) else None


def check_text(text: str) -> None:
    """Check a text that a user asks a bundle.

    Raises:
        BadInput: it is empty, or longer than any is read.
    """
    if len(text) > LONGEST_TEXT:
        raise BadInput(f"a text has {len(text)} characters, more than {LONGEST_TEXT}: cut it")
    if not text.strip():
        raise BadInput("an empty text has no answer: give words")


def measure_texts(checkpoint: Path, texts: Sequence[str], largest: Mapping[str, int]) -> EncodedSizes:
    """Encode texts with a tokenizer.json that nobody has tried; return the tokens of each, and the largest id.

    tokenizers raises plain Exceptions, and pyo3's PanicException, which is none, where its Rust code gives up.

    Raises:
        BadInput: as `open_text_encoder`, or it is no tokenizer, or fails on a text.
    """
    try:
        tokenizer = open_text_encoder(checkpoint, (), largest).tokenizer
        encodings = tokenizer.encode_batch(list(texts))
        ids = {id_ for encoding in encodings for id_ in encoding.ids} | set(tokenizer.get_vocab().values())
    except (BadInput, MemoryError, KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # noqa: BLE001  # a panic
        raise BadInput(
            f"{checkpoint / 'tokenizer.json'} does not work as a tokenizer ({first_line(error)[:200]}): save the "
            "checkpoint with its fast tokenizer again, or use another model"
        ) from None
    tokens = tuple(sum(encoding.attention_mask) for encoding in encodings)
    return EncodedSizes(tokens, max(ids, default=0))


def check_positions(config: Mapping[str, Any], largest: Mapping[str, int]) -> None:
    """Check by config.json that a text encoder has a position for each token of the longest text.

    Relative positions have no end. RoBERTa's table begins behind the padding's id
    (https://github.com/huggingface/transformers/blob/v4.57.1/src/transformers/models/roberta/modeling_roberta.py).

    Raises:
        BadInput: the profiles allow longer texts than the checkpoint has positions.
    """
    positions, longest = config.get("max_position_embeddings"), largest.get("sequence")
    if not isinstance(positions, int) or longest is None or config.get("relative_attention"):
        return
    if config.get("model_type") in BEHIND_PADDING:
        positions -= int(config.get("pad_token_id") or 0) + 1
    if 0 < positions < longest:
        raise BadInput(
            f"the profiles allow texts of {longest} tokens, the checkpoint has positions for {positions}: lower "
            "data.max_length and the sequence's max"
        )

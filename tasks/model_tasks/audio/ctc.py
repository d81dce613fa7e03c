"""The letters of a CTC network, by the checkpoint's vocab.json: greedy decoding, with NumPy alone."""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from registry.errors import BadInput

VOCABULARY_FILE, TOKENIZER_FILE = "vocab.json", "tokenizer_config.json"
TOKENIZER = "Wav2Vec2CTCTokenizer"
MOST_BYTES = 32 * 2**20
_AGAIN = f"save the checkpoint with its {TOKENIZER} again, or use another model"
# What transformers takes where the file does not say.
_PAD, _UNKNOWN, _BEGIN, _END, _DELIMITER = "<pad>", "<unk>", "<s>", "</s>", "|"
_VOCABULARY = TypeAdapter(dict[str, Annotated[int, Field(ge=0, le=2**24, strict=True)]])


class _Token(BaseModel):
    """A special token as files of older versions write it."""

    content: str


class _TokenizerFile(BaseModel):
    """tokenizer_config.json: what decoding depends on."""

    model_config = ConfigDict(extra="ignore")

    tokenizer_class: str = TOKENIZER
    pad_token: str | _Token = _PAD
    unk_token: str | _Token | None = _UNKNOWN
    bos_token: str | _Token | None = _BEGIN
    eos_token: str | _Token | None = _END
    word_delimiter_token: str | _Token | None = _DELIMITER
    do_lower_case: bool = False


@dataclass(frozen=True)
class CtcDecoder:
    """Turns the best token of each frame into text: repetitions are one, blanks and `special` tokens nothing."""

    tokens: Mapping[int, str]
    blank: int
    special: frozenset[int]
    delimiter: str | None
    is_lowered: bool

    def decode(self, logits: NDArray[Any]) -> str:
        """Return the text of logits [frames, tokens]: what transformers' pipeline gives, less the special tokens.

        Not Wav2Vec2CTCTokenizer's `skip_special_tokens`, which drops the blanks first, and so half of double letters.
        """
        best = [number for number, _ in groupby(np.argmax(logits, axis=-1).tolist())]
        letters = [self.tokens.get(number, "") for number in best if number not in (self.blank, *self.special)]
        text = "".join(" " if letter == self.delimiter else letter for letter in letters).strip()
        return text.lower() if self.is_lowered else text


def read_decoder(folder: Path) -> CtcDecoder:
    """Read the letters of a checkpoint or bundle.

    Raises:
        BadInput: vocab.json or tokenizer_config.json is missing, is not one, or is another tokenizer's.
    """
    said = _read_tokenizer(folder)
    if said.tokenizer_class != TOKENIZER:
        raise BadInput(
            f"{folder} has the tokenizer {said.tokenizer_class[:60]}, and only {TOKENIZER} is known: {_AGAIN}"
        )
    numbers = _read_vocabulary(folder)
    pad, unknown, begin, end, delimiter = (
        token.content if isinstance(token, _Token) else token
        for token in (said.pad_token, said.unk_token, said.bos_token, said.eos_token, said.word_delimiter_token)
    )
    if pad not in numbers:
        raise BadInput(f"{folder / VOCABULARY_FILE} has no {pad!r:.60}, the blank of CTC: {_AGAIN}")
    special = frozenset(numbers[token] for token in (unknown, begin, end) if token in numbers) - {numbers[pad]}
    tokens = {number: token for token, number in numbers.items()}
    return CtcDecoder(tokens, numbers[str(pad)], special, delimiter, said.do_lower_case)


def _read_tokenizer(folder: Path) -> _TokenizerFile:
    file = folder / TOKENIZER_FILE
    try:
        return _TokenizerFile.model_validate_json(_read_file(file))
    except ValidationError as error:
        key = next((str(step) for step in error.errors(include_url=False)[0]["loc"]), "")
        what = f"{key} has another form" if key else "it is not a JSON object"
        raise BadInput(f"{file}: {what}: {_AGAIN}") from None


def _read_vocabulary(folder: Path) -> dict[str, int]:
    file = folder / VOCABULARY_FILE
    try:
        numbers = _VOCABULARY.validate_json(_read_file(file))
    except ValidationError:
        raise BadInput(
            f"{file} does not map tokens to whole numbers (one of several languages does not): {_AGAIN}"
        ) from None
    if len(set(numbers.values())) != len(numbers):
        raise BadInput(f"{file} gives two tokens one number: {_AGAIN}")
    return numbers


def _read_file(file: Path) -> bytes:
    if not file.is_file():
        raise BadInput(f"{file.parent} has no {file.name}: save the checkpoint with its {TOKENIZER}")
    if file.stat().st_size > MOST_BYTES:
        raise BadInput(f"{file} has more than {MOST_BYTES} bytes: {_AGAIN}")
    return file.read_bytes()

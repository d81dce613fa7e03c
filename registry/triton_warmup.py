"""Warm-up requests of real rows, in the bytes that Triton reads: one data file for each input."""

import array
import struct
from collections.abc import Sequence
from dataclasses import dataclass

from registry.errors import BadInput
from registry.records import Tensor
from registry.triton_model import TritonModel, WarmupRow, largest_batch

# array.array's codes of the dtypes that tokens come in.
_TOKEN_CODES = {"int32": "i", "int64": "q"}
# An input's name, its dims in config.pbtxt, its bytes.
_Input = tuple[str, tuple[int, ...], bytes]


@dataclass(frozen=True)
class WarmupEntry:
    """One warm-up request: `batch` copies of one row; `files` are (input, its data file, dims, bytes)."""

    name: str
    batch: int
    files: tuple[tuple[str, str, tuple[int, ...], bytes], ...]


def warmup_entries(model: TritonModel) -> list[WarmupEntry]:
    """For every profile, each row that fits its sequence range, at the profile's best batch.

    Raises:
        BadInput: a row lacks an input's tokens, they differ in length, or an input takes no tokens.
    """
    profiles = model.manifest.build.profiles
    largest = largest_batch(model)
    if model.python_backend:
        # Triton's bytes of a string tensor: a little-endian length, then UTF-8.
        texts = [row.text.encode() for row in model.rows]
        stored = [struct.pack("<I", len(text)) + text for text in texts]
        return [_entry(model, f"row{index}", 1, [("text", (1,), raw)]) for index, raw in enumerate(stored)]
    entries = []
    for index, row in enumerate(model.rows):
        inputs = [_tokens(tensor, row, batched=largest > 0) for tensor in model.manifest.build.inputs]
        length = max(dims[-1] for _, dims, _ in inputs)
        for number, profile in enumerate(profiles):
            if profile.sequence.min <= length <= profile.sequence.max:
                batch = max(1, min(profile.batch.opt, largest))
                entries.append(_entry(model, f"profile{number}-row{index}", batch, inputs))
    return entries


def _entry(model: TritonModel, name: str, batch: int, inputs: Sequence[_Input]) -> WarmupEntry:
    files = ((key, f"{model.version}-{name}-{number}", dims, raw) for number, (key, dims, raw) in enumerate(inputs))
    return WarmupEntry(name, batch, tuple(files))


def _tokens(tensor: Tensor, row: WarmupRow, *, batched: bool) -> _Input:
    tokens = dict(row.tokens).get(tensor.name)
    code = _TOKEN_CODES.get(tensor.dtype)
    if not tokens or code is None or len(tensor.shape) != 2:
        raise BadInput(f"a warm-up row has no tokens for input {tensor.name} ({tensor.dtype}): give rows that fit")
    stored = array.array(code, tokens)
    return tensor.name, (len(tokens),) if batched else (1, len(tokens)), stored.tobytes()

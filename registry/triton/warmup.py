"""Warm-up requests of real rows, in the bytes that Triton reads: one data file for each input.

A bundle may bring its rows in warmup.json: what `write_rows` writes, a few rows of the calibration set.
"""

import array
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from registry.digest import canonical_json
from registry.errors import BadInput
from registry.records import EngineManifest, Tensor
from registry.triton.model import TritonModel, WarmupRow, largest_batch

# array.array's codes of the dtypes that tokens come in.
_TOKEN_CODES = {"int32": "i", "int64": "q"}
ROWS_FILE = "warmup.json"
_ROWS = TypeAdapter(tuple[WarmupRow, ...])
# An input's name, its dims in config.pbtxt, its bytes.
_Input = tuple[str, tuple[int, ...], bytes]


@dataclass(frozen=True)
class WarmupEntry:
    """One warm-up request: `batch` copies of one row; `files` are (input, its data file, dims, bytes)."""

    name: str
    batch: int
    files: tuple[tuple[str, str, tuple[int, ...], bytes], ...]


def write_rows(rows: Sequence[WarmupRow]) -> bytes:
    """What `bundled_rows` reads, for a publisher to put into a bundle as warmup.json."""
    return canonical_json(list(rows))


def bundled_rows(bundle: Path, manifest: EngineManifest) -> tuple[WarmupRow, ...]:
    """The rows of a verified bundle; none where it has no warmup.json.

    Raises:
        BadInput: warmup.json does not hold rows.
    """
    if all(record.path != ROWS_FILE for record in manifest.files):
        return ()
    try:
        return _ROWS.validate_json((bundle / ROWS_FILE).read_bytes(), strict=True)
    except ValidationError as error:
        first = error.errors()[0]
        raise BadInput(f"{bundle / ROWS_FILE} holds no rows ({first['msg']}): publish the engine again") from error


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

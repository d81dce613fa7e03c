"""Warm-up requests of real rows, in the bytes that Triton reads: one data file for each input.

A bundle may bring its rows in warmup.json: what `write_rows` writes, a few rows of the calibration set.
"""

import array
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from registry.bundle.manifest import read_listed
from registry.digest import canonical_json
from registry.errors import BadInput
from registry.records import EngineBuild, EngineManifest, Tensor, fixed_batch
from registry.triton.model import TritonModel, WarmupRow, largest_batch

# array.array's codes of the dtypes that a row's values come in.
_CODES = {"int32": "i", "int64": "q"}
ROWS_FILE = "warmup.json"
# 64 rows of 8,192 tokens in three inputs are 12 MB.
LARGEST_FILE = 64 * 2**20
_ROWS = TypeAdapter(tuple[WarmupRow, ...])
# An input's name, its dims in config.pbtxt, its bytes.
_Input = tuple[str, tuple[int, ...], bytes]


@dataclass(frozen=True)
class WarmupEntry:
    """One warm-up request: `batch` copies of one row; `files` are (input, its data file, dims, bytes)."""

    name: str
    batch: int
    files: tuple[tuple[str, str, tuple[int, ...], bytes], ...]


@dataclass(frozen=True)
class _RowOfFormat1:
    text: str
    tokens: tuple[tuple[str, tuple[int, ...]], ...] = ()


_ROWS_1 = TypeAdapter(tuple[_RowOfFormat1, ...])


def holds_inputs(build: EngineBuild) -> bool:
    """Tell whether rows can hold an engine's inputs: whole numbers, [batch, values], of any batch.

    An image of 224 by 224 pixels would be 3 MB of JSON in each bundle, and Triton starts without it.
    """
    return fixed_batch(build.inputs) is None and all(
        tensor.dtype in _CODES and len(tensor.shape) == 2 for tensor in build.inputs
    )


def write_rows(rows: Sequence[WarmupRow]) -> bytes:
    """Return what `bundled_rows` reads, for a publisher to put into a bundle as warmup.json."""
    return canonical_json(list(rows))


def bundled_rows(bundle: Path, manifest: EngineManifest) -> tuple[WarmupRow, ...]:
    """Return the rows of a verified bundle; none where it has no warmup.json.

    Raises:
        BadInput: warmup.json does not hold rows, or is too large.
        DigestMismatch: it was changed since the bundle was verified.
    """
    raw = read_listed(bundle, manifest, ROWS_FILE, LARGEST_FILE)
    if raw is None:
        return ()
    try:
        if manifest.format_version == 1:
            return tuple(WarmupRow(row.text, row.tokens) for row in _ROWS_1.validate_json(raw, strict=True))
        return _ROWS.validate_json(raw, strict=True)
    except ValidationError as error:
        raise BadInput(f"{bundle / ROWS_FILE} holds no rows of text and tokens: publish the engine again") from error


def warmup_entries(model: TritonModel) -> list[WarmupEntry]:
    """Return, for every profile, each row that fits it, at the profile's best batch.

    Raises:
        BadInput: a row lacks an input's values, or an input takes none of that kind.
    """
    if model.python_model is not None:
        # Triton's bytes of a string tensor: a little-endian length, then UTF-8.
        requests = [row.request.encode() for row in model.rows]
        stored = [struct.pack("<I", len(request)) + request for request in requests]
        return [
            _entry(model, f"row{index}", 1, [(model.python_model.request, (1,), raw)])
            for index, raw in enumerate(stored)
        ]
    entries, largest = [], largest_batch(model)
    for index, row in enumerate(model.rows):
        tensors = model.manifest.build.inputs
        inputs = [_values(tensor, row, batched=largest > 0) for tensor in tensors]
        sizes = {str(tensor.shape[-1]): dims[-1] for tensor, (_, dims, _) in zip(tensors, inputs, strict=True)}
        for number, profile in enumerate(model.manifest.build.profiles):
            if profile.holds(sizes):
                best = profile.axis("batch")
                batch = max(1, min(best.opt if best else 1, largest))
                entries.append(_entry(model, f"profile{number}-row{index}", batch, inputs))
    return entries


def _entry(model: TritonModel, name: str, batch: int, inputs: Sequence[_Input]) -> WarmupEntry:
    files = ((key, f"{model.version}-{name}-{number}", dims, raw) for number, (key, dims, raw) in enumerate(inputs))
    return WarmupEntry(name, batch, tuple(files))


def _values(tensor: Tensor, row: WarmupRow, *, batched: bool) -> _Input:
    values = dict(row.tensors).get(tensor.name)
    code = _CODES.get(tensor.dtype)
    if not values or code is None or len(tensor.shape) != 2:
        raise BadInput(f"a warm-up row has no values for input {tensor.name} ({tensor.dtype}): give rows that fit")
    stored = array.array(code, values)
    return tensor.name, (len(values),) if batched else (1, len(values)), stored.tobytes()

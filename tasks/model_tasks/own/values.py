"""Inputs and targets of a user's rows as text: JSON, in which bytes are base64.

Rows are hashed, stored, sent to workers, carried by bundles and compared as text, whatever a task module makes of them.
"""

import base64
import binascii
import json
import math
from typing import Any

import numpy as np

from registry.errors import BadInput

_BYTES = "$bytes"
MOST_LEVELS = 32


def pack_value(value: Any, what: str) -> str:
    """Return a value as canonical text; arrays become lists, tuples too.

    Raises:
        BadInput: it holds something that is not a number, text, bytes, list, mapping or None, or NaN; `what` names it.
    """
    return json.dumps(make_plain(value, what), ensure_ascii=False, sort_keys=True, separators=(",", ":"))


def unpack_value(text: str) -> Any:
    """Return what `pack_value` was given, with lists in place of arrays and tuples."""
    return json.loads(text, object_hook=_read_bytes)


def read_asked(text: str) -> Any:
    """Return the value that a user means on the command line: JSON where it is that, else the text itself."""
    try:
        return json.loads(text, parse_constant=_refuse_constant)
    except (ValueError, RecursionError):
        return text


def _refuse_constant(name: str) -> Any:
    raise ValueError(name)


def make_plain(value: Any, what: str, levels: int = MOST_LEVELS) -> Any:
    """Return a value as JSON has it: arrays and tuples as lists, bytes as a mapping.

    Raises:
        BadInput: as `pack_value`.
    """
    if isinstance(value, np.ndarray | np.generic) and value.dtype.kind in "fiubUS":
        value = value.tolist()
    if levels == 0:
        raise BadInput(f"{what} is nested too deeply: return lists of lists at most")
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, float):
        if not math.isfinite(value):
            raise BadInput(f"{what} holds {value}: return None for a row without a value")
        return value
    if isinstance(value, bytes | bytearray):
        return {_BYTES: base64.b64encode(value).decode()}
    if isinstance(value, list | tuple):
        return [make_plain(each, what, levels - 1) for each in value]
    if isinstance(value, dict) and all(isinstance(key, str) and key != _BYTES for key in value):
        return {key: make_plain(each, what, levels - 1) for key, each in value.items()}
    raise BadInput(
        f"{what} holds a {type(value).__name__}: return numbers, texts, bytes, arrays of numbers, or lists and "
        "mappings of these"
    )


def _read_bytes(entries: dict[str, Any]) -> Any:
    if list(entries) != [_BYTES]:
        return entries
    try:
        return base64.b64decode(entries[_BYTES], validate=True)
    except (binascii.Error, ValueError, TypeError):
        raise BadInput("the input of a row is not base64: do not trust it, and publish the engine again") from None

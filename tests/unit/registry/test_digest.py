"""Canonical JSON has one form: what is read is what is written."""

from dataclasses import dataclass

import pytest

from registry.digest import canonical_json, read_canonical
from registry.errors import BadInput


@dataclass(frozen=True)
class Range:
    name: str
    scale: float


@dataclass(frozen=True)
class Table:
    ranges: tuple[Range, ...]


TABLE = Table((Range("a", 0.5), Range("b", 2.0)))


def test_value_is_read_as_it_was_written() -> None:
    assert read_canonical(Table, canonical_json(TABLE), "table.json", advice="make it again") == TABLE


@pytest.mark.parametrize(
    ("raw", "sentence"),
    [
        (b"", r"^table\.json is not what Enginery writes: make it again$"),
        (
            b'{"ranges":[{"name":"a","scale":"x"}]}',
            r"^table\.json: ranges\.0\.scale is not what Enginery writes: make it again$",
        ),
        (b'{"ranges":[{"name":"a","scale":NaN}]}', r"^table\.json: .*; make it again$"),
        (b'{"ranges":[{"name":"a","scale":0.5,"z":1}]}', r"unknown key ranges\.0\.z\): make it again$"),
        (b'{"ranges": []}', r"canonical form, RFC 8785: make it again$"),
        (b'{"ranges":[],"ranges":[]}', r"canonical form, RFC 8785: make it again$"),
    ],
    ids=["empty", "type", "NaN", "unknown key", "space", "key twice"],
)
def test_any_other_text_is_refused_with_its_place(raw: bytes, sentence: str) -> None:
    with pytest.raises(BadInput, match=sentence):
        read_canonical(Table, raw, "table.json", advice="make it again")

"""Canonical JSON has one form: what is read is what is written. A folder is looked at before it is read."""

import hashlib
import os
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

from registry.digest import canonical_json, digest_of, read_canonical, record_tree, verify_tree
from registry.errors import BadInput, DigestMismatch, TornBundle


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


def test_bytes_have_a_digest_at_any_depth() -> None:
    assert digest_of([b"image"]) == digest_of((b"image",)) != digest_of([b"other"])
    assert canonical_json({"a": b""}) == b'{"a":"sha256:' + hashlib.sha256().hexdigest().encode() + b'"}'


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


def test_a_file_of_another_size_or_name_is_refused_before_it_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a").write_bytes(b"a")
    records = record_tree(tmp_path)
    os.truncate(tmp_path / "a", 2**40)

    def read(*_: object) -> None:
        raise AssertionError("read")

    monkeypatch.setattr("registry.digest.file_sha256", read)
    with pytest.raises(DigestMismatch, match="the record says 1"):
        verify_tree(tmp_path, records)
    (tmp_path / "a").rename(tmp_path / "b")
    with pytest.raises(TornBundle, match="lacks a"):
        verify_tree(tmp_path, records)


@pytest.mark.parametrize("depth", [1200, 4000])
def test_folders_deeper_than_python_can_call_are_a_sentence(depth: int, tmp_path: Path) -> None:
    (tmp_path / "root").mkdir()
    before = os.open(".", os.O_RDONLY)
    try:
        os.chdir(tmp_path / "root")
        for _ in range(depth):
            Path("d").mkdir()  # the whole path is longer than any path may be
            os.chdir("d")
    finally:
        os.fchdir(before)
        os.close(before)
    try:
        with pytest.raises(TornBundle, match=r"empty folder|too deep"):
            verify_tree(tmp_path / "root", ())
    finally:
        subprocess.run(["rm", "-rf", str(tmp_path / "root")], check=True)

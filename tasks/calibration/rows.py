"""Calibration rows as batches whose composition depends on the set of rows only, never on who batched them how.

A float sum depends on the batch it is computed in, so the batches that are run are canonical: rows of exactly one
length (no padding is ever run), in the order of their sha256, cut at a number of tokens. What waits to be sorted
is bounded: the rows' own bytes (1.5 KB for 64 tokens and three inputs) and about 250 bytes each. Rows that are
large, such as images, run alone and at once, and only their sha256 stays.
"""

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np
from numpy.typing import NDArray

Feed = dict[str, NDArray[Any]]
Layout = tuple[tuple[str, str, tuple[int, ...]], ...]

# Enough rows for the matrix products of a batch to run at full speed; what a batch captures grows with it.
BATCH_TOKENS = 256
BATCH_ROWS = 32
# A row of 64 tokens and three inputs has 1.5 KB; an image of 224 by 224 pixels 600 KB.
ALONE_BYTES = 64 * 1024


@dataclass(frozen=True)
class CalibrationRow:
    """One row's real tokens: its number in the set, its layout (name, dtype, shape of an input) and its bytes."""

    number: int
    layout: Layout
    content: bytes
    key: bytes

    @property
    def tokens(self) -> int:
        """Length of its first axis: tokens of a text."""
        return max((shape[0] for _, _, shape in self.layout if shape), default=1)


@dataclass(frozen=True)
class Batch:
    """Rows of one layout."""

    rows: tuple[CalibrationRow, ...]

    @property
    def key(self) -> bytes:
        """sha256 of the rows in it, without their numbers."""
        return hashlib.sha256(b"".join(row.key for row in self.rows)).digest()

    def feed(self) -> Feed:
        """Feed dict of [rows, …]."""
        feed: Feed = {}
        offset = 0
        for name, dtype, shape in self.rows[0].layout:
            size = int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
            content = b"".join(row.content[offset : offset + size] for row in self.rows)
            feed[name] = np.frombuffer(content, dtype=dtype).reshape(len(self.rows), *shape)
            offset += size
        return feed

    def alone(self) -> Iterator["Batch"]:
        """Each row as a batch of its own."""
        return (Batch((row,)) for row in self.rows)


def canonical_batches(feeds: Iterable[Feed], *, most_rows: int = BATCH_ROWS) -> Iterator[Batch]:
    """The rows of `feeds` in batches that are the same for any batching and order of the same rows."""
    waiting: list[CalibrationRow] = []
    for row in rows_of(feeds):
        if len(row.content) > ALONE_BYTES:
            yield Batch((row,))
        else:
            waiting.append(row)
    waiting.sort(key=lambda row: (row.layout, row.key))
    for _, same in groupby(waiting, key=lambda row: row.layout):
        rows = tuple(same)
        size = max(1, min(most_rows, BATCH_TOKENS // max(1, rows[0].tokens)))
        for start in range(0, len(rows), size):
            yield Batch(rows[start : start + size])


def rows_of(feeds: Iterable[Feed]) -> Iterator[CalibrationRow]:
    """Each row without its trailing padding (attention_mask 0), numbered from 0 in the order of the feeds."""
    number = 0
    for feed in feeds:
        for at in range(len(next(iter(feed.values())))):
            yield _row(number, {name: column[at] for name, column in sorted(feed.items())})
            number += 1


def _row(number: int, columns: Feed) -> CalibrationRow:
    mask = columns.get("attention_mask")
    if mask is not None:
        real = np.flatnonzero(mask)
        end = int(real[-1]) + 1 if real.size else 0
        columns = {name: each[:end] if each.shape[:1] == mask.shape else each for name, each in columns.items()}
    layout = tuple((name, each.dtype.str, each.shape) for name, each in columns.items())
    content = b"".join(np.ascontiguousarray(each).tobytes() for each in columns.values())
    return CalibrationRow(number, layout, content, hashlib.sha256(repr(layout).encode() + content).digest())

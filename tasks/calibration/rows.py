"""Calibration rows in batches whose composition depends on the set of rows only, not on how they arrived.

A float sum depends on the batch it is computed in, so the batches that run are canonical: rows of exactly one length
(padding never runs), in the order of their sha256, cut at a number of tokens. Memory for sorting is bounded: the rows'
own bytes (1.5 KB for 64 tokens and three inputs) and about 250 bytes per row. Large rows, such as images, run alone
and at once, and only their sha256 stays.
"""

import hashlib
from collections.abc import Container, Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np
from numpy.typing import NDArray

Feed = dict[str, NDArray[Any]]
Layout = tuple[tuple[str, str, tuple[int, ...]], ...]

# Enough rows for a batch's matrix products to run at full speed; the memory of captured tensors grows with it.
BATCH_TOKENS = 256
BATCH_ROWS = 32
# A row of 64 tokens and three inputs has 1.5 KB; an image of 224 by 224 pixels 600 KB.
ALONE_BYTES = 64 * 1024


@dataclass(frozen=True)
class CalibrationRow:
    """One row's real tokens: its number in the set, each input's name, dtype and shape, its bytes and their sha256."""

    number: int
    layout: Layout
    content: bytes
    key: bytes

    @property
    def tokens(self) -> int:
        """Length of the longest first axis: the tokens of a text."""
        return max((shape[0] for _, _, shape in self.layout if shape), default=1)


@dataclass(frozen=True)
class Batch:
    """Rows of one layout."""

    rows: tuple[CalibrationRow, ...]

    @property
    def key(self) -> bytes:
        """The sha256 of its rows, without their numbers."""
        return hashlib.sha256(b"".join(row.key for row in self.rows)).digest()

    def to_feed(self) -> Feed:
        """Return the rows as a feed dict of [rows, …]."""
        feed: Feed = {}
        offset = 0
        for name, dtype, shape in self.rows[0].layout:
            size = int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
            content = b"".join(row.content[offset : offset + size] for row in self.rows)
            feed[name] = np.frombuffer(content, dtype=dtype).reshape(len(self.rows), *shape)
            offset += size
        return feed

    def split(self) -> Iterator["Batch"]:
        """Yield each row as a batch of its own."""
        return (Batch((row,)) for row in self.rows)


def make_canonical_batches(
    feeds: Iterable[Feed], *, most_rows: int = BATCH_ROWS, skip: Container[int] = ()
) -> Iterator[Batch]:
    """Yield the rows of `feeds` in batches that are the same however the rows were batched and ordered.

    The rows of `skip`, by their numbers, are left out.
    """
    waiting: list[CalibrationRow] = []
    for row in split_rows(feeds):
        if row.number in skip:
            continue
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


def make_fixed_batches(feeds: Iterable[Feed], *, skip: Container[int] = ()) -> Iterator[Batch]:
    """Yield each feed as a batch, for a graph that takes as many rows and no others: padding runs too.

    In place of a row of `skip`, by its number, another one of its batch stands twice; a batch of such rows is left out.
    """
    number = 0
    for feed in feeds:
        count = len(next(iter(feed.values())))
        rows = [
            _make_row(number + at, {name: column[at] for name, column in sorted(feed.items())}, trim=False)
            for at in range(count)
        ]
        number += count
        kept = [row for row in rows if row.number not in skip]
        if kept:
            yield Batch((*kept, *[kept[-1]] * (count - len(kept))))


def split_rows(feeds: Iterable[Feed]) -> Iterator[CalibrationRow]:
    """Yield each row without trailing padding (attention_mask 0), numbered from 0 in the order of the feeds."""
    number = 0
    for feed in feeds:
        for position in range(len(next(iter(feed.values())))):
            yield _make_row(number, {name: column[position] for name, column in sorted(feed.items())})
            number += 1


def _make_row(number: int, columns: Feed, *, trim: bool = True) -> CalibrationRow:
    mask = columns.get("attention_mask") if trim else None
    if mask is not None:
        real = np.flatnonzero(mask)
        end = int(real[-1]) + 1 if real.size else 0
        columns = {name: column[:end] if column.shape[:1] == mask.shape else column for name, column in columns.items()}
    layout = tuple((name, column.dtype.str, column.shape) for name, column in columns.items())
    content = b"".join(np.ascontiguousarray(column).tobytes() for column in columns.values())
    return CalibrationRow(number, layout, content, hashlib.sha256(repr(layout).encode() + content).digest())

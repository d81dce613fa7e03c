"""Feeds are encoded when they are asked for, and those that fit are kept."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pytest

from tasks.calibration import feeds
from tasks.calibration.feeds import EncodedFeeds, count_rows
from tasks.calibration.rows import Feed, make_canonical_batches


class CountingEncoder:
    """Makes 1,000 numbers of each row, and counts the rows."""

    def __init__(self) -> None:
        self.encoded = 0

    def encode(self, inputs: Sequence[Any]) -> Feed:
        self.encoded += len(inputs)
        return {"pixels": np.stack([np.full(1000, row, np.float32) for row in inputs])}

    def batches(self, inputs: Sequence[Any], size: int) -> Iterator[tuple[list[int], list[Any]]]:
        yield list(range(size)), list(inputs[:size])


def test_rows_are_counted_without_encoding_any() -> None:
    encoder = CountingEncoder()
    encoded = EncodedFeeds(encoder, ((1, 2), (3,), (4, 5)))
    assert (len(encoded), encoded.rows, count_rows(encoded), encoder.encoded) == (3, 5, 5, 0)
    assert count_rows([{"a": np.zeros((2, 4))}, {"a": np.zeros((1, 4))}]) == 3


def test_feeds_are_those_of_the_encoder_in_order() -> None:
    encoded = EncodedFeeds(CountingEncoder(), ((1, 2), (3,), (4, 5)))
    assert [feed["pixels"][:, 0].tolist() for feed in encoded] == [[1, 2], [3], [4, 5]]
    assert encoded[-1]["pixels"][:, 0].tolist() == [4, 5]
    assert [feed["pixels"][:, 0].tolist() for feed in encoded[1:]] == [[3], [4, 5]]
    with pytest.raises(IndexError):
        encoded[3]


def test_only_what_fits_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = CountingEncoder()
    monkeypatch.setattr(feeds, "MOST_KEPT_BYTES", 9000)
    encoded = EncodedFeeds(encoder, ((1, 2), (3,), (4, 5)))
    for _ in range(3):
        assert len(list(encoded)) == 3
    # The first batch has 8,000 bytes.
    assert encoder.encoded == 2 + 3 * 3


def test_canonical_batches_are_those_of_a_list() -> None:
    encoded = EncodedFeeds(CountingEncoder(), ((1, 2), (3,), (4, 5)))
    keys, same = ([batch.key for batch in make_canonical_batches(each)] for each in (encoded, list(encoded)))
    assert keys == same

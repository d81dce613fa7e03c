"""Rows as feeds that are encoded when they are asked for: 1,024 images of 224 by 224 pixels are 600 MB decoded."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, overload

from tasks.calibration.rows import Feed
from tasks.model_tasks.contract import Encoder

# Feeds are read several times. Those of texts all fit, and are encoded once.
MOST_KEPT_BYTES = 64 * 2**20


@dataclass(frozen=True)
class EncodedFeeds(Sequence[Feed]):
    """A feed per batch of inputs, made by `encoder`; the first `MOST_KEPT_BYTES` of those read are kept."""

    encoder: Encoder
    batches: tuple[tuple[Any, ...], ...]
    _kept: dict[int, Feed] = field(default_factory=dict, compare=False, repr=False)

    @property
    def rows(self) -> int:
        """The number of rows."""
        return sum(map(len, self.batches))

    def __len__(self) -> int:
        return len(self.batches)

    @overload
    def __getitem__(self, at: int) -> Feed: ...
    @overload
    def __getitem__(self, at: slice) -> "EncodedFeeds": ...
    def __getitem__(self, at: int | slice) -> "Feed | EncodedFeeds":
        if isinstance(at, slice):
            return EncodedFeeds(self.encoder, self.batches[at])
        number = range(len(self.batches))[at]
        if number in self._kept:
            return self._kept[number]
        feed = self.encoder.encode(self.batches[number])
        if _count_bytes(feed, *self._kept.values()) <= MOST_KEPT_BYTES:
            self._kept[number] = feed
        return feed


def count_rows(feeds: Sequence[Feed]) -> int:
    """Return the number of rows of feeds, without encoding any."""
    return feeds.rows if isinstance(feeds, EncodedFeeds) else sum(len(next(iter(feed.values()))) for feed in feeds)


def _count_bytes(*feeds: Feed) -> int:
    return sum(values.nbytes for feed in feeds for values in feed.values())

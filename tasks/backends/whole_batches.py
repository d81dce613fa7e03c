"""A session of an engine that takes batches of one size only, for any number of rows."""

from collections.abc import Mapping
from dataclasses import dataclass

from tasks.backends.contract import Array, Session
from tasks.graphs.fixed_batch import count_rows, join_outputs, split_feed


@dataclass(frozen=True)
class FixedBatchSession:
    """Feeds an engine `size` rows at a time, and leaves out what it answers to those that only fill a batch up."""

    session: Session
    size: int

    @property
    def input_names(self) -> tuple[str, ...]:
        """The tensors that `run` must be fed."""
        return self.session.input_names

    @property
    def output_names(self) -> tuple[str, ...]:
        """The tensors that `run` returns."""
        return self.session.output_names

    def run(self, feed: Mapping[str, Array]) -> list[Array]:
        """Run the engine as often as there are batches; one of exactly `size` rows costs nothing more."""
        parts = [self.session.run(part) for part in split_feed(feed, self.size)]
        return [join_outputs(outputs, self.size, count_rows(feed)) for outputs in zip(*parts, strict=True)]

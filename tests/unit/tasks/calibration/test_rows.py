"""Calibration rows in canonical batches."""

from tasks.calibration.rows import make_canonical_batches
from tests.support.encoder_graphs import batched, texts


def test_canonical_batches_hold_each_row_once_and_no_padding() -> None:
    rows = [*texts(50), texts(1)[0]]
    batches = list(make_canonical_batches(batched(rows, 8)))
    assert sorted(row.number for batch in batches for row in batch.rows) == list(range(51))
    assert all(batch.to_feed()["attention_mask"].all() for batch in batches)
    assert max(len(batch.rows) for batch in batches) > 1

"""What calibration rows say about the activations of a graph, in memory that does not grow with the rows.

Statistics are the same for any batch size, order and padding of the rows, and for any split over processes, to the
last bit: batches are canonical (tasks/calibration/rows.py), and a maximum, a count in a bin of fixed edges and the
rows of least hash depend on no order.
"""

import logging
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from registry.errors import BadInput
from tasks.calibration.checkpoint import Checkpoint
from tasks.calibration.histogram import Floats
from tasks.calibration.probe import Probe
from tasks.calibration.rows import Batch, Feed, canonical_batches
from tasks.calibration.statistics import ActivationStatistics, Calibration, Tokens

# More than this share of unusable rows is a fault of the set or the tokenizer, not a few odd rows.
QUARANTINED_MOST = 0.10

log = logging.getLogger(__name__)


def calibrate(
    source: Path,
    rows: Iterable[Feed],
    *,
    on_row: Callable[[int], None] = lambda _: None,
    checkpoint: Path | None = None,
) -> Calibration:
    """Run `rows` through the fp32 graph in the file `source` and collect statistics of every layer's input.

    `rows` are feed dicts of [batch, …]. A row that gives NaN or infinity anywhere, that has no token, or that the
    graph refuses is quarantined: it enters no statistic and is named. `on_row` is told how many rows are done.
    With `checkpoint`, a file, a killed run goes on where it was; the file is removed at the end.

    Raises:
        BadInput: no row is usable, more than 10 % are not, or the graph has no layer with a constant weight.

    """
    found = collect(source, rows, on_row=on_row, checkpoint=checkpoint)
    check(found)
    if checkpoint is not None:
        checkpoint.unlink(missing_ok=True)
    return found


def collect(
    source: Path,
    rows: Iterable[Feed],
    *,
    on_row: Callable[[int], None] = lambda _: None,
    checkpoint: Path | None = None,
    shard: tuple[int, int] = (0, 1),
) -> Calibration:
    """Collect one shard's part of `calibrate`: shard (i, n) runs the batches whose sha256 is i modulo n.

    Every process is given all rows; `merge` of all parts is what one process would have found.

    Raises:
        BadInput: the graph has no layer with a constant weight.

    """
    probe = Probe(source)
    saved = Checkpoint.open(checkpoint, source, shard)
    found = saved.calibration
    seen = found.rows
    # One worker: counting runs beside the next forward pass, and no more than two batches are held.
    with ThreadPoolExecutor(max_workers=1) as worker:
        pending: Future[None] | None = None
        for batch in canonical_batches(rows, most_rows=probe.most_rows):
            if int.from_bytes(batch.key[:8]) % shard[1] != shard[0] or saved.skip(batch.key):
                continue
            captured = probe.run(batch.feed())
            if pending is not None:
                pending.result()
                saved.save_now_and_then()
            saved.done(batch.key)
            pending = worker.submit(_count, probe, found, batch, captured)
            seen += len(batch.rows)
            on_row(seen)
        if pending is not None:
            pending.result()
    saved.save()
    return found


def check(found: Calibration) -> None:
    """Refuse statistics of too few usable rows, and say which rows are odd.

    Raises:
        BadInput: no row is usable, or more than 10 % are not.

    """
    bad = sorted(found.quarantined)
    numbers = ", ".join(map(str, bad[:20])) + (f" and {len(bad) - 20} more" if len(bad) > 20 else "")
    if not found.activations:
        raise BadInput(f"none of {found.rows} calibration rows is usable: check the rows against the graph's inputs")
    if len(bad) > QUARANTINED_MOST * found.rows:
        raise BadInput(
            f"{len(bad)} of {found.rows} calibration rows are not finite, empty or refused by the graph, more than "
            f"{QUARANTINED_MOST:.0%}: mend or drop rows {numbers} (counted from 0)"
        )
    if bad:
        log.warning("%d of %d calibration rows quarantined: %s", len(bad), found.rows, numbers)


def _count(probe: Probe, found: Calibration, batch: Batch, captured: dict[str, Floats] | None) -> None:
    """Add what one batch captured; the rows of a batch that is not finite are tried alone."""
    tokens = None if captured is None else _tokens(probe, batch, captured)
    if tokens is None and len(batch.rows) > 1:
        for one in batch.alone():
            _count(probe, found, one, probe.run(one.feed()))
        return
    found.rows += len(batch.rows)
    if tokens is None:
        found.quarantined.append(batch.rows[0].number)
        return
    for tensor, each in tokens.items():
        # An image's positions are no sample of layers to search: Conv is not smoothed.
        found.activations.setdefault(tensor, ActivationStatistics()).add(
            each, batch, sampled=tensor not in probe.images
        )


def _tokens(probe: Probe, batch: Batch, captured: dict[str, Floats]) -> dict[str, Tokens] | None:
    """Every tensor's real tokens; None when any of them is not finite."""
    mask = batch.feed().get("attention_mask")
    found: dict[str, Tokens] = {}
    for tensor in probe.tensors:
        tokens = Tokens.of(probe.tokens(tensor, captured[tensor]), mask)
        if tokens is None:
            return None
        found[tensor] = tokens
    return found

"""What calibration rows say about the activations of a graph, in memory that does not grow with the rows.

Statistics are the same, to the last bit, for any batch size, order and padding of the rows: batches are canonical
(tasks/calibration/rows.py), and a maximum, a count in a bin of fixed edges and the rows of least hash do not depend
on order.
"""

import logging
from collections.abc import Callable, Container, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from registry.errors import BadInput
from tasks.calibration.checkpoint import CalibrationCheckpoint
from tasks.calibration.probe import Probe
from tasks.calibration.rows import Batch, Feed, make_canonical_batches, make_fixed_batches
from tasks.calibration.statistics import ActivationStatistics, Calibration, Tokens
from tasks.graphs.layers import Floats

# More than this share of unusable rows is a fault of the set or the tokenizer, not a few odd rows.
QUARANTINED_MOST = 0.10

log = logging.getLogger(__name__)


def calibrate(
    graph_file: Path,
    rows: Iterable[Feed],
    *,
    on_row: Callable[[int], None] = lambda _: None,
    checkpoint: Path | None = None,
) -> Calibration:
    """Run `rows` through an fp32 graph and collect statistics of every layer's input.

    `rows` are feed dicts of [batch, …]. A row that gives NaN or infinity anywhere, that has no token, that the graph
    refuses, or (of a sequence of rows) whose values leave int8 no step for all others is quarantined: it enters no
    statistic and its number is listed. `on_row` gets the number of rows done so far. With `checkpoint`, a file, a
    killed run resumes where it stopped; the file is removed at the end.

    Raises:
        BadInput: no row is usable, more than 10 % are not, or the graph has no layer with a constant weight.
    """
    state = CalibrationCheckpoint.open(checkpoint, graph_file)
    collect_statistics(graph_file, rows, state, on_row=on_row)
    calibration = state.calibration
    if isinstance(rows, Sequence):
        calibration = _leave_out_wild_rows(graph_file, rows, calibration)
    check_rows_usable(calibration)
    state.remove()
    return calibration


def _leave_out_wild_rows(graph_file: Path, rows: Sequence[Feed], calibration: Calibration) -> Calibration:
    """Calibrate again without each row that leaves int8 no step for all others, while there is one and few are."""
    wild: list[int] = []
    while (outlier := calibration.find_wild_row()) is not None and len(wild) <= QUARANTINED_MOST * calibration.rows:
        log.warning(
            "row %d is quarantined: %s reaches %.3g there, 90 %% of it stay below %.3g", outlier.row, outlier.tensor,
            outlier.amax, outlier.typical,
        )  # fmt: skip
        wild.append(outlier.row)
        again = CalibrationCheckpoint(None, "", Calibration(rows=len(wild), quarantined=list(wild)))
        collect_statistics(graph_file, rows, again, skip=frozenset(wild))
        calibration = again.calibration
    return calibration


def collect_statistics(
    graph_file: Path,
    rows: Iterable[Feed],
    state: CalibrationCheckpoint,
    *,
    on_row: Callable[[int], None] = lambda _: None,
    skip: Container[int] = (),
) -> None:
    """Add the rows that `state` does not cover yet to its statistics, and save it; leave the rows of `skip` out.

    Raises:
        BadInput: the graph has no layer with a constant weight.
    """
    probe = Probe(graph_file)
    calibration = state.calibration
    rows_done = calibration.rows
    # One worker: counting runs beside the next forward pass, and at most two batches are in memory.
    with ThreadPoolExecutor(max_workers=1) as worker:
        pending: Future[None] | None = None
        batches = (
            make_canonical_batches(rows, most_rows=probe.most_rows, skip=skip)
            if probe.fixed_rows is None
            else make_fixed_batches(rows, skip=skip)
        )
        for batch in batches:
            if state.skip_counted(batch.key):
                continue
            captured = probe.run_batch(batch)
            if pending is not None:
                pending.result()
                state.save_if_due()
            state.mark_counted(batch.key)
            pending = worker.submit(_count_batch, probe, calibration, batch, captured)
            rows_done += len(batch.rows)
            on_row(rows_done)
        if pending is not None:
            pending.result()
    state.save()


def check_rows_usable(calibration: Calibration) -> None:
    """Refuse statistics of too few usable rows, and log the numbers of the others.

    Raises:
        BadInput: no row is usable, or more than 10 % are not.
    """
    bad = sorted(calibration.quarantined)
    numbers = ", ".join(map(str, bad[:20])) + (f" and {len(bad) - 20} more" if len(bad) > 20 else "")
    if not calibration.activations:
        raise BadInput(
            f"none of {calibration.rows} calibration rows is usable: check the rows against the graph's inputs"
        )
    if len(bad) > QUARANTINED_MOST * calibration.rows:
        raise BadInput(
            f"{len(bad)} of {calibration.rows} calibration rows are not finite, empty, refused by the graph, or so "
            f"large that int8 has no step for the others, more than {QUARANTINED_MOST:.0%}: fix or drop rows "
            f"{numbers} (counted from 0)"
        )
    if bad:
        log.warning("%d of %d calibration rows quarantined: %s", len(bad), calibration.rows, numbers)


def _count_batch(probe: Probe, calibration: Calibration, batch: Batch, captured: dict[str, Floats] | None) -> None:
    """Count a batch's tensors; when they are not finite, run and count each of its rows alone."""
    tokens = None if captured is None else _select_tokens(probe, batch, captured)
    if tokens is None and len(batch.rows) > 1 and probe.fixed_rows is None:
        for single in batch.split():
            _count_batch(probe, calibration, single, probe.run_batch(single))
        return
    calibration.rows += len(batch.rows)
    if tokens is None:
        calibration.quarantined.extend({row.number for row in batch.rows})
        return
    for tensor, selected in tokens.items():
        # Conv is not smoothed, so that no search needs a sample of an image's positions.
        calibration.activations.setdefault(tensor, ActivationStatistics()).add(
            selected, batch, sampled=tensor not in probe.images
        )


def _select_tokens(probe: Probe, batch: Batch, captured: dict[str, Floats]) -> dict[str, Tokens] | None:
    """Return the real tokens of every tensor that has some; None when any of them is not finite."""
    mask = batch.to_feed().get("attention_mask")
    tokens: dict[str, Tokens] = {}
    for tensor in probe.tensors:
        if not captured[tensor].size:
            continue
        selected = Tokens.select(probe.reshape_tokens(tensor, captured[tensor], len(batch.rows)), mask)
        if selected is None:
            return None
        tokens[tensor] = selected
    return tokens

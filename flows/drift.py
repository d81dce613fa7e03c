"""Scales that moved since the release before: the same model on other rows, or other rows on the same model."""

from flows.release.graphs import Graphs
from registry.errors import EngineryError
from registry.mlflow.runs.releases import ReleaseLog
from registry.records import Precision
from tasks.quantization.table import DRIFT_MOST, TABLE_FILE, Drift, drift, from_json, read_table


def moved_scales(log: ReleaseLog, model: str, release: str, graphs: Graphs) -> dict[Precision, str]:
    """One sentence for each calibrated precision whose scales moved since another release's newest table."""
    found = {}
    for precision, graph in graphs.made.items():
        file = graph.directory / TABLE_FILE
        if not file.is_file():
            continue
        now = read_table(file)
        try:
            before = log.last_calibration_file(model, TABLE_FILE, precision, apart_from=release)
            moved = drift(from_json(before), now) if before is not None else ()
        except EngineryError as error:  # no reason to publish nothing
            found[precision] = f"scales not compared with the last release's: {error}"
        else:
            if moved:
                found[precision] = f"since the last release {in_words(moved, len(now.ranges))}"
    return found


def in_words(moved: tuple[Drift, ...], tensors: int) -> str:
    """How many scales moved, and the one that moved farthest."""
    if not moved:
        return f"none of {tensors} scales moved by more than {DRIFT_MOST:.0%}"
    far = moved[0]
    by = f"by {far.change:.0%}" if far.old is not None and far.new is not None else "is in one table only"
    return (
        f"{len(moved)} of {tensors} scales moved by more than {DRIFT_MOST:.0%}, farthest {far.tensor.strip('/')} {by}"
    )

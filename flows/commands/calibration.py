"""Looking into int8: `calibration` shows how a version was calibrated, and which scales moved between versions."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from flows.commands.console import Json, need_pipeline, out, plain, print_json
from registry.errors import BadInput, NotFound
from registry.mlflow.connect import open_store

if TYPE_CHECKING:
    from registry.mlflow.runs.releases import ReleaseLog
    from tasks.quantization.table import CalibrationTable

WORST = 12


def calibration(
    model: Annotated[str, typer.Argument(help="The model, as `enginery list` shows it.")],
    version: Annotated[int, typer.Argument(min=1, help="One of its int8 versions; see `enginery list MODEL`.")],
    against: Annotated[int | None, typer.Option(min=1, help="Another int8 version to compare the scales with.")] = None,
    save: Annotated[
        Path | None, typer.Option(help="Save the calibration table here; a recipe reuses it as data.calibration.table.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Show how an int8 engine was calibrated: its worst tensors, what stayed fp32, and scales that moved.

    Example: enginery calibration debian-sections 3 --against 1
    """
    need_pipeline("calibration")
    from registry.mlflow.runs.releases import ReleaseLog
    from tasks.quantization.autopilot import CHOICE_FILE
    from tasks.quantization.autopilot import from_json as read_choice
    from tasks.quantization.table import describe_drift, drift, from_json

    store = open_store()
    store.version(model, version)  # raises NotFound for a version that does not exist
    log = ReleaseLog(store)
    raw = _download_table(log, model, version)
    table, choice_file = from_json(raw), log.calibration_file(model, CHOICE_FILE, version=version)
    choice = read_choice(choice_file) if choice_file is not None else None
    moved = None if against is None else drift(from_json(_download_table(log, model, against)), table)
    if save is not None:
        _save_table(raw, save)
    if as_json:
        document = plain(table) | {"autopilot": plain(choice) if choice else None}
        print_json(document | ({} if moved is None else {"moved": [plain(scale) for scale in moved]}))
        return
    out.print(_make_table(table))
    out.print(f"{len(table.ranges)} tensors, {table.rows} rows, {len(table.quarantined)} quarantined", highlight=False)
    out.print(f"autopilot: {choice.in_words if choice else 'not used'}", highlight=False, soft_wrap=True)
    if moved is not None:
        out.print(
            f"against version {against}: {describe_drift(moved, len(table.ranges))}", highlight=False, soft_wrap=True
        )
    if save is not None:
        out.print(f"saved to {save}", highlight=False, soft_wrap=True)


def _download_table(log: "ReleaseLog", model: str, version: int) -> bytes:
    from tasks.quantization.table import TABLE_FILE

    raw = log.calibration_file(model, TABLE_FILE, version=version)
    if raw is None:
        raise NotFound(f"{model} version {version} has no calibration table: choose an int8 version of `enginery list`")
    return raw


def _save_table(raw: bytes, file: Path) -> None:
    try:
        file.write_bytes(raw)
    except OSError as error:
        raise BadInput(f"{file} cannot be written: {error.strerror}; choose another file") from error


def _make_table(calibration_table: "CalibrationTable") -> Table:
    shown = Table("worst tensors", "method", "strength", "largest", "99.9 % below", "clip", "error")
    for tensor in sorted(calibration_table.ranges, key=lambda tensor: -tensor.error)[:WORST]:
        strength = "" if tensor.strength is None else f"{tensor.strength:g}"
        figures = (f"{value:.4g}" for value in (tensor.amax, tensor.typical, tensor.clip))
        shown.add_row(tensor.tensor.strip("/"), tensor.method.value, strength, *figures, f"{tensor.error:.2g}")
    return shown

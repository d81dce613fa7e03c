"""Looking into int8: `calibration` shows a version's ranges, its mix, and what moved since another version."""

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from flows.commands.console import Json, need_pipeline, out, plain, print_json
from registry.errors import BadInput, NotFound
from registry.mlflow.connect import open_store

WORST = 12


def calibration(
    model: Annotated[str, typer.Argument(help="The model.")],
    version: Annotated[int, typer.Argument(min=1, help="An int8 version of it: see `enginery list MODEL`.")],
    against: Annotated[int | None, typer.Option(min=1, help="Another int8 version, whose scales to compare.")] = None,
    save: Annotated[Path | None, typer.Option(help="Keep the table here, to reuse it: data.calibration.table.")] = None,
    as_json: Json = False,
) -> None:
    """Show how an int8 engine was calibrated: its worst tensors, what stayed fp32, and scales that moved."""
    need_pipeline("calibration")
    from registry.mlflow.runs.lineage import Lineage
    from tasks.quantization.autopilot import CHOICE_FILE
    from tasks.quantization.autopilot import from_json as read_choice
    from tasks.quantization.table import describe_drift, drift, from_json

    store = open_store()
    store.version(model, version)  # an unknown one is said to be unknown
    lineage = Lineage(store)
    raw = _table(lineage, model, version)
    table, mix = from_json(raw), lineage.calibration_file(model, CHOICE_FILE, version=version)
    choice = read_choice(mix) if mix is not None else None
    moved = None if against is None else drift(from_json(_table(lineage, model, against)), table)
    if save is not None:
        _keep(raw, save)
    if as_json:
        document = plain(table) | {"autopilot": plain(choice) if choice else None}
        print_json(document | ({} if moved is None else {"moved": [plain(each) for each in moved]}))
        return
    out.print(_worst(table))
    out.print(f"{len(table.ranges)} tensors, {table.rows} rows, {len(table.quarantined)} quarantined", highlight=False)
    out.print(f"autopilot: {choice.in_words if choice else 'not asked'}", highlight=False, soft_wrap=True)
    if moved is not None:
        out.print(
            f"against version {against}: {describe_drift(moved, len(table.ranges))}", highlight=False, soft_wrap=True
        )
    if save is not None:
        out.print(f"kept in {save}", highlight=False, soft_wrap=True)


def _table(lineage: Any, model: str, version: int) -> bytes:
    from tasks.quantization.table import TABLE_FILE

    raw: bytes | None = lineage.calibration_file(model, TABLE_FILE, version=version)
    if raw is None:
        raise NotFound(f"{model} version {version} has no calibration table: name an int8 version of `enginery list`")
    return raw


def _keep(raw: bytes, file: Path) -> None:
    try:
        file.write_bytes(raw)
    except OSError as error:
        raise BadInput(f"{file} cannot be written: {error.strerror}; name another file") from error


def _worst(table: Any) -> Table:
    shown = Table("worst tensors", "method", "strength", "largest", "99.9 % below", "clip", "error")
    for each in sorted(table.ranges, key=lambda each: -each.error)[:WORST]:
        strength = "" if each.strength is None else f"{each.strength:g}"
        figures = (f"{value:.4g}" for value in (each.amax, each.typical, each.clip))
        shown.add_row(each.tensor.strip("/"), each.method.value, strength, *figures, f"{each.error:.2g}")
    return shown

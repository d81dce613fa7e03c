"""Looking into engines: how one was calibrated, two side by side, and measuring one on that is undecided."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape
from rich.table import Table

from flows.commands.console import FleetFile, Json, err, need_pipeline, out, plain, print_json
from flows.inputs.default_paths import FLEET
from registry.errors import BadInput, NotFound
from registry.mlflow.connect import open_store

if TYPE_CHECKING:
    from registry.mlflow.runs.lineage import Lineage
    from registry.records import Measurement
    from tasks.quantization.table import CalibrationTable
    from tasks.report.comparison import Comparison, Figures

WORST = 12
# Flips and layers that a terminal shows; --json has all.
SHOWN = 20


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
    from registry.mlflow.runs.lineage import Lineage
    from tasks.quantization.autopilot import CHOICE_FILE
    from tasks.quantization.autopilot import from_json as read_choice
    from tasks.quantization.table import describe_drift, drift, from_json

    store = open_store()
    store.version(model, version)  # raises NotFound for a version that does not exist
    log = Lineage(store)
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


def _download_table(log: "Lineage", model: str, version: int) -> bytes:
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


def compare(
    model: Annotated[str, typer.Argument(help="The model, as `enginery list` shows it.")],
    before: Annotated[int, typer.Argument(min=1, help="A version to compare with, such as the one in production.")],
    after: Annotated[int, typer.Argument(min=1, help="The version that is compared with it.")],
    measure: Annotated[
        bool,
        typer.Option("--measure", help="Time both here too, interleaved in one process, where this host runs both."),
    ] = False,
    as_json: Json = False,
) -> None:
    """Put two engines side by side: figures, answers that flipped, layers that changed precision.

    What is lost is compared row by row, where both were judged on the same rows. Figures are those of each engine's
    release; with --measure both are fetched, verified and timed here as well.

    Example: enginery compare debian-sections 3 7 --measure
    """
    need_pipeline("compare")
    from flows.promotion.compare import compare_versions, measure_here
    from registry.bundle.signing import local_trust
    from registry.host.compatibility import read_host
    from registry.host.home import home
    from tasks.execution.progress import ignore_progress
    from tasks.report.comparison import comparison_json

    store = open_store()
    comparison = compare_versions(store, model, before, after)
    if measure:
        if not as_json:
            err.print("timing both engines here: a minute where they are about as fast", highlight=False)
        comparison = measure_here(store, comparison, local_trust(home()), read_host(), ignore_progress)
    if as_json:
        print_json(comparison_json(comparison))
        return
    _show_comparison(comparison)


def measure(
    model: Annotated[str, typer.Argument(help="The model, as `enginery list` shows it.")],
    version: Annotated[int, typer.Option("--version", min=1, help="One of its versions; see `enginery list MODEL`.")],
    fleet: FleetFile = FLEET,
    as_json: Json = False,
) -> None:
    """Go on measuring an engine whose call times are undecided, from the windows that this machine kept of it.

    The recipe of its release is released again, in the folder that it was released from: what is finished is found,
    and only what is undecided is measured. Another latency.seconds_max in the recipe measures longer.

    Example: enginery measure debian-sections --version 6
    """
    need_pipeline("measure")
    from flows.commands.release import release_here, show_report
    from flows.inputs.fleet import load_fleet
    from flows.release.identity import read_pinned_recipe

    store = open_store()
    recipe = read_pinned_recipe(store.version(model, version).release, store)
    show_report(release_here(recipe, load_fleet(fleet), quiet=as_json), as_json=as_json)


def _show_comparison(comparison: "Comparison") -> None:
    table = Table("", f"version {comparison.before.version}", f"version {comparison.after.version}")
    rows = zip(*(_list_figures(each, comparison.metric) for each in (comparison.before, comparison.after)), strict=True)
    for (name, old), (_, new) in rows:
        table.add_row(name, old, new)
    out.print(table)
    for line in _describe_comparison(comparison):
        out.print(line, highlight=False, markup=False, soft_wrap=True)
    if comparison.flips:
        flips = Table("row", f"version {comparison.before.version}", f"version {comparison.after.version}", "truth")
        for flip in comparison.flips[:SHOWN]:
            flips.add_row(str(flip.row), escape(flip.before), escape(flip.after), escape(flip.truth))
        out.print(flips)
    if comparison.layers:
        layers = Table("layer (weights x activations)", "before", "after")
        for layer in comparison.layers[:SHOWN]:
            layers.add_row(escape(layer.name), layer.before, layer.after)
        out.print(layers)


def _list_figures(engine: "Figures", metric: str) -> list[tuple[str, str]]:
    share = "" if engine.macs_share is None else f"{engine.macs_share:.1%}"
    measured = next((each.measured_on.label for each in (engine.latency_p50, engine.quality) if each), "not run")
    return [
        ("target", engine.target),
        ("precision", engine.precision.value),
        ("backend", engine.backend),
        ("verdict", engine.verdict),
        ("MB", f"{engine.size_bytes / 1e6:.1f}"),
        ("share of MACs", share),
        (metric, _format_measured(engine.quality)),
        ("p50", _format_measured(engine.latency_p50)),
        ("p99", _format_measured(engine.latency_p99)),
        ("measured on", escape(measured)),
        ("digest", engine.digest[:12]),
    ]


def _format_measured(figure: "Measurement | None") -> str:
    if figure is None:
        return "not run"
    from tasks.report.page.formats import format_interval, format_number

    interval = format_interval({"low": figure.low, "high": figure.high, "unit": figure.unit})
    return f"{format_number(figure.value, figure.unit)}{f' ({interval})' if interval else ''}"


def _name_faster(comparison: "Comparison", low: float, high: float) -> str:
    if low <= 1 <= high:
        return "not told apart"
    return f"version {(comparison.after if low > 1 else comparison.before).version} is faster"


def _describe_comparison(comparison: "Comparison") -> list[str]:
    lines, loss, here = [comparison.not_paired], comparison.loss, comparison.interleaved
    if loss is not None:
        p = "" if loss.mcnemar_p is None else f", McNemar's p {loss.mcnemar_p:.3g}"
        lines.append(
            f"{comparison.metric} loss of version {comparison.after.version} against {comparison.before.version}: "
            f"{loss.loss:+.2%} (95 % bounds {loss.low:+.2%} to {loss.high:+.2%}) on {loss.rows} rows{p}; "
            f"{len(comparison.flips)} {'answer' if len(comparison.flips) == 1 else 'answers'} flipped"
        )
    if here is not None:
        p50 = [
            f"{value:.4g} ms ({low:.4g} to {high:.4g})" for value, low, high in (here.before_p50_ms, here.after_p50_ms)
        ]
        value, low, high = here.speedup
        sizes = ", ".join(f"{name} {size}" for name, size in here.sizes)
        lines.append(
            f"here, interleaved, {sizes}: p50 {p50[0]} before and {p50[1]} after, "
            f"{value:.2f} times as fast ({low:.2f} to {high:.2f}): {_name_faster(comparison, low, high)}"
        )
    elif comparison.before.digest != comparison.after.digest:
        lines.append("p50 and p99 are those of each engine's own release: --measure times both here, side by side")
    for kind, found in (("flips", comparison.flips), ("layers that changed", comparison.layers)):
        if len(found) > SHOWN:
            lines.append(f"the first {SHOWN} of {len(found)} {kind} are below; --json has all")
    return [line for line in lines if line]

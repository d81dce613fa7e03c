"""`enginery reduce`: where an engine's graph differs from fp32, and a folder that shows it."""

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape
from rich.table import Table

from flows.commands.console import FleetFile, Json, err, need_pipeline, out, print_json
from flows.inputs.default_paths import FLEET
from registry.errors import BadInput
from registry.host.home import home
from registry.mlflow.connect import open_store

if TYPE_CHECKING:
    from flows.release.reduce import ReduceRequest, ReduceResult

# Layers that a terminal shows; --json has all.
SHOWN = 12


def reduce(
    model: Annotated[str, typer.Argument(help="The model, as `enginery list` shows it.")],
    version: Annotated[int | None, typer.Option("--version", min=1, help="One of its versions.")] = None,
    target: Annotated[str | None, typer.Option(help="Instead of a version, of an engine that failed: target.")] = None,
    precision: Annotated[str | None, typer.Option(help="And precision, such as int8: its newest engine.")] = None,
    release: Annotated[str | None, typer.Option(help="And release, where the newest is not meant.")] = None,
    into: Annotated[Path | None, typer.Option(help="The folder to write; it must not exist.")] = None,
    tolerance: Annotated[
        float, typer.Option(min=0.0, help="Show what is further from fp32: |engine - fp32| / |fp32| of an output.")
    ] = 0.05,
    rows: Annotated[int, typer.Option(min=1, help="Try so many evaluation rows, those answered otherwise first.")] = 64,
    most: Annotated[int, typer.Option(min=1, help="Measure at most so many layers.")] = 1000,
    seconds_max: Annotated[float, typer.Option(min=1.0, help="Measure layers for so long at most.")] = 120.0,
    keep_names: Annotated[bool, typer.Option("--keep-names", help="Keep the names of nodes and tensors.")] = False,
    fleet: FleetFile = FLEET,
    as_json: Json = False,
) -> None:
    """Find which layers of an engine differ from fp32, and write the smallest piece that shows it.

    Its graph is held against fp32's on the evaluation row where they are furthest apart: each layer alone, fed with
    fp32's values. The folder has that piece, its input and a script, and nothing else of the model. Run it in the
    folder that the recipe was released from.

    Example: enginery reduce debian-sections --target cpu --precision int8
    """
    need_pipeline("reduce")
    from flows.inputs.fleet import load_fleet
    from flows.prefect_server.local import configure_prefect
    from registry.host.home import writable_home
    from registry.mlflow.runs.lineage import Lineage

    if (None in (target, precision)) if version is None else any((target, precision, release)):
        raise BadInput("name --version N, or --target T and --precision P for an engine that failed its gates")
    store = open_store()
    configure_prefect(writable_home())  # which the release's stages import
    from flows.release.reduce import ReduceRequest, result_json
    from tasks.measurement.row_results import ROW_RESULTS_FILE
    from tasks.reduction.search import Bounds

    wanted = {"version": version, "target": target, "precision": precision, "release": release}
    engine = Lineage(store).find_engine(model, ROW_RESULTS_FILE, **wanted)
    request = ReduceRequest(
        engine,
        load_fleet(fleet).target(engine.target),
        Bounds(tolerance, most, seconds_max),
        rows,
        into or Path(f"reduced-{model}-{engine.target}-{engine.precision}"),
        keep_names,
    )
    result = _reduce(request, quiet=as_json)
    if as_json:
        print_json(result_json(result))
    else:
        _show(result, request)


def _reduce(request: "ReduceRequest", *, quiet: bool) -> "ReduceResult":
    from flows.release.context import PlainContext, open_workspace
    from flows.release.identity import read_pinned_recipe
    from flows.release.progress import Tally, progress_report
    from flows.release.reduce import reduce_engine
    from registry.bundle.signing import local_signer, local_trust

    store = open_store()
    recipe = read_pinned_recipe(request.engine.release, store)
    with progress_report(err, Tally(), quiet=quiet) as reporter:
        trust = partial(local_trust, home())
        context = PlainContext(open_workspace(), recipe, reporter, store, local_signer(home()), trust)
        return reduce_engine(context, request)


def _show(result: "ReduceResult", request: "ReduceRequest") -> None:
    found, engine = result.reduction, request.engine
    where = f"{engine.target} {engine.precision} of release {engine.release}"
    _print(f"{where}: {found.error:.2%} of fp32's output away on row {result.row}, the worst of {found.rows} rows")
    if not result.is_same_graph:
        _print(
            "note: the graph was made again, by other versions or from other files than in the release, and is not "
            "byte for byte the one that the engine was built of"
        )
    if found.layers:
        table = Table("layer, by itself", "nodes", "|error| / |fp32|", "SQNR")
        for layer in found.layers[:SHOWN]:
            table.add_row(escape(layer.layer), str(layer.nodes), f"{layer.error:.2%}", f"{layer.sqnr_db:.1f} dB")
        out.print(table)
        _print(f"{found.tried} of {found.pieces} layers that differ from fp32's were measured; --json has all")
    for line in _describe_end(result, request):
        _print(line)


def _print(line: str) -> None:
    out.print(line, highlight=False, markup=False, soft_wrap=True)


def _describe_end(result: "ReduceResult", request: "ReduceRequest") -> list[str]:
    found, limit = result.reduction, f"{request.bounds.tolerance:.2%}"
    if found.reduced is None:
        return [f"nothing to show: graph and fp32 agree within {limit}; --tolerance shows smaller differences"]
    nodes, error = len(found.reduced.piece.nodes), f"{found.reduced.error:.2%}"
    what = (
        f"{found.layers[0].layer} alone is {error} away, with its {nodes} nodes"
        if found.is_one_layer
        else f"no layer alone is {limit} away, errors add up: {nodes} nodes together are {error} away"
    )
    lines = [what, *([result.engine] if result.engine else [])]
    return [*lines, f"written to {result.folder}; to see it: python {result.folder}/show.py"]

"""The `enginery` command. Heavy packages are imported by the commands that need them, so that a fetch stays quick."""

import datetime
import getpass
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from registry.errors import BadInput, EngineryError, NotFound
from registry.home import home

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Hugging Face model in; gated, versioned, verified TensorRT engines out. State lives in ENGINERY_HOME "
    "(.enginery by default); MLFLOW_TRACKING_URI and PREFECT_API_URL work as everywhere.",
)
# A log has no width of its own: 80 columns would fold the tables into noise.
out = Console(width=None if sys.stdout.isatty() else 150)
err = Console(stderr=True)
# Typer 0.29 carries a click of its own, whose errors are not click's; Ctrl-C comes back as this exit code.
USAGE_ERROR: Any = typer.BadParameter.__base__
STOPPED = 130

Json = Annotated[bool, typer.Option("--json", help="Print JSON for programs instead of text for people.")]
FleetFile = Annotated[Path, typer.Option("--fleet", help="The fleet file that names the targets.")]
Target = Annotated[str, typer.Option("--target", help="A target of the fleet, such as cpu, l4 or rtx-4090.")]
Why = Annotated[str, typer.Option("--why", help="The reason, kept in the history.")]
Who = Annotated[str, typer.Option("--who", help="Who decides, kept in the history (default: the user's name).")]
FLEET = Path("recipes/fleet.yaml")


@app.callback()
def _common(debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False) -> None:
    if debug:
        os.environ["ENGINERY_DEBUG"] = "1"


@app.command()
def release(
    recipe: Annotated[Path, typer.Argument(help="The recipe, such as recipes/quickstart.yaml.")],
    fleet: FleetFile = FLEET,
    as_json: Json = False,
) -> None:
    """Make, measure, judge and publish every engine of a recipe that this machine can build.

    What is already made is found by its key: a second release of the same recipe builds nothing.
    """
    _embedded_prefect()
    from flows.recipe import load_fleet, load_recipe
    from flows.report import as_json as report_json
    from flows.report import notes, release_table

    asked, machines = load_recipe(recipe), load_fleet(fleet)
    result = _release(asked, machines, quiet=as_json)
    if as_json:
        _print_json(report_json(result))
    else:
        out.print(release_table(result))
        for line in notes(result):
            out.print(f"[dim]- {escape(line)}[/]", highlight=False, soft_wrap=True)
        if result.found:
            out.print(
                f"Release {result.release} was complete already: everything was found by its key, nothing rebuilt."
            )
        out.print(
            "* scored by the exact ONNX graph on this machine's CPU; the engine itself has not run.", soft_wrap=True
        )
        _say_where_the_ui_is()
    if result.failed:
        raise EngineryError(f"release {result.release} of {result.model} published no engine: see the reasons above")


def _release(recipe: Any, fleet: Any, *, quiet: bool) -> Any:
    from flows.plan import find_release
    from tasks.workspace import Workspace

    store, workspace = _store(), Workspace(home() / "stages")
    workspace.sweep()
    pinned, release, found = find_release(recipe, fleet, store)
    if found is not None:
        return found
    # Torch, Prefect and matplotlib: six seconds that a release found finished does not wait for.
    from flows.progress import progress_report
    from flows.release import release_engines

    with progress_report(err, quiet=quiet) as report:
        return release_engines(pinned, fleet, release, store, workspace, report)


@app.command("list")
def list_engines(
    model: Annotated[str | None, typer.Argument(help="Only this model's engines; all models without it.")] = None,
    as_json: Json = False,
) -> None:
    """Show the published engines."""
    versions = _store().versions(model)
    if model is not None and not versions:
        raise NotFound(f"the registry has no engine of {model!r}: release one, or see `enginery list`")
    if as_json:
        _print_json([_version_json(engine) for engine in versions])
        return
    table = Table(
        "model", "version", "target", "precision", "MB", "accuracy", "p50 ms", "verdict", "alias", "measured on"
    )
    for engine in versions:
        metrics = dict(engine.metrics)
        graph = metrics.get("onnx-graph.accuracy")
        accuracy = metrics.get("accuracy", graph)
        mark = "*" if "accuracy" not in metrics and graph is not None else ""
        table.add_row(
            engine.model,
            str(engine.version),
            engine.target,
            engine.precision,
            f"{engine.size_bytes / 1e6:.1f}",
            "" if accuracy is None else f"{100 * accuracy:.1f}{mark}",
            f"{metrics['latency_p50_ms']:.1f}" if "latency_p50_ms" in metrics else "",
            engine.verdict,
            ", ".join(engine.aliases),
            engine.measured_on,
        )
    out.print(table)


@app.command()
def targets(fleet: FleetFile = FLEET, as_json: Json = False) -> None:
    """Show the fleet's targets, and which of them this machine can build and measure."""
    _need_pipeline("targets")
    from flows.recipe import load_fleet
    from tasks.backends import BACKENDS

    machines = load_fleet(fleet)
    rows = []
    for name in machines.targets:
        target = machines.target(name)
        backend = BACKENDS[target.backend]
        builds, runs = backend.can_build(target), backend.can_run(target)
        rows.append(
            {
                "target": name,
                "backend": target.backend.value,
                "compute_capability": target.compute_capability,
                "gpu_name": target.gpu_name,
                "work_pool": target.work_pool,
                "builds": builds is None,
                "measures": runs is None,
                "why_not_build": builds,
                "why_not_measure": runs,
            }
        )
    if as_json:
        _print_json(rows)
        return
    table = Table("target", "backend", "compute capability", "builds here", "measures here")
    for row in rows:
        table.add_row(
            str(row["target"]),
            str(row["backend"]),
            str(row["compute_capability"] or ""),
            "yes" if row["builds"] else f"no: {row['why_not_build']}",
            "yes" if row["measures"] else "no: " + ("same" if not row["builds"] else str(row["why_not_measure"])),
        )
    out.print(table)


@app.command()
def promote(
    model: str,
    target: Target,
    version: Annotated[int | None, typer.Option(help="The version (default: the target's candidate).")] = None,
    why: Why = "promoted from the command line",
    who: Who = "",
    waiver: Annotated[
        str | None, typer.Option(help="Promote although a gate was not measured or inconclusive: the reason.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Move production-TARGET to a version whose gates passed; the record is written first."""
    from registry.promotion import candidate_alias
    from registry.promotion import promote as move

    store = _store()
    if version is None:
        version = store.aliases(model).get(candidate_alias(target))
        if version is None:
            raise BadInput(f"{model} has no candidate for {target}: no engine of it passed its gates; name a --version")
    event = move(store, model, target, version, who=_who(who), why=why, clock=_now, waiver=waiver, flow_run=None)
    _show_event(event, as_json)


@app.command()
def rollback(
    model: str, target: Target, why: Why = "rolled back from the command line", who: Who = "", as_json: Json = False
) -> None:
    """Move production-TARGET back to the version recorded before the last promotion."""
    from registry.promotion import rollback as back

    _show_event(back(_store(), model, target, who=_who(who), why=why, clock=_now), as_json)


@app.command()
def history(model: str, as_json: Json = False) -> None:
    """Show who promoted what, when, why and on which evidence."""
    from registry.promotion import history as events_of

    events = events_of(_store(), model)
    if as_json:
        _print_json([_plain(event) for event in events])
        return
    table = Table("at", "action", "alias", "from", "to", "who", "why", "waiver", "outcome")
    for event in events:
        before = "" if event.from_version is None else str(event.from_version)
        table.add_row(
            event.at,
            event.action,
            event.alias,
            before,
            str(event.to_version),
            event.who,
            event.why,
            event.waiver or "",
            event.outcome,
        )
    out.print(table)


@app.command()
def fetch(
    model: str,
    target: Annotated[
        str, typer.Option("--target", help="Fetch production-TARGET; auto picks it for the local GPU, or the CPU.")
    ] = "auto",
    alias: Annotated[str | None, typer.Option(help="Fetch this alias instead, such as candidate-cpu.")] = None,
    version: Annotated[int | None, typer.Option(help="Fetch this version instead.")] = None,
    to: Annotated[Path, typer.Option("--to", help="The folder to place MODEL/VERSION in.")] = Path("models"),
    as_json: Json = False,
) -> None:
    """Download an engine, verify every byte against its manifest, and place it in one rename."""
    from registry.fetch import fetch as place

    store = _store()
    if alias is None and version is None:
        alias = _production_alias(store, model, target)
    fetched = place(store, model, into=to, alias=alias, version=version)
    if as_json:
        _print_json(_plain(fetched) | {"path": str(fetched.path)})
    else:
        how = "was there already, intact" if fetched.reused else "fetched and verified"
        out.print(f"{model} version {fetched.version} {how}: {fetched.path}", highlight=False, soft_wrap=True)


@app.command()
def verify(bundle: Annotated[Path, typer.Argument(help="A fetched bundle folder.")], as_json: Json = False) -> None:
    """Check a bundle on disk: exact listing, sha256 and size of every file."""
    from registry.manifest import verify_bundle

    manifest = verify_bundle(bundle)
    if as_json:
        _print_json({"path": str(bundle), "model": manifest.model, "digest": manifest.build.digest, "intact": True})
    else:
        out.print(
            f"{bundle} is intact: {manifest.model}, {manifest.build.target.name} {manifest.build.precision}, "
            f"verdict {manifest.verdict}",
            highlight=False,
            soft_wrap=True,
        )


@app.command()
def run(
    engine: Annotated[str, typer.Argument(help="A model in production, which is fetched first, or a bundle folder.")],
    texts: Annotated[list[str], typer.Argument(help="One or more sentences.")],
    as_json: Json = False,
) -> None:
    """Answer sentences with a fetched engine; it is verified before it is loaded."""
    _need("onnxruntime", "tokenizers", what="run")
    from registry.fetch import fetch as place
    from tasks.answer import answer

    bundle = Path(engine)
    if not bundle.is_dir():
        store = _store()
        alias = _production_alias(store, engine, "auto")
        bundle = place(store, engine, into=home() / "models", alias=alias).path
    answers = answer(bundle, texts)
    if as_json:
        _print_json([_plain(given) for given in answers])
        return
    for given in answers:
        out.print(f"[bold]{escape(given.label)}[/] ({given.score:.0%})  {escape(given.text)}", highlight=False)


@app.command()
def doctor(as_json: Json = False) -> None:
    """Check this machine: packages, backends, GPU, registry, disk; say what to install or mend."""
    from flows.doctor import examine

    findings = examine(home(), _store)
    if as_json:
        _print_json([_plain(finding) for finding in findings])
    else:
        for finding in findings:
            mark = "[green]ok  [/]" if finding.ok else "[yellow]mend[/]"
            out.print(f"{mark} {finding.what}: {escape(finding.found)}", highlight=False, soft_wrap=True)
            if finding.advice:
                out.print(f"     {escape(finding.advice)}", highlight=False, soft_wrap=True)
    if any(finding.needed and not finding.ok for finding in findings):
        raise typer.Exit(1)


def _store() -> Any:
    from registry.mlflow_store import MlflowStore, embedded_store

    uri = os.environ.get("MLFLOW_TRACKING_URI")
    return MlflowStore(uri, home()) if uri else embedded_store(home())


def _production_alias(store: Any, model: str, target: str) -> str:
    from registry.promotion import production_alias
    from registry.targets import local_target

    return production_alias(local_target(store.versions(model), model) if target == "auto" else target)


def _embedded_prefect() -> None:
    """Prefect without a server keeps its state in ENGINERY_HOME; a configured one is left alone."""
    _need_pipeline("release")
    os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")
    # Its log of a failure is a traceback; ours is the sentence.
    os.environ.setdefault("PREFECT_LOGGING_LEVEL", "WARNING" if os.environ.get("ENGINERY_DEBUG") else "CRITICAL")
    if "PREFECT_API_URL" not in os.environ:
        home().mkdir(parents=True, exist_ok=True)  # Prefect makes the last folder only
        os.environ.setdefault("PREFECT_HOME", str(home() / "prefect"))
        # The first start migrates a new database, which takes longer than Prefect's default on a busy machine.
        os.environ.setdefault("PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS", "180")


def _need_pipeline(what: str) -> None:
    _need("prefect", "onnxruntime", "datasets", what=what)


def _need(*packages: str, what: str) -> None:
    from importlib.util import find_spec

    if missing := [package for package in packages if find_spec(package) is None]:
        raise BadInput(
            f"`enginery {what}` needs {', '.join(missing)}, which the base install leaves out: "
            "pip install 'enginery[pipeline]'"
        )


def _who(given: str) -> str:
    return given or getpass.getuser()


def _now() -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC)


def _plain(value: Any) -> dict[str, Any]:
    from pydantic import TypeAdapter

    plain: dict[str, Any] = TypeAdapter(type(value)).dump_python(value, mode="json")
    return plain


def _version_json(engine: Any) -> dict[str, Any]:
    return {**_plain(engine), "metrics": dict(engine.metrics)}


def _show_event(event: Any, as_json: bool) -> None:
    if as_json:
        _print_json(_plain(event))
        return
    before = "nothing" if event.from_version is None else f"version {event.from_version}"
    out.print(
        f"{event.model} {event.alias}: {before} -> version {event.to_version} ({event.outcome}); {event.evidence}",
        highlight=False,
        soft_wrap=True,
    )


def _print_json(value: object) -> None:
    sys.stdout.write(json.dumps(value, indent=1) + "\n")


def _say_where_the_ui_is() -> None:
    if uri := os.environ.get("MLFLOW_TRACKING_URI"):
        out.print(f"Compare the engines in the MLflow UI at {uri}", highlight=False, soft_wrap=True)
        return
    out.print(
        "Compare the engines in the MLflow UI: run the next line, then open http://127.0.0.1:5000", highlight=False
    )
    out.print(f"  mlflow ui --backend-store-uri sqlite:///{home()}/mlflow.db", highlight=False, soft_wrap=True)


def main() -> NoReturn:
    """Run the command; an error is one sentence on stderr, and a traceback only with --debug."""
    sys.exit(_guarded(lambda: app(standalone_mode=False)))


def _guarded(command: Callable[[], Any]) -> int:
    try:
        code = command()
    except USAGE_ERROR as error:
        error.show()
        return int(error.exit_code)
    except (KeyboardInterrupt, typer.Abort):
        code = STOPPED
    except EngineryError as error:
        if os.environ.get("ENGINERY_DEBUG"):
            raise
        err.print(f"enginery: {error}", style="red", markup=False, highlight=False, soft_wrap=True)
        return error.exit_code
    if code == STOPPED:
        err.print("stopped; what was finished is kept: run the same command again to go on", soft_wrap=True)
    return code if isinstance(code, int) else 0

"""Deciding what serves: `list`, `promote`, `rollback`, `history`."""

from typing import Annotated, Any

import typer
from rich.table import Table

from flows.commands.shared import Json, now, open_store, out, plain, print_json, who_decides
from registry.errors import BadInput, NotFound

Target = Annotated[str, typer.Option("--target", help="A target of the fleet, such as cpu, l4 or rtx-4090.")]
Why = Annotated[str, typer.Option("--why", help="The reason, kept in the history.")]
Who = Annotated[str, typer.Option("--who", help="Who decides, kept in the history (default: the user's name).")]


def list_engines(
    model: Annotated[str | None, typer.Argument(help="Only this model's engines; all models without it.")] = None,
    as_json: Json = False,
) -> None:
    """Show the published engines."""
    versions = open_store().versions(model)
    if model is not None and not versions:
        raise NotFound(f"the registry has no engine of {model!r}: release one, or see `enginery list`")
    if as_json:
        print_json([_version_json(engine) for engine in versions])
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

    store = open_store()
    if version is None:
        version = store.aliases(model).get(candidate_alias(target))
        if version is None:
            raise BadInput(f"{model} has no candidate for {target}: no engine of it passed its gates; name a --version")
    event = move(store, model, target, version, who=who_decides(who), why=why, clock=now, waiver=waiver, flow_run=None)
    _show_event(event, as_json)


def rollback(
    model: str, target: Target, why: Why = "rolled back from the command line", who: Who = "", as_json: Json = False
) -> None:
    """Move production-TARGET back to the version recorded before the last promotion."""
    from registry.promotion import rollback as back

    _show_event(back(open_store(), model, target, who=who_decides(who), why=why, clock=now), as_json)


def history(model: str, as_json: Json = False) -> None:
    """Show who promoted what, when, why and on which evidence."""
    from registry.promotion import history as events_of

    events = events_of(open_store(), model)
    if as_json:
        print_json([plain(event) for event in events])
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


def _version_json(engine: Any) -> dict[str, Any]:
    return {**plain(engine), "metrics": dict(engine.metrics)}


def _show_event(event: Any, as_json: bool) -> None:
    if as_json:
        print_json(plain(event))
        return
    before = "nothing" if event.from_version is None else f"version {event.from_version}"
    out.print(
        f"{event.model} {event.alias}: {before} -> version {event.to_version} ({event.outcome}); {event.evidence}",
        highlight=False,
        soft_wrap=True,
    )

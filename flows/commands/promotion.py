"""Deciding what serves: `list`, `promote`, `rollback`, `history`."""

from collections.abc import Sequence
from typing import Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from flows.commands.console import FleetFile, Json, err, out, plain, print_json, who_decides
from flows.inputs.fleet import FLEET
from registry.errors import NotFound
from registry.host.clock import now
from registry.mlflow.connect import open_store

Targets = Annotated[
    list[str], typer.Option("--target", help="A target of the fleet such as cpu or l4; again for another; or `all`.")
]
Why = Annotated[str, typer.Option("--why", help="The reason, kept in the history.")]
Who = Annotated[str, typer.Option("--who", help="Who decides, kept in the history (default: the user's name).")]
Limit = Annotated[int, typer.Option("--limit", min=0, help="Only the newest so many; 0 shows all.")]
NEWEST = 50
ALL = "all"


def list_engines(
    model: Annotated[str | None, typer.Argument(help="Only this model's engines; all models without it.")] = None,
    limit: Limit = NEWEST,
    as_json: Json = False,
) -> None:
    """Show the published engines, the newest last."""
    versions = open_store().versions(model, newest=limit or None)
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
    target: Targets,
    version: Annotated[int | None, typer.Option(help="The version (default: the target's candidate).")] = None,
    why: Why = "promoted from the command line",
    who: Who = "",
    waiver: Annotated[
        str | None, typer.Option(help="Promote although a gate was not measured or inconclusive: the reason.")
    ] = None,
    fleet: FleetFile = FLEET,
    as_json: Json = False,
) -> None:
    """Move production-TARGET to a version whose gates passed; several targets move together or not at all."""
    from flows.promotion.decisions import promote_targets

    events = promote_targets(_store_to_change(), model, target, version, _decision(who, why, waiver), fleet)
    _show_events(events, as_json, one=_is_one(target))


def rollback(
    model: str,
    target: Targets,
    why: Why = "rolled back from the command line",
    who: Who = "",
    fleet: FleetFile = FLEET,
    as_json: Json = False,
) -> None:
    """Move production-TARGET back to the version before; several targets move together or not at all."""
    from flows.promotion.decisions import roll_back_targets

    events = roll_back_targets(_store_to_change(), model, target, _decision(who, why, None), fleet)
    _show_events(events, as_json, one=_is_one(target))


def history(model: str, limit: Limit = NEWEST, as_json: Json = False) -> None:
    """Show who promoted what, when, why and on which evidence, the newest last."""
    from registry.promotion.promote import history as events_of

    events = events_of(open_store(), model, newest=limit or None)
    if as_json:
        print_json([plain(event) for event in events])
        return
    table = Table("at", "action", "alias", "from", "to", "who", "approved by", "why", "waiver", "outcome")
    for event in events:
        row = (
            event.at,
            event.action,
            event.alias,
            "" if event.from_version is None else str(event.from_version),
            str(event.to_version),
            event.who,
            event.approved_by or "",
            event.why,
            event.waiver or "",
            event.outcome,
        )
        table.add_row(*map(escape, row))
    out.print(table)


def _store_to_change() -> Any:
    store = open_store()
    if not store.leases.shared:
        err.print(
            "enginery: this keeps promoters apart on this host only; set ENGINERY_LEASE_DATABASE to a PostgreSQL "
            "address that every host reaches",
            style="yellow",
            highlight=False,
            soft_wrap=True,
        )
    return store


def _is_one(given: Sequence[str]) -> bool:
    return len(given) == 1 and given[0] != ALL


def _decision(who: str, why: str, waiver: str | None) -> Any:
    from registry.promotion.rules import Decision

    return Decision(who_decides(who), why, now(), waiver)


def _version_json(engine: Any) -> dict[str, Any]:
    return {**plain(engine), "metrics": dict(engine.metrics)}


def _show_events(events: Sequence[Any], as_json: bool, *, one: bool) -> None:
    if as_json:
        print_json(plain(events[0]) if one else [plain(event) for event in events])
        return
    from flows.promotion.decisions import describe_event

    for event in events:
        out.print(
            f"{event.model} {describe_event(event)}; {event.evidence}", highlight=False, markup=False, soft_wrap=True
        )

"""Deciding what serves: `list`, `promote`, `rollback`, `history`."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from flows.commands.shared import FLEET, FleetFile, Json, err, now, open_store, out, plain, print_json, who_decides
from registry.errors import BadInput, NotFound
from registry.names import CANDIDATE, PRODUCTION, candidate_alias

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
    from registry.promotion import promote as move

    store = _store_to_change()
    targets = _targets(store, model, target, CANDIDATE)
    if version is None:
        versions = _candidates(store, model, targets)
    elif len(targets) == 1:
        versions = {targets[0]: version}
    else:
        raise BadInput(f"version {version} was built for one target: name that one, or leave --version out")
    decision = _decision(who, why, waiver)
    _show_events(move(store, model, versions, decision, _rules(fleet, targets)), as_json, one=_is_one(target))


def rollback(
    model: str,
    target: Targets,
    why: Why = "rolled back from the command line",
    who: Who = "",
    fleet: FleetFile = FLEET,
    as_json: Json = False,
) -> None:
    """Move production-TARGET back to the version before; several targets move together or not at all."""
    from registry.promotion import rollback as back

    store = _store_to_change()
    targets = _targets(store, model, target, PRODUCTION)
    events = back(store, model, targets, _decision(who, why, None), _rules(fleet, targets))
    _show_events(events, as_json, one=_is_one(target))


def history(model: str, limit: Limit = NEWEST, as_json: Json = False) -> None:
    """Show who promoted what, when, why and on which evidence, the newest last."""
    from registry.promotion import history as events_of

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


def _targets(store: Any, model: str, given: Sequence[str], prefix: str) -> list[str]:
    """The targets named, or all that have an alias with this prefix."""
    if ALL not in given:
        return list(given)
    if list(given) != [ALL]:
        raise BadInput("`--target all` stands for every target: name no other beside it")
    found = sorted(alias.removeprefix(prefix) for alias in store.aliases(model) if alias.startswith(prefix))
    if not found:
        raise BadInput(f"{model} has no {prefix.removesuffix('-')} for any target: see `enginery list {model}`")
    return found


def _candidates(store: Any, model: str, targets: Sequence[str]) -> dict[str, int]:
    aliases = store.aliases(model)
    if missing := [target for target in targets if candidate_alias(target) not in aliases]:
        raise BadInput(
            f"{model} has no candidate for {', '.join(missing)}: no engine of it passed its gates; name a --version"
        )
    return {target: aliases[candidate_alias(target)] for target in targets}


def _rules(fleet: Path, targets: Sequence[str]) -> dict[str, Any]:
    from flows.recipe import load_fleet

    # Without the fleet nobody knows which targets are protected: its absence is an error, not the absence of rules.
    loaded = load_fleet(fleet)
    return {target: loaded.rules(target) for target in targets}


def _decision(who: str, why: str, waiver: str | None) -> Any:
    from registry.rules import Decision

    return Decision(who_decides(who), why, now(), waiver)


def _version_json(engine: Any) -> dict[str, Any]:
    return {**plain(engine), "metrics": dict(engine.metrics)}


def _show_events(events: Sequence[Any], as_json: bool, *, one: bool) -> None:
    if as_json:
        print_json(plain(events[0]) if one else [plain(event) for event in events])
        return
    for event in events:
        before = "nothing" if event.from_version is None else f"version {event.from_version}"
        told = f"{before} -> version {event.to_version} ({event.outcome})"
        if event.action == "approve":
            told = f"version {event.to_version} approved by {event.who}; it moves when someone else promotes it too"
        out.print(
            f"{event.model} {event.alias}: {told}; {event.evidence}", highlight=False, markup=False, soft_wrap=True
        )

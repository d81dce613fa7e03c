"""Decide which engines serve: `list`, `promote`, `rollback`, `history`."""

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from flows.commands.console import Json, RulesFile, err, out, plain, print_json, who_decides
from flows.inputs.default_paths import FLEET
from registry.host.clock import now
from registry.mlflow.connect import open_store

if TYPE_CHECKING:
    from registry.mlflow.store import MlflowStore
    from registry.promotion.rules import Decision
    from registry.records import EngineVersion, PromotionEvent

Model = Annotated[str, typer.Argument(help="The model's name in the registry; `enginery list` shows all.")]
Targets = Annotated[
    list[str],
    typer.Option("--target", help="A target of the fleet, such as cpu or l4; repeat it for several, or give `all`."),
]
Why = Annotated[str, typer.Option("--why", help="The reason, recorded in the history.")]
Who = Annotated[str, typer.Option("--who", help="Who decides, recorded in the history (default: the user's name).")]
Limit = Annotated[
    int, typer.Option("--limit", min=0, max=10**6, help="Show at most this many, the newest; 0 shows all.")
]
NEWEST = 50


def list_engines(
    model: Annotated[str | None, typer.Argument(help="Show only this model's engines (default: all models).")] = None,
    limit: Limit = NEWEST,
    as_json: Json = False,
) -> None:
    """Show the published engines, the newest last.

    A `*` marks the metric of the ONNX graph, where the engine's own was not measured.
    """
    from registry.mlflow.quick.open import open_to_read
    from registry.store import require_engines

    store = open_to_read()
    if model is not None:
        require_engines(store, model)
    versions = store.versions(model, newest=limit or None)
    if not versions and not as_json:
        out.print("The registry has no engines yet: run `enginery release RECIPE`.", highlight=False)
        return
    if as_json:
        print_json([_version_json(engine) for engine in versions])
        return
    table = Table(
        "model", "version", "target", "precision", "MB", "metric", "p50 ms", "verdict", "alias", "measured on"
    )
    for engine in versions:
        metrics = dict(engine.metrics)
        table.add_row(
            engine.model,
            str(engine.version),
            engine.target,
            engine.precision,
            f"{engine.size_bytes / 1e6:.1f}",
            _format_quality(engine),
            f"{metrics['latency_p50_ms']:.1f}" if "latency_p50_ms" in metrics else "",
            engine.verdict,
            ", ".join(engine.aliases),
            engine.measured_on,
        )
    out.print(table)


def _format_quality(engine: "EngineVersion") -> str:
    if engine.quality is None:
        return ""
    name, value = engine.quality
    metric = name.removeprefix("onnx-graph.")
    return f"{metric} {100 * value:.1f}{'' if metric == name else '*'}"


def promote(
    model: Model,
    target: Targets,
    version: Annotated[
        int | None, typer.Option("--version", help="The version to promote (default: the target's candidate).")
    ] = None,
    why: Why = "promoted from the command line",
    who: Who = "",
    waiver: Annotated[
        str | None,
        typer.Option("--waiver", help="The reason to promote although a gate was inconclusive or not measured."),
    ] = None,
    fleet: RulesFile = FLEET,
    as_json: Json = False,
) -> None:
    """Move production-TARGET to a version whose gates passed; several targets move together or not at all.

    The version must have been built with the TensorRT that the target serves, and must not be older than the one in
    production. On a protected target the first promotion is recorded as an approval, and a second person's moves it.

    For example, `enginery promote sst2 --target l4 --target h100 --why "5 ms faster"`.
    """
    from flows.promotion import decisions

    events = decisions.promote_targets(
        _open_store_to_change(), model, target, version, _make_decision(who, why, waiver), fleet
    )
    _show_events(events, as_json, one=_is_one(target))


def rollback(
    model: Model,
    target: Targets,
    why: Why = "rolled back from the command line",
    who: Who = "",
    fleet: RulesFile = FLEET,
    as_json: Json = False,
) -> None:
    """Move production-TARGET back to the previous version; several targets move together or not at all.

    Each further rollback goes one promotion further back. One person is enough, also on a protected target.

    For example, `enginery rollback sst2 --target l4 --why "wrong labels in production"`.
    """
    from flows.promotion import decisions

    events = decisions.roll_back_targets(_open_store_to_change(), model, target, _make_decision(who, why, None), fleet)
    _show_events(events, as_json, one=_is_one(target))


def history(model: Model, limit: Limit = NEWEST, as_json: Json = False) -> None:
    """Show who promoted what, when, why and on which evidence, the newest last.

    A production alias that MLflow's own pages moved, past every gate, is reported on stderr.
    """
    from registry.mlflow.quick.open import open_to_read
    from registry.promotion.promote import read_history
    from registry.promotion.unrecorded import find_moved_past
    from registry.store import require_engines

    store = open_to_read()
    require_engines(store, model)
    events = read_history(store, model, newest=limit or None)
    for problem in find_moved_past(store, model):
        err.print(f"enginery: {problem}", style="yellow", highlight=False, markup=False, soft_wrap=True)
    if as_json:
        print_json([plain(event) for event in events])
        return
    if not events:
        out.print(f"Nothing of {escape(model)} was promoted yet: run `enginery promote`.", highlight=False)
        return
    table = Table("at", "action", "alias", "from", "to", "who", "approved by", "why", "waiver", "outcome")
    for event in events:
        row = (
            _format_time(event.at),
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


def _format_time(at: str) -> str:
    return datetime.fromisoformat(at).astimezone(UTC).strftime("%Y-%m-%d %H:%M UTC")


def _open_store_to_change() -> "MlflowStore":
    store: MlflowStore = open_store()
    if not store.leases.shared:
        err.print(
            "enginery: promotion is locked on this host only; set ENGINERY_LEASE_DATABASE to a PostgreSQL address that "
            "every host reaches",
            style="yellow",
            highlight=False,
            soft_wrap=True,
        )
    return store


def _is_one(targets: Sequence[str]) -> bool:
    from flows.inputs.choices import ALL

    return len(targets) == 1 and targets[0] != ALL


def _make_decision(who: str, why: str, waiver: str | None) -> "Decision":
    from registry.promotion.rules import Decision

    return Decision(who_decides(who), why, now(), waiver)


def _version_json(engine: "EngineVersion") -> dict[str, Any]:
    return {**plain(engine), "metrics": dict(engine.metrics)}


def _show_events(events: Sequence["PromotionEvent"], as_json: bool, *, one: bool) -> None:
    if as_json:
        print_json(plain(events[0]) if one else [plain(event) for event in events])
        return
    from flows.promotion.decisions import describe_event

    for event in events:
        out.print(
            f"{event.model} {describe_event(event)}; {event.evidence}", highlight=False, markup=False, soft_wrap=True
        )

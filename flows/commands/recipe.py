"""Before a release: `init` writes a recipe, `check` says what it will build, how long that takes, and what is wrong."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape

from flows.commands.console import FleetFile, Json, need_pipeline, out, print_json
from flows.inputs.default_paths import FLEET
from registry.errors import BadInput
from registry.host.home import home

if TYPE_CHECKING:
    from flows.inputs.fleet import Fleet
    from flows.release.check import RecipeCheck

Recipe = Annotated[Path, typer.Argument(help="Path of the recipe, such as recipes/quickstart.yaml.")]


def init(
    checkpoint: Annotated[str, typer.Argument(help="The checkpoint's folder, or its id on the hub, such as org/name.")],
    data: Annotated[
        str, typer.Option("--data", help="A folder with SPLIT.csv, .jsonl or .parquet, or a dataset's id on the hub.")
    ],
    to: Annotated[
        Path | None,
        typer.Option("--to", help="The file to write (default: NAME.yaml, in recipes/ where there is one)."),
    ] = None,
    name: Annotated[
        str | None, typer.Option("--name", help="The model's name in the registry (default: the checkpoint's).")
    ] = None,
    fleet: FleetFile = FLEET,
) -> None:
    """Write a recipe for a checkpoint and a dataset, and check it.

    Finds the task, the splits and columns, how long the texts are, the targets that this machine can build and measure,
    and a gate that the rows can prove. The comments in the file say what else can be set.

    Example: enginery init checkpoints/mine --data rows
    """
    need_pipeline("init")
    from flows.inputs.fleet import load_fleet
    from flows.inputs.new_recipe import draft_recipe, find_origin

    targets = _list_own_targets(load_fleet(fleet))
    model, text = draft_recipe(find_origin(checkpoint, "checkpoint"), find_origin(data, "dataset"), targets, name)
    file = to or (Path("recipes") if Path("recipes").is_dir() else Path()) / f"{model}.yaml"
    try:
        with file.open("x", encoding="utf-8") as recipe:
            recipe.write(text)
    except FileExistsError:
        raise BadInput(f"{file} exists already: name another file with --to, or remove it") from None
    except OSError as error:
        raise BadInput(f"{file} cannot be written: {error.strerror}; name another file with --to") from error
    out.print(f"wrote {file}", markup=False, highlight=False, soft_wrap=True)
    check(file, fleet)


def _list_own_targets(fleet: "Fleet") -> list[str]:
    """List the targets whose engines this machine builds and measures."""
    from tasks.backends import BACKENDS

    targets = [fleet.target(name) for name in fleet.targets]
    able = [
        target.name
        for target in targets
        if BACKENDS[target.backend].can_build(target) is None and BACKENDS[target.backend].can_run(target) is None
    ]
    return able or ["cpu"]


def check(
    recipe: Recipe,
    fleet: FleetFile = FLEET,
    on_workers: Annotated[
        bool, typer.Option("--on-workers", help="Plan the engines that workers build, not those of this machine.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Check a recipe in seconds: nothing is built, and Prefect is not started.

    Reads recipe, fleet, checkpoint, tokenizer, rows and labels; says which engines will be built and how long that
    takes on this machine. Exits with 2 where a release would fail. `enginery release` does the same first.

    Example: enginery check recipes/quickstart.yaml
    """
    need_pipeline("check")
    from flows.inputs.fleet import load_fleet
    from flows.inputs.plan import why_not_here, why_not_supported
    from flows.inputs.recipe import load_recipe
    from flows.release.check import check_recipe

    loaded = load_recipe(recipe)
    why_not = why_not_supported if on_workers else why_not_here
    result = check_recipe(loaded, load_fleet(fleet), why_not, home())
    if as_json:
        print_json(_to_json(result))
    else:
        _print_check(result, recipe, on_workers=on_workers)
    if result.problems:
        raise typer.Exit(BadInput.exit_code)


def describe_plan(check: "RecipeCheck") -> str:
    """Say how many engines a release builds in how many steps, and how long that takes."""
    minutes = sum(check.step_seconds.values()) / 60
    duration = f"about {minutes:.0f} min" if minutes >= 1.5 else "a minute or two"
    steps = len(check.step_seconds)
    if check.timed_steps == steps:
        source = "as last time on this machine, less what is finished"
    elif check.timed_steps:
        source = f"{check.timed_steps} steps as last time on this machine, the others by the sample model's on 2 cores"
    else:
        source = "by the sample model's on 2 cores"
    return f"{check.engine_count} engines of {check.recipe.model} in {steps} steps, {duration} ({source})"


def _print_check(check: "RecipeCheck", recipe: Path, *, on_workers: bool) -> None:
    for each in check.checks:
        color, mark = ("red", "fix") if each.problem else ("yellow", "note") if each.warning else ("green", "ok")
        _print_line(color, mark, f"{each.what}: {each.problem or each.warning or each.found}")
    unbuilt: dict[str, list[str]] = {}
    for plan in check.plans:
        if plan.precisions:
            here = "measured here" if plan.why_not_measured is None else "not measured here"
            where = f"by workers of pool {plan.target.work_pool}" if on_workers else here
            _print_line("green", "ok", f"target {plan.target.name}: {', '.join(plan.precisions)}; {where}")
        for precision, reason in plan.skipped:
            unbuilt.setdefault(reason, []).append(f"{plan.target.name} {precision}")
    for reason, engines in unbuilt.items():
        _print_line("yellow", "no", f"{', '.join(engines)}: {reason}")
    if not check.problems:
        # How long workers take, they alone know.
        planned = f"{check.engine_count} engines of {check.recipe.model}" if on_workers else describe_plan(check)
        command = f"enginery release {recipe}{' --on-workers' if on_workers else ''}"
        out.print(f"{planned}. Next: {command}", markup=False, highlight=False, soft_wrap=True)


def _print_line(color: str, mark: str, text: str) -> None:
    out.print(f"[{color}]{mark:4}[/] {escape(text)}", highlight=False, soft_wrap=True)


def _to_json(check: "RecipeCheck") -> dict[str, Any]:
    return {
        "model": check.recipe.model,
        "problems": list(check.problems),
        "checks": [
            {"what": each.what, "found": each.found, "problem": each.problem, "warning": each.warning}
            for each in check.checks
        ],
        "targets": [
            {
                "target": plan.target.name,
                "precisions": [precision.value for precision in plan.precisions],
                "skipped": {precision.value: reason for precision, reason in plan.skipped},
                "why_not_measured": plan.why_not_measured,
            }
            for plan in check.plans
        ],
        "step_seconds": check.step_seconds,
        "timed_steps": check.timed_steps,
    }

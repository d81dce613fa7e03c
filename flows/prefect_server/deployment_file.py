"""The part of prefect.yaml that follows the recipes and the fleet file: one release each, one build-target a pool."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from flows.commands.console import FLEET
from flows.inputs.choices import recipes_beside
from flows.inputs.recipe import Fleet, load_recipe
from registry.errors import BadInput
from registry.host.durable import replace_file
from registry.names import check_name
from registry.records import Backend

FILE = Path("prefect.yaml")
BEGIN = "  # --- made by `enginery deployments --write` from recipes/ and its fleet.yaml: do not edit below\n"
END = "  # --- made until here\n"
# Flows that start others and wait: in a pool that builds they could wait for a place that they hold themselves.
RELEASES_POOL = "releases"
# How often a flow run is heard of, which prefect.yaml sets for every run; Prefect takes no less.
BEAT_SECONDS = 30
# What the automations of flows/prefect_server/setup.py watch carries it; prefect.yaml gives it to every deployment.
WATCHED_TAG = "enginery"
# A Prefect server whose database restarts answers 500, which its client takes for the last word: a job that was done
# would be called Crashed. With this the client asks again for a minute, as it does where no server answers.
PATIENT = {"PREFECT_CLIENT_RETRY_EXTRA_CODES": "500"}
# What every flow run finds in its environment; prefect.yaml says the same.
RUN_ENVIRONMENT = {"PREFECT_FLOWS_HEARTBEAT_FREQUENCY": str(BEAT_SECONDS), **PATIENT}


def be_patient() -> None:
    """Have this process and those that it starts be `PATIENT`, unless its environment says otherwise."""
    for name, value in PATIENT.items():
        os.environ.setdefault(name, value)


def work_pools(fleet: Fleet) -> dict[str, Backend]:
    """The fleet's work pools, each with its one backend, in the fleet file's order.

    Raises:
        BadInput: a pool of two backends, or of the name that releases have for theirs.
    """
    pools: dict[str, Backend] = {}
    for name in fleet.targets:
        target = fleet.target(name)
        if pools.setdefault(target.work_pool, target.backend) != target.backend:
            raise BadInput(f"work pool {target.work_pool!r} of the fleet file has two backends: give {name} another")
    if RELEASES_POOL in pools:
        raise BadInput(f"work pool {RELEASES_POOL!r} is where releases run: give the fleet's targets another one")
    return pools


def generate(recipes: Sequence[Path], fleet: Fleet) -> str:
    """The deployments that follow recipes and fleet, as YAML with the anchors of prefect.yaml.

    Raises:
        BadInput: a recipe cannot be read or has an odd name, or as `work_pools`.
    """
    releases = [_release(recipe) for recipe in recipes]
    builds = [_build(pool, backend, fleet) for pool, backend in work_pools(fleet).items()]
    return "\n".join([*releases, *builds])


def _release(recipe: Path) -> str:
    name, model, fleet = (
        check_name(recipe.stem, what="recipe file"),
        load_recipe(recipe).model,
        recipe.parent / FLEET.name,
    )
    return f"""  - name: {name}
    <<: *release_engines
    description: Releases {model} as {recipe.as_posix()} says.
    parameters: {{recipe: {recipe.as_posix()}, fleet: {fleet.as_posix()}}}
"""


def _build(pool: str, backend: Backend, fleet: Fleet) -> str:
    targets = [name for name in fleet.targets if fleet.target(name).work_pool == pool]
    return f"""  - name: {pool}
    <<: *build_target
    description: Builds, measures and judges the engines of {", ".join(targets)}.
    work_pool: {{name: {pool}, job_variables: {{env: *{backend.value}}}}}
"""


def difference(recipes: Sequence[Path], fleet: Fleet, file: Path = FILE) -> str | None:
    """How prefect.yaml differs from what recipes and fleet ask for, in words; None where it does not.

    Raises:
        BadInput: the file cannot be read, or as `generate`.
    """
    text = _read(file)
    now, wanted = _deployments(text, file), _deployments(_replaced(text, generate(recipes, fleet), file), file)
    lacking = [name for name in wanted if name not in now]
    extra = [name for name in now if name not in wanted]
    other = [name for name in wanted if name in now and now[name] != wanted[name]]
    said = ("lacks", lacking), ("has, and nothing asks for,", extra), ("has otherwise", other)
    return "; ".join(f"{verb} {', '.join(names)}" for verb, names in said if names) or None


def write(recipes: Sequence[Path], fleet: Fleet, file: Path = FILE) -> None:
    """Put what recipes and fleet ask for between the two marker lines; the rest of the file stays as it is.

    Raises:
        BadInput: as `difference`.
    """
    text = _replaced(_read(file), generate(recipes, fleet), file)
    _deployments(text, file)
    replace_file(file, text.encode(), mode=file.stat().st_mode & 0o777)


def shipped(fleet_file: Path) -> list[Path]:
    """The recipes beside a fleet file, as they are named from here.

    Raises:
        BadInput: there are none.
    """
    if not (found := recipes_beside(fleet_file)):
        raise BadInput(f"no recipe lies beside {fleet_file}: run this in the checkout, or name the --fleet")
    return [Path(os.path.relpath(path)) for path in found]


def _read(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(f"{file} cannot be read: {error}; run this in the checkout, where it lies") from error


def _replaced(text: str, made: str, file: Path) -> str:
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise BadInput(f"{file} has lost the lines between which deployments are made: put back {BEGIN.strip()!r}")
    return f"{before}{begin}\n{made}\n{end}{after}"


def _deployments(text: str, file: Path) -> dict[str, Any]:
    try:
        entries = yaml.safe_load(text)["deployments"]
        return {
            f"{entry['entrypoint'].rpartition(':')[2].replace('_', '-')}/{entry['name']}": entry for entry in entries
        }
    except (yaml.YAMLError, KeyError, TypeError, AttributeError) as error:
        raise BadInput(f"{file} is not a prefect.yaml that can be read: {error}") from error


def _full_name(entry: Any) -> str:
    # As Prefect says it: the flow's name, which is its function's with dashes, and the deployment's.
    return f"{entry['entrypoint'].rpartition(':')[2].replace('_', '-')}/{entry['name']}"

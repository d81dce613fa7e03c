"""The part of prefect.yaml that follows the recipes and the fleet file: one release each, one build-target a pool."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from flows.inputs.fleet import FLEET, Fleet, work_pools
from flows.inputs.recipe import load_recipe
from registry.errors import BadInput
from registry.host.durable import replace_file
from registry.names import check_name
from registry.records import Backend

FILE = Path("prefect.yaml")
BEGIN = "  # --- made by `enginery deployments --write` from recipes/ and its fleet.yaml: do not edit below\n"
END = "  # --- made until here\n"


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

"""What a form may offer: recipes and targets by name, as the files of the checkout have them when it is deployed.

A deployment keeps the schema of its parameters. `enum` in it becomes a menu in Prefect's UI, and Prefect refuses any
other value when a run is created; in Python they are plain strings, so a fleet file of another place works too.
"""

import os
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from flows.inputs.fleet import FLEET, load_fleet
from registry.errors import BadInput

ALL = "all"


def recipes_beside(fleet: Path) -> list[Path]:
    """The recipes in the folder of a fleet file, in the order of their names; none where there is no such folder."""
    return sorted(path for path in fleet.parent.glob("*.yaml") if path.name != fleet.name)


def _menu(choices: list[str]) -> dict[str, Any]:
    # Away from a checkout there is nothing to choose from, and an empty menu would refuse everything.
    return {"enum": choices} if choices else {}


_RECIPES = [str(path) for path in recipes_beside(FLEET)]
_TARGETS = list(load_fleet(FLEET).targets) if FLEET.exists() else []

RecipeChoice = Annotated[str, Field(json_schema_extra=_menu(_RECIPES))]
TargetChoice = Annotated[str, Field(json_schema_extra=_menu(_TARGETS))]
# Where `all` stands for every target that has a candidate, or is in production.
TargetOrAll = Annotated[str, Field(json_schema_extra=_menu([*_TARGETS, ALL] if _TARGETS else []))]


def shipped(fleet_file: Path) -> list[Path]:
    """The recipes beside a fleet file, as they are named from here.

    Raises:
        BadInput: there are none.
    """
    if not (found := recipes_beside(fleet_file)):
        raise BadInput(f"no recipe lies beside {fleet_file}: run this in the checkout, or name the --fleet")
    return [Path(os.path.relpath(path)) for path in found]

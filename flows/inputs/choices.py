"""The recipes, targets and precisions that a form in Prefect's UI offers: those of the checkout that was deployed.

A deployment keeps the schema of its parameters. An `enum` in it becomes a menu in Prefect's UI, a list of them a menu
of several choices, and Prefect refuses any other value when a run is created. A list that may also be None gets no menu
before its type is chosen: there, an empty list stands for all. In Python the choices are plain strings, so a fleet file
elsewhere works too.
"""

import os
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from flows.inputs.default_paths import FLEET
from flows.inputs.fleet import load_fleet
from registry.errors import BadInput
from registry.records import Precision

ALL = "all"


def find_recipes(fleet_file: Path) -> list[Path]:
    """Return the recipes beside a fleet file, sorted by name; an empty list if its folder does not exist."""
    return sorted(path for path in fleet_file.parent.glob("*.yaml") if path.name != fleet_file.name)


def require_recipes(fleet_file: Path) -> list[Path]:
    """Return the recipes beside a fleet file, relative to the current folder.

    Raises:
        BadInput: there are none.
    """
    if not (recipes := find_recipes(fleet_file)):
        raise BadInput(f"there are no recipes beside {fleet_file}: run this in the checkout, or pass --fleet")
    return [Path(os.path.relpath(recipe)) for recipe in recipes]


def _make_menu(choices: list[str]) -> dict[str, Any]:
    # Outside of a checkout there is nothing to choose from, and an empty menu would refuse everything.
    return {"enum": choices} if choices else {}


_RECIPES = [str(path) for path in find_recipes(FLEET)]
_TARGETS = list(load_fleet(FLEET).targets) if FLEET.exists() else []

RecipeChoice = Annotated[str, Field(json_schema_extra=_make_menu(_RECIPES))]
TargetChoice = Annotated[str, Field(json_schema_extra=_make_menu(_TARGETS))]
PrecisionChoice = Annotated[str, Field(json_schema_extra=_make_menu(list(Precision)))]
# `all` stands for every target that has a candidate, or an engine in production.
TargetOrAll = Annotated[str, Field(json_schema_extra=_make_menu([*_TARGETS, ALL] if _TARGETS else []))]

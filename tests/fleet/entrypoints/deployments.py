"""What prefect.yaml deploys, in a checkout whose own file is not there."""

from typing import Any

from prefect import flow

from flows.choices import RecipeChoice, TargetChoice
from registry.records import Precision


@flow(name="release-engines")
def release_engines(
    recipe: RecipeChoice,
    fleet: str = "recipes/fleet.yaml",
    targets: list[TargetChoice] | None = None,
    precisions: list[Precision] | None = None,
    resume: str | None = None,
) -> None: ...


@flow(name="build-target")
def build_target(order: dict[str, Any]) -> None: ...

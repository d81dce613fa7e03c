"""Every stage of a recipe in one process, without Prefect's runs and MLflow: what benchmarks/release.py compares with.

python -m benchmarks.bare_stages RECIPE FLEET WORKSPACE
"""

import sys
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from flows.inputs.fleet import load_fleet
from flows.inputs.recipe import load_recipe
from flows.release import build_target
from flows.release.context import PlainContext, Unshown
from flows.release.progress import lines_report
from flows.release.release_engines import builds_here, make_shared
from registry.bundle.signing import Signer, local_trust
from tasks.execution.progress import Reporter
from tasks.execution.steps import Step
from tasks.execution.workspace import Workspace


class EmptyRegistry:
    """A registry to which nothing was published."""

    def find_build(self, _key: str) -> None:
        """Return no engine."""

    def aliased(self, _model: str, _alias: str) -> None:
        """Return no version."""


def run_now(workspace: Workspace, step: Step[Any], _reporter: Reporter) -> Any:
    """Run a stage in place of submitting it."""
    future: Future[Any] = Future()
    future.set_result(workspace.stage(step.kind, step.inputs, step.value_type, step.make))
    return future


def main(recipe_file: Path, fleet_file: Path, folder: Path) -> None:
    """Run all stages of all targets."""
    vars(build_target)["submit_stage"] = run_now
    recipe, fleet = load_recipe(recipe_file), load_fleet(fleet_file)
    registry: Any = EmptyRegistry()
    silent = lines_report(lambda _: None)
    here = PlainContext(Workspace(folder), recipe, silent, registry, Signer(Path()), lambda: local_trust(folder))
    targets = [fleet.target(name) for name in recipe.targets]
    shared = make_shared(here, targets, builds_here)
    for target in targets:
        build_target.build_engines.fn(here, target, Unshown(shared))


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))

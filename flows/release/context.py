"""What every stage of a release needs, the release's run, and the tool versions that a stage's key depends on."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from prefect.utilities.urls import url_for

from flows.inputs.recipe import Recipe
from registry.bundle.signing import Signer, Trust
from registry.host.home import home
from registry.mlflow.runs.releases import ReleaseLog
from registry.mlflow.store import MlflowStore
from registry.records import SourceFiles
from tasks.bundle.toolchain import own_code, toolchain
from tasks.execution.progress import OnProgress
from tasks.execution.steps import Step, run_stage
from tasks.execution.workspace import Workspace
from tasks.model_tasks.contract import Encoder

T = TypeVar("T")


@dataclass(frozen=True)
class ReleaseContext:
    """Everything a release needs: stage cache, recipe, progress callback, registry, signing key and trusted keys.

    `signer` signs what is published. `trust` reads the trusted keys, when it is called: only engines that one of them
    signed are reused.
    """

    workspace: Workspace
    recipe: Recipe
    on_progress: OnProgress
    store: MlflowStore
    signer: Signer
    trust: Callable[[], Trust]

    def open_encoder(self, source: SourceFiles, input_names: Sequence[str]) -> Encoder:
        """Open the encoder of a checkpoint for a graph with these inputs; rows are cut as the recipe says."""
        return self.recipe.model_task.open_encoder(source.directory, input_names, self.recipe.largest)

    def say(self, sentence: str) -> None:
        """Report a finding that is not a step of the work."""
        self.on_progress(sentence, 1)

    def progress_of(self, what: str) -> OnProgress:
        """Return a progress callback that names `what` in front of each phase."""
        return lambda phase, fraction: self.on_progress(f"{what}: {phase}", fraction)

    def stage(self, kind: str, label: str, key: object, result_type: type[T], make: Callable[[Path], T]) -> T:
        """Return a stage's result, found under its key or made now, as the Prefect task `kind label`."""
        result, _ = run_stage(self.workspace, Step(kind, label, key, result_type, make))
        return result


@dataclass(frozen=True)
class ReleaseRun:
    """A release that has started: `id` is its id (12 hex digits), `run_id` its run in MLflow."""

    context: ReleaseContext
    log: ReleaseLog
    id: str
    run_id: str


def open_workspace() -> Workspace:
    """Open this host's stage cache, cleared of what killed processes left in it."""
    workspace = Workspace(home() / "stages")
    workspace.sweep()
    return workspace


def versions(*names: str) -> tuple[tuple[str, str], ...]:
    """Return (package, version) of a stage's tools, our own code first."""
    return (("enginery", own_code()), *(pair for pair in toolchain() if pair[0] in names))


def make_flow_run_links(flow_run: str) -> dict[str, str]:
    """Return tags that link an MLflow run to a Prefect run: its id, and its page if Prefect has a server."""
    page = url_for("flow-run", obj_id=flow_run)
    return {"prefect_flow_run": flow_run} | ({"prefect_flow_run_url": page} if page else {})

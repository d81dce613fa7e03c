"""What every stage of a release needs, the release's run, and the tool versions that a stage's key depends on."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from prefect.utilities.urls import url_for

from flows.inputs.recipe import Recipe
from registry.bundle.signing import Signer, Trust
from registry.host.home import home
from registry.mlflow.runs.releases import ReleaseLog
from registry.mlflow.store import MlflowStore
from registry.records import FileRecord, SourceFiles
from tasks.bundle.toolchain import own_code, toolchain
from tasks.execution.progress import OnProgress, Reporter
from tasks.execution.steps import Step, run_stage
from tasks.execution.workspace import Workspace
from tasks.model_tasks.contract import Encoder

T = TypeVar("T")


@dataclass(frozen=True)
class ReleaseContext:
    """Everything a release needs: stage cache, recipe, progress report, registry, signing key and trusted keys.

    `signer` signs what is published. `trust` reads the trusted keys, when it is called: only engines that one of them
    signed are reused.
    """

    workspace: Workspace
    recipe: Recipe
    reporter: Reporter
    store: MlflowStore
    signer: Signer
    trust: Callable[[], Trust]

    def open_encoder(self, source: SourceFiles, input_names: Sequence[str]) -> Encoder:
        """Open the encoder of a checkpoint for a graph with these inputs; rows are cut as the recipe says."""
        return self.recipe.model_task.open_encoder(source.directory, input_names, self.recipe.largest)

    def progress_of(self, step: str) -> OnProgress:
        """Return a progress callback that names the step in front of each phase."""
        return lambda phase, fraction: self.reporter(f"{step}: {phase}", fraction)

    def run(self, step: Step[T]) -> T:
        """Return a stage's result, found under its key or made now, as a Prefect task."""
        return run_stage(self.workspace, step, self.reporter)[0]


@dataclass(frozen=True)
class PlainContext(ReleaseContext):
    """A context for looking into a release that was made: its stages are no task runs of Prefect's."""

    def run(self, step: Step[T]) -> T:
        """Return a stage's result, found under its key or made now."""
        self.reporter(step.name, 0.0)
        return self.workspace.stage(step.kind, step.inputs, step.value_type, step.make)[0]


class Unshown(Generic[T]):
    """A value that Prefect is not shown.

    Its API keeps the parameters of each flow run, rows of a dataset too, and refuses more than 512 KiB of them. What
    has no dictionary it cannot serialize, and keeps the name of.
    """

    __slots__ = ("value",)

    def __init__(self, value: T) -> None:
        self.value = value


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


def describe_size(files: Sequence[FileRecord]) -> str:
    """Return the size of some files for a person."""
    return f"{sum(file.size_bytes for file in files) / 1e6:.1f} MB"


def versions(*names: str) -> tuple[tuple[str, str], ...]:
    """Return (package, version) of a stage's tools, our own code first."""
    return (("enginery", own_code()), *(pair for pair in toolchain() if pair[0] in names))


def make_flow_run_links(flow_run: str) -> dict[str, str]:
    """Return tags that link an MLflow run to a Prefect run: its id, and its page if Prefect has a server."""
    page = url_for("flow-run", obj_id=flow_run)
    return {"prefect_flow_run": flow_run} | ({"prefect_flow_run_url": page} if page else {})

"""What every stage of a release needs, and the versions that its key depends on."""

import datetime
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from prefect.utilities.urls import url_for

from flows.inputs.recipe import Recipe
from registry.bundle.signing import Signer, Trust
from registry.mlflow.store import MlflowStore
from registry.records import SourceFiles
from tasks.bundle.toolchain import own_code, toolchain
from tasks.execution.progress import OnProgress
from tasks.execution.workspace import Workspace
from tasks.model_tasks.contract import Encoder


@dataclass(frozen=True)
class ReleaseContext:
    """What a release works with: where stages are kept, the recipe, whom to tell, where it goes, keys.

    `signer` signs what is published, `trust` says (when it is asked) whose published engines are taken over.
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
        """Tell a finding that is no step of the work."""
        self.on_progress(sentence, 1)

    def progress_of(self, what: str) -> OnProgress:
        """Return a progress callback that names `what` in front of each phase."""
        return lambda phase, fraction: self.on_progress(f"{what}: {phase}", fraction)


def versions(*names: str) -> tuple[tuple[str, str], ...]:
    """(package, version) of the tools that a stage's result depends on; our own code is always one."""
    return (("enginery", own_code()), *(pair for pair in toolchain() if pair[0] in names))


def now() -> datetime.datetime:
    """The clock of the command line, in UTC."""
    return datetime.datetime.now(datetime.UTC)


def flow_run_links(flow_run: str) -> dict[str, str]:
    """Tags that lead from an MLflow run to the Prefect run: its id, and its page where Prefect has a server."""
    page = url_for("flow-run", obj_id=flow_run)
    return {"prefect_flow_run": flow_run} | ({"prefect_flow_run_url": page} if page else {})

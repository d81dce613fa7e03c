"""Run stages as Prefect task runs: their names and retries."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from prefect import task
from prefect.cache_policies import NO_CACHE
from prefect.futures import PrefectFuture

from tasks.execution.interrupt import check_stopped
from tasks.execution.progress import Reporter, StepEnd
from tasks.execution.workspace import Workspace

T = TypeVar("T")

# Only stages that use the network are retried: a build that failed once fails again.
STAGE_RETRIES: dict[str, int] = {"source": 2, "publish": 2}


@dataclass(frozen=True)
class Step(Generic[T]):
    """A stage to find or make: `name` is that of its task run, `inputs` makes its key (see `Workspace.stage`).

    `describe` returns a figure of the result that a person is told, such as "64.1 MB".
    """

    kind: str
    label: str
    inputs: object
    value_type: type[T]
    make: Callable[[Path], T]
    describe: Callable[[T], str] = lambda _: ""

    @property
    def name(self) -> str:
        """The name that a person reads: what is done, and to what."""
        return f"{self.kind} {self.label}"


def _retry_options(kind: str) -> dict[str, Any]:
    retries = STAGE_RETRIES.get(kind, 0)
    return {"retries": retries, "retry_delay_seconds": [2, 10][:retries]}


# Prefect's own cache would key on arguments whose files may change; the workspace keys on digests.
@task(
    name="stage",
    cache_policy=NO_CACHE,
    persist_result=False,
    task_run_name="{step.name}",
    log_prints=False,
)
def _run_stage(workspace: Workspace, step: Step[T], reporter: Reporter) -> tuple[T, bool]:
    """Find or make one stage of a release, and report its end."""
    check_stopped()

    def make(into: Path) -> T:
        reporter(step.name, 0.0)
        return step.make(into)

    started = time.monotonic()
    value, found = workspace.stage(step.kind, step.inputs, step.value_type, make)
    reporter.end_step(StepEnd(step.name, time.monotonic() - started, found, step.describe(value)))
    return value, found


def run_stage(workspace: Workspace, step: Step[T], reporter: Reporter) -> tuple[T, bool]:
    """Run a stage as a Prefect task run; return its value, and whether it was found finished."""
    return _run_stage.with_options(**_retry_options(step.kind))(workspace, step, reporter)


def submit_stage(workspace: Workspace, step: Step[T], reporter: Reporter) -> PrefectFuture[tuple[T, bool]]:
    """Start a stage as `run_stage` does, in a thread of the flow's task runner; `result()` waits for it."""
    return _run_stage.with_options(**_retry_options(step.kind)).submit(workspace, step, reporter)

"""How stages run under Prefect: names, retries and timeouts, all on this page."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from prefect import task
from prefect.cache_policies import NO_CACHE
from prefect.futures import PrefectFuture

from tasks.execution.interrupt import check_stopped
from tasks.execution.workspace import Workspace

T = TypeVar("T")

# Only what crosses a network is tried again; a build that failed once fails again.
RETRIES: dict[str, int] = {"source": 2, "publish": 2}


@dataclass(frozen=True)
class Step(Generic[T]):
    """A stage to be found or made: `kind label` is its task run's name, `inputs` its key (see `Workspace.stage`)."""

    kind: str
    label: str
    inputs: object
    made: type[T]
    make: Callable[[Path], T]


def _retries(kind: str) -> dict[str, Any]:
    return {"retries": RETRIES.get(kind, 0), "retry_delay_seconds": [2, 10][: RETRIES.get(kind, 0)]}


# Prefect's own cache would key on arguments whose files may change; the workspace keys on digests.
@task(
    name="stage",
    cache_policy=NO_CACHE,
    persist_result=False,
    task_run_name="{step.kind} {step.label}",
    log_prints=False,
)
def _stage(workspace: Workspace, step: Step[T]) -> tuple[T, bool]:
    """One stage of a release, found finished or made."""
    check_stopped()
    return workspace.stage(step.kind, step.inputs, step.made, step.make)


def run_stage(workspace: Workspace, step: Step[T]) -> tuple[T, bool]:
    """The value of a stage and whether it was found finished, as a Prefect task run."""
    return _stage.with_options(**_retries(step.kind))(workspace, step)


def submit_stage(workspace: Workspace, step: Step[T]) -> PrefectFuture[tuple[T, bool]]:
    """As `run_stage`, beside others, as many at once as the flow's task runner has threads; `result()` waits."""
    return _stage.with_options(**_retries(step.kind)).submit(workspace, step)

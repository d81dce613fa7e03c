"""How stages run under Prefect: names, retries and timeouts, all on this page."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from prefect import task
from prefect.cache_policies import NO_CACHE

from tasks.workspace import Workspace

T = TypeVar("T")

# Only what crosses a network is tried again; a build that failed once fails again.
RETRIES: dict[str, int] = {"source": 2, "publish": 2}


def _retries(kind: str) -> dict[str, Any]:
    return {"retries": RETRIES.get(kind, 0), "retry_delay_seconds": [2, 10][: RETRIES.get(kind, 0)]}


# Prefect's own cache would key on arguments whose files may change; the workspace keys on digests.
@task(name="stage", cache_policy=NO_CACHE, persist_result=False, task_run_name="{kind} {label}", log_prints=False)
def _stage(  # the label is in the task run's name
    workspace: Workspace, kind: str, label: str, inputs: object, made: type[T], make: Callable[[Path], T]
) -> tuple[T, bool]:
    """One stage of a release, found finished or made."""
    return workspace.stage(kind, inputs, made, make)


def run_stage(
    workspace: Workspace, kind: str, label: str, inputs: object, made: type[T], make: Callable[[Path], T]
) -> tuple[T, bool]:
    """The value of a stage and whether it was found finished, as a Prefect task run named `kind label`."""
    return _stage.with_options(**_retries(kind))(workspace, kind, label, inputs, made, make)

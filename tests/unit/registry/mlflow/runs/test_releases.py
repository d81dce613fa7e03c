"""How a release's run ends in MLflow when its process ends in an error."""

import pytest

from registry.mlflow.runs.releases import ReleaseLog
from registry.mlflow.store import MlflowStore


@pytest.mark.parametrize(("state", "status"), [("complete", "FINISHED"), ("partial", "FAILED"), (None, "FAILED")])
def test_error_ends_a_release_as_failed_unless_another_process_completed_it(
    mlflow_store: MlflowStore, state: str | None, status: str
) -> None:
    log = ReleaseLog(mlflow_store)
    run = log.start("sst2", "r1", {}, {})
    if state:
        log.finish(run, "[]", {}, state=state)
        log.start("sst2", "r1", {}, {})  # this process was still running it
    log.abandon(run)
    assert mlflow_store.client.get_run(run).info.status == status

"""A release on workers: what each target brings, what a lost one leaves, and what resuming makes."""

from collections.abc import Iterator

import pytest

from registry.mlflow_runs import STATE
from tests.fleet.conftest import Fleet, Process, releasing, working

pytest.importorskip("tensorrt_rtx")
pytestmark = [pytest.mark.slow, pytest.mark.long, pytest.mark.timeout(600)]


@pytest.fixture(scope="session")
def cpu_worker(fleet: Fleet) -> Iterator[Process]:
    with working(fleet, "cpu", "cpu-worker") as worker:
        yield worker


def test_a_target_without_a_worker_is_lost_and_resuming_makes_only_it(fleet: Fleet, cpu_worker: Process) -> None:
    tiny = fleet.recipe("unsunk", ("cpu", "rtx-4090"), rtx_4090={"patience_seconds": 3})
    with releasing(fleet, tiny) as parent:
        code, report = parent.wait()
    assert code == 1, report
    print(report, parent.errors.read_text())
    assert report["missing"] == ["rtx-4090"]

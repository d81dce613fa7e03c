"""Workers killed in the middle of a build: reported in two minutes, and nothing is built twice."""

import time
from datetime import UTC, datetime
from pathlib import Path

import pytest

from registry.mlflow.runs.releases import STATE
from tests.support.fleet import Fleet, releasing, working
from tests.support.fleet_faults import BOTH, TWO_MINUTES, job, ordinary, until_held
from tests.support.fleet_runs import precisions, release_of
from tests.support.held_builds import BEGUN, DONE

pytestmark = [pytest.mark.slow, pytest.mark.long, pytest.mark.timeout(600)]


def test_killed_workers_are_reported_in_two_minutes_and_resuming_builds_the_rest(fleet: Fleet, tmp_path: Path) -> None:
    tiny, builds = ordinary(fleet, "killed", "mortal")
    with working(fleet, "mortal", "killed") as worker, releasing(fleet, tiny) as parent, job(worker) as building:
        release = release_of(fleet, "killed")
        until_held(builds)
        worker.popen.kill()
        building.kill()
        killed = datetime.now(UTC)
        # It takes a minute and a half to know of a silence; the other kill is over by then.
        kill_the_worker_alone(fleet, tmp_path)
        code, first = parent.wait()
    (lost,) = fleet.flow_runs(release, "mortal")
    assert (code, first["missing"], lost.state.name) == (1, ["mortal"], "Cancelled")
    assert "no sign of life" in first["engines"][0]["reason"]
    assert (lost.state.timestamp - killed).total_seconds() < TWO_MINUTES
    assert [run.data.tags[STATE] for run in fleet.release_runs("killed")] == ["partial"]
    assert precisions(fleet, "killed", tmp_path) == []
    builds.open()
    with working(fleet, "mortal", "killed"), releasing(fleet, tiny, "--resume", release) as parent:
        code, second = parent.wait()
    assert (code, second["missing"]) == (0, []), second
    assert builds.builds(BEGUN) == [*BOTH, "int8-dynamic"]
    assert builds.builds(DONE) == BOTH
    assert precisions(fleet, "killed", tmp_path) == BOTH
    assert [run.data.tags[STATE] for run in fleet.release_runs("killed")] == ["complete"]


def kill_the_worker_alone(fleet: Fleet, into: Path) -> None:
    """Its job's output went through it: the next line that the job logs is its last."""
    tiny, builds = ordinary(fleet, "alone", "mortal-too")
    with working(fleet, "mortal-too", "alone") as worker, releasing(fleet, tiny) as parent, job(worker):
        release = release_of(fleet, "alone")
        until_held(builds)
        worker.popen.kill()
        killed = time.monotonic()
        builds.open()
        code, first = parent.wait()
        seconds = time.monotonic() - killed
    assert (code, first["missing"]) == (1, ["mortal-too"])
    assert first["engines"][0]["reason"].startswith("Crashed")
    assert seconds < TWO_MINUTES
    assert precisions(fleet, "alone", into) == []
    with working(fleet, "mortal-too", "alone"), releasing(fleet, tiny, "--resume", release) as parent:
        code, second = parent.wait()
    assert (code, second["missing"]) == (0, []), second
    assert [run.state.name for run in fleet.flow_runs(release, "mortal-too")] == ["Crashed", "Completed"]
    assert builds.builds(BEGUN).count("fp32") == 1
    assert precisions(fleet, "alone", into) == BOTH

"""Servers killed in the middle of a release, which outlives them; a publisher that is gone, and comes back."""

import os
import signal
import time
from pathlib import Path

import pytest

from registry.mlflow.runs.releases import STATE
from tests.support.fleet import Fleet, Process, RestartableFleet, releasing, until
from tests.support.fleet_faults import BOTH, hold, ordinary, until_held
from tests.support.fleet_runs import precisions, release_of
from tests.support.held_builds import BEGUN, Door
from tests.support.postgres import Postgres

pytestmark = [pytest.mark.slow, pytest.mark.long, pytest.mark.timeout(600)]


def assert_built_once(fleet: Fleet, model: str, release: str, builds: Door, into: Path) -> None:
    """Assert that one flow run built the engines, and that they are published whole."""
    assert [run.state.name for run in fleet.flow_runs(release, "cpu")] == ["Completed"]
    assert builds.builds(BEGUN) == BOTH
    assert precisions(fleet, model, into) == BOTH


def test_a_release_outlives_a_killed_and_restarted_prefect_server(
    fleet: RestartableFleet, cpu_worker: Process, tmp_path: Path
) -> None:
    tiny, builds = ordinary(fleet, "unserved")
    with releasing(fleet, tiny) as parent:
        release = release_of(fleet, "unserved")
        until_held(builds)
        fleet.prefect_server.kill()
        builds.open()
        fleet.prefect_server.start()
        code, report = parent.wait()
    assert code == 0, report
    assert_built_once(fleet, "unserved", release, builds, tmp_path)


def test_a_release_outlives_a_crash_of_the_database_of_both_servers(
    fleet: Fleet, cpu_worker: Process, database: Postgres | None, tmp_path: Path
) -> None:
    if database is None:
        pytest.skip("Prefect needs a PostgreSQL with pg_trgm: apt-get install postgresql")
    tiny, builds = ordinary(fleet, "crashed")
    with releasing(fleet, tiny) as parent:
        release = release_of(fleet, "crashed")
        until_held(builds)
        database.crash()
        try:
            builds.open()
            time.sleep(6)  # the job ends meanwhile, and the parent asks
        finally:
            database.start()
        code, report = parent.wait()
    assert code == 0, report
    assert_built_once(fleet, "crashed", release, builds, tmp_path)


def test_a_release_outlives_both_servers_killed_between_two_of_its_versions(
    fleet: RestartableFleet, cpu_worker: Process, tmp_path: Path
) -> None:
    (tiny, builds), held = ordinary(fleet, "halfway"), tmp_path / "held"
    builds.open()
    with releasing(fleet, tiny, before=hold("publish.publish_version", 2, held)) as parent:
        until(held.exists)
        assert [engine.precision for engine in fleet.store().versions("halfway")] == BOTH[:1]
        fleet.prefect_server.kill()
        fleet.mlflow_server.kill()
        held.unlink()
        fleet.prefect_server.start()
        fleet.mlflow_server.start()
        code, report = parent.wait()
    assert code == 0, report
    assert precisions(fleet, "halfway", tmp_path) == BOTH
    assert [run.data.tags[STATE] for run in fleet.release_runs("halfway")] == ["complete"]


def test_a_publisher_that_was_paused_loses_its_lock_and_spoils_nothing_when_it_wakes(
    fleet: RestartableFleet, cpu_worker: Process, tmp_path: Path
) -> None:
    (tiny, builds), held = ordinary(fleet, "asleep"), tmp_path / "held"
    builds.open()
    with releasing(fleet, tiny, before=hold("publish.publish_version", 2, held)) as sleeper:
        release = release_of(fleet, "asleep")
        until(held.exists)
        os.kill(sleeper.popen.pid, signal.SIGSTOP)
        with releasing(fleet, tiny, "--resume", release, home="other-parent") as other:
            code, report = other.wait()
        assert code == 0, report
        assert precisions(fleet, "asleep", tmp_path) == BOTH
        os.kill(sleeper.popen.pid, signal.SIGCONT)
        code, output = sleeper.wait()
    assert code == 1
    assert "lost the publishing lock" in output["errors"].splitlines()[-1]
    assert [engine.precision for engine in fleet.store().versions("asleep")] == BOTH
    (run,) = fleet.release_runs("asleep")
    assert (run.data.tags[STATE], run.info.status) == ("complete", "FINISHED")

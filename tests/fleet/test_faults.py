"""Killed, restarted or full in the middle of a real release: how it ends, what is kept, what the next run makes."""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import count
from pathlib import Path
from typing import Any

import psutil
import pytest

from registry.download import copy_bundle
from registry.mlflow_runs import STATE
from registry.records import Verdict
from tests.fleet.conftest import Fleet, Process, RestartableFleet, deploy, releasing, serving, until, working
from tests.fleet.held_builds import BEGUN, DONE, Door
from tests.fleet.runs import job_of, release_of
from tests.flows.conftest import TinyRecipe
from tests.postgres import NoPostgres, Postgres, running_postgres

pytestmark = [pytest.mark.slow, pytest.mark.long, pytest.mark.timeout(600)]
BOTH = ["fp32", "int8-dynamic"]
TWO_MINUTES = 120
ROOMY = 256 * 2**20
# In the key of a build: no test finds what another one built of the same tiny model.
WORKSPACE_MB = count(64)
# Put before a parent: one call of a function of its publishing waits until the file `held` is gone. It asks a store
# that failed once more, and not for as long as the job before it did.
HELD = """
import time
from pathlib import Path
from flows import on_workers, publication
from registry import mlflow_uploads
mlflow_uploads._PAUSES_SECONDS = (1.0,)
publish, calls = {module}.{function}, []
def held(*arguments):
    calls.append(arguments)
    if len(calls) == {call}:
        Path({held!r}).touch()
        while Path({held!r}).exists():
            time.sleep(0.05)
    return publish(*arguments)
{module}.{function} = held
"""


@dataclass(frozen=True)
class Disk:
    """A file system of its own, whose size changes while it is in use."""

    folder: Path

    def leave(self, room: int) -> None:
        """Have so many bytes free."""
        self.resize(shutil.disk_usage(self.folder).used + room)

    def resize(self, size: int) -> None:
        subprocess.run(["mount", "-o", f"remount,size={size}", str(self.folder)], check=True)


@pytest.fixture(scope="module")
def database() -> Iterator[Postgres | None]:
    """A PostgreSQL that both servers can be on; None where there is none, and they are on SQLite."""
    with ExitStack() as stack:
        found = None
        with suppress(NoPostgres):
            found = stack.enter_context(running_postgres(durable=True, system=True))
        yield found if found and found.offers("pg_trgm") else None


@pytest.fixture(scope="module")
def disk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Disk | None]:
    """Where MLflow keeps artifacts; None where nothing can be mounted."""
    folder = tmp_path_factory.mktemp("disk")
    mounting = ["mount", "-t", "tmpfs", "-o", f"size={ROOMY}", "tmpfs", str(folder)]
    is_able = sys.platform.startswith("linux") and os.geteuid() == 0
    if not is_able or subprocess.run(mounting, check=False, capture_output=True).returncode:
        yield None
        return
    yield Disk(folder)
    subprocess.run(["umount", str(folder)], check=True)


@pytest.fixture(scope="module")
def fleet(
    tmp_path_factory: pytest.TempPathFactory, migrated_database: Path, database: Postgres | None, disk: Disk | None
) -> Iterator[RestartableFleet]:
    """A fleet on PostgreSQL, whose builds go through doors."""
    folder = tmp_path_factory.mktemp("faults")
    artifacts = disk.folder if disk else folder / "artifacts"
    registry: Path | str = folder / "mlflow.db"
    settings: dict[str, str] = {}
    if database:
        registry, settings = database.uri(database.create()), database.for_prefect(database.create())
    else:
        shutil.copy(migrated_database, folder / "mlflow.db")
    with serving(folder, registry, artifacts, settings) as fleet:
        deploy(fleet, "tests.fleet.held_builds.build_target", doors=str(folder / "doors"))
        yield fleet


@pytest.fixture(scope="module")
def cpu_worker(fleet: Fleet) -> Iterator[Process]:
    with working(fleet, "cpu", "cpu-worker") as worker:
        yield worker


def ordinary(fleet: Fleet, model: str, target: str = "cpu") -> tuple[TinyRecipe, Door]:
    """A recipe of two engines that nobody has built yet, and the door at which the second one waits."""
    builds = Door(fleet.folder / "doors" / model)
    builds.hold("int8-dynamic")
    return fleet.recipe(model, (target,), {"workspace_mb": next(WORKSPACE_MB)}), builds


def until_held(builds: Door) -> None:
    """Until the first engine is built, and the second one is at work."""
    until(lambda: builds.builds(BEGUN) == BOTH, 60)


@contextmanager
def job(worker: Process) -> Iterator[psutil.Process]:
    """A worker's job, which ends with the block, whatever became of its worker."""
    found = until(lambda: job_of(worker))
    try:
        yield found
    finally:
        with suppress(psutil.NoSuchProcess):
            for process in (found, *found.children(recursive=True)):
                process.kill()


def precisions(fleet: Fleet, model: str, into: Path) -> list[str]:
    """Of every version of a model: each is complete, of another engine, and its files are what its manifest says."""
    store, versions = fleet.store(), fleet.store().versions(model)
    if versions:
        everything = store.client.search_model_versions(f"name = '{model}'")
        assert {int(found.version) for found in everything} == {each.version for each in versions}
    assert len({each.digest for each in versions}) == len(versions)
    sequences = [each.sequence for each in versions]
    assert sequences == sorted(set(sequences))
    for each in versions:
        bundle = into / f"{model}-{each.version}"
        bundle.mkdir()
        assert copy_bundle(store, model, each.version, bundle).build.digest == each.digest
    return [each.precision.value for each in versions]


def test_killed_workers_are_said_in_two_minutes_and_resuming_builds_the_rest(fleet: Fleet, tmp_path: Path) -> None:
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
    assert [run.state.name for run in fleet.flow_runs(release, "cpu")] == ["Completed"]
    assert builds.builds(BEGUN) == BOTH
    assert precisions(fleet, "unserved", tmp_path) == BOTH


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
    assert [run.state.name for run in fleet.flow_runs(release, "cpu")] == ["Completed"]
    assert builds.builds(BEGUN) == BOTH
    assert precisions(fleet, "crashed", tmp_path) == BOTH


def test_a_release_outlives_both_servers_killed_between_two_of_its_versions(
    fleet: RestartableFleet, cpu_worker: Process, tmp_path: Path
) -> None:
    (tiny, builds), held = ordinary(fleet, "halfway"), tmp_path / "held"
    builds.open()
    second = HELD.format(module="publication", function="publish_version", call=2, held=str(held))
    with releasing(fleet, tiny, before=second) as parent:
        until(held.exists, 60)
        assert [each.precision for each in fleet.store().versions("halfway")] == BOTH[:1]
        fleet.prefect_server.kill()
        fleet.mlflow_server.kill()
        held.unlink()
        fleet.prefect_server.start()
        fleet.mlflow_server.start()
        code, report = parent.wait()
    assert code == 0, report
    assert precisions(fleet, "halfway", tmp_path) == BOTH
    assert [run.data.tags[STATE] for run in fleet.release_runs("halfway")] == ["complete"]


def test_a_full_store_is_said_publishes_nothing_and_resuming_goes_on_once_there_is_room(
    fleet: Fleet, cpu_worker: Process, disk: Disk | None, tmp_path: Path
) -> None:
    if disk is None:
        pytest.skip("mounting a tmpfs needs root, on Linux")
    (tiny, builds), held = ordinary(fleet, "full"), tmp_path / "held"
    at_publishing = HELD.format(module="on_workers", function="publish_release", call=1, held=str(held))
    try:
        with releasing(fleet, tiny) as parent:
            release = release_of(fleet, "full")
            until_held(builds)
            disk.leave(32 * 2**10)
            builds.open()
            began = time.monotonic()
            code, uploading = parent.wait()
            seconds = time.monotonic() - began
        assert (code, seconds < TWO_MINUTES) == (1, True)
        assert "is not kept by the artifact store" in uploading["engines"][0]["reason"]
        disk.resize(ROOMY)
        with releasing(fleet, tiny, "--resume", release, before=at_publishing) as parent:
            until(held.exists, 60)
            disk.leave(32 * 2**10)
            held.unlink()
            code, publishing = parent.wait()
        assert code == 1
        assert "is not kept by the artifact store" in publishing["errors"].splitlines()[-1]
        assert [run.info.status for run in fleet.release_runs("full")] == ["FAILED"]
        assert precisions(fleet, "full", tmp_path) == []
    finally:
        disk.resize(ROOMY)
    with releasing(fleet, tiny, "--resume", release) as parent:
        code, report = parent.wait()
    assert code == 0, report
    assert [run.state.name for run in fleet.flow_runs(release, "cpu")] == ["Failed", "Completed"]
    assert builds.builds(BEGUN) == BOTH
    assert precisions(fleet, "full", tmp_path) == BOTH


def test_two_releases_of_one_model_at_once_are_both_whole_and_published_one_after_the_other(
    fleet: Fleet, cpu_worker: Process, tmp_path: Path
) -> None:
    shared: dict[str, Any] = {"workspace_mb": next(WORKSPACE_MB)}
    one = fleet.recipe("shared", ("cpu",), shared)
    other = fleet.recipe("shared", ("cpu",), shared | {"precisions": ["fp32", "int8"]}, folder="shared-int8")
    with releasing(fleet, one) as first, releasing(fleet, other, home="other-parent") as second:
        ends = first.wait(), second.wait()
    assert [code for code, _ in ends] == [0, 0], ends
    assert len({report["release"] for _, report in ends}) == 2
    # The fp32 engine is the same in both: whoever came second found it.
    assert sorted(precisions(fleet, "shared", tmp_path)) == ["fp32", "int8", "int8-dynamic"]
    assert sorted(Door(fleet.folder / "doors" / "shared").builds(DONE)) == ["fp32", "int8", "int8-dynamic"]
    store = fleet.store()
    assert store.resolve("shared", "candidate-cpu").verdict is Verdict.PASSED
    assert [run.data.tags[STATE] for run in fleet.release_runs("shared")] == ["complete", "complete"]
    # An engine's run is open while it is published.
    runs = store.client.search_runs([store.experiment("shared")], "tags.`enginery.kind` = 'engine'")
    spans = [
        (
            min(run.info.start_time for run in runs if run.data.tags["release"] == report["release"]),
            max(run.info.end_time for run in runs if run.data.tags["release"] == report["release"]),
        )
        for _, report in ends
    ]
    (_, ended), (began, _) = sorted(spans)
    assert ended <= began

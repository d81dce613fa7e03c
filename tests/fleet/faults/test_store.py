"""A store that is full, and one that two releases of a model write to at once."""

import time
from pathlib import Path
from typing import Any

import pytest

from registry.mlflow.runs.releases import STATE
from registry.records import Verdict
from tests.support.disks import Disk
from tests.support.fleet import Fleet, Process, releasing, until
from tests.support.fleet_faults import BOTH, ROOMY, TWO_MINUTES, WORKSPACE_MB, hold, ordinary, until_held
from tests.support.fleet_runs import precisions, release_of
from tests.support.held_builds import BEGUN, DONE, Door

pytestmark = [pytest.mark.slow, pytest.mark.long, pytest.mark.timeout(600)]


def test_a_full_store_is_said_publishes_nothing_and_resuming_goes_on_once_there_is_room(
    fleet: Fleet, cpu_worker: Process, disk: Disk | None, tmp_path: Path
) -> None:
    if disk is None:
        pytest.skip("mounting a tmpfs needs root, on Linux")
    (tiny, builds), held = ordinary(fleet, "full"), tmp_path / "held"
    at_publishing = hold("release_on_workers.publish_release", 1, held)
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
        assert "answers 500 (see its log: disk full, read-only or missing?)" in uploading["engines"][0]["reason"]
        disk.resize(ROOMY)
        with releasing(fleet, tiny, "--resume", release, before=at_publishing) as parent:
            until(held.exists)
            disk.leave(32 * 2**10)
            held.unlink()
            code, publishing = parent.wait()
        assert code == 1
        assert "answers 500 (see its log: disk full, read-only or missing?)" in publishing["errors"].splitlines()[-1]
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
    # The fp32 engine is the same in both: the second one found it.
    assert sorted(precisions(fleet, "shared", tmp_path)) == ["fp32", "int8", "int8-dynamic"]
    assert sorted(Door(fleet.folder / "doors" / "shared").builds(DONE)) == ["fp32", "int8", "int8-dynamic"]
    store = fleet.store()
    assert store.resolve("shared", "candidate-cpu").verdict is Verdict.PASSED
    assert [run.data.tags[STATE] for run in fleet.release_runs("shared")] == ["complete", "complete"]
    # An engine's run is open while it is published.
    runs = store.client.search_runs([store.experiment("shared")], "tags.`enginery.kind` = 'engine'")
    spans = [
        (
            min(run.info.start_time for run in runs if run.data.tags["enginery.release"] == report["release"]),
            max(run.info.end_time for run in runs if run.data.tags["enginery.release"] == report["release"]),
        )
        for _, report in ends
    ]
    (_, ended), (began, _) = sorted(spans)
    assert ended <= began

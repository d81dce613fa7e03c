"""What releases leave behind: versions, MLflow runs, flow runs, and the processes of workers."""

from contextlib import suppress
from pathlib import Path

import psutil

from registry.serving.download import copy_bundle
from tests.fleet.conftest import Fleet, Process, descendants, until


def engines(fleet: Fleet, model: str) -> list[tuple[str, str, int]]:
    """(target, precision, version) of all that is published; a version is never of two engines."""
    return [(each.target, each.precision.value, each.version) for each in fleet.store().versions(model)]


def flow_run_of(fleet: Fleet, model: str, target: str) -> set[str]:
    """The Prefect runs that the engines of a target say they were made by."""
    store = fleet.store()
    query = f"tags.`enginery.kind` = 'engine' and tags.target = '{target}'"
    return {run.data.tags["prefect_flow_run"] for run in store.client.search_runs([store.experiment(model)], query)}


def job_of(worker: Process) -> psutil.Process | None:
    """The process in which a worker runs its flow."""
    for pid in descendants(worker.popen.pid):
        with suppress(psutil.NoSuchProcess):
            process = psutil.Process(pid)
            if process.cmdline()[-2:] == ["-m", "prefect.engine"]:
                return process
    return None


def is_running(fleet: Fleet, release: str, target: str) -> bool:
    return any(run.state.is_running() for run in fleet.flow_runs(release, target))


def release_of(fleet: Fleet, model: str) -> str:
    """The id of the only release of a model, once it has begun."""
    return str(until(lambda: fleet.release_runs(model))[0].data.tags["release"])


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

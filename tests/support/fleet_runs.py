"""Read what releases leave behind: versions, MLflow runs, flow runs, and the processes of workers."""

from contextlib import suppress
from pathlib import Path

import psutil

from registry.serving.download import copy_bundle
from tasks.bundle.golden import GOLDEN_FILE, parse_golden
from tests.support.fleet import Fleet, Process, descendants, until


def engines(fleet: Fleet, model: str) -> list[tuple[str, str, int]]:
    """Return (target, precision, version) of every published engine."""
    return [(engine.target, engine.precision.value, engine.version) for engine in fleet.store().versions(model)]


def golden_inputs(fleet: Fleet, model: str) -> list[tuple[str, int]]:
    """Return for every published engine what answered its golden inputs, and how many there are."""
    found = []
    for engine in fleet.store().versions(model):
        files = fleet.store().open_bundle(model, engine.version).files
        golden = parse_golden(b"".join(files.read(GOLDEN_FILE)), GOLDEN_FILE)
        found.append((golden.subject, len(golden.rows)))
    return found


def flow_run_of(fleet: Fleet, model: str, target: str) -> set[str]:
    """Return the Prefect runs that built the engines of a target, as their MLflow runs say."""
    store = fleet.store()
    query = f"tags.`enginery.kind` = 'engine' and tags.`enginery.target` = '{target}'"
    return {run.data.tags["prefect_flow_run"] for run in store.client.search_runs([store.experiment(model)], query)}


def job_of(worker: Process) -> psutil.Process | None:
    """Return the process in which a worker runs its flow, or None."""
    for pid in descendants(worker.popen.pid):
        with suppress(psutil.NoSuchProcess):
            process = psutil.Process(pid)
            if process.cmdline()[-2:] == ["-m", "prefect.engine"]:
                return process
    return None


def is_running(fleet: Fleet, release: str, target: str) -> bool:
    return any(run.state.is_running() for run in fleet.flow_runs(release, target))


def release_of(fleet: Fleet, model: str) -> str:
    """Return the id of a model's only release, once it has started."""
    return str(until(lambda: fleet.release_runs(model))[0].data.tags["enginery.release"])


def precisions(fleet: Fleet, model: str, into: Path) -> list[str]:
    """Return the precision of every version, once each is complete, of its own engine, and matches its manifest."""
    store, versions = fleet.store(), fleet.store().versions(model)
    if versions:
        everything = store.client.search_model_versions(f"name = '{model}'")
        assert {int(version.version) for version in everything} == {engine.version for engine in versions}
    assert len({engine.digest for engine in versions}) == len(versions)
    sequences = [engine.sequence for engine in versions]
    assert sequences == sorted(set(sequences))
    for engine in versions:
        bundle = into / f"{model}-{engine.version}"
        bundle.mkdir()
        assert copy_bundle(store, model, engine.version, bundle).build.digest == engine.digest
    return [engine.precision.value for engine in versions]

"""Real Prefect and MLflow servers, with releases and workers of the command line as processes."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from registry.mlflow.store import MlflowStore
from tests.support.servers import free_port, mlflow_server, prefect_server
from tests.support.tiny_recipe import RECIPE, TinyRecipe, write_tiny_recipe

ROOT = Path(__file__).parents[2]


PATIENCE_SECONDS = 300.0


POOLS = ("cpu", "mortal", "mortal-too", "rtx", "nobody", "release")


class Restartable:
    """A server, always at one address, killed -9 and started again by its tests."""

    def __init__(self, serve: Callable[[], AbstractContextManager[str]]) -> None:
        self._serve, self._stack = serve, ExitStack()
        self.address = self.start()

    def start(self) -> str:
        return self._stack.enter_context(self._serve())

    def kill(self) -> None:
        self._stack.close()


@dataclass(frozen=True)
class Fleet:
    """The servers, a template of the tiny recipe, and a folder for homes and logs."""

    prefect: str
    mlflow: str
    folder: Path
    template: TinyRecipe

    def environment(self, home: Path) -> dict[str, str]:
        inherited = {name: value for name, value in os.environ.items() if not name.startswith(("PREFECT_", "MLFLOW_"))}
        return inherited | {
            "ENGINERY_HOME": str(home),
            "PYTHONPATH": str(ROOT),
            "PREFECT_HOME": str(self.folder / "prefect-client"),
            "PREFECT_API_URL": self.prefect,
            "PREFECT_WORKER_QUERY_SECONDS": "2",
            "PREFECT_WORKER_HEARTBEAT_SECONDS": "5",
            "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
            "MLFLOW_TRACKING_URI": self.mlflow,
            "MLFLOW_DISABLE_TELEMETRY": "true",
        }

    def store(self) -> MlflowStore:
        return MlflowStore(self.mlflow, self.folder / "store")

    def recipe(
        self,
        model: str,
        targets: tuple[str, ...],
        more: Mapping[str, Any] | None = None,
        *,
        folder: str | None = None,
        **fleet: dict[str, Any],
    ) -> TinyRecipe:
        """Write a recipe for `targets`, with `more` entries; `fleet` changes the entries of its fleet file."""
        tiny = TinyRecipe(self.folder / (folder or model))
        shutil.copytree(self.template.folder, tiny.folder)
        # Absolute: a worker runs in a folder of its own.
        places = {
            "source": {"path": str(tiny.folder / "checkpoint")},
            "data": RECIPE["data"] | {"path": str(tiny.folder / "rows")},  # type: ignore[operator]
        }
        own = {"model": model, "targets": list(targets), "precisions": ["fp32", "int8-dynamic"]}
        recipe = RECIPE | places | own | dict(more or {})
        tiny.recipe.write_text(yaml.safe_dump(recipe), encoding="utf-8")
        entries = {name: TARGETS[name] | fleet.get(name.replace("-", "_"), {}) for name in TARGETS}
        tiny.fleet.write_text(yaml.safe_dump({"targets": entries}), encoding="utf-8")
        return tiny

    def change(self, tiny: TinyRecipe, target: str, **entry: Any) -> None:
        """Change values in a target's entry of a fleet file."""
        fleet = yaml.safe_load(tiny.fleet.read_text(encoding="utf-8"))
        fleet["targets"][target] |= entry
        tiny.fleet.write_text(yaml.safe_dump(fleet), encoding="utf-8")

    def flow_runs(self, release: str, target: str) -> list[Any]:
        """Return every Prefect run that a release started for a target, oldest first."""
        from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterTags

        of_target = FlowRunFilter(tags=FlowRunFilterTags(all_=[f"release:{release}", f"target:{target}"]))
        with self.client() as client:
            return sorted(client.read_flow_runs(flow_run_filter=of_target), key=lambda run: str(run.created))

    @contextmanager
    def client(self) -> Iterator[Any]:
        from prefect.client.orchestration import get_client
        from prefect.settings import PREFECT_API_URL, temporary_settings

        with temporary_settings({PREFECT_API_URL: self.prefect}), get_client(sync_client=True) as client:
            yield client

    def release_runs(self, model: str) -> list[Any]:
        store = self.store()
        return list(store.client.search_runs([store.experiment(model)], "tags.`enginery.kind` = 'release'"))


@dataclass
class Process:
    """A command in a session of its own; its output is read when it has ended."""

    popen: subprocess.Popen[str]
    output: Path
    errors: Path

    def wait(self, seconds: float = PATIENCE_SECONDS) -> tuple[int, dict[str, Any]]:
        """Wait for the end; return the exit code and the printed JSON."""
        code = self.popen.wait(seconds)
        printed = self.output.read_text(encoding="utf-8")
        return code, json.loads(printed) if printed else {"errors": self.errors.read_text(encoding="utf-8")}

    def kill(self) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self.popen.pid, signal.SIGKILL)
        self.popen.wait()


@contextmanager
def started(fleet: Fleet, home: Path, cwd: Path, *arguments: str, before: str = "") -> Iterator[Process]:
    """Run `enginery …` after the Python statements `before`; its whole process group ends with the block."""
    number = len(list(fleet.folder.glob("*.out")))
    output, errors = fleet.folder / f"{number}.out", fleet.folder / f"{number}.err"
    with output.open("w") as out, errors.open("w") as err:
        popen = subprocess.Popen(
            [sys.executable, "-c", f"{before}\nfrom flows.cli import main; main()", *arguments],
            cwd=cwd,
            env=fleet.environment(home),
            stdout=out,
            stderr=err,
            text=True,
            start_new_session=True,
        )
    process = Process(popen, output, errors)
    try:
        yield process
    except Exception as error:
        error.add_note(f"`enginery {' '.join(arguments)}` had said:\n{errors.read_text(encoding='utf-8')[-4000:]}")
        raise
    finally:
        process.kill()


def releasing(fleet: Fleet, tiny: TinyRecipe, *more: str, home: str = "parent", before: str = "") -> Any:
    """Run `enginery release --on-workers` for a recipe, or `--resume` for a release."""
    arguments = more if "--resume" in more else ("recipe.yaml", "--on-workers", *more)
    place = fleet.folder / "homes" / home
    return started(fleet, place, tiny.folder, "release", *arguments, "--fleet", "fleet.yaml", "--json", before=before)


@contextmanager
def working(fleet: Fleet, target: str, home: str) -> Iterator[Process]:
    """Run `enginery worker` for the pool of a target, and wait until it is online."""
    arguments = ("worker", "--target", target, "--fleet", "fleet.yaml")
    with started(fleet, fleet.folder / "homes" / home, fleet.template.folder, *arguments) as worker:
        try:
            until(lambda: "started!" in worker.output.read_text(encoding="utf-8"))
            yield worker
        finally:
            # Its jobs have sessions of their own.
            for child in descendants(worker.popen.pid):
                with suppress(ProcessLookupError):
                    os.kill(child, signal.SIGKILL)


def descendants(pid: int) -> list[int]:
    """Return the ids of the processes below `pid`, youngest last."""
    import psutil

    with suppress(psutil.NoSuchProcess):
        return [child.pid for child in psutil.Process(pid).children(recursive=True)]
    return []


def until(condition: Callable[[], Any]) -> Any:
    """Wait until `condition` is true, and return its value."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not (value := condition()):
        assert time.monotonic() < deadline, "it never came"
        time.sleep(0.3)
    return value


@dataclass(frozen=True)
class RestartableFleet(Fleet):
    """A fleet whose servers a test may kill and start again."""

    mlflow_server: Restartable
    prefect_server: Restartable


@contextmanager
def serving(
    folder: Path, registry: Path | str, artifacts: Path, prefect_settings: Mapping[str, str] | None = None
) -> Iterator[RestartableFleet]:
    """Start both servers, without deployments; `registry` is MLflow's database, an SQLite file or a URI.

    Prefect's is folder/prefect/prefect.db, unless its settings name another.
    """
    template = write_tiny_recipe(folder / "template")
    template.fleet.write_text(yaml.safe_dump({"targets": TARGETS}), encoding="utf-8")
    (folder / "prefect").mkdir(exist_ok=True)
    with ExitStack() as stack:
        prefect = Restartable(partial(prefect_server, folder / "prefect", prefect_settings, port=free_port()))
        stack.callback(prefect.kill)
        mlflow = Restartable(partial(mlflow_server, registry, str(artifacts), port=free_port()))
        stack.callback(mlflow.kill)
        yield RestartableFleet(prefect.address, mlflow.address, folder, template, mlflow, prefect)


def deploy(fleet: Fleet, build_target: str = "flows/deployments.py:build_target", **parameters: str) -> None:
    """Make work pools and deployments as prefect.yaml does; `parameters` are those of the flow `build_target`."""
    code = f"""
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import WorkPoolCreate
with get_client(sync_client=True) as client:
    for pool in {POOLS!r}:
        client.create_work_pool(WorkPoolCreate(name=pool, type="process"))
    for flow, entrypoint, parameters in (
        ("build-target", {build_target!r}, {parameters!r}),
        ("release-engines", "flows/deployments.py:release_engines", {{}}),
    ):
        of = client.create_flow_from_name(flow)
        for pool in {POOLS!r}:
            client.create_deployment(
                flow_id=of, name=pool, work_pool_name=pool, path={str(ROOT)!r},
                entrypoint=entrypoint, parameters=parameters,
                pull_steps=[{{"prefect.deployments.steps.set_working_directory": {{"directory": {str(ROOT)!r}}}}}],
            )
"""
    subprocess.run(
        [sys.executable, "-c", code], env=fleet.environment(fleet.folder / "homes" / "none"), check=True, cwd=ROOT
    )


# `nobody` has a deployment, and no worker ever; `release` is for the flow that waits for the others. Tests kill the
# workers of `mortal` and `mortal-too`.
TARGETS: dict[str, dict[str, Any]] = {
    "cpu": {"backend": "onnxruntime", "work_pool": "cpu"},
    "mortal": {"backend": "onnxruntime", "work_pool": "mortal"},
    "mortal-too": {"backend": "onnxruntime", "work_pool": "mortal-too"},
    "rtx-4090": {"backend": "tensorrt_rtx", "compute_capability": "8.9", "work_pool": "rtx"},
    "rtx-5090": {"backend": "tensorrt_rtx", "compute_capability": "12.0", "work_pool": "nobody", "patience_seconds": 3},
    "rtx-3090": {"backend": "tensorrt_rtx", "compute_capability": "8.6", "work_pool": "undeployed"},
}

"""Releases that stand still at a door, and disks whose size changes."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path

import psutil

from tests.support.fleet import Fleet, Process, until
from tests.support.fleet_runs import job_of
from tests.support.held_builds import BEGUN, Door
from tests.support.tiny_recipe import TinyRecipe

BOTH = ["fp32", "int8-dynamic"]


TWO_MINUTES = 120


ROOMY = 256 * 2**20


# In the key of a build: no test finds what another one built of the same tiny model.
WORKSPACE_MB = count(64)


# See `hold`. The parent asks a store that failed once more, and not for as long as the job before it did.
HELD = """
import time
from pathlib import Path
from flows.workers import release_on_workers
from flows.release import publish
from registry.mlflow.files import artifacts
artifacts.STORE_PAUSES_SECONDS = (1.0,)
call, calls = {module}.{function}, []
def held(*arguments):
    calls.append(arguments)
    if len(calls) == {call}:
        Path({held!r}).touch()
        while Path({held!r}).exists():
            time.sleep(0.05)
    return call(*arguments)
{module}.{function} = held
"""


def ordinary(fleet: Fleet, model: str, target: str = "cpu") -> tuple[TinyRecipe, Door]:
    """Write a recipe of two engines that were never built, and the door at which the second one waits."""
    builds = Door(fleet.folder / "doors" / model)
    builds.hold("int8-dynamic")
    return fleet.recipe(model, (target,), {"workspace_mb": next(WORKSPACE_MB)}), builds


def hold(function: str, call: int, held: Path) -> str:
    """Return code that makes a parent wait at the nth call of a function (module.name) until `held` is gone."""
    module, name = function.split(".")
    return HELD.format(module=module, function=name, call=call, held=str(held))


def until_held(builds: Door) -> None:
    """Wait until the first engine is built and the second one has begun."""
    until(lambda: builds.builds(BEGUN) == BOTH)


@contextmanager
def job(worker: Process) -> Iterator[psutil.Process]:
    """Return a worker's job process; it ends with the block, whatever happened to its worker."""
    process = until(lambda: job_of(worker))
    try:
        yield process
    finally:
        with suppress(psutil.NoSuchProcess):
            for member in (process, *process.children(recursive=True)):
                member.kill()

"""`enginery release` as a process of its own, to be struck in the middle, and what it may leave behind."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from registry.bundle.manifest import verify_bundle
from registry.bundle.signing import local_trust
from registry.mlflow.store import embedded_store
from registry.serving.fetch import Policy, fetch
from tests.support.tiny_recipe import TinyRecipe

ROOT = Path(__file__).parents[2]
COMMAND = "from flows.cli import main; main()"
PATIENCE_SECONDS = 120.0
Stamps = dict[str, int]


@contextmanager
def releasing(tiny: TinyRecipe, home: Path, **settings: str) -> Iterator[subprocess.Popen[str]]:
    """`enginery release` in a session of its own, which is ended with the block; `settings` are variables for it."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("PREFECT_", "MLFLOW_"))}
    process = subprocess.Popen(
        [sys.executable, "-c", COMMAND, "release", "recipe.yaml", "--fleet", "fleet.yaml", "--json"],
        cwd=tiny.folder,
        env=inherited | {"ENGINERY_HOME": str(home), "PYTHONPATH": str(ROOT)} | settings,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        with suppress(ProcessLookupError):  # nothing of the group is left
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def until(condition: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    """Wait for the instant to strike at."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not condition():
        assert process.poll() is None, f"ended with {process.returncode} before the instant came"
        assert time.monotonic() < deadline, "the instant never came"
        time.sleep(0.002)


def finished(home: Path) -> Stamps:
    """Finished stages, with when each was written."""
    return {str(record.parent): record.stat().st_mtime_ns for record in (home / "stages").glob("*/*/stage.json")}


def assert_only_whole_things(home: Path, scratch: Path) -> None:
    """No stage folder without its record, and every listed version verifies when fetched."""
    folders = [folder for folder in (home / "stages").glob("[!.]*/*") if folder.is_dir()]
    assert [folder for folder in folders if not (folder / "stage.json").is_file()] == []
    store = embedded_store(home)
    for engine in store.versions():
        policy = Policy(local_trust(home), host=None)
        fetched = fetch(store, engine.model, into=scratch, version=engine.version, policy=policy)
        assert verify_bundle(fetched.path).build.digest == engine.digest

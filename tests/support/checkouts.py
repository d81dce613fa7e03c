"""Checkouts for tests: a copy of this one's code and prefect.yaml, with recipes that may be changed."""

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
CODE = ("flows", "tasks", "registry", "calibration_data", "recipes")
CPU_FLEET = "targets:\n  cpu: {backend: onnxruntime, work_pool: cpu}\n"


@dataclass(frozen=True)
class Checkout:
    """A folder that a worker can run from."""

    folder: Path

    def environment(self, more: Mapping[str, str]) -> dict[str, str]:
        """Return the environment of a command, without this process's settings of servers."""
        inherited = {name: value for name, value in os.environ.items() if not name.startswith(("PREFECT_", "MLFLOW_"))}
        return inherited | {"PYTHONPATH": str(self.folder), "PREFECT_SERVER_ANALYTICS_ENABLED": "false"} | dict(more)

    def run(self, *command: str, environment: Mapping[str, str], seconds: float = 300) -> str:
        """Run a Python command, which must succeed, and return its output."""
        done = subprocess.run(
            [sys.executable, *command],
            cwd=self.folder,
            env=self.environment(environment),
            capture_output=True,
            text=True,
            check=False,
            timeout=seconds,
        )
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
        return done.stdout + done.stderr

    def enginery(self, *arguments: str, environment: Mapping[str, str]) -> str:
        """Run the `enginery` command of this checkout, and return its output."""
        return self.run("-m", "flows.cli", *arguments, environment=environment)


def make_checkout(folder: Path, fleet: str | None = None) -> Checkout:
    """Copy the code; `fleet` takes the place of the shipped fleet file, and prefect.yaml follows it."""
    for name in CODE:
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "prefect.yaml", folder)
    checkout = Checkout(folder)
    if fleet is not None:
        (folder / "recipes" / "fleet.yaml").write_text(fleet, encoding="utf-8")
        checkout.enginery("deployments", "--write", environment={})
    return checkout

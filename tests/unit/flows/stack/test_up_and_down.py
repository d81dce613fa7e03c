"""`enginery up` and `down`: one at a time, in a checkout, and with options that a running service keeps."""

import os
import sys
from pathlib import Path
from typing import Any

import pytest

from flows.stack.processes import Processes, Service
from flows.stack.up_and_down import StackOptions, choose_options, start_stack, stop_stack
from registry.errors import BadInput
from tests.support.servers import free_port

# The servers keep running when the command that started them ends.
pytestmark = pytest.mark.filterwarnings("ignore:subprocess .* is still running:ResourceWarning")


def make_sleeper(name: str) -> Service:
    return Service(name, (sys.executable, "-c", "import time; time.sleep(600)"), dict(os.environ), bool)


def test_down_without_an_up_is_no_error(tmp_path: Path) -> None:
    stop_stack(tmp_path / "home", pytest.fail)


def test_two_commands_at_once_are_refused(tmp_path: Path) -> None:
    from filelock import FileLock

    with FileLock(tmp_path / "stack.lock"), pytest.raises(BadInput, match="is running for"):
        stop_stack(tmp_path, print)


def test_options_change_until_something_runs_with_them(processes: Processes, folder: Path) -> None:
    def choose(**options: Any) -> dict[str, str]:
        return choose_options(
            Processes(folder / "stack.json", folder / "logs"), StackOptions(Path("fleet.yaml"), **options), folder
        )

    assert choose() == {"mlflow_port": "5000", "prefect_port": "4200", "artifacts": f"{folder}/stack/artifacts"}
    processes.remember_options(choose(mlflow_port=5001, artifacts="s3://bucket/path"))
    processes.start(make_sleeper("postgres"))
    assert choose(mlflow_port=5002) == choose() | {"mlflow_port": "5002"}
    processes.start(make_sleeper("mlflow"))
    assert choose(prefect_port=4201, artifacts="s3://bucket/path")["prefect_port"] == "4201"
    with pytest.raises(BadInput, match="runs with --mlflow-port 5001: run `enginery down`, then"):
        choose(mlflow_port=5002)


def test_up_needs_a_checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(BadInput, match="in the checkout"):
        start_stack(tmp_path / "home", StackOptions(Path("recipes/fleet.yaml"), free_port(), free_port()), print)
    assert not (tmp_path / "home").exists()

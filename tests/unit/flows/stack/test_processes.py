"""A stack's processes are found and stopped by another command, to the last child, and no other process is."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from flows.stack.postgres import open_cluster
from flows.stack.processes import MARK, Processes, Service
from flows.stack.up_and_down import StackOptions, choose_options, start_stack, stop_stack
from registry.errors import BadInput, EngineryError
from tests.support.servers import free_port

# The servers keep running when the command that started them ends.
pytestmark = pytest.mark.filterwarnings("ignore:subprocess .* is still running:ResourceWarning")

# A leader that starts a child in a session of its own, as Prefect's worker starts its flow runs.
PARENT = (
    "import subprocess, sys, time; "
    "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'], start_new_session=True); "
    "print(child.pid, flush=True); time.sleep(600)"
)
STUBBORN = (
    "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=True); time.sleep(600)"
)


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path
    Processes(tmp_path / "stack.json", tmp_path / "logs").sweep()


@pytest.fixture
def processes(folder: Path) -> Processes:
    made = Processes(folder / "stack.json", folder / "logs")
    made.remember_options({})
    return made


def again(folder: Path) -> Processes:
    """The same stack, as the next command finds it."""
    return Processes(folder / "stack.json", folder / "logs")


def service(code: str, name: str = "server", port: int | None = None, is_ready: Callable[[], bool] = bool) -> Service:
    return Service(name, (sys.executable, "-c", code), dict(os.environ), is_ready, port=port, start_seconds=0.5)


def lives(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state not in "ZX"


def first_words(processes: Processes, name: str = "server") -> str:
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        if said := processes.log_file(name).read_text(encoding="utf-8").strip():
            return said
        time.sleep(0.05)
    raise AssertionError("it said nothing")


def test_stopping_ends_a_child_that_has_a_session_of_its_own(processes: Processes, folder: Path) -> None:
    processes.start(service(PARENT))
    child = int(first_words(processes))
    later = again(folder)
    assert later.is_running("server")
    later.stop("server")
    assert not lives(child)
    assert not later.is_running("server")
    assert json.loads((folder / "stack.json").read_text(encoding="utf-8"))["services"] == {}


def test_a_leader_that_was_killed_leaves_nothing_to_the_next_start(processes: Processes, folder: Path) -> None:
    processes.start(service(PARENT))
    child = int(first_words(processes))
    leader = processes.state.services["server"].pid
    os.kill(leader, signal.SIGKILL)
    os.waitid(os.P_PID, leader, os.WEXITED | os.WNOWAIT)
    later = again(folder)
    assert not later.is_running("server")
    assert lives(child)
    later.start(service(PARENT))
    assert not lives(child)
    assert later.is_running("server")


def test_one_started_by_a_command_that_was_killed_before_it_wrote_it_down_is_found(
    processes: Processes, folder: Path
) -> None:
    environment = processes.mark_environment("server", os.environ)
    orphan = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], env=environment)
    again(folder).sweep()
    assert orphan.wait(20) == -signal.SIGKILL


def test_processes_of_others_are_left_alone(processes: Processes, folder: Path) -> None:
    others = dict(os.environ) | {MARK: "of-another-stack/server"}
    stranger = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], env=others)
    try:
        # The number of a process of ours that ended was given to somebody else since.
        state = {
            "mark": processes.state.mark,
            "options": {},
            "services": {"server": {"pid": stranger.pid, "started": "1", "stop_signal": int(signal.SIGTERM)}},
        }
        (folder / "stack.json").write_text(json.dumps(state), encoding="utf-8")
        later = again(folder)
        assert not later.is_running("server")
        later.stop("server")
        later.sweep()
        assert stranger.poll() is None
    finally:
        stranger.kill()
        stranger.wait()


def test_one_that_ignores_the_signal_is_killed(folder: Path) -> None:
    processes = Processes(folder / "stack.json", folder / "logs", stop_seconds=1.0)
    processes.start(service(STUBBORN))
    first_words(processes)
    pid = processes.state.services["server"].pid
    processes.stop("server")
    assert not lives(pid)


def test_a_service_that_ends_at_once_says_its_last_words(processes: Processes) -> None:
    dying = service("raise SystemExit('the disk is full')", is_ready=lambda: False)
    processes.start(dying)
    with pytest.raises(EngineryError, match="server exited before it was ready: the disk is full"):
        processes.wait(dying)


def test_a_service_that_is_never_ready_says_where_its_log_is(processes: Processes) -> None:
    slow = service(STUBBORN, is_ready=lambda: False)
    processes.start(slow)
    with pytest.raises(EngineryError, match=r"not ready after .*server\.log"):
        processes.wait(slow)


def test_a_program_that_is_missing_is_one_sentence(processes: Processes) -> None:
    with pytest.raises(EngineryError, match="cannot be started"):
        processes.start(Service("server", ("/nowhere/postgres",), {}, bool))


def test_a_port_of_another_program_is_refused_before_anything_starts(processes: Processes) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(BadInput, match="--mlflow-port"):
            processes.start(service(PARENT, name="mlflow", port=taken.getsockname()[1]))
    assert not processes.is_running("mlflow")


def test_a_step_that_fails_says_its_last_words(processes: Processes, folder: Path) -> None:
    processes.start(service(PARENT))
    with pytest.raises(EngineryError, match="deploy failed: no such pool"):
        processes.run("deploy", (sys.executable, "-c", "raise SystemExit('no such pool')"), dict(os.environ))


@pytest.mark.parametrize("spoilt", ["", "{}", '{"mark": 1}', "[]"])
def test_a_state_file_that_is_none_is_refused(spoilt: str, tmp_path: Path) -> None:
    (tmp_path / "stack.json").write_text(spoilt, encoding="utf-8")
    with pytest.raises(BadInput, match=r"stack\.json"):
        Processes(tmp_path / "stack.json", tmp_path / "logs")


def test_down_without_an_up_is_no_error(tmp_path: Path) -> None:
    stop_stack(tmp_path / "home", pytest.fail)


def test_two_commands_at_once_are_refused(tmp_path: Path) -> None:
    from filelock import FileLock

    with FileLock(tmp_path / "stack.lock"), pytest.raises(BadInput, match="is running for"):
        stop_stack(tmp_path, print)


def test_options_change_until_something_runs_with_them(processes: Processes, folder: Path) -> None:
    def wanted(**options: Any) -> dict[str, str]:
        return choose_options(again(folder), StackOptions(Path("fleet.yaml"), **options), folder)

    assert wanted() == {"mlflow_port": "5000", "prefect_port": "4200", "artifacts": f"{folder}/stack/artifacts"}
    processes.remember_options(wanted(mlflow_port=5001, artifacts="s3://bucket/path"))
    processes.start(service(STUBBORN, name="postgres"))
    assert wanted(mlflow_port=5002) == wanted() | {"mlflow_port": "5002"}
    processes.start(service(STUBBORN, name="mlflow"))
    assert wanted(prefect_port=4201, artifacts="s3://bucket/path")["prefect_port"] == "4201"
    with pytest.raises(BadInput, match="runs with --mlflow-port 5001: run `enginery down`, then"):
        wanted(mlflow_port=5002)


def test_up_needs_a_checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(BadInput, match="in the checkout"):
        start_stack(tmp_path / "home", StackOptions(Path("recipes/fleet.yaml"), free_port(), free_port()), print)
    assert not (tmp_path / "home").exists()


def test_a_path_too_long_for_a_socket_is_refused_before_anything_is_made(tmp_path: Path) -> None:
    folder = tmp_path / ("x" * 120)
    with pytest.raises(BadInput, match="too long a path"):
        open_cluster(folder)
    assert not folder.exists()

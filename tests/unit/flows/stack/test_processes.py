"""A stack's processes are found and stopped by another command, to the last child, and no other process is."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from flows.stack.processes import MARK, Processes, Service
from registry.errors import BadInput, EngineryError

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


def reopen(folder: Path) -> Processes:
    """Return the same stack as the next command finds it."""
    return Processes(folder / "stack.json", folder / "logs")


def make_service(
    code: str, name: str = "server", port: int | None = None, is_ready: Callable[[], bool] = bool
) -> Service:
    return Service(name, (sys.executable, "-c", code), dict(os.environ), is_ready, port=port, start_seconds=0.5)


def is_alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state not in "ZX"


def read_first_line(processes: Processes, name: str = "server") -> str:
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        if logged := processes.log_file(name).read_text(encoding="utf-8").strip():
            return logged
        time.sleep(0.05)
    raise AssertionError("it logged nothing")


def test_stopping_ends_a_child_that_has_a_session_of_its_own(processes: Processes, folder: Path) -> None:
    processes.start(make_service(PARENT))
    child = int(read_first_line(processes))
    later = reopen(folder)
    assert later.is_running("server")
    later.stop("server")
    assert not is_alive(child)
    assert not later.is_running("server")
    assert json.loads((folder / "stack.json").read_text(encoding="utf-8"))["services"] == {}


def test_a_leader_that_was_killed_leaves_nothing_to_the_next_start(processes: Processes, folder: Path) -> None:
    processes.start(make_service(PARENT))
    child = int(read_first_line(processes))
    leader = processes.state.services["server"].pid
    os.kill(leader, signal.SIGKILL)
    os.waitid(os.P_PID, leader, os.WEXITED | os.WNOWAIT)
    later = reopen(folder)
    assert not later.is_running("server")
    assert is_alive(child)
    later.start(make_service(PARENT))
    assert not is_alive(child)
    assert later.is_running("server")


def test_one_started_by_a_command_that_was_killed_before_it_wrote_it_down_is_found(
    processes: Processes, folder: Path
) -> None:
    environment = processes.mark_environment("server", os.environ)
    orphan = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], env=environment)
    reopen(folder).sweep()
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
        later = reopen(folder)
        assert not later.is_running("server")
        later.stop("server")
        later.sweep()
        assert stranger.poll() is None
    finally:
        stranger.kill()
        stranger.wait()


def test_one_that_ignores_the_signal_is_killed(folder: Path) -> None:
    processes = Processes(folder / "stack.json", folder / "logs", stop_seconds=1.0)
    processes.start(make_service(STUBBORN))
    read_first_line(processes)
    pid = processes.state.services["server"].pid
    processes.stop("server")
    assert not is_alive(pid)


def test_a_service_that_exits_at_once_shows_its_last_line(processes: Processes) -> None:
    dying = make_service("raise SystemExit('the disk is full')", is_ready=lambda: False)
    processes.start(dying)
    with pytest.raises(EngineryError, match="server exited before it was ready: the disk is full"):
        processes.wait(dying)


def test_a_service_that_is_never_ready_says_where_its_log_is(processes: Processes) -> None:
    slow = make_service(STUBBORN, is_ready=lambda: False)
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
            processes.start(make_service(PARENT, name="mlflow", port=taken.getsockname()[1]))
    assert not processes.is_running("mlflow")


def test_a_step_that_fails_shows_its_last_line(processes: Processes, folder: Path) -> None:
    processes.start(make_service(PARENT))
    with pytest.raises(EngineryError, match="deploy failed: no such pool"):
        processes.run("deploy", (sys.executable, "-c", "raise SystemExit('no such pool')"), dict(os.environ))


@pytest.mark.parametrize("content", ["", "{}", '{"mark": 1}', "[]"])
def test_an_invalid_state_file_is_refused(content: str, tmp_path: Path) -> None:
    (tmp_path / "stack.json").write_text(content, encoding="utf-8")
    with pytest.raises(BadInput, match=r"stack\.json"):
        Processes(tmp_path / "stack.json", tmp_path / "logs")

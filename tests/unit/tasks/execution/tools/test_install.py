"""A tool's packages are installed once, whole or not at all, whatever ends the process that does it."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest

from registry.errors import BadInput, EngineryError
from tasks.execution.tools.catalog import REQUIREMENTS, Tool, find_tool, list_tools, read_tool
from tasks.execution.tools.install import install_tool, is_installed, remove_tool, size_of
from tests.support.tiny_tools import write_tool

INSTALL = """
import sys
from pathlib import Path
from tasks.execution.tools.catalog import read_tool
from tasks.execution.tools.install import install_tool
install_tool(read_tool(Path(sys.argv[1])), Path(sys.argv[2]))
"""


@pytest.fixture
def tool(tmp_path: Path) -> Tool:
    return write_tool(tmp_path / "tiny", answer=42)


@pytest.fixture
def stuck(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An installer that writes a file and its process id, and then never ends: the first of the name on PATH."""
    script = tmp_path / "bin" / "uv"
    script.parent.mkdir()
    script.write_text(f'#!/bin/sh\necho half > "${{10}}/half" && echo $$ > {tmp_path}/pid\nexec sleep 600\n')
    script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{script.parent}{os.pathsep}{os.environ['PATH']}")
    return tmp_path / "pid"


def read_pid(file: Path) -> int:
    while not file.exists() or not file.read_text().strip():
        time.sleep(0.02)
    return int(file.read_text())


def start_install(tool: Tool, home: Path) -> "subprocess.Popen[bytes]":
    return subprocess.Popen([sys.executable, "-c", INSTALL, str(tool.folder), str(home)], stderr=subprocess.PIPE)


def test_the_shipped_tools_say_what_they_are_for_and_pin_what_they_install() -> None:
    assert [tool.name for tool in list_tools()] == ["transformers5"]
    (tool,) = list_tools()
    assert tool.purpose.startswith("Export checkpoints")
    assert tool.packages[0][0] == "transformers"
    assert tool.version.startswith("5.")
    lines = tool.requirements.read_text(encoding="utf-8").splitlines()
    assert all(line.startswith(("#", "    --hash=sha256:")) or "==" in line for line in lines)


def test_an_unknown_tool_is_told_with_the_nearest() -> None:
    with pytest.raises(BadInput, match=r"no tool 'transformer5': did you mean transformers5\?"):
        find_tool("transformer5")


def test_a_tool_is_installed_once_and_removed_whole(tool: Tool, tmp_path: Path) -> None:
    home, told = tmp_path / "home", list[str]()
    assert not is_installed(tool, home)
    place = install_tool(tool, home, lambda what, _share: told.append(what))
    assert (place / "colorama" / "__init__.py").read_text() == "ANSWER = 42\n"
    assert is_installed(tool, home)
    assert told
    assert size_of(tool, home) > 0
    told.clear()
    assert install_tool(tool, home, lambda what, _share: told.append(what)) == place
    assert told == []
    assert remove_tool(tool, home) > 0
    assert not is_installed(tool, home)
    assert (remove_tool(tool, home), size_of(tool, home)) == (0, 0)


def test_other_requirements_are_another_environment(tool: Tool, tmp_path: Path) -> None:
    home = tmp_path / "home"
    first = install_tool(tool, home)
    tool.requirements.write_text(tool.requirements.read_text() + "# another day\n", encoding="utf-8")
    changed = read_tool(tool.folder)
    assert not is_installed(changed, home)
    assert install_tool(changed, home) != first
    assert remove_tool(changed, home) > 0
    assert not is_installed(tool, home)


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGINT])
def test_an_install_that_is_ended_leaves_nothing_that_looks_ready(
    end: signal.Signals, tool: Tool, stuck: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "home"
    process = start_install(tool, home)
    installer = psutil.Process(read_pid(stuck))
    process.send_signal(end)
    process.communicate()
    installer.wait(30)  # it does not outlive what started it
    assert not is_installed(tool, home)
    monkeypatch.setenv("PATH", os.environ["PATH"].partition(os.pathsep)[2])
    place = install_tool(tool, home)
    assert [entry.name for entry in place.parent.iterdir() if entry.name != ".lock"] == [place.name]


def test_two_at_once_install_once(tool: Tool, tmp_path: Path) -> None:
    home, told = tmp_path / "home", list[str]()
    threads = [
        threading.Thread(target=install_tool, args=(tool, home, lambda what, _share: told.append(what)))
        for _ in range(2)
    ]
    processes = [start_install(tool, home) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [process.communicate()[1] for process in processes] == [b"", b""]
    assert is_installed(tool, home)
    assert sum("Installing" in what for what in told) <= 1
    assert [entry.name for entry in tool.place(home).parent.iterdir() if entry.name != ".lock"] == [tool.key]


def test_a_package_that_cannot_be_had_is_one_sentence(tool: Tool, tmp_path: Path) -> None:
    for wheel in tool.folder.glob("*.whl"):
        wheel.unlink()
    with pytest.raises(
        EngineryError, match=r"^the tool tiny cannot be installed \(.+\): it needs a package index once"
    ):
        install_tool(tool, tmp_path / "home")
    assert not is_installed(tool, tmp_path / "home")


def test_a_package_of_another_hash_is_refused(tool: Tool, tmp_path: Path) -> None:
    text = tool.requirements.read_text(encoding="utf-8")
    tool.requirements.write_text(text.rpartition(":")[0] + ":" + "0" * 64 + "\n", encoding="utf-8")
    with pytest.raises(EngineryError, match=r"\(.*\): the index gives other files than were locked"):
        install_tool(read_tool(tool.folder), tmp_path / "home")


def test_without_uv_and_pip_it_says_so(tool: Tool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.which", lambda _name: None)
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: None)
    with pytest.raises(BadInput, match="installed with uv or pip, and neither is here"):
        install_tool(tool, tmp_path / "home")


def test_a_tool_without_requirements_needs_no_installer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.which", lambda _name: None)
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: None)
    tool = write_tool(tmp_path / "bare")
    assert list(install_tool(tool, tmp_path / "home").iterdir()) == []
    assert (tool.version, (tool.folder / REQUIREMENTS).exists()) == ("", True)

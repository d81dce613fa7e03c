"""A tool's script runs with its own packages in front of ours, without a network, and its end is told in a sentence."""

import json
import re
from pathlib import Path

import pytest

from registry.errors import BadInput, BuildError, EngineryError
from tasks.execution.tools.run import run_tool
from tests.support.tiny_tools import SCRIPT, write_tool


@pytest.fixture(autouse=True)
def _home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ENGINERY_HOME", str(tmp_path / "home"))


def test_a_script_has_the_tools_packages_and_then_our_own(tmp_path: Path) -> None:
    told: list[tuple[str, float]] = []
    run_tool(
        write_tool(tmp_path / "tiny", answer=42),
        SCRIPT,
        tmp_path,
        on_progress=lambda what, share: told.append((what, share)),
    )
    assert json.loads((tmp_path / "answer.json").read_text()) == [42, "filelock"]
    assert told[-1] == ("count", 0.5)


@pytest.mark.parametrize("kind", [BadInput, EngineryError])
def test_an_error_of_ours_arrives_as_itself(kind: type[EngineryError], tmp_path: Path) -> None:
    body = f"""
    from registry.errors import {kind.__name__}

    def run(folder, tell):
        raise {kind.__name__}("the cat sat on it: get up")
    """
    with pytest.raises(EngineryError, match=r"^the cat sat on it: get up$") as raised:
        run_tool(write_tool(tmp_path / "tiny", body), SCRIPT, tmp_path)
    assert type(raised.value) is kind


def test_an_error_of_others_is_a_sentence_with_its_trace(tmp_path: Path) -> None:
    body = """
    def run(folder, tell):
        print("noise")
        1 / 0
    """
    sentence = re.escape(
        "the tool tiny failed: its process ended with exit status 1 and no result (ZeroDivisionError: division by zero)"
    )
    with pytest.raises(BuildError, match=rf"(?s)^{sentence}.*1 / 0"):
        run_tool(write_tool(tmp_path / "tiny", body), SCRIPT, tmp_path)


def test_a_script_that_crashes_is_named_with_its_signal(tmp_path: Path) -> None:
    body = """
    import ctypes

    def run(folder, tell):
        ctypes.string_at(0)
    """
    with pytest.raises(BuildError, match="the tool tiny failed: its process was ended by SIGSEGV"):
        run_tool(write_tool(tmp_path / "tiny", body), SCRIPT, tmp_path)


def test_a_script_that_never_ends_is_ended_at_its_limit(tmp_path: Path) -> None:
    body = """
    import time

    def run(folder, tell):
        time.sleep(600)
    """
    with pytest.raises(BuildError, match=r"has run for 3 s, and was ended"):
        run_tool(write_tool(tmp_path / "tiny", body), SCRIPT, tmp_path, limit_seconds=3)


def test_a_script_has_no_network(tmp_path: Path) -> None:
    body = """
    import socket

    def run(folder, tell):
        socket.create_connection(("127.0.0.1", 9))
    """
    with pytest.raises(EngineryError, match="a checkpoint asked for a download"):
        run_tool(write_tool(tmp_path / "tiny", body), SCRIPT, tmp_path)


def test_ctrl_c_ends_the_script_and_is_raised_here(tmp_path: Path) -> None:
    body = """
    import os, time

    def run(folder, tell):
        (folder / "pid").write_text(str(os.getpid()))
        tell("begun", 0.0)
        time.sleep(600)
    """

    def interrupt(_what: str, _share: float) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_tool(write_tool(tmp_path / "tiny", body), SCRIPT, tmp_path, on_progress=interrupt)
    assert not Path(f"/proc/{(tmp_path / 'pid').read_text()}").exists()

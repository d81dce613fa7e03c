"""`enginery tools` lists, installs and removes."""

from pathlib import Path

import pytest

from registry.store import Store
from tests.support.commands import Enginery
from tests.support.tiny_tools import write_tool


@pytest.fixture(autouse=True)
def _one_tool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The only tool there is: one that needs no index."""
    tool = write_tool(tmp_path / "tools" / "tiny", answer=42)
    monkeypatch.setattr("tasks.execution.tools.catalog.list_tools", lambda: (tool,))
    monkeypatch.setattr("flows.doctor.list_tools", lambda: (tool,))


def test_a_tool_is_listed_installed_and_removed(enginery: Enginery) -> None:
    (before,) = enginery("tools", "--json").json
    assert before == {
        "name": "tiny",
        "purpose": "Answer questions.",
        "version": "99.1",
        "installed": False,
        "size_bytes": 0,
    }
    assert "tiny 99.1 is installed: " in enginery("tools", "install", "tiny").out
    (after,) = enginery("tools", "--json").json
    assert after["installed"]
    assert after["size_bytes"] > 0
    assert "Answer questions." in enginery("tools").out
    assert "is installed already" in enginery("tools", "install", "tiny").out
    assert "tiny is removed: " in enginery("tools", "remove", "tiny").out
    assert enginery("tools", "remove", "tiny").out == "tiny is not installed\n"
    assert enginery("tools", "--json").json == [before]


def test_an_unknown_tool_is_one_sentence(enginery: Enginery) -> None:
    ran = enginery("tools", "install", "tinny")
    assert (ran.code, ran.err) == (2, "enginery: there is no tool 'tinny': did you mean tiny?\n")


def test_the_doctor_says_which_tools_are_there(mlflow_store: Store, enginery: Enginery) -> None:
    def find() -> tuple[bool, str]:
        (finding,) = [each for each in enginery("doctor", "--json").json if each["what"] == "tool tiny"]
        return finding["ok"], finding["advice"]

    ok, advice = find()
    assert not ok
    assert advice.endswith("enginery tools install tiny")
    enginery("tools", "install", "tiny")
    assert find() == (True, "")

"""Prefect's temporary server, started as a release starts it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

ROOT = Path(__file__).parents[4]
START = """
from pathlib import Path
import sys
from flows.prefect_server.local import configure_prefect, start_prefect
from registry.errors import EngineryError

configure_prefect(Path(sys.argv[1]))
try:
    start_prefect()()
except EngineryError as error:
    sys.exit(f"said: {error}")
"""


def start(home: Path) -> subprocess.CompletedProcess[str]:
    """Start the server in a process of its own, which ends then: Prefect keeps one per process."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
    return subprocess.run(
        [sys.executable, "-c", START, str(home)],
        env=inherited | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_server_that_cannot_start_is_told_once_and_in_one_sentence(tmp_path: Path) -> None:
    folder = tmp_path / "prefect"
    folder.mkdir()
    (folder / "prefect.db").write_bytes(b"no database" * 1000)
    ended = start(tmp_path)
    assert ended.stdout == ""
    (sentence,) = ended.stderr.splitlines()
    assert sentence.startswith("said: Prefect's temporary server")
    assert "file is not a database" in sentence
    assert str(folder) in sentence

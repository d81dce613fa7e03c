"""A stack without any service."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from flows.stack.processes import Processes


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """A stack's folder; whatever a test leaves running there is killed."""
    yield tmp_path
    Processes(tmp_path / "stack.json", tmp_path / "logs").sweep()


@pytest.fixture
def processes(folder: Path) -> Processes:
    """The processes of a stack that was never started."""
    processes = Processes(folder / "stack.json", folder / "logs")
    processes.remember_options({})
    return processes

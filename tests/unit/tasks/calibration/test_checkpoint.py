"""A killed calibration resumes from its checkpoint, and from nothing else."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tasks.calibration.checkpoint import CalibrationCheckpoint
from tasks.calibration.collect import calibrate, collect_statistics
from tasks.calibration.rows import Feed
from tests.support.encoder_graphs import batched, encoder, same_statistics, saved, texts

KILLED = """
import os, signal, sys
from pathlib import Path
from tasks.calibration.checkpoint import CalibrationCheckpoint
from tasks.calibration.collect import collect_statistics
from tests.unit.tasks.calibration.test_checkpoint import feeds_of_the_killed
graph, file = map(Path, sys.argv[1:])
state = CalibrationCheckpoint.open(file, graph)
state.save_every_seconds = 0.0
die = lambda row: os.kill(os.getpid(), signal.SIGKILL) if row >= 60 else None
collect_statistics(graph, feeds_of_the_killed(), state, on_row=die)
"""


@pytest.fixture
def graph(tmp_path: Path) -> Path:
    return saved(tmp_path, encoder())


def feeds_of_the_killed() -> list[Feed]:
    return [dict(feed) for feed in batched(texts(120), 8)]


def test_a_killed_run_resumes_where_it_stopped(graph: Path, tmp_path: Path) -> None:
    checkpoint = tmp_path / "partial.npz"
    killed = subprocess.run([sys.executable, "-c", KILLED, graph, checkpoint], check=False, env={**os.environ})
    assert killed.returncode == -signal.SIGKILL
    assert checkpoint.is_file()
    ran: list[int] = []
    resumed = calibrate(graph, feeds_of_the_killed(), on_row=ran.append, checkpoint=checkpoint)
    assert ran[0] > 30
    assert ran[-1] == 120
    assert same_statistics(resumed, calibrate(graph, feeds_of_the_killed()))
    assert resumed.find_outlier() == calibrate(graph, feeds_of_the_killed()).find_outlier()
    assert not checkpoint.exists()


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 torn", b"no archive"], ids=["empty", "torn", "other"])
def test_an_unreadable_checkpoint_starts_the_run_over(graph: Path, tmp_path: Path, content: bytes) -> None:
    checkpoint = tmp_path / "partial.npz"
    checkpoint.write_bytes(content)
    resumed = calibrate(graph, batched(texts(12), 4), checkpoint=checkpoint)
    assert same_statistics(resumed, calibrate(graph, batched(texts(12), 4)))


def test_a_checkpoint_of_another_graph_is_not_used(graph: Path, tmp_path: Path) -> None:
    checkpoint, other = tmp_path / "partial.npz", tmp_path / "other"
    collect_statistics(graph, batched(texts(12), 4), CalibrationCheckpoint.open(checkpoint, graph))
    assert CalibrationCheckpoint.open(checkpoint, graph).calibration.rows == 12
    other.mkdir()
    assert CalibrationCheckpoint.open(checkpoint, saved(other, encoder(pre_norm=True))).calibration.rows == 0

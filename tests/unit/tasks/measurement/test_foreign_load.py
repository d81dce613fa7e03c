"""Other work on the CPUs is seen in what the kernel counts, and never in a call time."""

import itertools
from dataclasses import replace
from pathlib import Path

import pytest

from tasks.measurement.foreign_load import LoadCounters, find_foreign_load, read_load

BEFORE = LoadCounters(at=10.0, pressure=3.0, busy=9.0, steal=1.0, cpu=20.0, waited=0.5, ran=8.0)
AFTER = LoadCounters(at=11.0, pressure=3.0, busy=10.5, steal=1.0, cpu=22.0, waited=0.5, ran=9.5)


@pytest.mark.parametrize(
    ("change", "seen"),
    [
        ({}, {}),
        ({"pressure": 3.05, "busy": 10.6, "steal": 1.01, "waited": 0.51}, {}),
        ({"pressure": 3.5, "busy": 11.0}, {"other processes used the CPUs": 0.25}),
        ({"waited": 1.0, "busy": 11.0}, {"other processes used the CPUs": 0.25}),
        ({"busy": 11.0}, {}),  # of CPUs that nobody waited for
        ({"pressure": 3.9, "waited": 1.5}, {}),  # the engines' own threads made each other wait
        ({"steal": 1.5}, {"the hypervisor took CPU time": 0.25}),
    ],
)
def test_a_share_above_its_bound_is_other_work(change: dict[str, float], seen: dict[str, float]) -> None:
    assert find_foreign_load(BEFORE, replace(AFTER, **change)) == pytest.approx(seen)


def test_counters_that_stand_still_are_no_other_work() -> None:
    assert find_foreign_load(BEFORE, BEFORE) == {}


def test_counters_are_read_in_seconds_over_all_threads(tmp_path: Path) -> None:
    (tmp_path / "pressure").mkdir()
    psi = "some avg10=46.55 avg60=50.21 avg300=43.86 total=2500000\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=1\n"
    (tmp_path / "pressure" / "cpu").write_text(psi)
    for thread, line in {"1": "3000000000 250000000 7\n", "2": "1000000000 250000000 2\n", "3": "gone\n"}.items():
        (tmp_path / "self" / "task" / thread).mkdir(parents=True)
        (tmp_path / "self" / "task" / thread / "schedstat").write_text(line)
    read = read_load(tmp_path, itertools.count(5.0).__next__)
    assert (read.at, read.pressure, read.waited, read.ran) == (5.0, 2.5, 0.5, 4.0)


def test_a_machine_without_these_counters_is_taken_as_quiet(tmp_path: Path) -> None:
    read = read_load(tmp_path)
    assert (read.pressure, read.waited, read.ran) == (0, 0, 0)


def test_this_machine_counts_upwards() -> None:
    before = read_load()
    sum(range(200_000))
    after = read_load()
    assert after.at > before.at
    assert after.cpu >= before.cpu > 0
    assert after.ran >= before.ran

"""What a person sees of a release at work: what is done, what is left, and never silence for long."""

import io
import time

import pytest
from rich.console import Console

from flows.release import progress
from flows.release.progress import Tally, format_seconds, lines_report, progress_report
from tasks.execution.progress import Reporter, StepEnd

BUILD = StepEnd("build cpu int8", 2.0, found=False, figure="64.1 MB")


class Clock:
    """Seconds that a test sets."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def tally(clock: Clock) -> Tally:
    tally = Tally(clock)
    tally.expect({"export fp32": 100.0, "build cpu int8": 100.0, "benchmark cpu": 200.0}, lambda _: None)
    return tally


def test_the_rest_is_told_by_the_pace_of_what_is_done(tally: Tally, clock: Clock) -> None:
    assert (tally.count, tally.clock) == ("0 of 3", "0:00 elapsed, about 6:40 left")
    clock.now = 200.0  # twice as slow as expected
    tally.end(StepEnd("export fp32", 200.0, found=False))
    assert (tally.count, tally.clock) == ("1 of 3", "3:20 elapsed, about 10:00 left")
    tally.advance("build cpu int8", 0.5)
    assert tally.share == pytest.approx(150 / 400)


def test_a_step_that_was_found_says_nothing_about_the_pace(tally: Tally, clock: Clock) -> None:
    clock.now = 1.0
    tally.end(StepEnd("export fp32", 0.1, found=True))
    tally.end(StepEnd("export fp32", 0.1, found=True))
    assert (tally.count, tally.clock) == ("1 of 3", "0:01 elapsed, about 5:00 left")


def test_a_step_that_nobody_expected_counts_and_breaks_nothing(tally: Tally) -> None:
    tally.end(StepEnd("quantize int8-weight-only", 3.0, found=False))
    assert tally.count == "1 of 4"


def test_each_step_that_ends_is_recorded() -> None:
    recorded: list[StepEnd] = []
    tally = Tally()
    tally.expect({}, recorded.append)
    tally.end(BUILD)
    assert recorded == [BUILD]


def test_times_are_minutes_and_seconds() -> None:
    assert [format_seconds(seconds) for seconds in (0.4, 65, 7210)] == ["0:00", "1:05", "2:00:10"]


def report_on(console: Console, tally: Tally) -> str:
    """Return what a console shows of two steps, of which one was found, and of a finding."""
    with progress_report(console, tally, quiet=False) as reporter:
        reporter("export fp32", 0.0)
        reporter.end_step(StepEnd("export fp32", 0.1, found=True))
        reporter("build cpu int8: copy [1]", 0.5)
        reporter.end_step(BUILD)
        reporter.say("the disk is [nearly] full")
    output = console.file
    assert isinstance(output, io.StringIO)
    return output.getvalue()


def test_a_log_gets_a_line_with_the_figure_of_each_step_that_was_made(tally: Tally, clock: Clock) -> None:
    clock.now = 100.0
    lines = report_on(Console(file=io.StringIO(), force_terminal=False), tally).splitlines()
    assert lines == [
        "2 of 3: build cpu int8: 2.0 s, 64.1 MB (1:40 elapsed, about 3:20 left)",
        "the disk is [nearly] full",
    ]


def test_a_terminal_gets_the_same_lines_above_its_bars(tally: Tally) -> None:
    shown = report_on(Console(file=io.StringIO(), force_terminal=True, width=120), tally)
    assert "build cpu int8: 2.0 s, 64.1 MB" in shown
    assert "the disk is [nearly] full" in shown


def test_quiet_is_silent_and_still_counts(tally: Tally) -> None:
    console = Console(file=io.StringIO(), force_terminal=True)
    with progress_report(console, tally, quiet=True) as reporter:
        reporter("build cpu int8", 0.5)
        reporter.end_step(BUILD)
        reporter.say("the disk is nearly full")
    assert (console.file.getvalue(), tally.count) == ("", "1 of 3")  # type: ignore[attr-defined]


def test_a_long_step_is_told_again_and_again(tally: Tally, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    clock.now = 60.0
    monkeypatch.setattr(progress, "SECONDS_OF_SILENCE", 1.0)
    console = Console(file=io.StringIO(), force_terminal=False)
    deadline = time.monotonic() + 60
    with progress_report(console, tally, quiet=False) as reporter:
        reporter("benchmark cpu: latency", 0.3)
        while console.file.getvalue().count("\n") < 2 and time.monotonic() < deadline:  # type: ignore[attr-defined]
            time.sleep(0.05)
    first, second, *_ = console.file.getvalue().splitlines()  # type: ignore[attr-defined]
    assert first == second == "… benchmark cpu: latency 30% (1:00 elapsed, about 5:40 left)"


def test_a_prefect_log_gets_a_line_where_a_step_begins_and_one_where_it_ends() -> None:
    lines: list[str] = []
    reporter: Reporter = lines_report(lines.append)
    for fraction in (0.0, 0.5, 1.0):
        reporter("build cpu int8: copy", fraction)
    reporter.end_step(BUILD)
    reporter.end_step(StepEnd("export fp32", 0.1, found=True))
    assert lines == ["build cpu int8", "build cpu int8: 2.0 s, 64.1 MB"]

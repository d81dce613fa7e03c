"""Progress on the terminal: a line per finished step, and how much is done and left.

Every reporter here stops the release where Ctrl-C was pressed.
"""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from threading import Event, Lock, Thread, get_ident, main_thread

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TaskID, TextColumn
from rich.text import Text

from tasks.execution.interrupt import check_stopped
from tasks.execution.progress import Reporter, StepEnd

# Silence for longer looks like a hang.
SECONDS_OF_SILENCE = 10.0
# Until that much of what was expected is done, the pace of this run is not known.
SECONDS_OF_PACE = 20.0


class Tally:
    """Which of the expected steps have ended, and how long the others will take; for one process."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        """Start the clock, which counts seconds."""
        self._clock, self._started = clock, clock()
        self._expected: dict[str, float] = {}
        self._ended: set[str] = set()
        self._fractions: dict[str, float] = {}
        self._found_seconds = 0.0
        self._record: Callable[[StepEnd], None] = lambda _: None

    def expect(self, seconds: Mapping[str, float], record: Callable[[StepEnd], None]) -> None:
        """Take the names of the steps to come, each with the seconds it will take; `record` gets each that ends."""
        self._expected, self._record = dict(seconds), record

    def advance(self, step: str, fraction: float) -> None:
        """Take the finished share (0 to 1) of a step at work."""
        self._fractions[step] = min(max(fraction, 0.0), 1.0)

    def end(self, end: StepEnd) -> None:
        """Take a step that has ended; the same step may be found again, and counts once."""
        if end.found and end.name not in self._ended:
            self._found_seconds += self._expected.get(end.name, 0.0)
        self._ended.add(end.name)
        self._record(end)

    @property
    def elapsed(self) -> float:
        """Seconds since the start."""
        return self._clock() - self._started

    @property
    def share(self) -> float:
        """The share of the expected work that is done, 0 to 1."""
        total = sum(self._expected.values())
        return min(1.0, 1 - self._count_left() / total) if total else 0.0

    @property
    def count(self) -> str:
        """Such as "5 of 16"; steps that nobody expected, such as a stand-in's, add to both."""
        return f"{len(self._ended)} of {len(self._expected.keys() | self._ended)}" if self._expected else ""

    @property
    def clock(self) -> str:
        """Such as "1:23 elapsed, about 0:50 left"."""
        left = f", about {format_seconds(self._estimate_left())} left" if self._expected else ""
        return f"{format_seconds(self.elapsed)} elapsed{left}"

    def _count_left(self) -> float:
        """Return the expected seconds of what has not ended."""
        open_steps = self._expected.keys() - self._ended
        return sum(self._expected[step] * (1 - self._fractions.get(step, 0.0)) for step in open_steps)

    def _estimate_left(self) -> float:
        left = self._count_left()
        done = sum(self._expected.values()) - left - self._found_seconds
        pace = self.elapsed / done if done > SECONDS_OF_PACE else 1.0
        return left * pace


def format_seconds(seconds: float) -> str:
    """Return minutes and seconds, or hours too, such as 1:05 or 2:00:10."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


@contextmanager
def progress_report(console: Console, tally: Tally, *, quiet: bool) -> Iterator[Reporter]:
    """Open a reporter that writes on `console`: bars, or lines without a terminal; nothing with `quiet`."""
    if quiet:
        yield _Silent(tally)
    elif not console.is_terminal:
        lines = _Lines(partial(console.print, markup=False, highlight=False, soft_wrap=True), tally)
        with _break_silence(lines):
            yield lines
    else:
        columns = (TextColumn("{task.description}"), BarColumn(), _ClockColumn(tally))
        with Progress(*columns, console=console, transient=True) as progress:
            yield _Bars(progress, tally)


def lines_report(say: Callable[[str], None]) -> Reporter:
    """Make a reporter for logs: a line where a step begins, and one where it has ended."""
    return _LogLines(say)


class _Silent:
    """Says nothing."""

    def __init__(self, tally: Tally) -> None:
        self._tally = tally

    def __call__(self, _what: str, _fraction: float) -> None:
        check_stopped()

    def end_step(self, end: StepEnd) -> None:
        check_stopped()
        self._tally.end(end)

    def say(self, _sentence: str) -> None:
        """Say nothing."""


class _LogLines:
    """Logs have times of their own, so the lines carry none."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say = say
        self._reported: set[str] = set()

    def __call__(self, what: str, _fraction: float) -> None:
        check_stopped()
        step = what.split(":")[0]
        if step not in self._reported:
            self._reported.add(step)
            self._say(step)

    def end_step(self, end: StepEnd) -> None:
        check_stopped()
        if not end.found:
            self._say(_describe_end(end))

    def say(self, sentence: str) -> None:
        self._say(sentence)


class _Lines:
    """A line for each step that has ended; `tell_work` is called where nothing was written for long."""

    def __init__(self, write: Callable[[str], None], tally: Tally) -> None:
        self._write, self._tally = write, tally
        self._work = "start"
        self._written_at = time.monotonic()
        self._lock = Lock()

    def __call__(self, what: str, fraction: float) -> None:
        check_stopped()
        with self._lock:
            self._tally.advance(what.split(":")[0], fraction)
            self._work = f"{what} {fraction:.0%}" if fraction else what

    def end_step(self, end: StepEnd) -> None:
        check_stopped()
        with self._lock:
            self._tally.end(end)
            if not end.found:
                count = f"{self._tally.count}: " if self._tally.count else ""
                self._print(f"{count}{_describe_end(end)} ({self._tally.clock})")

    def say(self, sentence: str) -> None:
        with self._lock:
            self._print(sentence)

    def tell_work(self) -> None:
        """Say what is being done, unless something was written just now."""
        with self._lock:
            if time.monotonic() - self._written_at >= SECONDS_OF_SILENCE - 1:
                self._print(f"… {self._work} ({self._tally.clock})")

    def _print(self, line: str) -> None:
        self._written_at = time.monotonic()
        self._write(line)


@contextmanager
def _break_silence(lines: _Lines) -> Iterator[None]:
    done = Event()

    def watch() -> None:
        while not done.wait(1.0):
            lines.tell_work()

    watcher = Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        done.set()
        watcher.join()


class _ClockColumn(ProgressColumn):
    """The time beside the bar of the whole, which moves on although nothing else does."""

    def __init__(self, tally: Tally) -> None:
        super().__init__()
        self._tally = tally

    def render(self, task: Task) -> Text:
        return Text(self._tally.clock if task.fields["clock"] else "")


class _Bars:
    """A bar for the whole, one per thread at work, and above them a line for each step that has ended."""

    def __init__(self, progress: Progress, tally: Tally) -> None:
        self._progress, self._tally = progress, tally
        self._whole = progress.add_task("release", total=1.0, clock=True)
        self._shown: dict[int, tuple[str, TaskID]] = {}
        self._lock = Lock()

    def __call__(self, what: str, fraction: float) -> None:
        check_stopped()
        with self._lock:
            thread, step = get_ident(), what.split(":")[0]
            if thread == main_thread().ident:  # it waits for the others, so they have ended
                for other in [other for other in self._shown if other != thread]:
                    self._remove_bar(other)
            if thread in self._shown and self._shown[thread][0] != step:
                self._remove_bar(thread)
            if thread not in self._shown:
                self._shown[thread] = step, self._progress.add_task(escape(what), total=1.0, clock=False)
            self._progress.update(self._shown[thread][1], completed=fraction, description=escape(what))
            self._tally.advance(step, fraction)
            self._update_whole()

    def end_step(self, end: StepEnd) -> None:
        check_stopped()
        with self._lock:
            self._remove_bar(get_ident())
            self._tally.end(end)
            if not end.found:
                self._print(_describe_end(end))
            self._update_whole()

    def say(self, sentence: str) -> None:
        self._print(sentence)

    def _update_whole(self) -> None:
        description = f"{self._tally.count} steps" if self._tally.count else "release"
        self._progress.update(self._whole, completed=self._tally.share, description=description)

    def _remove_bar(self, thread: int) -> None:
        if thread in self._shown:
            self._progress.remove_task(self._shown.pop(thread)[1])

    def _print(self, line: str) -> None:
        self._progress.console.print(line, markup=False, highlight=False)


def _describe_end(end: StepEnd) -> str:
    figure = f", {end.figure}" if end.figure else ""
    return f"{end.name}: {end.seconds:.1f} s{figure}"

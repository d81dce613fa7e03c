"""Progress on the terminal: one line per piece of work, with a bar and the time it took."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from threading import Lock, get_ident, main_thread

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from tasks.execution.interrupt import check_stopped
from tasks.execution.progress import OnProgress


@contextmanager
def progress_report(console: Console, *, quiet: bool) -> Iterator[OnProgress]:
    """A `OnProgress` that draws bars on `console`; with `quiet`, or without a terminal, it says each piece once."""
    if quiet:
        yield _quiet
        return
    if not console.is_terminal:
        yield lines_report(partial(console.print, highlight=False))
        return
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        yield _Bars(progress)


def lines_report(say: Callable[[str], None]) -> OnProgress:
    """A `OnProgress` that says each new piece of work once, for logs."""
    return _Lines(say)


class _Bars:
    """One bar for each thread at work: finished bars by the hundred say nothing."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._shown: dict[int, tuple[str, TaskID]] = {}
        self._lock = Lock()

    def __call__(self, what: str, fraction: float) -> None:
        check_stopped()
        with self._lock:
            mine = get_ident()
            if mine == main_thread().ident:  # it waits for the others, so they have ended
                self._drop(thread for thread in list(self._shown) if thread != mine)
            piece = what.split(" · ")[0]
            if mine in self._shown and self._shown[mine][0] != piece:
                self._drop([mine])
            if mine not in self._shown:
                self._shown[mine] = piece, self._progress.add_task(what, total=1.0)
            self._progress.update(self._shown[mine][1], completed=fraction, description=what)

    def _drop(self, threads: Iterable[int]) -> None:
        for thread in threads:
            self._progress.remove_task(self._shown.pop(thread)[1])


class _Lines:
    """For logs: a line when a new piece of work begins."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say = say
        self._said: set[str] = set()

    def __call__(self, what: str, _fraction: float) -> None:
        check_stopped()
        piece = what.split(":")[0]
        if piece not in self._said:
            self._said.add(piece)
            self._say(piece)


def _quiet(_what: str, _fraction: float) -> None:
    check_stopped()

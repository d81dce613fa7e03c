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
    """Open a progress callback that draws bars on `console`: lines without a terminal, nothing with `quiet`."""
    if quiet:
        yield _ignore_progress
        return
    if not console.is_terminal:
        yield lines_report(partial(console.print, highlight=False))
        return
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        yield _Bars(progress)


def lines_report(say: Callable[[str], None]) -> OnProgress:
    """Make a progress callback that prints each new piece of work once, for logs."""
    return _Lines(say)


class _Bars:
    """One bar per thread at work: hundreds of finished bars would hide the ones that still move."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._shown: dict[int, tuple[str, TaskID]] = {}
        self._lock = Lock()

    def __call__(self, what: str, fraction: float) -> None:
        check_stopped()
        with self._lock:
            thread = get_ident()
            if thread == main_thread().ident:  # it waits for the others, so they have ended
                self._remove_bars(other for other in list(self._shown) if other != thread)
            piece = what.split(" · ")[0]
            if thread in self._shown and self._shown[thread][0] != piece:
                self._remove_bars([thread])
            if thread not in self._shown:
                self._shown[thread] = piece, self._progress.add_task(what, total=1.0)
            self._progress.update(self._shown[thread][1], completed=fraction, description=what)

    def _remove_bars(self, threads: Iterable[int]) -> None:
        for thread in threads:
            self._progress.remove_task(self._shown.pop(thread)[1])


class _Lines:
    """One line for each new piece of work."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say = say
        self._reported: set[str] = set()

    def __call__(self, what: str, _fraction: float) -> None:
        check_stopped()
        piece = what.split(":")[0]
        if piece not in self._reported:
            self._reported.add(piece)
            self._say(piece)


def _ignore_progress(_what: str, _fraction: float) -> None:
    check_stopped()

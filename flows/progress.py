"""Progress on the terminal: one line per piece of work, with a bar and the time it took."""

from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from flows.stages import Report


@contextmanager
def progress_report(console: Console, *, quiet: bool) -> Iterator[Report]:
    """A `Report` that draws bars on `console`; with `quiet`, or without a terminal, it says each piece once."""
    if quiet:
        yield lambda _what, _fraction: None
        return
    if not console.is_terminal:
        yield _Lines(console)
        return
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        yield _Bars(progress)


class _Bars:
    """One bar at a time: work is sequential, and a hundred finished bars say nothing."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._shown: tuple[str, TaskID] | None = None

    def __call__(self, what: str, fraction: float) -> None:
        if self._shown is None or self._shown[0] != what:
            if self._shown is not None:
                self._progress.remove_task(self._shown[1])
            self._shown = what, self._progress.add_task(what, total=1.0)
        self._progress.update(self._shown[1], completed=fraction)


class _Lines:
    """For logs: a line when the work changes."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._said = ""

    def __call__(self, what: str, _fraction: float) -> None:
        piece = what.split(":")[0]
        if piece != self._said:
            self._said = piece
            self._console.print(piece, highlight=False)

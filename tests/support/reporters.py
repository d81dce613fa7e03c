"""A reporter that hands on what a release tells it."""

from collections.abc import Callable
from dataclasses import dataclass

from tasks.execution.progress import StepEnd


@dataclass(frozen=True)
class Told:
    """Calls `tell` with each operation that it is told of; hears no ends and no findings."""

    tell: Callable[[str], None]

    def __call__(self, what: str, _fraction: float) -> None:
        self.tell(what)

    def end_step(self, _end: StepEnd) -> None: ...

    def say(self, _sentence: str) -> None: ...

"""How long operations tell a person, or a log, what they do."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

OnProgress = Callable[[str, float], bool | None]
"""Called with the name of the operation and its finished share (0 to 1); returning False asks it to stop."""


@dataclass(frozen=True)
class StepEnd:
    """A finished step: its name, such as "build cpu int8", the seconds it took, and a figure of its result in words.

    `found` is True where the step had been finished before, and was only looked up.
    """

    name: str
    seconds: float
    found: bool
    figure: str = ""


@runtime_checkable  # Prefect makes a schema of each flow's parameters, which asks for isinstance
class Reporter(Protocol):
    """Where a release tells its progress; it is an `OnProgress` too."""

    def __call__(self, what: str, fraction: float, /) -> bool | None:
        """Take the name of an operation, as "step: phase", and its finished share (0 to 1)."""

    def end_step(self, end: StepEnd, /) -> None:
        """Take a step that has ended."""

    def say(self, sentence: str, /) -> None:
        """Take a finding that is not a step of the work."""


def ignore_progress(_what: str, _fraction: float) -> None:
    """Do nothing."""

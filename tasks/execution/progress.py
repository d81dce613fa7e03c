"""The progress callback of every long operation."""

from collections.abc import Callable

OnProgress = Callable[[str, float], bool | None]
"""Called with the name of the operation and its finished share (0 to 1); returning False asks it to stop."""


def ignore_progress(_what: str, _fraction: float) -> None:
    """Do nothing."""

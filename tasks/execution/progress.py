"""How long work tells what it does."""

from collections.abc import Callable

OnProgress = Callable[[str, float], bool | None]
"""Called with what is being made and how much of it is done (0 to 1); only False asks the work to stop."""


def ignore_progress(_what: str, _fraction: float) -> None:
    """Tell nobody."""

"""MLflow's errors and pages, in the registry's own terms."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from mlflow.exceptions import MlflowException

from registry.errors import BadInput, EngineryError, NotFound


@contextmanager
def plainly(what: str) -> Iterator[None]:
    """An error of MLflow becomes one of ours, in one sentence that begins with `what`."""
    try:
        yield
    except MlflowException as error:
        sentence = str(error).splitlines()[0] if str(error) else type(error).__name__
        kind = NotFound if error.error_code == "RESOURCE_DOES_NOT_EXIST" else EngineryError
        raise kind(f"MLflow, {what}: {sentence}") from error


def pages(search: Callable[[str | None], Any], most: int | None = None) -> list[Any]:
    """Every row of a paged search, or the first `most`."""
    found = page = search(None)
    rows = list(found)
    while page.token and (most is None or len(rows) < most):
        page = search(page.token)
        rows += page
    return rows[:most]


def quotable(text: str) -> str:
    """An id from outside, safe between the quotes of a search.

    Raises:
        BadInput: it is more than letters and digits.
    """
    if not text.isalnum():
        raise BadInput(f"{text[:80]!r} is no id: letters and digits only")
    return text

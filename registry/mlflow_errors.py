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


def pages(search: Callable[[str | None], Any]) -> Iterator[Any]:
    """Every row of a paged search, read as far as it is asked for."""
    page = search(None)
    yield from page
    while page.token:
        page = search(page.token)
        yield from page


def quotable(text: str) -> str:
    """An id from outside, safe between the quotes of a search.

    Raises:
        BadInput: it is more than letters, digits and '-'.
    """
    if not text.replace("-", "").isalnum():
        raise BadInput(f"{text[:80]!r} is no id: letters, digits and '-' only")
    return text


@contextmanager
def existing_is_fine() -> Iterator[None]:
    """Whoever made it first: it is there."""
    try:
        yield
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise

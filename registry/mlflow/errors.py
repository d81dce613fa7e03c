"""MLflow's errors and pages, in the registry's own terms."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.client import FORBIDDEN
from typing import Any

from mlflow.exceptions import MlflowException

from registry.errors import BadInput, EngineryError, NotFound

_REFUSALS = {
    401: "the server does not know this user and password: set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD",
    403: "this user may read and not change that: be a user who may (MLFLOW_TRACKING_USERNAME), or ask for the right",
}


@contextmanager
def plainly(what: str) -> Iterator[None]:
    """An error of MLflow becomes one of ours, in one sentence that begins with `what`."""
    try:
        yield
    except MlflowException as error:
        sentence = refusal(error) or (str(error).splitlines()[0] if str(error) else type(error).__name__)
        kind = NotFound if error.error_code == "RESOURCE_DOES_NOT_EXIST" else EngineryError
        raise kind(f"MLflow, {what}: {sentence}") from error


def refusal(error: Exception) -> str | None:
    """What to do where the server's basic auth turned a request down; None where it did not."""
    response = getattr(error, "response", None)  # of requests: files are sent without mlflow's own errors
    if response is not None:
        status, said = response.status_code, response.text
    elif isinstance(error, MlflowException):
        status, said = error.get_http_status_code(), str(error)  # type: ignore[no-untyped-call]
    else:
        return None
    # A proxy's 403, or one for a host name that is not allowed, has other words and other causes.
    return _REFUSALS.get(status) if status != FORBIDDEN or "Permission denied" in said else None


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

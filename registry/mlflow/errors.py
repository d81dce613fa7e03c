"""MLflow's errors, pages and search strings in the registry's own terms."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.client import FORBIDDEN, HTTPException
from typing import Any

import requests
from google.protobuf.json_format import ParseError  # type: ignore[import-untyped]
from mlflow.exceptions import MlflowException

from registry.errors import BadInput, EngineryError, NotFound, first_line

# mlflow's client does not check what a server answers: a missing field, another type, deep JSON, garbage.
_UNREADABLE = (
    *(requests.RequestException, HTTPException, ParseError),
    *(LookupError, TypeError, ValueError, AttributeError, RecursionError),
)
# Of SQLite and of the system; SQLAlchemy's own text begins with other words.
_DISK = (
    "database or disk is full",
    "disk I/O error",
    "attempt to write a readonly database",
    "No space left on device",
)
_REFUSALS = {
    401: "the server does not accept this user and password: set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD",
    403: "this user has no permission to change it: ask for the permission, or set MLFLOW_TRACKING_USERNAME to another",
}


@contextmanager
def translate_errors(what: str) -> Iterator[None]:
    """Raise MLflow's errors as one sentence that begins with `what`.

    Raises:
        NotFound: MLflow has no such thing.
        EngineryError: anything else, also an answer that mlflow's client cannot read.
    """
    try:
        yield
    except MlflowException as error:
        sentence = explain_refusal(error) or explain_disk(error) or first_line(error)
        kind = NotFound if error.error_code == "RESOURCE_DOES_NOT_EXIST" else EngineryError
        raise kind(f"MLflow, {what}: {sentence}") from error
    except _UNREADABLE as error:
        raise EngineryError(
            f"MLflow, {what}: the registry's answer cannot be read ({type(error).__name__}): check the server, or the "
            "proxy before it"
        ) from error


def explain_disk(error: Exception) -> str | None:
    """Return what to do if the disk of the registry's database is the reason of an error, else None."""
    for reason in _DISK:
        if reason in str(error):
            return f"{reason}: free space on the disk of the registry's database, then run the same command again"
    return None


def explain_refusal(error: Exception) -> str | None:
    """Return what to do if the server's basic auth refused the request, else None."""
    response = getattr(error, "response", None)  # of requests: files are sent without mlflow's own errors
    if response is not None:
        status, message = response.status_code, response.text
    elif isinstance(error, MlflowException):
        status, message = error.get_http_status_code(), str(error)  # type: ignore[no-untyped-call]
    else:
        return None
    # A 403 of a proxy, or for a host name that is not allowed, has another message and another cause.
    return _REFUSALS.get(status) if status != FORBIDDEN or "Permission denied" in message else None


def read_pages(search: Callable[[str | None], Any]) -> Iterator[Any]:
    """Yield every row of a paged search; a page is requested when its first row is needed."""
    page = search(None)
    yield from page
    while page.token:
        page = search(page.token)
        yield from page


def check_id(text: str) -> str:
    """Return an id from outside if it is safe between the quotes of a search.

    Raises:
        BadInput: it has other characters than letters, digits and '-'.
    """
    if not text.replace("-", "").isalnum():
        raise BadInput(f"{text[:80]!r} is not an id: use letters, digits and '-' only")
    return text


@contextmanager
def ignore_existing() -> Iterator[None]:
    """Ignore "already exists": another process created it first."""
    try:
        yield
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise

"""Whether the Prefect server of PREFECT_API_URL answers, and one sentence where it does not or stops doing so."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from registry.errors import BadInput, EngineryError
from registry.mlflow.connect import tls_failure

_SECONDS = 10.0
_REFUSED = (401, 403)


@contextmanager
def prefect_answers(what: str) -> Iterator[None]:
    """Ask the server once, then run the block; `what` needs it, and begins the sentence where none is named.

    Raises:
        BadInput: PREFECT_API_URL is not set, or is no address of a Prefect server; or the certificates are no file.
        EngineryError: nothing answers there, now or within the block, or it does not let us in.
    """
    if not (server := os.environ.get("PREFECT_API_URL")):
        raise BadInput(
            f"{what} a Prefect server: set PREFECT_API_URL to its address, or start one here with `enginery up`"
        )
    _check_certificates()
    # A second, which only who needs a server pays.
    import httpx
    from prefect.client.orchestration import get_client

    place = server.rpartition("@")[2].removeprefix("http://").removeprefix("https://")
    try:
        with get_client(sync_client=True, httpx_settings={"timeout": _SECONDS}) as client:
            client.request("GET", "/admin/version")
        yield
    except httpx.HTTPStatusError as error:
        status = error.response.status_code
        if status in _REFUSED:
            raise EngineryError(
                f"the Prefect server at {place} does not let us in ({status}): set PREFECT_API_AUTH_STRING to its own"
            ) from error
        raise EngineryError(
            f"the Prefect server at {place} answered {status} to {error.request.method} {error.request.url.path}: "
            "is PREFECT_API_URL the address of its API, ending in /api, and is it of this Prefect's version?"
        ) from error
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        if untrusted := tls_failure(error):
            raise EngineryError(
                f"the Prefect server at {place} is not trusted ({untrusted}): set SSL_CERT_FILE to the certificates of "
                "your authority, or have the server's own renewed"
            ) from error
        raise EngineryError(
            f"no Prefect server answers at {place} ({error}): start it, or set PREFECT_API_URL to another; what was "
            "finished is kept, and the same command goes on"
        ) from error


def _check_certificates() -> None:
    for name in ("PREFECT_API_SSL_CERT_FILE", "SSL_CERT_FILE"):
        # Prefect and httpx open it as soon as they are imported, and say so by a traceback.
        if (certificates := os.environ.get(name)) and not Path(certificates).is_file():
            raise BadInput(f"{name} is {certificates}, which is no file: mend it")

"""A check that the Prefect server of PREFECT_API_URL answers, with one sentence where it does not or stops to."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

from registry.errors import BadInput, EngineryError
from registry.mlflow.connect import tls_failure

_TIMEOUT_SECONDS = 10.0
_ACCESS_REFUSED = (401, 403)


@contextmanager
def require_prefect_server(command: str) -> Iterator[None]:
    """Check that the Prefect server answers, then run the block; turn its failures within the block into a sentence.

    Args:
        command: the subcommand that needs the server, such as "worker".

    Raises:
        BadInput: PREFECT_API_URL is not set or no URL, or a certificate file does not exist.
        EngineryError: no Prefect server answers there, at first or within the block, or it refuses access.
    """
    if not (server := os.environ.get("PREFECT_API_URL")):
        raise BadInput(
            f"`enginery {command}` needs a Prefect server: set PREFECT_API_URL to its API (…/api), or run `enginery up`"
        )
    check_address(server)
    _check_certificates()
    # They take a second to import, which only commands that need a server spend.
    import httpx
    from prefect.client.orchestration import get_client

    place = server.rpartition("@")[2].removeprefix("http://").removeprefix("https://")
    try:
        with get_client(sync_client=True, httpx_settings={"timeout": _TIMEOUT_SECONDS}) as client:
            client.request("GET", "/admin/version")
        yield
    except httpx.HTTPStatusError as error:
        status = error.response.status_code
        if status in _ACCESS_REFUSED:
            raise EngineryError(
                f"the Prefect server at {place} refused access ({status}): set PREFECT_API_AUTH_STRING (user:password)"
            ) from error
        raise EngineryError(
            f"the Prefect server at {place} answered {status} to {error.request.method} {error.request.url.path}: "
            "check that PREFECT_API_URL ends in /api, and that the server runs this machine's version of Prefect"
        ) from error
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        if untrusted := tls_failure(error):
            raise EngineryError(
                f"the certificate of the Prefect server at {place} is not trusted ({untrusted}): set SSL_CERT_FILE to "
                "your CA's certificates, or have the server's certificate renewed"
            ) from error
        raise EngineryError(
            f"no Prefect server answers at {place} ({error}): start it, or set PREFECT_API_URL to another; finished "
            "work is kept: run the same command again to resume"
        ) from error


def check_address(server: str) -> None:
    """Check that PREFECT_API_URL can be read as a URL: Prefect fails with a traceback as soon as it is imported.

    Raises:
        BadInput: it cannot.
    """
    try:
        urlsplit(server)
    except ValueError as error:
        raise BadInput(f"PREFECT_API_URL is not a valid URL ({error}): set it to http(s)://HOST:PORT/api") from error


def _check_certificates() -> None:
    for name in ("PREFECT_API_SSL_CERT_FILE", "SSL_CERT_FILE"):
        # Prefect and httpx open it as soon as they are imported, and fail with a traceback.
        if (certificates := os.environ.get(name)) and not Path(certificates).is_file():
            raise BadInput(f"{name} is {certificates}, which is not a file: correct the path, or unset it")

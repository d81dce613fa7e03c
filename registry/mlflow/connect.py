"""Open the registry that the environment names, after a check that it answers.

mlflow itself silently retries an unreachable server for minutes; here the user gets one sentence in seconds.
"""

import gc
import os
import re
import time
from typing import TYPE_CHECKING

from registry.errors import BadInput, EngineryError, first_line, shown_address
from registry.host.home import home

if TYPE_CHECKING:
    from registry.mlflow.store import MlflowStore

_SERVERS, _DATABASES = ("http", "https"), ("postgresql", "mysql", "mssql")
_TIMEOUT_SECONDS = 10.0
# How long jobs of the fleet wait: a restarting server answers again within it. Someone at a terminal is told at once.
JOB_PATIENCE_SECONDS = 90.0


class NotReachable(EngineryError):
    """A registry that does not answer at its address; it may be back soon."""


def open_store(*, patience_seconds: float = 0.0) -> "MlflowStore":
    """Open the registry at MLFLOW_TRACKING_URI, or the embedded one under ENGINERY_HOME.

    ENGINERY_LEASE_DATABASE names the database that serialises promotion if MLflow is behind a server.

    Args:
        patience_seconds: how long to keep trying a registry that does not answer.

    Raises:
        BadInput: MLFLOW_TRACKING_URI is not the address of a registry.
        EngineryError: the registry does not answer, or its certificate is not trusted.
    """
    uri, lease_database = os.environ.get("MLFLOW_TRACKING_URI"), os.environ.get("ENGINERY_LEASE_DATABASE")
    if uri:
        check_reachable(uri, patience_seconds)
    from registry.mlflow.store import MlflowStore, embedded_store

    store = MlflowStore(uri, home(), lease_database=lease_database) if uri else embedded_store(home())
    # Why this exists: `import mlflow` leaves several hundred thousand objects, and each full garbage collection would
    # visit all of them and stop a call for a quarter of a second (docs/adr/0010). Frozen objects are not visited.
    gc.freeze()
    return store


def check_reachable(uri: str, patience_seconds: float = 0.0, *, pause_seconds: float = 2.0) -> None:
    """Check that something answers at a tracking URI, whatever the answer is.

    Args:
        uri: the address of an MLflow server or of its database.
        patience_seconds: how long to keep trying.
        pause_seconds: between two tries.

    Raises:
        BadInput: the address is not valid, or the driver of its database is not installed.
        NotReachable: nothing answers.
        EngineryError: the server's certificate is not trusted.
    """
    deadline = time.monotonic() + patience_seconds
    while True:
        try:
            return _check_once(uri)
        except NotReachable:
            if time.monotonic() > deadline:
                raise
        time.sleep(pause_seconds)


def tls_failure(error: Exception) -> str | None:
    """Return OpenSSL's reason if an HTTP client's error is about TLS, else None."""
    reason = re.search(r"\[(?:SSL|X509)[^]]*\] (.+?)\.? \(_(?:ssl|x509)\.c", str(error))
    return reason[1] if reason else None


def _check_once(uri: str) -> None:
    scheme = uri.partition(":")[0].partition("+")[0]
    if scheme in _SERVERS:
        _check_server(uri)
    elif scheme in _DATABASES:
        _check_database(uri)


def _check_server(uri: str) -> None:
    import requests

    host = shown_address(uri).removeprefix("http://").removeprefix("https://")
    # As mlflow's own requests: through the same proxies, and by the same certificates.
    insecure = os.environ.get("MLFLOW_TRACKING_INSECURE_TLS", "").lower() in ("true", "1")
    verify = False if insecure else os.environ.get("MLFLOW_TRACKING_SERVER_CERT_PATH") or True
    try:
        requests.get(f"{uri.rstrip('/')}/health", timeout=_TIMEOUT_SECONDS, stream=True, verify=verify).close()
    except requests.exceptions.SSLError as error:
        raise EngineryError(
            f"the MLflow server at {host} is not trusted ({tls_failure(error) or 'TLS failed'}): set "
            "REQUESTS_CA_BUNDLE to the certificates of your authority, or have the server's own renewed"
        ) from error
    except (requests.ConnectionError, requests.Timeout) as error:
        raise NotReachable(
            f"no MLflow server answers at {host}: start it, or set MLFLOW_TRACKING_URI to another"
        ) from error
    except requests.RequestException as error:
        # Its own text repeats the address, and with it a password.
        raise BadInput(
            f"MLFLOW_TRACKING_URI is not a valid URL ({type(error).__name__}): set it to http(s)://HOST:PORT, or unset "
            "it for the local registry"
        ) from error
    except OSError as error:
        raise BadInput(f"{error}: correct REQUESTS_CA_BUNDLE or MLFLOW_TRACKING_SERVER_CERT_PATH") from error


def _check_database(uri: str) -> None:
    from sqlalchemy import NullPool, create_engine
    from sqlalchemy.exc import SQLAlchemyError

    try:
        create_engine(uri, poolclass=NullPool).connect().close()
    except ImportError as error:
        raise BadInput(
            f"the registry's database needs {error.name}: install it, for PostgreSQL by .[postgres]"
        ) from error
    except SQLAlchemyError as error:
        # psycopg's text names the host and never the password.
        reason = first_line(getattr(error, "orig", None) or error)
        raise NotReachable(
            f"the registry's database does not answer ({reason}): start it, or set MLFLOW_TRACKING_URI to another"
        ) from error

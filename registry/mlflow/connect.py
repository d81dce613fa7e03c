"""Whether a registry answers, asked before mlflow asks: that tries again for minutes, without a word."""

import gc
import os
import re
import time
from typing import Any

from registry.errors import BadInput, EngineryError
from registry.host.home import home

_SERVERS, _DATABASES = ("http", "https"), ("postgresql", "mysql", "mssql")
_SECONDS, _PAUSE_SECONDS = 10.0, 2.0


class NotReachable(EngineryError):
    """Nothing answers at the address of a registry, which may be back soon."""


def check_reachable(uri: str, patience_seconds: float = 0.0) -> None:
    """Look whether anything answers at a tracking URI, again and again for so long; what it answers is for later.

    Raises:
        BadInput: a database whose driver is not installed, or an address that is none.
        NotReachable: nothing answers.
        EngineryError: the server is not trusted.
    """
    deadline = time.monotonic() + patience_seconds
    while True:
        try:
            return _check(uri)
        except NotReachable:
            if time.monotonic() > deadline:
                raise
        time.sleep(_PAUSE_SECONDS)


def _check(uri: str) -> None:
    scheme = uri.partition(":")[0].partition("+")[0]
    if scheme in _SERVERS:
        _ask(uri)
    elif scheme in _DATABASES:
        _connect(uri)


def tls_failure(error: Exception) -> str | None:
    """What OpenSSL said, where an HTTP client's error is about TLS; else None."""
    found = re.search(r"\[(?:SSL|X509)[^]]*\] (.+?)\.? \(_(?:ssl|x509)\.c", str(error))
    return found[1] if found else None


def _ask(uri: str) -> None:
    import requests

    place = uri.rpartition("@")[2].removeprefix("http://").removeprefix("https://")
    # As mlflow will ask: through the same proxies, and by the same certificates.
    insecure = os.environ.get("MLFLOW_TRACKING_INSECURE_TLS", "").lower() in ("true", "1")
    verify = False if insecure else os.environ.get("MLFLOW_TRACKING_SERVER_CERT_PATH") or True
    try:
        requests.get(f"{uri.rstrip('/')}/health", timeout=_SECONDS, stream=True, verify=verify).close()
    except requests.exceptions.SSLError as error:
        raise EngineryError(
            f"the MLflow server at {place} is not trusted ({tls_failure(error) or 'TLS failed'}): set "
            "REQUESTS_CA_BUNDLE to the certificates of your authority, or have the server's own renewed"
        ) from error
    except (requests.ConnectionError, requests.Timeout) as error:
        raise NotReachable(
            f"no MLflow server answers at {place}: start it, or set MLFLOW_TRACKING_URI to another"
        ) from error
    except requests.RequestException as error:
        # Its own text repeats the address, and with it a password.
        raise BadInput(f"MLFLOW_TRACKING_URI is no address ({type(error).__name__}): mend it") from error
    except OSError as error:
        raise BadInput(f"{error}: mend REQUESTS_CA_BUNDLE or MLFLOW_TRACKING_SERVER_CERT_PATH") from error


def _connect(uri: str) -> None:
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
        sentence = str(getattr(error, "orig", None) or error).splitlines()[0]
        raise NotReachable(
            f"the registry's database does not answer ({sentence}): start it, or set MLFLOW_TRACKING_URI to another"
        ) from error


# A server that is restarted is back by then. Who sits at a terminal wants to know at once; a job of the fleet can wait.
JOB_PATIENCE_SECONDS = 90.0


def open_store(*, patience_seconds: float = 0.0) -> Any:
    """The registry: MLFLOW_TRACKING_URI's, or the embedded one under ENGINERY_HOME.

    ENGINERY_LEASE_DATABASE names the database that serialises promotion where MLflow is behind a server. One that does
    not answer is asked again for `patience_seconds`.

    Raises:
        BadInput: MLFLOW_TRACKING_URI is no address of a registry.
        EngineryError: nothing answers there, or it is not trusted.
    """
    uri, leases = os.environ.get("MLFLOW_TRACKING_URI"), os.environ.get("ENGINERY_LEASE_DATABASE")
    if uri:
        check_reachable(uri, patience_seconds)
    from registry.mlflow.store import MlflowStore, embedded_store

    store = MlflowStore(uri, home(), lease_database=leases) if uri else embedded_store(home())
    # What was imported stays: each full collection of garbage would go over all of it, and take a quarter of a second.
    gc.freeze()
    return store

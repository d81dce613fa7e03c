"""Open the registry that the environment names, after a check that it answers.

mlflow itself silently retries an unreachable server for minutes; here the user gets one sentence in seconds.
"""

import gc
import os
import re
import sqlite3
import time
from contextlib import closing
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from registry.errors import BadInput, EngineryError, first_line, shown_address
from registry.host.home import home, writable_home

if TYPE_CHECKING:
    from registry.mlflow.store import MlflowStore

_SERVERS, _DATABASES = ("http", "https"), ("postgresql", "mysql", "mssql")
_FILES = ("sqlite", "sqlite+pysqlite")
_FIX = "set it to http(s)://HOST:PORT, or unset it for the local registry"
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
    uri = name_driver(os.environ.get("MLFLOW_TRACKING_URI", ""))
    if uri:
        check_reachable(uri, patience_seconds)
    elif not (home() / "mlflow.db").is_file():
        writable_home()  # where it will be made
    from registry.mlflow.store import MlflowStore, embedded_store

    lease_database = name_driver(os.environ.get("ENGINERY_LEASE_DATABASE", "")) or None
    store = MlflowStore(uri, home(), lease_database=lease_database) if uri else embedded_store(home())
    # Why this exists: `import mlflow` leaves several hundred thousand objects, and each full garbage collection would
    # visit all of them and stop a call for a quarter of a second (docs/adr/0010). Frozen objects are not visited.
    gc.freeze()
    return store


def name_driver(uri: str) -> str:
    """Return a database's address with the PostgreSQL driver that is installed: SQLAlchemy alone expects psycopg2."""
    head, separator, tail = uri.partition("://")
    newer = head == "postgresql" and find_spec("psycopg2") is None and find_spec("psycopg") is not None
    return f"postgresql+psycopg{separator}{tail}" if newer else uri


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
    driver = uri.partition(":")[0]
    scheme = driver.partition("+")[0]
    if scheme in _SERVERS:
        _check_server(uri)
    elif scheme in _DATABASES:
        _check_database(uri)
    elif driver in _FILES:
        _check_file(uri)
    else:
        raise BadInput(f"MLFLOW_TRACKING_URI is {shown_address(uri)!r}, which is not the address of a registry: {_FIX}")


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
        raise BadInput(f"MLFLOW_TRACKING_URI is not a valid URL ({type(error).__name__}): {_FIX}") from error
    except OSError as error:
        raise BadInput(f"{error}: correct REQUESTS_CA_BUNDLE or MLFLOW_TRACKING_SERVER_CERT_PATH") from error


def _check_database(uri: str) -> None:
    from sqlalchemy import NullPool, create_engine
    from sqlalchemy.exc import ArgumentError, SQLAlchemyError

    try:
        create_engine(uri, poolclass=NullPool).connect().close()
    except ImportError as error:
        raise BadInput(
            f"the registry's database needs {error.name}: install it, for PostgreSQL by .[postgres]"
        ) from error
    except (ArgumentError, ValueError) as error:  # of a port that is no number; its text repeats the address
        raise BadInput(f"MLFLOW_TRACKING_URI is not a valid address of a database: {_FIX}") from error
    except SQLAlchemyError as error:
        # psycopg's text names the host and never the password.
        reason = first_line(getattr(error, "orig", None) or error)
        raise NotReachable(
            f"the registry's database does not answer ({reason}): start it, or set MLFLOW_TRACKING_URI to another"
        ) from error


def _check_file(uri: str) -> None:
    """Check that an SQLite registry can be opened; mlflow would try for two minutes."""
    path = Path(uri.partition(":///")[2].partition("?")[0])
    try:
        if not path.name or (path.exists() and not path.is_file()):
            raise BadInput(
                f"MLFLOW_TRACKING_URI is {shown_address(uri)}, which names no file: set it to sqlite:///FILE, or unset "
                "it for the local registry"
            )
        with closing(sqlite3.connect(path)) as database:
            database.execute("SELECT count(*) FROM sqlite_master")
    except (OSError, sqlite3.Error) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise BadInput(
            f"the registry at {shown_address(uri)[:200]} cannot be opened ({reason}): correct MLFLOW_TRACKING_URI, or "
            "unset it for the local registry"
        ) from error

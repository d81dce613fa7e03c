"""Whether a registry answers, asked before mlflow asks: that tries again for minutes, without a word."""

import time

from registry.errors import BadInput, EngineryError

_SERVERS, _DATABASES = ("http", "https"), ("postgresql", "mysql", "mssql")
_SECONDS = 10.0
_PAUSE_SECONDS = 2.0


def check_reachable(uri: str, wait_seconds: float = 0.0) -> None:
    """Look whether anything answers at a tracking URI, again and again for so long; what it answers is for later.

    Raises:
        BadInput: a database whose driver is not installed, or an address that is none.
        EngineryError: nothing answers.
    """
    deadline = time.monotonic() + wait_seconds
    while True:
        try:
            _look(uri)
        except BadInput:
            raise
        except EngineryError:
            if time.monotonic() > deadline:
                raise
        else:
            return
        time.sleep(_PAUSE_SECONDS)


def _look(uri: str) -> None:
    scheme = uri.partition(":")[0].partition("+")[0]
    if scheme in _SERVERS:
        _ask(uri)
    elif scheme in _DATABASES:
        _connect(uri)


def _ask(uri: str) -> None:
    import requests

    try:
        # Through the proxies that mlflow will use. A TLS error is an answer: mlflow has settings of its own for it.
        requests.get(f"{uri.rstrip('/')}/health", timeout=_SECONDS, stream=True).close()
    except requests.exceptions.SSLError:
        return
    except (requests.ConnectionError, requests.Timeout) as error:
        place = uri.rpartition("@")[2].removeprefix("http://").removeprefix("https://")
        raise EngineryError(
            f"no MLflow server answers at {place}: start it, or set MLFLOW_TRACKING_URI to another"
        ) from error
    except requests.RequestException as error:
        raise BadInput(f"MLFLOW_TRACKING_URI is no address ({error}): mend it") from error


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
        raise EngineryError(
            f"the registry's database does not answer ({sentence}): start it, or set MLFLOW_TRACKING_URI to another"
        ) from error

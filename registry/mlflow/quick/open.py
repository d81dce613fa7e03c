"""Open the registry that the environment names to read it, as fast as it allows."""

import os
from pathlib import Path

from registry.host.home import home
from registry.mlflow.connect import open_store
from registry.mlflow.quick.rest import RestRows, is_plain
from registry.mlflow.quick.sqlite import SqliteRows
from registry.mlflow.quick.store import QuickStore
from registry.store import ServingStore

_SQLITE = "sqlite:///"


def open_to_read() -> ServingStore:
    """Open the registry at MLFLOW_TRACKING_URI, or the embedded one under ENGINERY_HOME.

    mlflow is imported only for what the registry's rows do not tell by themselves, and then `open_store` raises.
    """
    uri = os.environ.get("MLFLOW_TRACKING_URI", "")
    if is_plain(uri):
        return QuickStore(RestRows(uri), open_store)
    if not uri:
        return QuickStore(SqliteRows(home() / "mlflow.db"), open_store)
    if uri.startswith(_SQLITE) and not set(uri) & set("?%#"):
        return QuickStore(SqliteRows(Path(uri.removeprefix(_SQLITE))), open_store)
    return open_store()

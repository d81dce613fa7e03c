"""Files of MLflow runs that hosts hand to each other: named by what is in them, and verified on arrival."""

import hashlib
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient
from requests import RequestException

from registry.errors import DigestMismatch, EngineryError, Interrupted
from registry.mlflow.artifacts import open_source
from registry.mlflow.errors import refusal
from registry.mlflow.store import MlflowStore
from registry.mlflow.uploads import upload_to_run

T = TypeVar("T")
# A server that is restarted is back by then. MLflow's client has retries of its own, but not in every call.
_PAUSES_SECONDS = (2.0, 5.0, 15.0, 30.0, 60.0)


class RunFiles:
    """Uploads files to runs, and downloads them by URI, size and sha256."""

    def __init__(self, store: MlflowStore) -> None:
        self._client: MlflowClient = store.client

    def put(self, run_id: str, file: Path, folder: str) -> str:
        """Log `file` under `folder` of the run's artifacts, and give its URI.

        Its name must say its content: a file of that name and size that is there already is left as it is.

        Raises:
            Interrupted: MLflow failed again and again.
            StoreFailed: its artifact store did.
            EngineryError: the server's basic auth turned the user down.
        """
        return _patiently(lambda: self._put(run_id, file, folder))

    def get(self, uri: str, sha256: str, size_bytes: int, into: Path) -> None:
        """Copy the file at `uri` to the path `into`; no more bytes than announced are read.

        Raises:
            DigestMismatch: its bytes are others.
            NotFound: it is not there.
            Interrupted: the store failed again and again.
        """
        _patiently(lambda: self._get(uri, sha256, size_bytes, into))

    def _put(self, run_id: str, file: Path, folder: str) -> str:
        try:
            run = self._client.get_run(run_id)
            there = {found.path: found.file_size for found in self._client.list_artifacts(run_id, folder)}
            if there.get(f"{folder}/{file.name}") != file.stat().st_size:
                upload_to_run(self._client, run_id, file, folder)
        except (MlflowException, RequestException) as error:
            if turned_down := refusal(error):
                raise EngineryError(f"{folder}/{file.name} could not be uploaded: {turned_down}") from error
            raise Interrupted(
                f"{folder}/{file.name} could not be uploaded ({str(error)[:300]}): look at the MLflow server and its "
                "store, and release again"
            ) from error
        return f"{run.info.artifact_uri}/{folder}/{file.name}"

    def _get(self, uri: str, sha256: str, size_bytes: int, into: Path) -> None:
        folder, _, name = uri.rpartition("/")
        found, size = hashlib.sha256(), 0
        with into.open("wb") as file:
            for chunk in open_source(folder, self._client.tracking_uri, probe=name).read(name):
                size += len(chunk)
                if size > size_bytes:
                    break
                found.update(chunk)
                file.write(chunk)
        if size != size_bytes or found.hexdigest() != sha256:
            raise DigestMismatch(
                f"{uri}: sha256 is {found.hexdigest()} ({size} bytes), {sha256} ({size_bytes} bytes) was announced; "
                "the upload was torn or changed: delete it, and release again"
            )


def _patiently(call: Callable[[], T]) -> T:
    for pause in _PAUSES_SECONDS:
        try:
            return call()
        except Interrupted:
            time.sleep(pause)
    return call()

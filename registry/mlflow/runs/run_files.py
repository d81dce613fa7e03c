"""What hosts exchange through MLflow runs: files verified on arrival, and which results a release accepted."""

import hashlib
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient
from requests import RequestException

from registry.errors import DigestMismatch, EngineryError, Interrupted
from registry.mlflow.errors import check_id, explain_refusal, translate_errors
from registry.mlflow.files.artifacts import open_files, upload_to_run
from registry.mlflow.publish import KIND
from registry.mlflow.rows import LONGEST
from registry.mlflow.store import MlflowStore
from registry.names import check_name

T = TypeVar("T")
# On a release's run: the outcome of each target that was accepted, and the flow runs whose results no longer count.
OUTCOME, GIVEN_UP = "enginery.outcome.", "enginery.given_up."
# A restarting server is back by then. MLflow's client has retries of its own, but not in every call.
# The project's other retries are listed at STORE_PAUSES_SECONDS in registry/mlflow/files/artifacts.py.
SERVER_PAUSES_SECONDS = (2.0, 5.0, 15.0, 30.0, 60.0)


class RunFiles:
    """Uploads files to runs, and downloads them by URI, size and sha256."""

    def __init__(self, store: MlflowStore) -> None:
        self._client: MlflowClient = store.client

    def put(self, run_id: str, file: Path, folder: str) -> str:
        """Upload `file` under `folder` of the run's artifacts, and return its URI.

        Its name must identify its content: an existing file of that name and size is not replaced.

        Raises:
            Interrupted: MLflow failed repeatedly.
            StoreFailed: its artifact store did.
            EngineryError: the server's basic auth refused the user.
        """
        return _retry_interrupted(lambda: self._put(run_id, file, folder))

    def get(self, uri: str, sha256: str, size_bytes: int, into: Path) -> None:
        """Copy the file at `uri` to the path `into`, reading no more bytes than announced.

        Raises:
            DigestMismatch: its size or sha256 differ.
            NotFound: it does not exist.
            Interrupted: the store failed repeatedly.
        """
        _retry_interrupted(lambda: self._get(uri, sha256, size_bytes, into))

    def _put(self, run_id: str, file: Path, folder: str) -> str:
        try:
            run = self._client.get_run(run_id)
            existing = {item.path: item.file_size for item in self._client.list_artifacts(run_id, folder)}
            if existing.get(f"{folder}/{file.name}") != file.stat().st_size:
                upload_to_run(self._client, run_id, file, folder)
        except (MlflowException, RequestException) as error:
            if advice := explain_refusal(error):
                raise EngineryError(f"{folder}/{file.name} could not be uploaded: {advice}") from error
            raise Interrupted(
                f"{folder}/{file.name} could not be uploaded ({str(error)[:300]}): check the MLflow server and its "
                "store, and release again"
            ) from error
        return f"{run.info.artifact_uri}/{folder}/{file.name}"

    def _get(self, uri: str, sha256: str, size_bytes: int, into: Path) -> None:
        folder, _, name = uri.rpartition("/")
        digest, size = hashlib.sha256(), 0
        with into.open("wb") as file:
            for chunk in open_files(folder, self._client.tracking_uri, probe=name).read(name):
                size += len(chunk)
                if size > size_bytes:
                    break
                digest.update(chunk)
                file.write(chunk)
        if size != size_bytes or digest.hexdigest() != sha256:
            raise DigestMismatch(
                f"{uri}: sha256 is {digest.hexdigest()} ({size} bytes), {sha256} ({size_bytes} bytes) was announced; "
                "the upload was interrupted or changed: delete it, and release again"
            )


class OutcomeLog:
    """The results of targets that releases accepted, and the flow runs they gave up: tags of a release's run."""

    def __init__(self, store: MlflowStore) -> None:
        self._client: MlflowClient = store.client
        self._find_experiment = store.find_experiment

    @translate_errors("runs of releases")
    def accept(self, run_id: str, target: str, key: str, outcome: str) -> None:
        """Record a target's outcome (JSON) under `key`."""
        self._client.set_tag(run_id, f"{OUTCOME}{target}", f"{key} {outcome}")

    @translate_errors("runs of releases")
    def accepted(self, model: str, target: str, key: str) -> str | None:
        """Return the newest outcome that any release of the model accepted for that target and key, or None."""
        tag = f"{OUTCOME}{target}"
        query = f"tags.`{KIND}` = 'release' and tags.`{tag}` LIKE '{check_id(key)} %'"
        experiment = self._find_experiment(check_name(model, what="model"))
        runs = self._client.search_runs([experiment], query, max_results=1) if experiment else []
        return str(runs[0].data.tags[tag]).partition(" ")[2] if runs else None

    @translate_errors("runs of releases")
    def give_up(self, run_id: str, flow_run: str, reason: str) -> None:
        """Record that a flow run's result will not be accepted any more, before anything else is done about it."""
        self._client.set_tag(run_id, f"{GIVEN_UP}{flow_run}", reason[:LONGEST])

    @translate_errors("runs of releases")
    def given_up(self, run_id: str) -> frozenset[str]:
        """Return the flow runs that this release gave up."""
        tags = self._client.get_run(run_id).data.tags
        return frozenset(name.removeprefix(GIVEN_UP) for name in tags if name.startswith(GIVEN_UP))


def _retry_interrupted(transfer: Callable[[], T]) -> T:
    for pause in SERVER_PAUSES_SECONDS:
        try:
            return transfer()
        except Interrupted:
            time.sleep(pause)
    return transfer()

"""Files into MLflow's artifact store: a store that fails is said soon, a server that is away is waited for.

An MLflow server answers 500 where its store keeps nothing: a full disk, a bucket that refuses. MLflow's own client
asks again for four minutes a file before it says so (http_artifact_repo.py and rest_utils.py of 3.17).
"""

import time
from pathlib import Path
from typing import Any
from urllib.parse import quote

from mlflow.environment_variables import MLFLOW_ENABLE_PROXY_MULTIPART_UPLOAD
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository
from mlflow.store.artifact.http_artifact_repo import HttpArtifactRepository
from mlflow.tracking import MlflowClient
from mlflow.utils.credentials import get_default_host_creds
from mlflow.utils.request_utils import augmented_raise_for_status
from mlflow.utils.rest_utils import http_request

from registry.errors import EngineryError

# The server's answers that MLflow's client waits for by itself, less the 500.
_AWAY = frozenset({408, 429, 502, 503, 504})
_FAILED = 500
# A store that hiccups is well again by then.
_PAUSES_SECONDS = (2.0, 5.0, 15.0)


class StoreFailed(EngineryError):
    """The artifact store does not keep a file: somebody has to look at it."""


def upload(repository: Any, file: Path, folder: str | None = None) -> None:
    """Write `file` under `folder` of MLflow's artifact repository.

    Raises:
        StoreFailed: the store behind an MLflow server keeps failing.
        MlflowException, OSError: as MLflow's own upload.
    """
    # Multipart uploads go past the server, and only who asks for them has them.
    if not isinstance(repository, HttpArtifactRepository) or MLFLOW_ENABLE_PROXY_MULTIPART_UPLOAD.get():  # type: ignore[no-untyped-call]
        repository.log_artifact(str(file), folder)
        return
    path = f"{folder}/{file.name}" if folder else file.name
    answer = _put(repository.artifact_uri, path, file)
    for pause in _PAUSES_SECONDS:
        if answer.status_code != _FAILED:
            break
        time.sleep(pause)
        answer = _put(repository.artifact_uri, path, file)
    if answer.status_code == _FAILED:
        raise StoreFailed(
            f"{path} ({file.stat().st_size} bytes) is not kept by the artifact store of the MLflow server "
            f"({repository.artifact_uri} answers {_FAILED}): it is full, read-only or gone, as the server's log says; "
            "mend that, and run again: what was finished is kept"
        )
    augmented_raise_for_status(answer)  # type: ignore[no-untyped-call]


def upload_to_run(client: MlflowClient, run_id: str, file: Path, folder: str | None = None) -> str:
    """Write `file` under `folder` of a run's artifacts, and give its URI; raises as `upload`."""
    uri, root = client.tracking_uri, str(client.get_run(run_id).info.artifact_uri)
    upload(get_artifact_repository(root, uri, uri), file, folder)
    return "/".join(filter(None, (root, folder, file.name)))


def _put(root: str, path: str, file: Path) -> Any:
    headers = {"Content-Type": "application/octet-stream"}
    with file.open("rb") as content:
        return http_request(  # type: ignore[no-untyped-call]
            get_default_host_creds(root),  # type: ignore[no-untyped-call]
            f"/{quote(path)}",
            "PUT",
            data=content,
            extra_headers=headers,
            retry_codes=_AWAY,
        )

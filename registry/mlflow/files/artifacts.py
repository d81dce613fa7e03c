"""MLflow's artifact stores: a version's files read as `BundleFiles`, and files uploaded.

Reading: a local folder is read in place. Object stores (S3, and others that MLflow makes presigned URLs for) are read
directly. An MLflow server that proxies artifacts is read by byte ranges if the parts that it sends fit together.

Uploading: an MLflow server answers 500 if its store fails (a full disk, a bucket that refuses), and MLflow's own client
repeats such a request for four minutes per file (http_artifact_repo.py and rest_utils.py of 3.17). Here a failing store
is reported after seconds, and only an unreachable server is waited for.
"""

import tempfile
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

import requests
from mlflow.environment_variables import MLFLOW_ENABLE_PROXY_MULTIPART_DOWNLOAD, MLFLOW_ENABLE_PROXY_MULTIPART_UPLOAD
from mlflow.exceptions import MlflowException
from mlflow.store.artifact.artifact_repo import MultipartDownloadMixin
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository
from mlflow.store.artifact.http_artifact_repo import HttpArtifactRepository
from mlflow.store.artifact.local_artifact_repo import LocalArtifactRepository
from mlflow.tracking import MlflowClient
from mlflow.utils.credentials import get_default_host_creds
from mlflow.utils.request_utils import augmented_raise_for_status, cloud_storage_http_request
from mlflow.utils.rest_utils import http_request
from mlflow.utils.server_info import SERVER_INFO_MULTIPART_DOWNLOADS_ENABLED, ServerInfoRequestError, fetch_server_info
from pydantic import TypeAdapter, ValidationError

from registry.errors import BadInput, EngineryError, Interrupted, NotFound, first_line
from registry.mlflow.files.folder import FolderFiles
from registry.mlflow.files.http import HttpFiles, SendGet, translate_request_errors, unreadable
from registry.store import BundleFiles

_SERVICE = "/api/2.0/mlflow-artifacts"
_PRESIGNED_SECONDS = 3600
# The answers for which MLflow's client repeats a request by itself, except 500.
_SERVER_AWAY = frozenset({408, 429, 502, 503, 504})
_STORE_FAILED = 500
# Between tries at a store that answers 500; a short failure is over by then. Other retries of the project: run_files.py
# (a restarting server), registry/serving/download.py (a broken connection), tasks/execution/steps.py (a whole stage).
STORE_PAUSES_SECONDS = (2.0, 5.0, 15.0)


@dataclass(frozen=True)
class _Presigned:
    """Where a server says that a file can be read, and with which headers."""

    url: str
    headers: dict[str, str] = field(default_factory=dict)


class StoreFailed(EngineryError):
    """An artifact store that keeps refusing a file: somebody has to fix it."""


def open_files(uri: str, tracking_uri: str, probe: str) -> BundleFiles:
    """Open the files under an artifact URI; `probe` names a small file that surely exists there."""
    try:
        repository = get_artifact_repository(uri, tracking_uri, tracking_uri)
        if isinstance(repository, LocalArtifactRepository):
            return FolderFiles(Path(repository.artifact_dir))
        if isinstance(repository, HttpArtifactRepository):
            return _open_server_files(repository.artifact_uri, probe)
        if isinstance(repository, MultipartDownloadMixin):
            return HttpFiles(uri, _get_presigned(lambda path: _presign_in_bucket(repository, path)), None)
    except (MlflowException, ValueError) as error:
        raise EngineryError(f"{uri} cannot be read ({first_line(error)}): check the registry's store") from error
    return CopiedFiles(repository)


class CopiedFiles:
    """Files of a store that MLflow only copies whole."""

    ranged = False

    def __init__(self, repository: Any) -> None:
        self._repository = repository

    def read(self, path: str, start: int = 0, stop: int | None = None) -> Generator[bytes]:
        """See `BundleFiles.read`."""
        with tempfile.TemporaryDirectory() as scratch:
            try:
                copy = Path(self._repository.download_artifacts(path, scratch))
            except (MlflowException, OSError) as error:
                raise NotFound(f"{path} cannot be read from the registry's store ({first_line(error)})") from error
            yield from FolderFiles(copy.parent).read(copy.name, start, stop)


def upload(
    repository: Any, file: Path, folder: str | None = None, *, pauses_seconds: Sequence[float] | None = None
) -> None:
    """Write `file` under `folder` of MLflow's artifact repository.

    Args:
        repository: MLflow's own.
        file: the file to upload; it keeps its name.
        folder: a folder in the repository, None for its root.
        pauses_seconds: between tries at a store that fails; STORE_PAUSES_SECONDS by default.

    Raises:
        StoreFailed: the store behind an MLflow server keeps failing.
        MlflowException, OSError: as MLflow's own upload.
    """
    # Multipart uploads bypass the server, and are used only if somebody enabled them.
    if not isinstance(repository, HttpArtifactRepository) or MLFLOW_ENABLE_PROXY_MULTIPART_UPLOAD.get():  # type: ignore[no-untyped-call]
        repository.log_artifact(str(file), folder)
        return
    path = f"{folder}/{file.name}" if folder else file.name
    answer = _put(repository.artifact_uri, path, file)
    for pause in STORE_PAUSES_SECONDS if pauses_seconds is None else pauses_seconds:
        if answer.status_code != _STORE_FAILED:
            break
        time.sleep(pause)
        answer = _put(repository.artifact_uri, path, file)
    if answer.status_code == _STORE_FAILED:
        raise StoreFailed(
            f"upload of {path} ({file.stat().st_size} bytes) failed: the MLflow server's artifact store "
            f"({repository.artifact_uri}) answers {_STORE_FAILED} (see its log: disk full, read-only or missing?). "
            "Fix it and run again; finished stages are kept"
        )
    augmented_raise_for_status(answer)  # type: ignore[no-untyped-call]


def upload_to_run(client: MlflowClient, run_id: str, file: Path, folder: str | None = None) -> None:
    """Write `file` under `folder` of a run's artifacts; raises as `upload`."""
    uri = client.tracking_uri
    upload(get_artifact_repository(str(client.get_run(run_id).info.artifact_uri), uri, uri), file, folder)


def _open_server_files(uri: str, probe: str) -> BundleFiles:
    server, _, folder = uri.partition(f"{_SERVICE}/artifacts")
    if _is_presigning(server):
        return HttpFiles(uri, _get_presigned(lambda path: _presign_by_server(server, f"{folder}/{path}")), None)
    return HttpFiles(uri, lambda path, headers: _get(uri, f"/{quote(path)}", headers), probe)


def _is_presigning(server: str) -> bool:
    # MLflow's own setting, for hosts that reach the server but not the bucket behind it.
    setting = MLFLOW_ENABLE_PROXY_MULTIPART_DOWNLOAD
    if setting.is_set():  # type: ignore[no-untyped-call]
        return bool(setting.get())  # type: ignore[no-untyped-call]
    with _translate_read_errors(server):
        info = fetch_server_info(_credentials(server)).data or {}
    return isinstance(info, dict) and bool(info.get(SERVER_INFO_MULTIPART_DOWNLOADS_ENABLED))


def _get_presigned(presign: Callable[[str], tuple[str, dict[str, str]]]) -> SendGet:
    presigned: dict[str, tuple[str, dict[str, str]]] = {}

    def send_get(path: str, headers: Mapping[str, str]) -> requests.Response:
        with _translate_read_errors(path):
            if path not in presigned:
                presigned[path] = presign(path)
            url, own = presigned[path]
            answer: requests.Response = cloud_storage_http_request(  # type: ignore[no-untyped-call]
                "get", url, stream=True, headers={**own, **headers}
            )
        if not answer.ok:
            del presigned[path]  # it may have expired: the next try gets a new one
        return answer

    return send_get


def _presign_in_bucket(repository: Any, path: str) -> tuple[str, dict[str, str]]:
    try:
        url = repository.get_download_presigned_url(path, expiration=_PRESIGNED_SECONDS)
    except MlflowException:
        raise
    except ImportError as error:
        raise BadInput(f"{repository.artifact_uri} needs {error.name}: install it on this host") from error
    except Exception as error:
        # Each cloud's client has exceptions of its own, in packages that may not be installed.
        raise Interrupted(f"{repository.artifact_uri}/{path} cannot be read ({first_line(error)})") from error
    return url.url, dict(url.headers)


def _presign_by_server(server: str, path: str) -> tuple[str, dict[str, str]]:
    try:
        with closing(_get(server, f"{_SERVICE}/presigned{quote(path)}", {})) as answer:
            answer.raise_for_status()
            presigned = TypeAdapter(_Presigned).validate_json(answer.content)
    except ValidationError as error:
        raise Interrupted(f"{path}: the server gave no address for it, check the server and fetch again") from error
    return presigned.url, presigned.headers


def _get(host: str, path: str, headers: Mapping[str, str]) -> requests.Response:
    # MLflow's own request: it has the credentials, TLS settings, time limits and retries after a 5xx.
    with _translate_read_errors(f"{host}{path}"):
        answer: requests.Response = http_request(  # type: ignore[no-untyped-call]
            _credentials(host), path, "GET", stream=True, extra_headers=dict(headers)
        )
        return answer


def _put(root: str, path: str, file: Path) -> Any:
    headers = {"Content-Type": "application/octet-stream"}
    with file.open("rb") as content:
        return http_request(  # type: ignore[no-untyped-call]
            _credentials(root), f"/{quote(path)}", "PUT", data=content, extra_headers=headers, retry_codes=_SERVER_AWAY
        )


def _credentials(host: str) -> Any:
    return get_default_host_creds(host)  # type: ignore[no-untyped-call]


@contextmanager
def _translate_read_errors(what: str) -> Iterator[None]:
    try:
        with translate_request_errors(what):
            yield
    except (MlflowException, ServerInfoRequestError) as error:
        missing = isinstance(error, MlflowException) and error.error_code == "RESOURCE_DOES_NOT_EXIST"
        raise unreadable(what, error, missing=missing) from error

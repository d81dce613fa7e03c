"""Where MLflow keeps a version's files, as a `BundleFiles` of byte ranges.

A local folder is read in place. Object stores (S3, and others that MLflow makes presigned URLs for) are asked
directly. An MLflow server that passes artifacts on is asked for ranges where its answers can be put together.
"""

import os
import stat
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

import requests
from mlflow.environment_variables import MLFLOW_ENABLE_PROXY_MULTIPART_DOWNLOAD
from mlflow.exceptions import MlflowException
from mlflow.store.artifact.artifact_repo import MultipartDownloadMixin
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository
from mlflow.store.artifact.http_artifact_repo import HttpArtifactRepository
from mlflow.store.artifact.local_artifact_repo import LocalArtifactRepository
from mlflow.utils.credentials import get_default_host_creds
from mlflow.utils.request_utils import cloud_storage_http_request
from mlflow.utils.rest_utils import http_request
from mlflow.utils.server_info import SERVER_INFO_MULTIPART_DOWNLOADS_ENABLED, ServerInfoRequestError, fetch_server_info

from registry.errors import BadInput, EngineryError, Interrupted, NotFound, TornBundle
from registry.mlflow.http_source import CHUNK_BYTES, Ask, HttpSource, first_line, read_plainly, unreadable
from registry.store import BundleFiles

_SERVICE = "/api/2.0/mlflow-artifacts"
_PRESIGNED_SECONDS = 3600


def open_source(source: str, tracking_uri: str, probe: str) -> BundleFiles:
    """The files under the artifact URI `source`; `probe` names a small file that is surely there."""
    try:
        repository = get_artifact_repository(source, tracking_uri, tracking_uri)
        if isinstance(repository, LocalArtifactRepository):
            return FolderSource(Path(repository.artifact_dir))
        if isinstance(repository, HttpArtifactRepository):
            return _server_source(repository.artifact_uri, probe)
        if isinstance(repository, MultipartDownloadMixin):
            return HttpSource(source, _presigned(lambda path: _bucket_url(repository, path)), None)
    except MlflowException as error:
        raise EngineryError(f"{source} cannot be read ({first_line(error)}): check the registry's store") from error
    return WholeFileSource(repository)


class FolderSource:
    """Files of a folder on this machine."""

    ranged = True

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def read(self, path: str, start: int = 0, stop: int | None = None) -> Iterator[bytes]:
        """See `BundleFiles.read`."""
        # Not blocking: a pipe in the place of a file would be waited on for ever.
        try:
            descriptor = os.open(self._folder / path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except FileNotFoundError as error:
            raise NotFound(f"{self._folder / path} is not there: publish the engine again") from error
        except OSError as error:
            raise EngineryError(f"{self._folder / path} cannot be read: {error.strerror}") from error
        try:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise TornBundle(f"{self._folder / path} is no plain file: do not trust it")
            while chunk := os.pread(descriptor, CHUNK_BYTES if stop is None else min(CHUNK_BYTES, stop - start), start):
                start += len(chunk)
                yield chunk
        finally:
            os.close(descriptor)


class WholeFileSource:
    """Files of a store that MLflow only copies whole."""

    ranged = False

    def __init__(self, repository: Any) -> None:
        self._repository = repository

    def read(self, path: str, start: int = 0, stop: int | None = None) -> Iterator[bytes]:
        """See `BundleFiles.read`."""
        with tempfile.TemporaryDirectory() as scratch:
            try:
                copy = Path(self._repository.download_artifacts(path, scratch))
            except (MlflowException, OSError) as error:
                raise NotFound(f"{path} cannot be read from the registry's store ({first_line(error)})") from error
            yield from FolderSource(copy.parent).read(copy.name, start, stop)


def _server_source(uri: str, probe: str) -> BundleFiles:
    server, _, folder = uri.partition(f"{_SERVICE}/artifacts")
    if _is_presigning(server):
        return HttpSource(uri, _presigned(lambda path: _server_url(server, f"{folder}/{path}")), None)
    return HttpSource(uri, lambda path, headers: _get(uri, f"/{quote(path)}", headers), probe)


def _is_presigning(server: str) -> bool:
    # MLflow's own setting, for hosts that reach the server and not the bucket behind it.
    asked = MLFLOW_ENABLE_PROXY_MULTIPART_DOWNLOAD
    if asked.is_set():  # type: ignore[no-untyped-call]
        return bool(asked.get())  # type: ignore[no-untyped-call]
    with _read(server):
        info = fetch_server_info(_credentials(server)).data or {}
    return bool(info.get(SERVER_INFO_MULTIPART_DOWNLOADS_ENABLED))


def _get(host: str, path: str, headers: Mapping[str, str]) -> requests.Response:
    # MLflow's own: it knows the credentials, the TLS settings, the time limits and the retries after a 5xx.
    with _read(f"{host}{path}"):
        answer: requests.Response = http_request(  # type: ignore[no-untyped-call]
            _credentials(host), path, "GET", stream=True, extra_headers=dict(headers)
        )
        return answer


def _credentials(host: str) -> Any:
    return get_default_host_creds(host)  # type: ignore[no-untyped-call]


def _presigned(locate: Callable[[str], tuple[str, dict[str, str]]]) -> Ask:
    known: dict[str, tuple[str, dict[str, str]]] = {}

    def ask(path: str, headers: Mapping[str, str]) -> requests.Response:
        with _read(path):
            if path not in known:
                known[path] = locate(path)
            url, own = known[path]
            answer: requests.Response = cloud_storage_http_request(  # type: ignore[no-untyped-call]
                "get", url, stream=True, headers={**own, **headers}
            )
        if not answer.ok:
            del known[path]  # it may have expired: the next try asks for a new one
        return answer

    return ask


def _bucket_url(repository: Any, path: str) -> tuple[str, dict[str, str]]:
    try:
        found = repository.get_download_presigned_url(path, expiration=_PRESIGNED_SECONDS)
    except MlflowException:
        raise
    except ImportError as error:
        raise BadInput(f"{repository.artifact_uri} needs {error.name}: install it on this host") from error
    except Exception as error:
        # Each cloud's client has exceptions of its own, which are there only where it is installed.
        raise Interrupted(f"{repository.artifact_uri}/{path} cannot be read ({first_line(error)})") from error
    return found.url, dict(found.headers)


def _server_url(server: str, path: str) -> tuple[str, dict[str, str]]:
    answer = _get(server, f"{_SERVICE}/presigned{quote(path)}", {})
    answer.raise_for_status()
    return answer.json()["url"], dict(answer.json().get("headers", {}))


@contextmanager
def _read(what: str) -> Iterator[None]:
    try:
        with read_plainly(what):
            yield
    except (MlflowException, ServerInfoRequestError) as error:
        missing = isinstance(error, MlflowException) and error.error_code == "RESOURCE_DOES_NOT_EXIST"
        raise unreadable(what, error, missing=missing) from error

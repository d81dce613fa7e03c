"""Rows of an MLflow server by its public REST interface.

Only of a server that stores the files itself, and asks for a user's password or a token at most: answers are bounded
in size and time here, which they are not in mlflow's client. Why and what was measured: docs/adr/0015-fetch.md.
"""

import json
import os
from base64 import b64encode
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import quote, urlencode, urlsplit
from urllib.request import Request

from pydantic import TypeAdapter, ValidationError

from registry.bundle.manifest import MANIFEST_FILE
from registry.errors import Interrupted, shown_address
from registry.mlflow.quick.store import VersionRow
from registry.mlflow.rows import COMPLETE, NEWEST_EVENT_FIRST, STATE, events_query, history_experiment
from registry.web import read_answer

if TYPE_CHECKING:
    from registry.mlflow.files.http import HttpFiles

T = TypeVar("T")

# Between two chunks of a file, as long as mlflow's client waits.
_CHUNK_TIMEOUT_SECONDS = 120.0
# Events per request.
_PAGE = 1000
_TRIES, _TRANSIENT = 3, (408, 429, 500, 502, 503, 504)
# Settings with which mlflow's client would send other requests than this module.
_SETTINGS = ("MLFLOW_TRACKING_", "MLFLOW_HTTP_", "MLFLOW_WORKSPACE", "MLFLOW_ENABLE_PROXY_")
_USER, _PASSWORD, _TOKEN = "MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN"
_KNOWN_SETTINGS = ("MLFLOW_TRACKING_URI", _USER, _PASSWORD, _TOKEN)


@dataclass(frozen=True)
class _Tag:
    key: str
    value: str


@dataclass(frozen=True)
class _Alias:
    alias: str
    version: int


@dataclass(frozen=True)
class _Model:
    aliases: list[_Alias] = field(default_factory=list)


@dataclass(frozen=True)
class _Models:
    """The answer of registered-models/search."""

    registered_models: list[_Model] = field(default_factory=list)


@dataclass(frozen=True)
class _Row:
    """A version; `source` is the URI of its files."""

    name: str
    version: int
    source: str
    tags: list[_Tag] = field(default_factory=list)
    aliases: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class _Version:
    """The answer of model-versions/get."""

    model_version: _Row


@dataclass(frozen=True)
class _ExperimentRow:
    experiment_id: str


@dataclass(frozen=True)
class _Experiment:
    """The answer of experiments/get-by-name."""

    experiment: _ExperimentRow


@dataclass(frozen=True)
class _RunData:
    tags: list[_Tag] = field(default_factory=list)


@dataclass(frozen=True)
class _Run:
    data: _RunData


@dataclass(frozen=True)
class _Runs:
    """The answer of runs/search."""

    runs: list[_Run] = field(default_factory=list)
    next_page_token: str | None = None


@dataclass(frozen=True)
class _ServerInfo:
    """The answer of server-info, of which a few fields matter."""

    multipart_downloads_enabled: bool = False


@dataclass(frozen=True)
class _Versions:
    """The answer of model-versions/search."""

    model_versions: list[_Row] = field(default_factory=list)
    next_page_token: str | None = None


class RestRows:
    """`QuickRows` of an MLflow server."""

    def __init__(self, server: str) -> None:
        self._server = server.rstrip("/")

    def aliases(self, model: str) -> dict[str, int] | None:
        """See `QuickRows.aliases`."""
        # A search, as in `MlflowStore.aliases`: `get` reads every version of the model.
        query = {"filter": f"name = '{model}'", "max_results": "1"}
        if (answer := self._get(_Models, "registered-models/search", query)) is None:
            return None
        return {alias.alias: alias.version for row in answer.registered_models for alias in row.aliases}

    def version(self, model: str, version: int) -> VersionRow | None:
        """See `QuickRows.version`."""
        answer = self._get(_Version, "model-versions/get", {"name": model, "version": str(version)})
        return None if answer is None else _row_of(answer.model_version, answer.model_version.aliases)

    def versions(self, model: str | None, newest: int | None) -> list[VersionRow] | None:
        """See `QuickRows.versions`."""
        order = "version_number DESC" if model else "creation_timestamp DESC"
        query = {"order_by": order, "max_results": str(min(_PAGE, newest or _PAGE))}
        query |= {"filter": f"name = '{model}'"} if model else {}
        found, token, aliases = list[VersionRow](), "", dict[str, dict[str, int]]()
        while newest is None or len(found) < newest:
            page = self._get(_Versions, "model-versions/search", query | ({"page_token": token} if token else {}))
            if page is None:
                return None
            for row in page.model_versions:
                # A search leaves the aliases of a version empty: they come from the registered model.
                if row.name not in aliases and (of_model := self.aliases(row.name)) is not None:
                    aliases[row.name] = of_model
                at = aliases.get(row.name, {})
                found.append(_row_of(row, [alias for alias, version in at.items() if version == row.version]))
            found = [row for row in found if row.tags.get(STATE) == COMPLETE]
            if not (token := page.next_page_token or ""):
                break
        return found[:newest]

    def events(
        self, model: str, alias: str | None, outcome: str | None, newest: int | None
    ) -> list[Mapping[str, str]] | None:
        """See `QuickRows.events`."""
        query = {"experiment_name": history_experiment(model)}
        if (answer := self._get(_Experiment, "experiments/get-by-name", query)) is None:
            return None
        body: dict[str, Any] = {"experiment_ids": [answer.experiment.experiment_id]}
        body |= {"filter": events_query(alias, outcome), "order_by": [NEWEST_EVENT_FIRST]}
        found = _ask(_Runs, f"{self._server}/api/2.0/mlflow/runs/search", body | {"max_results": newest or _PAGE})
        # A fetch asks for a few: whoever reads a long history leaves the rest to the whole store.
        if found is None or (newest is None and found.next_page_token):
            return None
        return [_tags_of(run.data.tags) for run in found.runs]

    def open_files(self, source: str) -> "HttpFiles | None":
        """See `QuickRows.open_files`."""
        try:
            parts = urlsplit(source)
        except ValueError:
            return None
        if (parts.scheme, parts.netloc) != ("mlflow-artifacts", ""):
            return None
        info = _get_server_info(self._server)
        # A server in front of a bucket may hand out the bucket's URLs: mlflow handles those.
        if info is None or info.multipart_downloads_enabled:
            return None
        return _open_server_files(f"{self._server}/api/2.0/mlflow-artifacts/artifacts{quote(parts.path)}")

    def _get(self, kind: type[T], endpoint: str, query: Mapping[str, str]) -> T | None:
        return _ask(kind, f"{self._server}/api/2.0/mlflow/{endpoint}?{urlencode(query)}")


def is_plain(uri: str) -> bool:
    """Tell whether `uri` is an MLflow server for which this host has a password or a token at most."""
    settings = [name for name in os.environ if name.startswith(_SETTINGS) and name not in _KNOWN_SETTINGS]
    stored = Path("~/.mlflow/credentials").expanduser().exists()
    return uri.startswith(("http://", "https://")) and "@" not in uri and not settings and not stored


def read_authorization() -> str | None:
    """Return the header that mlflow's client would send: of a user's password, else of a token; None without either.

    https://mlflow.org/docs/latest/self-hosting/security/basic-http-auth/
    """
    user, password, token = (os.environ.get(name) for name in (_USER, _PASSWORD, _TOKEN))
    if user and password:
        return "Basic " + b64encode(f"{user}:{password}".encode()).decode()
    return f"Bearer {token}" if token else None


def _get_server_info(server: str) -> _ServerInfo | None:
    return _ask(_ServerInfo, f"{server}/api/3.0/mlflow/server-info")


def _ask(kind: type[T], address: str, body: Mapping[str, Any] | None = None) -> T | None:
    """Return a server's answer; None where it has none, about which the whole store says more.

    Raises:
        Interrupted: the answer is broken, or is not what MLflow answers.
    """
    data = None if body is None else json.dumps(body).encode()
    try:
        # `is_plain` admits http(s) only.
        request = Request(address, data, {"Content-Type": "application/json"})  # noqa: S310
        if (authorization := read_authorization()) is not None:
            request.add_unredirected_header("Authorization", authorization)  # never to another host
        raw = read_answer(request)
    except (OSError, ValueError):
        return None
    try:
        return TypeAdapter(kind).validate_json(raw)
    except ValidationError as error:
        place = ".".join(str(part) for part in error.errors(include_url=False, include_input=False)[0]["loc"])
        raise Interrupted(
            f"{shown_address(address)} answered with something else than MLflow does ({place or 'no JSON object'}): "
            "check the server, or the proxy before it"
        ) from error


def _row_of(row: _Row, aliases: Iterable[str]) -> VersionRow:
    return VersionRow(row.name, str(row.version), _tags_of(row.tags), tuple(aliases), row.source)


def _tags_of(tags: list[_Tag]) -> dict[str, str]:
    return {tag.key: tag.value for tag in tags}


def _open_server_files(root: str) -> "HttpFiles":
    import requests  # 0.2 s, which a fetch with everything in place does not need
    from requests.adapters import HTTPAdapter
    from urllib3.util import Retry

    from registry.mlflow.files.http import HttpFiles

    session, retry = requests.Session(), Retry(_TRIES, status_forcelist=_TRANSIENT, backoff_factor=1)
    session.mount(root, HTTPAdapter(max_retries=retry))
    if (authorization := read_authorization()) is not None:
        session.headers["Authorization"] = authorization  # requests drops it on the way to another host

    def send_get(path: str, headers: Mapping[str, str]) -> requests.Response:
        return session.get(f"{root}/{quote(path)}", headers=dict(headers), stream=True, timeout=_CHUNK_TIMEOUT_SECONDS)

    return HttpFiles(root, send_get, MANIFEST_FILE)

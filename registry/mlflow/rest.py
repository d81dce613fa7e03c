"""Why this exists: `enginery fetch` with everything in place takes 0.4 s, and importing mlflow alone takes 2 to 3 s.

So this one command reads aliases, versions, history and files through the MLflow server's REST interface, without
mlflow, from a server that needs no credentials and stores the files itself. Everything else, and whatever the server
does not answer here, is left to `MlflowStore`, which is opened only then. Why and what was measured:
docs/adr/0015-fetch.md.
"""

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import quote, urlencode, urlsplit
from urllib.request import Request

from pydantic import TypeAdapter, ValidationError

from registry.bundle.manifest import MANIFEST_FILE
from registry.errors import Interrupted, shown_address
from registry.mlflow.rows import (
    COMPLETE,
    NEWEST_EVENT_FIRST,
    STATE,
    bundle_of,
    event_from,
    events_query,
    history_experiment,
    row_from,
)
from registry.names import check_name
from registry.records import EngineVersion, PromotionEvent
from registry.store import Bundle, ServingStore, no_alias
from registry.web import read_answer

if TYPE_CHECKING:
    from registry.mlflow.http_files import HttpFiles

T = TypeVar("T")

# Between two chunks of a file, as long as mlflow's client waits.
_CHUNK_TIMEOUT_SECONDS = 120.0
# Events per request.
_PAGE = 1000
_TRIES, _TRANSIENT = 3, (408, 429, 500, 502, 503, 504)
# Settings with which mlflow's client would send other requests than this module.
_SETTINGS = ("MLFLOW_TRACKING_", "MLFLOW_HTTP_", "MLFLOW_WORKSPACE", "MLFLOW_ENABLE_PROXY_")


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
class _VersionRow:
    """A version; `source` is the URI of its files."""

    name: str
    version: int
    source: str
    tags: list[_Tag] = field(default_factory=list)
    aliases: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class _Version:
    """The answer of model-versions/get."""

    model_version: _VersionRow


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
class _ModelVersion:
    """A version as mlflow's client would return it; `source` is the URI of its files."""

    name: str
    version: str
    tags: dict[str, str]
    aliases: list[str]
    source: str


class QuickStore:
    """A `ServingStore` that answers from the server's REST interface where it can."""

    def __init__(self, server: str, open_whole: Callable[[], ServingStore]) -> None:
        self._server, self._open_whole = server.rstrip("/"), open_whole

    @cached_property
    def _whole(self) -> ServingStore:
        return self._open_whole()

    def aliases(self, model: str) -> dict[str, int]:
        """See `ServingStore.aliases`."""
        # A search, as in `MlflowStore.aliases`: `get` reads every version of the model.
        query = {"filter": f"name = '{check_name(model, what='model')}'", "max_results": "1"}
        if (answer := self._get(_Models, "registered-models/search", query)) is None:
            return self._whole.aliases(model)
        return {alias.alias: alias.version for row in answer.registered_models for alias in row.aliases}

    def version(self, model: str, version: int) -> EngineVersion:
        """See `ServingStore.version`."""
        complete = self._get_complete(model, version)
        # One that is torn or missing: the whole store raises the right error.
        return row_from(complete) if complete else self._whole.version(model, version)

    def resolve(self, model: str, alias: str) -> EngineVersion:
        """See `ServingStore.resolve`."""
        aliases = self.aliases(model)
        if alias not in aliases:
            raise no_alias(model, alias, aliases)
        return self.version(model, aliases[alias])

    def open_bundle(self, model: str, version: int) -> Bundle:
        """See `ServingStore.open_bundle`."""
        complete = self._get_complete(model, version)
        bundle_files = self._open_files(complete.source) if complete else None
        if complete is None or bundle_files is None:
            return self._whole.open_bundle(model, version)
        return bundle_of(complete, bundle_files)

    def events(
        self, model: str, *, alias: str | None = None, outcome: str | None = None, newest: int | None = None
    ) -> tuple[PromotionEvent, ...]:
        """See `ServingStore.events`."""
        runs = self._search_runs(history_experiment(model), events_query(alias, outcome), newest)
        if runs is None:
            return self._whole.events(model, alias=alias, outcome=outcome, newest=newest)
        return tuple(event_from(_tags_of(run.data.tags)) for run in reversed(runs))

    def _search_runs(self, experiment: str, query: str, newest: int | None) -> list[_Run] | None:
        if (answer := self._get(_Experiment, "experiments/get-by-name", {"experiment_name": experiment})) is None:
            return None
        body: dict[str, Any] = {"experiment_ids": [answer.experiment.experiment_id], "filter": query}
        body |= {"order_by": [NEWEST_EVENT_FIRST], "max_results": newest or _PAGE}
        found = _ask(_Runs, f"{self._server}/api/2.0/mlflow/runs/search", body)
        # A fetch asks for a few: whoever reads a long history leaves the rest to the whole store.
        return None if found is None or (newest is None and found.next_page_token) else found.runs

    def _get_complete(self, model: str, version: int) -> _ModelVersion | None:
        query = {"name": check_name(model, what="model"), "version": str(version)}
        if (answer := self._get(_Version, "model-versions/get", query)) is None:
            return None
        row, tags = answer.model_version, _tags_of(answer.model_version.tags)
        if tags.get(STATE) != COMPLETE:
            return None
        return _ModelVersion(row.name, str(row.version), tags, row.aliases, row.source)

    def _open_files(self, uri: str) -> "HttpFiles | None":
        try:
            parts = urlsplit(uri)
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
    """Tell whether `uri` is an MLflow server for which this host has no credentials or TLS settings."""
    settings = [name for name in os.environ if name.startswith(_SETTINGS) and name != "MLFLOW_TRACKING_URI"]
    stored = Path("~/.mlflow/credentials").expanduser().exists()
    return uri.startswith(("http://", "https://")) and "@" not in uri and not settings and not stored


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
        raw = read_answer(Request(address, data, {"Content-Type": "application/json"}))  # noqa: S310
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


def _tags_of(tags: list[_Tag]) -> dict[str, str]:
    return {tag.key: tag.value for tag in tags}


def _open_server_files(root: str) -> "HttpFiles":
    import requests  # 0.2 s, which a fetch with everything in place does not need
    from requests.adapters import HTTPAdapter
    from urllib3.util import Retry

    from registry.mlflow.http_files import HttpFiles

    session, retry = requests.Session(), Retry(_TRIES, status_forcelist=_TRANSIENT, backoff_factor=1)
    session.mount(root, HTTPAdapter(max_retries=retry))

    def send_get(path: str, headers: Mapping[str, str]) -> requests.Response:
        return session.get(f"{root}/{quote(path)}", headers=dict(headers), stream=True, timeout=_CHUNK_TIMEOUT_SECONDS)

    return HttpFiles(root, send_get, MANIFEST_FILE)

"""An MLflow server by its REST interface, for a fetch that does not wait for mlflow's import.

That import takes seconds: longer than all that a fetch does with everything in place. So
aliases, versions and files are asked for directly where the server wants no credentials and keeps the files itself;
any doubt, and everything else, goes to `MlflowStore`, which is made when first needed.
"""

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlencode, urlsplit
from urllib.request import urlopen

from registry.bundle.manifest import MANIFEST_FILE
from registry.mlflow.rows import COMPLETE, STATE, bundle_of, row_from
from registry.names import check_name
from registry.records import EngineVersion
from registry.store import Bundle, Store, no_alias

if TYPE_CHECKING:
    from registry.mlflow.http_source import HttpSource

_SECONDS = 10.0
# Between two pieces of a file, as long as mlflow's client waits.
_PIECE_SECONDS = 120.0
_TRIES, _TRANSIENT = 3, (408, 429, 500, 502, 503, 504)
# Settings by which mlflow's client would ask otherwise than this file does.
_SETTINGS = ("MLFLOW_TRACKING_", "MLFLOW_HTTP_", "MLFLOW_WORKSPACE", "MLFLOW_ENABLE_PROXY_")


@dataclass(frozen=True)
class _Found:
    name: str
    version: str
    tags: dict[str, str]
    aliases: list[str]
    source: str


class QuickStore:
    """A `Store` that answers `aliases`, `version`, `resolve` and `open_bundle` itself where it can."""

    def __init__(self, server: str, whole: Callable[[], Store]) -> None:
        self._server, self._make = server.rstrip("/"), whole
        self._whole: Store | None = None

    def __getattr__(self, name: str) -> Any:
        """Everything else is the whole store's."""
        if self._whole is None:
            self._whole = self._make()
        return getattr(self._whole, name)

    def aliases(self, model: str) -> dict[str, int]:
        """See `Store.aliases`."""
        # A search, as in `MlflowStore.aliases`: `get` reads every version of the model.
        found = self._ask(
            "registered-models/search", filter=f"name = '{check_name(model, what='model')}'", max_results="1"
        )
        if found is None:
            return dict(self.__getattr__("aliases")(model))
        given = (item for row in found.get("registered_models", []) for item in row.get("aliases", []))
        return {item["alias"]: int(item["version"]) for item in given}

    def version(self, model: str, version: int) -> EngineVersion:
        """See `Store.version`."""
        found = self._version(model, version)
        # One that is torn, or not there: the whole store says so in its own words.
        whole: EngineVersion = row_from(found) if found else self.__getattr__("version")(model, version)
        return whole

    def open_bundle(self, model: str, version: int) -> Bundle:
        """See `Store.open_bundle`."""
        found = self._version(model, version)
        files = self._files(found.source) if found else None
        if found is None or files is None:
            whole: Bundle = self.__getattr__("open_bundle")(model, version)
            return whole
        return bundle_of(found, files)

    def resolve(self, model: str, alias: str) -> EngineVersion:
        """See `Store.resolve`."""
        there = self.aliases(model)
        if alias not in there:
            raise no_alias(model, alias, there)
        return self.version(model, there[alias])

    def _version(self, model: str, version: int) -> _Found | None:
        answer = self._ask("model-versions/get", name=check_name(model, what="model"), version=str(version))
        if answer is None:
            return None
        found = answer["model_version"]
        tags = {item["key"]: item["value"] for item in found.get("tags", [])}
        if tags.get(STATE) != COMPLETE:
            return None
        return _Found(found["name"], str(found["version"]), tags, list(found.get("aliases", [])), found["source"])

    def _files(self, source: str) -> "HttpSource | None":
        place = urlsplit(source)
        if (place.scheme, place.netloc) != ("mlflow-artifacts", ""):
            return None
        info = _server_info(self._server)
        # A server before a bucket may hand out addresses of that: mlflow knows how.
        if info is None or info.get("multipart_downloads_enabled"):
            return None
        return _server_files(f"{self._server}/api/2.0/mlflow-artifacts/artifacts{quote(place.path)}")

    def _ask(self, what: str, **parameters: str) -> dict[str, Any] | None:
        return _json(f"{self._server}/api/2.0/mlflow/{what}?{urlencode(parameters)}")


def _server_info(server: str) -> dict[str, Any] | None:
    return _json(f"{server}/api/3.0/mlflow/server-info")


def _json(address: str) -> dict[str, Any] | None:
    try:
        with urlopen(address, timeout=_SECONDS) as answer:  # noqa: S310  # `is_plain` let http and https in only
            found = json.load(answer)
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def _server_files(root: str) -> "HttpSource":
    import requests  # 0.2 s, which a fetch with everything in place does not wait for
    from requests.adapters import HTTPAdapter
    from urllib3.util import Retry

    from registry.mlflow.http_source import HttpSource

    session, retry = requests.Session(), Retry(_TRIES, status_forcelist=_TRANSIENT, backoff_factor=1)
    session.mount(root, HTTPAdapter(max_retries=retry))

    def ask(path: str, headers: Any) -> requests.Response:
        return session.get(f"{root}/{quote(path)}", headers=headers, stream=True, timeout=_PIECE_SECONDS)

    return HttpSource(root, ask, MANIFEST_FILE)


def is_plain(uri: str) -> bool:
    """Whether `uri` is an MLflow server that is asked without credentials or TLS settings, as far as this host says."""
    settings = [name for name in os.environ if name.startswith(_SETTINGS) and name != "MLFLOW_TRACKING_URI"]
    stored = Path("~/.mlflow/credentials").expanduser().exists()
    return uri.startswith(("http://", "https://")) and "@" not in uri and not settings and not stored

"""Rows of an MLflow server by its REST interface, for a fetch that finds everything in place.

Importing mlflow takes longer than all that such a fetch does. So aliases and versions are asked for directly where the
server wants no credentials; any doubt, and everything else, goes to `MlflowStore`, which is made when first needed.
"""

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlencode
from urllib.request import urlopen

from registry.errors import NotFound
from registry.mlflow_rows import row_from
from registry.names import check_name
from registry.records import EngineVersion
from registry.store import Store

_SECONDS = 10.0


@dataclass(frozen=True)
class _Found:
    name: str
    version: str
    tags: dict[str, str]
    aliases: list[str]


class QuickStore:
    """A `Store` that answers `aliases`, `version` and `resolve` itself where it can."""

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
        found = self._ask("model-versions/get", name=check_name(model, what="model"), version=str(version))
        row = None if found is None else self._row(found["model_version"])
        # One that is torn, or not there: the whole store says so in its own words.
        whole: EngineVersion = row if row and row.complete else self.__getattr__("version")(model, version)
        return whole

    def resolve(self, model: str, alias: str) -> EngineVersion:
        """See `Store.resolve`."""
        if (version := self.aliases(model).get(alias)) is None:
            raise NotFound(f"{model} has no alias {alias}: promote a version, or list the model's aliases")
        return self.version(model, version)

    def _row(self, found: dict[str, Any]) -> EngineVersion | None:
        tags = {item["key"]: item["value"] for item in found.get("tags", [])}
        if tags.get("publish_state") != "complete":
            return None
        return row_from(_Found(found["name"], str(found["version"]), tags, list(found.get("aliases", []))))

    def _ask(self, what: str, **parameters: str) -> dict[str, Any] | None:
        address = f"{self._server}/api/2.0/mlflow/{what}?{urlencode(parameters)}"
        try:
            with urlopen(address, timeout=_SECONDS) as answer:  # noqa: S310  # `is_plain` let http and https in only
                found = json.load(answer)
        except (OSError, ValueError):
            return None
        return found if isinstance(found, dict) else None


def is_plain(uri: str) -> bool:
    """Whether `uri` is an MLflow server that is asked without credentials or TLS settings, as far as this host says."""
    settings = [name for name in os.environ if name.startswith("MLFLOW_TRACKING_") and name != "MLFLOW_TRACKING_URI"]
    stored = Path("~/.mlflow/credentials").expanduser().exists()
    return uri.startswith(("http://", "https://")) and "@" not in uri and not settings and not stored

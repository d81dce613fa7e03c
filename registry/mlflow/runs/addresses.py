"""The addresses of MLflow's pages about a release, as MLflow 3.17 routes them."""

import json
from collections.abc import Sequence
from urllib.parse import quote, unquote, urlsplit

from registry.mlflow.errors import translate_errors
from registry.mlflow.publish import REPORT_PAGE
from registry.mlflow.runs.lineage import Lineage
from registry.mlflow.store import MlflowStore

# Where `mlflow ui` listens, for a registry without a server.
LOCAL_UI = "http://127.0.0.1:5000"
# Otherwise a browser that opens MLflow 3 for the first time hides models and training runs behind "GenAI".
_MODE = "workflowType=machine_learning"


def compare_address(store: MlflowStore, model: str, run_id: str) -> str:
    """Return the page that compares the engines below a release's run."""
    runs = _encode([*Lineage(store).run_ids(model, run_id).values()])
    return f"{_root(store)}/#/compare-runs?runs={runs}&experiments={_encode([store.experiment(model)])}&{_MODE}"


def model_address(store: MlflowStore, model: str) -> str:
    """Return the page of a registered model, with all its versions."""
    return f"{_root(store)}/#/models/{quote(model)}?{_MODE}"


def report_address(store: MlflowStore, run_id: str) -> str:
    """Return where a release's report is: a file where the registry is a folder, else its page in MLflow.

    Raises:
        EngineryError: the registry does not have the run any more, or does not answer.
    """
    with translate_errors(f"run {run_id}"):
        run = store.client.get_run(run_id)
    artifacts = urlsplit(run.info.artifact_uri)
    if artifacts.scheme in ("", "file"):
        return f"{unquote(artifacts.path)}/{REPORT_PAGE}"
    return f"{_root(store)}/#/experiments/{run.info.experiment_id}/runs/{run_id}/artifacts/{REPORT_PAGE}"


def list_links(store: MlflowStore, model: str, run_id: str) -> dict[str, str]:
    """Return the pages about a release that a report links to; none where MLflow has no server."""
    compare = compare_address(store, model, run_id)
    if compare.startswith(LOCAL_UI):
        return {}
    return {"compare the engines in MLflow": compare, "all versions in MLflow": model_address(store, model)}


def _root(store: MlflowStore) -> str:
    parts = urlsplit(store.client.tracking_uri)
    if parts.scheme not in ("http", "https"):
        return LOCAL_UI
    host = parts.netloc.rpartition("@")[2]  # no password on a terminal
    return f"{parts.scheme}://{host}{parts.path.rstrip('/')}"


def _encode(ids: Sequence[str]) -> str:
    # Encoded, because a terminal ends a link at the first quote.
    return quote(json.dumps(ids, separators=(",", ":")))

"""Links that a release prints open MLflow's pages with the right runs."""

import json
from typing import Any, cast
from urllib.parse import parse_qs, urlsplit

import pytest

from registry.mlflow.runs import addresses
from registry.mlflow.runs.addresses import compare_address, model_address
from registry.mlflow.runs.releases import ReleaseLog
from registry.mlflow.store import MlflowStore
from tests.support.mlflow_runs import make_entry


def test_compare_page_is_about_the_engines_of_this_release(mlflow_store: MlflowStore, manifest_factory: Any) -> None:
    log, expected = ReleaseLog(mlflow_store), dict[str, set[str]]()
    for release in ("r1", "r2"):
        parent = log.start("sst2", release, {}, {})
        for target in ("l4", "h100"):
            manifest, _ = manifest_factory(target=target)
            run_id, _ = log.engine_run("sst2", release, parent, manifest.build, manifest.verdict)
            log.log_engine(run_id, make_entry(manifest))
            expected.setdefault(parent, set()).add(run_id)
    for parent, runs in expected.items():
        address = urlsplit(compare_address(mlflow_store, "sst2", parent))
        route, _, query = address.fragment.partition("?")
        answers = {name: value for name, (value,) in parse_qs(query).items()}
        assert answers.pop("workflowType") == "machine_learning"
        asked = {name: json.loads(value) for name, value in answers.items()}
        assert (address.netloc, route) == ("127.0.0.1:5000", "/compare-runs")
        assert set(asked["runs"]) == runs
        assert asked["experiments"] == [mlflow_store.experiment("sst2")]
        assert not {'"', " "} & set(address.geturl())


@pytest.mark.parametrize(
    ("uri", "root"),
    [
        ("sqlite:////home/mlflow.db", addresses.LOCAL_UI),
        ("http://mlflow:5000/", "http://mlflow:5000"),
        ("https://me:secret@mlflow.example.com/prefix", "https://mlflow.example.com/prefix"),
    ],
)
def test_address_is_that_of_the_server_without_a_password(uri: str, root: str) -> None:
    class Store:
        class client:  # noqa: N801
            tracking_uri = uri

    assert model_address(cast("MlflowStore", Store), "sst2") == f"{root}/#/models/sst2?workflowType=machine_learning"

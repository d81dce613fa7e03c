"""A fetch that finds everything in place asks an MLflow server without importing mlflow, and is told the same."""

import subprocess
import sys
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from registry.errors import BadName, NotFound, TornBundle
from registry.fetch import fetch
from registry.mlflow_rest import QuickStore, is_plain
from registry.mlflow_store import MlflowStore
from registry.store import Store
from tests.publisher import Publisher

ROOT = Path(__file__).parents[2]
IN_PLACE = """
import sys
from pathlib import Path
from registry.fetch import Policy, fetch
from registry.mlflow_rest import QuickStore
from registry.signing import Trust
from tests.publisher import HOST

uri, model, key, into = sys.argv[1:]
policy = Policy(Trust(Path(key)), HOST)
assert fetch(QuickStore(uri, exit), model, alias="production-l4", into=Path(into), policy=policy).reused
print(sorted({"mlflow", "sqlalchemy", "model_signing", "pandas", "torch", "prefect"} & set(sys.modules)))
"""


@pytest.fixture
def whole(server_uri: str, tmp_path: Path) -> MlflowStore:
    return MlflowStore(server_uri, tmp_path / "state")


@pytest.fixture
def model(whole: MlflowStore, manifest_factory: Any, publisher: Publisher) -> str:
    name = f"quick-{uuid4().hex[:8]}"
    publisher.publish(whole, manifest_factory(model=name))
    whole.set_alias(name, "production-l4", 1)
    return name


def refuses() -> Store:
    raise AssertionError("the whole store was made")


def test_rows_and_aliases_are_those_of_the_whole_store(server_uri: str, whole: MlflowStore, model: str) -> None:
    quick = QuickStore(server_uri, refuses)
    assert quick.aliases(model) == whole.aliases(model) == {"production-l4": 1}
    assert quick.version(model, 1) == quick.resolve(model, "production-l4") == whole.version(model, 1)
    with pytest.raises(NotFound, match="no alias"):
        quick.resolve(model, "none")
    with pytest.raises(BadName):
        quick.version("../x", 1)


def test_what_it_cannot_answer_the_whole_store_does(server_uri: str, whole: MlflowStore, model: str) -> None:
    quick = QuickStore(server_uri, lambda: whole)
    assert quick.manifest(model, 1) == whole.manifest(model, 1)
    assert quick.aliases("none") == {}
    with pytest.raises(NotFound):
        quick.version(model, 9)
    whole.client.set_model_version_tag(model, "1", "publish_state", "uploading")
    with pytest.raises(TornBundle):
        quick.version(model, 1)
    assert QuickStore("http://127.0.0.1:9", lambda: whole).aliases(model) == {"production-l4": 1}


def test_a_fetch_in_place_imports_neither_mlflow_nor_what_signs(
    server_uri: str, whole: MlflowStore, model: str, publisher: Publisher, tmp_path: Path
) -> None:
    fetch(whole, model, alias="production-l4", into=tmp_path / "models", policy=publisher.policy)
    told = (server_uri, model, str(publisher.trust.public_key), str(tmp_path / "models"))
    done = subprocess.run(
        [sys.executable, "-c", IN_PLACE, *told], cwd=ROOT, check=True, capture_output=True, text=True, timeout=120
    )
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("uri", "setting", "plain"),
    [
        ("http://h:5000", None, True),
        ("https://h", None, True),
        ("https://u:p@h", None, False),
        ("sqlite:///x", None, False),
        ("", None, False),
        ("http://h", "MLFLOW_TRACKING_TOKEN", False),
        ("https://h", "MLFLOW_TRACKING_SERVER_CERT_PATH", False),
    ],
)
def test_only_a_server_without_credentials_is_asked_directly(
    uri: str, setting: str | None, plain: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    if setting:
        monkeypatch.setenv(setting, "x")
    assert is_plain(uri) is plain
    (tmp_path / ".mlflow").mkdir()
    (tmp_path / ".mlflow" / "credentials").touch()
    assert not is_plain(uri)

"""A fetch reads a plain MLflow server without importing mlflow, and gets the same."""

import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
import requests

from registry.errors import BadName, DigestMismatch, Interrupted, NotFound, TornBundle
from registry.mlflow.quick.open import open_to_read
from registry.mlflow.quick.rest import RestRows, _ServerInfo, is_plain
from registry.mlflow.quick.store import QuickStore
from registry.mlflow.store import MlflowStore
from registry.promotion.promote import promote
from registry.promotion.rules import Decision
from registry.serving.fetch import Policy, fetch
from registry.store import ServingStore
from tests.support.lying_server import LyingHandler, lying_server
from tests.support.publisher import HOST, Publisher

ROOT = Path(__file__).parents[5]
FETCH = """
import sys
from pathlib import Path
from registry.serving.fetch import Policy, fetch
from registry.mlflow.quick.open import open_to_read
from registry.mlflow.quick.rest import RestRows
from registry.mlflow.quick.store import QuickStore
from registry.bundle.signing import Trust
from tests.support.publisher import HOST

uri, model, key, into = sys.argv[1:]
policy = Policy(Trust((Path(key),)), HOST)
print(fetch(QuickStore(RestRows(uri), exit), model, alias="production-l4", into=Path(into), policy=policy).reused)
print(*sorted({"mlflow", "sqlalchemy", "requests", "model_signing", "pandas", "torch", "prefect"} & set(sys.modules)))
"""


@pytest.fixture
def whole(server_uri: str, tmp_path: Path) -> MlflowStore:
    return MlflowStore(server_uri, tmp_path / "state")


@pytest.fixture
def model(whole: MlflowStore, manifest_factory: Any, publisher: Publisher) -> str:
    name = f"quick-{uuid4().hex[:8]}"
    publisher.publish(whole, manifest_factory(model=name))
    promote(whole, name, {"l4": 1}, Decision("ana", "first", datetime(2026, 11, 26, tzinfo=UTC)), {})
    return name


def refuses() -> ServingStore:
    raise AssertionError("the whole store was opened")


def test_rows_and_aliases_are_those_of_the_whole_store(server_uri: str, whole: MlflowStore, model: str) -> None:
    quick = QuickStore(RestRows(server_uri), refuses)
    assert quick.aliases(model) == whole.aliases(model) == {"production-l4": 1}
    assert quick.version(model, 1) == quick.resolve(model, "production-l4") == whole.version(model, 1)
    with pytest.raises(NotFound, match="no alias"):
        quick.resolve(model, "none")
    with pytest.raises(BadName):
        quick.version("../x", 1)


def test_events_are_those_of_the_whole_store(server_uri: str, whole: MlflowStore, model: str) -> None:
    quick = QuickStore(RestRows(server_uri), refuses)
    (event,) = quick.events(model, alias="production-l4", newest=50)
    assert (event,) == whole.events(model) == quick.events(model) == quick.events(model, outcome="done")
    assert quick.events(model, alias="production-other") == quick.events(model, outcome="pending") == ()


def test_whole_store_answers_what_quick_store_cannot(server_uri: str, whole: MlflowStore, model: str) -> None:
    quick = QuickStore(RestRows(server_uri), lambda: whole)
    assert quick.events("none") == whole.events("none") == ()
    assert quick.aliases("none") == {}
    with pytest.raises(NotFound):
        quick.version(model, 9)
    whole.client.set_model_version_tag(model, "1", "version.publish_state", "uploading")
    for ask in (quick.version, quick.open_bundle):
        with pytest.raises(TornBundle):
            ask(model, 1)
    assert QuickStore(RestRows("http://127.0.0.1:9"), lambda: whole).aliases(model) == {"production-l4": 1}


def test_files_are_those_of_the_whole_store(server_uri: str, whole: MlflowStore, model: str) -> None:
    quick, other = QuickStore(RestRows(server_uri), refuses).open_bundle(model, 1), whole.open_bundle(model, 1)
    assert (quick.manifest, quick.signature) == (other.manifest, other.signature)
    assert quick.files.ranged
    assert other.files.ranged
    for arguments in (("engine.plan",), ("engine.plan", 1, 3), ("tokenizer/vocab.txt", 0, 2)):
        assert b"".join(quick.files.read(*arguments)) == b"".join(other.files.read(*arguments))
    with pytest.raises(NotFound):
        b"".join(quick.files.read("none"))


def test_whole_store_reads_files_outside_the_server(
    server_uri: str, whole: MlflowStore, model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    row = whole.client.get_model_version(model, "1")
    whole.client.create_model_version(model, "s3://elsewhere/bundle", run_id=str(row.run_id), tags=row.tags)
    opened: list[int] = []
    monkeypatch.setattr(whole, "open_bundle", lambda _, version: opened.append(version))
    quick = QuickStore(RestRows(server_uri), lambda: whole)
    quick.open_bundle(model, 2)
    assert opened == [2]
    monkeypatch.setattr(
        "registry.mlflow.quick.rest._get_server_info", lambda _: _ServerInfo(multipart_downloads_enabled=True)
    )
    quick.open_bundle(model, 1)
    monkeypatch.setattr("registry.mlflow.quick.rest._get_server_info", lambda _: None)
    quick.open_bundle(model, 1)
    assert opened == [2, 1, 1]


def test_a_manifest_overwritten_after_publishing_is_refused(
    server_uri: str, whole: MlflowStore, model: str, tmp_path: Path
) -> None:
    (tmp_path / "manifest.json").write_bytes(b"{}")
    run = str(whole.client.get_model_version(model, "1").run_id)
    whole.client.log_artifact(run, str(tmp_path / "manifest.json"), "bundle")
    with pytest.raises(DigestMismatch, match="its manifest was changed"):
        QuickStore(RestRows(server_uri), refuses).open_bundle(model, 1)


def test_fetch_never_imports_mlflow_and_in_place_no_signing(
    server_uri: str, model: str, publisher: Publisher, tmp_path: Path
) -> None:
    def imports(reused: bool) -> str:
        arguments = (server_uri, model, str(publisher.trust.public_keys[0]), str(tmp_path / "models"))
        done = subprocess.run(
            [sys.executable, "-c", FETCH, *arguments], cwd=ROOT, check=True, capture_output=True, text=True, timeout=120
        )
        reused_line, imported = done.stdout.splitlines()
        assert reused_line == str(reused)
        return imported

    assert imports(reused=False) == "model_signing requests"
    assert imports(reused=True) == ""


@pytest.mark.parametrize(
    ("uri", "setting", "plain"),
    [
        ("http://h:5000", None, True),
        ("https://h", None, True),
        ("https://u:p@h", None, False),
        ("sqlite:///x", None, False),
        ("", None, False),
        ("http://h", "MLFLOW_TRACKING_TOKEN", True),
        ("http://h", "MLFLOW_TRACKING_PASSWORD", True),
        ("http://h", "MLFLOW_TRACKING_AUTH", False),
        ("http://h", "MLFLOW_HTTP_REQUEST_TIMEOUT", False),
        ("http://h", "MLFLOW_WORKSPACE", False),
        ("http://h", "MLFLOW_ENABLE_PROXY_MULTIPART_DOWNLOAD", False),
        ("https://h", "MLFLOW_TRACKING_SERVER_CERT_PATH", False),
    ],
)
def test_a_server_is_queried_directly_with_a_password_or_a_token_at_most(
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


CREDENTIALS = [
    ({"MLFLOW_TRACKING_USERNAME": "ana", "MLFLOW_TRACKING_PASSWORD": "s3:cret"}, "Basic YW5hOnMzOmNyZXQ="),
    ({"MLFLOW_TRACKING_TOKEN": "t0ken"}, "Bearer t0ken"),
    (
        {"MLFLOW_TRACKING_USERNAME": "ana", "MLFLOW_TRACKING_PASSWORD": "x", "MLFLOW_TRACKING_TOKEN": "t0ken"},
        "Basic YW5hOng=",
    ),
    ({"MLFLOW_TRACKING_USERNAME": "ana"}, None),
]


@pytest.mark.parametrize(("settings", "header"), CREDENTIALS, ids=["password", "token", "both", "half"])
def test_every_request_has_the_credentials_that_mlflows_client_sends(
    settings: dict[str, str],
    header: str | None,
    server_uri: str,
    model: str,
    publisher: Publisher,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    sent = list[str | None]()

    def note(handler: LyingHandler, true: requests.Response) -> None:
        sent.append(handler.headers["Authorization"])
        handler.send_whole(true, true.content)

    with lying_server(server_uri) as server:
        server.lie("/api/", note)
        quick = QuickStore(RestRows(server.address), refuses)
        policy = Policy(publisher.trust, HOST)
        assert fetch(quick, model, alias="production-l4", into=tmp_path / "models", policy=policy).version == 1
        assert len(sent) > 3
        assert set(sent) == {header}
        sent.clear()
        MlflowStore(server.address, tmp_path / "other").version(model, 1)
        assert set(sent) == {header}


def test_credentials_never_reach_another_host(server_uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "t0ken")
    sent = list[str | None]()

    def note(handler: LyingHandler, true: requests.Response) -> None:
        sent.append(handler.headers["Authorization"])
        handler.send_whole(true, true.content)

    with lying_server(server_uri) as other, lying_server(server_uri) as server:
        other.lie("/", note)

        def redirect(handler: LyingHandler, _true: requests.Response) -> None:
            handler.send_response(302)
            handler.send_header("Location", other.address + handler.path)
            handler.end_headers()

        server.lie("/", redirect)
        RestRows(server.address).aliases("m")
        assert sent == [None]


def test_an_endless_answer_to_someone_with_a_token_is_one_sentence(
    server_uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "t0ken")
    monkeypatch.setattr("registry.web.MAX_ANSWER_BYTES", 2**20)

    def never_end(handler: LyingHandler, _true: requests.Response) -> None:
        handler.send_open()
        while True:
            handler.wfile.write(b" " * 2**16)

    with lying_server(server_uri) as server:
        server.lie("/api/", never_end)
        monkeypatch.setenv("MLFLOW_TRACKING_URI", server.address)
        assert is_plain(server.address)
        with pytest.raises(Interrupted, match="answered with more than 1048576 bytes: check the server"):
            open_to_read().aliases("m")

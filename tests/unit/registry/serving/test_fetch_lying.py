"""Whatever a server answers, a fetch places nothing wrong, ends in one of our errors, and a watch goes on."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from registry.errors import EngineryError, Interrupted
from registry.mlflow.quick.rest import RestRows
from registry.mlflow.quick.store import QuickStore
from registry.mlflow.store import MlflowStore
from registry.promotion.promote import promote
from registry.serving.download import DownloadPlan
from registry.serving.fetch import Fetched, fetch
from registry.serving.watch import Watch, current_version, watch
from registry.store import ServingStore
from tests.support.deciding import ANA
from tests.support.lying_server import (
    Lie,
    LyingServer,
    body,
    cut,
    dripping,
    dripping_headers,
    edited,
    endless,
    lying_server,
    raw,
    status,
)
from tests.support.publisher import Publisher

Edit = Callable[[Any], object]


@pytest.fixture(autouse=True)
def no_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setattr("registry.mlflow.quick.rest._TRIES", 0)
    monkeypatch.setattr("registry.web.ANSWER_SECONDS", 2.0)
    monkeypatch.setattr("registry.mlflow.rows.ANSWER_SECONDS", 2.0)


@pytest.fixture
def publisher(publisher: Publisher) -> Publisher:
    return replace(publisher, plan=DownloadPlan(attempts=1))


@pytest.fixture
def model(server_uri: str, manifest_factory: Any, publisher: Publisher, tmp_path: Path) -> str:
    store, name = MlflowStore(server_uri, tmp_path / "state"), f"lied-{uuid4().hex[:8]}"
    publisher.publish(store, manifest_factory(model=name))
    promote(store, name, {"l4": 1}, ANA, {})
    return name


@pytest.fixture
def server(server_uri: str) -> Iterator[LyingServer]:
    with lying_server(server_uri) as server:
        yield server


def refuse() -> ServingStore:
    raise AssertionError("the whole store was opened")


def get(store: ServingStore, model: str, publisher: Publisher, models: Path) -> Fetched:
    return fetch(store, model, alias="production-l4", into=models, policy=publisher.policy)


BROKEN: dict[str, Lie] = {
    "cut": cut(),
    "empty": body(b""),
    "a page": body(b"<html>log in</html>"),
    "a list": body(b"[]"),
    "a number": body(b"7"),
    "null": body(b"null"),
    "deep": body(b'{"model_version":' + b"[" * 200_000),
    "a lone surrogate": body(b'{"registered_models":[{"aliases":[{"alias":"\\ud800","version":"1"}]}]}'),
    "no utf-8": body(b'{"registered_models":"\xff"}'),
    "garbage": raw(b"\x00\x01garbage\r\n\r\n"),
    "a garbage status": raw(b"HTTP/1.1 abc what\r\n\r\n"),
    "nothing": raw(b""),
    "a header without end": raw(b"HTTP/1.1 200 OK\r\nX: " + b"x" * 100_000 + b"\r\n\r\n{}"),
    "broken chunks": raw(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n{}"),
    "endless": endless,
    "dripping": dripping,
    "dripping headers": dripping_headers,
}
ASKED = ["registered-models/search", "model-versions/get", "experiments/get-by-name", "runs/search", "server-info"]


@pytest.mark.parametrize("lie", BROKEN.values(), ids=BROKEN.keys())
def test_a_broken_answer_is_one_sentence(
    lie: Lie, model: str, server: LyingServer, publisher: Publisher, tmp_path: Path
) -> None:
    quick = QuickStore(RestRows(server.address), refuse)
    for asked in ASKED:
        server.lies.clear()
        server.lie(asked, lie)
        if "registered" in asked:
            with pytest.raises(Interrupted) as caught:
                quick.aliases(model)
        else:
            with pytest.raises(Interrupted) as caught:
                get(QuickStore(RestRows(server.address), refuse), model, publisher, tmp_path / "models")
        assert "check the server" in str(caught.value)
        assert "\n" not in str(caught.value)
    server.lies.clear()
    assert get(quick, model, publisher, tmp_path / "models").version == 1


def set_row(**fields: Any) -> Edit:
    return lambda answer: {"model_version": answer["model_version"] | fields}


def drop_row(*names: str) -> Edit:
    return lambda answer: {
        "model_version": {name: value for name, value in answer["model_version"].items() if name not in names}
    }


SHAPES: dict[str, tuple[str, Edit]] = {
    "no row": ("model-versions/get", lambda _: {}),
    "a row of text": ("model-versions/get", lambda _: {"model_version": "x"}),
    "no name": ("model-versions/get", drop_row("name")),
    "no version": ("model-versions/get", drop_row("version")),
    "no source": ("model-versions/get", drop_row("source")),
    "a version of text": ("model-versions/get", set_row(version="one")),
    "a long version": ("model-versions/get", set_row(version="9" * 5000)),
    "a list as name": ("model-versions/get", set_row(name=["x"])),
    "tags of numbers": ("model-versions/get", set_row(tags=[1, 2])),
    "tags without values": ("model-versions/get", set_row(tags=[{"key": "x"}])),
    "tags as text": ("model-versions/get", set_row(tags="x")),
    "aliases of lists": ("model-versions/get", set_row(aliases=[["x"]])),
    "a source that is no address": ("model-versions/get", set_row(source="mlflow-artifacts://[")),
    "no experiment": ("get-by-name", lambda _: {}),
    "an experiment without id": ("get-by-name", lambda _: {"experiment": {}}),
    "runs of text": ("runs/search", lambda _: {"runs": "x"}),
    "runs without data": ("runs/search", lambda _: {"runs": [{}]}),
    "tags of runs without keys": ("runs/search", lambda _: {"runs": [{"data": {"tags": [{"value": "x"}]}}]}),
    "a run without a record": ("runs/search", lambda _: {"runs": [{"data": {"tags": []}}]}),
    "server info of text": ("server-info", lambda _: {"multipart_downloads_enabled": "x"}),
}


@pytest.mark.parametrize(("asked", "edit"), SHAPES.values(), ids=SHAPES.keys())
@pytest.mark.parametrize("quick", [True, False])
def test_an_answer_of_another_shape_is_one_sentence(
    quick: bool, asked: str, edit: Edit, model: str, server: LyingServer, publisher: Publisher, tmp_path: Path
) -> None:
    whole = MlflowStore(server.address, tmp_path / "state")
    store = QuickStore(RestRows(server.address), lambda: whole) if quick else whole
    server.lie(asked, edited(edit))
    if asked == "model-versions/get":
        server.lie("registered-models/alias", edited(edit))  # mlflow's client asks for a version by its alias
    with pytest.raises(EngineryError) as caught:
        get(store, model, publisher, tmp_path / "models")
    assert "\n" not in str(caught.value)
    assert list((tmp_path / "models").glob("*/[!.]*")) == []


@pytest.mark.parametrize("file", ["manifest.json", "model.sig", "engine.plan", "vocab.txt"])
@pytest.mark.parametrize(
    "lie",
    [cut(1), body(b""), body(b"{}"), raw(b"garbage\r\n\r\n"), dripping, endless, status(403)],
    ids=["cut", "empty", "other", "garbage", "dripping", "endless", "forbidden"],
)
def test_a_broken_file_is_one_sentence_and_is_not_placed(
    file: str,
    lie: Lie,
    model: str,
    server: LyingServer,
    publisher: Publisher,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("registry.mlflow.files.http.PACE_SECONDS", 0.2)
    server.lie(file, lie)
    models = tmp_path / "models"
    with pytest.raises(EngineryError) as caught:
        get(QuickStore(RestRows(server.address), refuse), model, publisher, models)
    assert "\n" not in str(caught.value)
    assert list(models.glob("*/[!.]*")) == []
    server.lies.clear()
    assert get(QuickStore(RestRows(server.address), refuse), model, publisher, models).version == 1


def test_a_file_sent_compressed_is_refused_before_it_is_unpacked(
    model: str, server: LyingServer, publisher: Publisher, tmp_path: Path
) -> None:
    bomb = b"\x1f\x8b" + bytes(1000)
    head = f"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: {len(bomb)}\r\n\r\n".encode()
    server.lie("engine.plan", raw(head + bomb))
    with pytest.raises(EngineryError, match="more bytes than the manifest says"):
        get(QuickStore(RestRows(server.address), refuse), model, publisher, tmp_path / "models")


def test_content_that_changes_between_requests_is_not_placed(
    model: str, server: LyingServer, publisher: Publisher, tmp_path: Path
) -> None:
    server.lie("engine.plan", body(b"plaN"))
    with pytest.raises(EngineryError, match="changed after publishing"):
        get(QuickStore(RestRows(server.address), refuse), model, publisher, tmp_path / "models")
    assert list((tmp_path / "models").glob("*/[!.]*")) == []


def test_a_watch_goes_on_after_every_broken_answer(
    model: str, server: LyingServer, publisher: Publisher, tmp_path: Path
) -> None:
    models, waited = tmp_path / "models", list[float]()
    lies = list(BROKEN.values())

    def wait(seconds: float) -> bool:
        waited.append(seconds)
        server.lies.clear()
        if lies:
            server.lie("model-versions/get", lies.pop())
        return current_version(models / model) is not None

    server.lie("model-versions/get", cut())
    watch(
        lambda: get(QuickStore(RestRows(server.address), refuse), model, publisher, models),
        models / model,
        Watch(),
        wait,
    )
    assert len(waited) == len(BROKEN) + 2
    assert current_version(models / model) == 1

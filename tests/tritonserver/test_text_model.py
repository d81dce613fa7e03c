"""The text model in a real tritonserver: the answers of `enginery run`, versions swapped under load, rollbacks."""

import json
import shutil
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tritonclient.grpc import InferenceServerClient, InferInput
from tritonclient.utils import InferenceServerException

from registry.errors import EngineryError
from registry.triton.control import load_version, triton_server
from registry.triton.model import WarmupRow
from registry.triton.repository import CONFIG_FILE, WARMUP_FOLDER, place_triton
from tasks.bundle.answer import answer
from tests.support.triton_bundles import TEXT_MODEL, verified, write_bundle
from tests.support.triton_server import Running

TEXTS = ("good film", "a poor editor for bad music", "the library", "fine music and good film")
ROWS = (WarmupRow("good music"), WarmupRow("the poor editor"))


def ask(client: InferenceServerClient, texts: Sequence[str]) -> list[tuple[str, float]]:
    stored = np.array([[text.encode()] for text in texts], dtype=np.object_)
    tensor = InferInput("text", list(stored.shape), "BYTES")
    tensor.set_data_from_numpy(stored)
    result = client.infer("opinions", [tensor])
    answers = [json.loads(stored) for (stored,) in result.as_numpy("answer")]
    return [(answer["label"], answer["score"]) for answer in answers]


@pytest.fixture
def client(server: Running) -> Iterator[InferenceServerClient]:
    with InferenceServerClient(server.address) as connected:
        yield connected


@pytest.fixture(autouse=True)
def _nothing_left(server: Running) -> Iterator[None]:
    yield
    for folder in server.repository.iterdir():
        server.unload(folder.name)
        shutil.rmtree(folder)


def with_rows(folder: Path, **options: Any) -> Path:
    return write_bundle(folder, rows=ROWS, **options)


def serve(server: Running, bundle: Path, version: int) -> None:
    placed = place_triton([verified(bundle)], server.repository, version=version, python_model=TEXT_MODEL)
    load_version(server.control, placed)


@contextmanager
def under_load(server: Running) -> Iterator[list[tuple[str, float]]]:
    """Two clients that ask without pause; a failed request fails the test, and the answers are kept as they come.

    An answer that comes after another may have been asked for before it.
    """
    answers: list[tuple[str, float]] = []
    failures: list[BaseException] = []
    stop = threading.Event()

    def keep_asking() -> None:
        with InferenceServerClient(server.address) as connected:
            while not stop.is_set():
                try:
                    answers.extend(ask(connected, TEXTS[:1]))
                except InferenceServerException as error:
                    failures.append(error)

    threads = [threading.Thread(target=keep_asking) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        yield answers
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert not failures, failures[:3]


def test_it_answers_as_enginery_run_does(server: Running, client: InferenceServerClient, tmp_path: Path) -> None:
    bundle = with_rows(tmp_path / "bundle")
    serve(server, bundle, 1)
    expected = [vars(one.shown) for one in answer(bundle, verified(bundle).manifest, TEXTS)]
    answers = ask(client, TEXTS)
    assert [label for label, _ in answers] == [one["label"] for one in expected]
    assert [score for _, score in answers] == pytest.approx([one["score"] for one in expected], abs=1e-6)
    assert len({one["label"] for one in expected}) == 2


def test_an_empty_text_fails_its_own_request_only(
    server: Running, client: InferenceServerClient, tmp_path: Path
) -> None:
    serve(server, with_rows(tmp_path / "bundle"), 1)
    with under_load(server) as answers, pytest.raises(InferenceServerException, match="empty text has no answer"):
        ask(client, ["good", " "])
    assert {label for label, _ in answers} == {"positive"}


def test_versions_swap_under_load_without_a_failed_request(server: Running, tmp_path: Path) -> None:
    names = ("first", "second", "third", "fourth")
    bundles = [with_rows(tmp_path / name, sequence=i, labels=("no", name)) for i, name in enumerate(names, 1)]
    serve(server, bundles[0], 1)
    with under_load(server) as answers:
        for version, bundle in enumerate(bundles[1:], 2):
            serve(server, bundle, version)
            before = len(answers)
            while len(answers) < before + 5:
                time.sleep(0.01)
    assert {label for label, _ in answers} == set(names)
    with InferenceServerClient(server.address) as connected:
        assert {label for label, _ in ask(connected, TEXTS[:1])} == {"fourth"}
    assert server.ready_versions("opinions") == [4]


def test_version_that_does_not_load_leaves_the_previous_one(server: Running, tmp_path: Path) -> None:
    serve(server, with_rows(tmp_path / "good"), 1)
    before = (server.repository / "opinions" / CONFIG_FILE).read_bytes()
    broken = with_rows(tmp_path / "broken", engine=b"no graph", sequence=2)
    with under_load(server) as answers, pytest.raises(EngineryError, match="the previous version is served"):
        serve(server, broken, 2)
    assert {label for label, _ in answers} == {"positive"}
    assert server.ready_versions("opinions") == [1]
    assert (server.repository / "opinions" / CONFIG_FILE).read_bytes() == before


def test_new_model_that_does_not_load_is_removed(server: Running, tmp_path: Path) -> None:
    broken = with_rows(tmp_path / "broken", engine=b"no graph")
    with pytest.raises(EngineryError, match="nothing is served"):
        serve(server, broken, 1)
    assert list(server.repository.iterdir()) == []
    assert server.ready_versions("opinions") == []


def test_a_rollback_is_placing_the_older_version_again(
    server: Running, client: InferenceServerClient, tmp_path: Path
) -> None:
    old, new = with_rows(tmp_path / "old"), with_rows(tmp_path / "new", sequence=2, labels=("no", "yes"))
    for bundle, version, label in ((old, 1, "positive"), (new, 2, "yes"), (old, 1, "positive")):
        serve(server, bundle, version)
        assert ask(client, TEXTS[:1])[0][0] == label
        assert server.ready_versions("opinions") == [version]


def test_server_reads_the_warmup_rows(server: Running, tmp_path: Path) -> None:
    placed = place_triton([verified(with_rows(tmp_path / "b"))], server.repository, version=1, python_model=TEXT_MODEL)
    for file in (placed.folder / WARMUP_FOLDER).iterdir():
        file.write_bytes(b"")
    with pytest.raises(EngineryError, match=r"expected 1 string elements .* got 0"):
        load_version(server.control, placed)


def test_server_of_another_repository_is_detected(server: Running, tmp_path: Path) -> None:
    serve(server, with_rows(tmp_path / "served"), 1)
    other = write_bundle(tmp_path / "other", engine=b"other")
    placed = place_triton([verified(other)], tmp_path / "elsewhere", version=1, python_model=TEXT_MODEL)
    with pytest.raises(EngineryError, match=r"serves another opinions .*--model-repository="):
        load_version(server.control, placed)


def test_without_the_header_control_is_refused(server: Running, tmp_path: Path) -> None:
    placed = place_triton(
        [verified(write_bundle(tmp_path / "b"))], server.repository, version=1, python_model=TEXT_MODEL
    )
    with pytest.raises(EngineryError, match="This protocol is restricted"):
        load_version(triton_server(server.address), placed)


def test_unreachable_server_leaves_the_repository_unchanged(tmp_path: Path) -> None:
    placed = place_triton(
        [verified(write_bundle(tmp_path / "b"))], tmp_path / "repository", version=1, python_model=TEXT_MODEL
    )
    with pytest.raises(EngineryError, match=r"Triton at 127\.0\.0\.1:1 refused to load model opinions"):
        load_version(triton_server("127.0.0.1:1"), placed)
    assert list((tmp_path / "repository").iterdir()) == []

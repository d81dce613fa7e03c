"""A fetch killed or starved at any step shows nothing half-placed, and the next one resumes."""

import os
import resource
import shutil
import signal
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from registry.errors import EngineryError, Interrupted
from registry.mlflow.store import MlflowStore
from registry.serving.fetch import Policy, fetch, verify_placed
from registry.serving.placed import read_record
from tests.support.disks import mounted
from tests.support.fetching import ENGINE, assert_next_fetch_succeeds, list_visible
from tests.support.lying_server import Lie, LyingServer, cut, lying_server, status
from tests.support.memory_store import MemoryFiles, MemoryStore
from tests.support.publisher import HOST, Publisher

# Every way in which a fetch changes the disk, or waits for it.
STEPS = {
    os: ("open", "pwrite", "write", "ftruncate", "fsync", "preadv", "fchmod"),
    Path: ("rename", "write_bytes", "mkdir", "chmod", "unlink"),
}


def dies_at(nth: int, fetching: Callable[[], object]) -> bool:
    """Run `fetching` in a process that is killed -9 before its n-th step; tell whether it got that far."""
    child = os.fork()
    if child == 0:
        steps = count(1)

        def dying(real: Callable[..., Any]) -> Callable[..., Any]:
            def call(*arguments: Any, **options: Any) -> Any:
                if next(steps) == nth:
                    os.kill(os.getpid(), signal.SIGKILL)
                return real(*arguments, **options)

            return call

        try:
            for owner, names in STEPS.items():
                for name in names:
                    setattr(owner, name, dying(getattr(owner, name)))
            fetching()
            os._exit(0)
        finally:
            os._exit(1)
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        assert os.WTERMSIG(status) == signal.SIGKILL
        return True
    assert os.WEXITSTATUS(status) == 0
    return False


@pytest.mark.long
def test_a_fetch_killed_before_any_of_its_steps_shows_a_whole_bundle_or_none(
    in_memory: MemoryStore, in_segments: Publisher, models: Path
) -> None:
    def get() -> None:
        fetch(in_memory, "sst2", version=2, into=models, policy=in_segments.policy)

    fetch(in_memory, "sst2", version=1, into=models, policy=in_segments.policy)
    for nth in count(1):
        died = dies_at(nth, get)
        assert list_visible(models) in (["1"], ["1", "2"]), nth
        for version in list_visible(models):
            verify_placed(models / "sst2" / version, in_segments.trust)
        assert_next_fetch_succeeds(in_memory, models, in_segments, 2)
        if not died:
            break
        shutil.rmtree(models / "sst2" / "2")
    assert nth > 50


def test_replacement_killed_at_any_step_is_completed_by_the_next_fetch(
    in_memory: MemoryStore, publisher: Publisher, models: Path
) -> None:
    def get() -> None:
        fetch(in_memory, "sst2", version=1, into=models, policy=publisher.policy)

    for nth in count(1, 7):
        get()
        (models / "sst2" / "1" / "engine.plan").write_bytes(b"damaged")
        died = dies_at(nth, get)
        assert_next_fetch_succeeds(in_memory, models, publisher)
        if not died:
            break


def test_what_arrived_before_a_kill_is_not_read_again(
    in_memory: MemoryStore, in_segments: Publisher, models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def get() -> None:
        fetch(in_memory, "sst2", version=1, into=models, policy=in_segments.policy)

    def arrived() -> int:
        return sum(path.read_text().count("engine.plan") for path in (models / "sst2").glob("*.journal"))

    for nth in count(10):
        assert dies_at(nth, get)
        if 1 < arrived() < 4:
            break
        shutil.rmtree(models)
    (partial,) = (path for path in (models / "sst2").glob(".partial-*") if path.is_dir())
    # As after a kill between a folder and its first file.
    (partial / "tokenizer").mkdir(exist_ok=True)
    (partial / "in" / "folders").mkdir(parents=True)
    before, requested, real = arrived(), [], MemoryFiles.read

    def read(self: MemoryFiles, path: str, start: int = 0, stop: int | None = None) -> Any:
        requested.append(path)
        return real(self, path, start, stop)

    monkeypatch.setattr(MemoryFiles, "read", read)
    assert_next_fetch_succeeds(in_memory, models, in_segments)
    assert requested.count("engine.plan") == 4 - before


def test_full_disk_is_one_sentence_and_its_room_is_freed(
    registry: MlflowStore, publisher: Publisher, models: Path
) -> None:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    fetch(registry, "sst2", version=1, into=models, policy=publisher.policy)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    try:
        with pytest.raises(EngineryError, match="nothing was placed") as caught:
            fetch(registry, "sst2", version=2, into=models, policy=publisher.policy)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert "\n" not in str(caught.value)
    assert list_visible(models) == ["1"]
    assert not any((models / "sst2").glob(".partial-*/*"))
    assert_next_fetch_succeeds(registry, models, publisher, 2)


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    """A disk of its own that the engine does not fit on."""
    with mounted(tmp_path / "small", "128k") as disk:
        if disk is None:
            pytest.skip("mounting a tmpfs needs root, on Linux")
        yield disk.folder


def test_a_disk_too_small_is_refused_before_the_engine_is_read(
    registry: MlflowStore, publisher: Publisher, small: Path
) -> None:
    with pytest.raises(EngineryError, match="bytes free"):
        fetch(registry, "sst2", version=1, into=small, policy=publisher.policy)
    assert list_visible(small) == []


def test_disk_filled_by_others_in_mid_download_gets_its_room_back(
    registry: MlflowStore, publisher: Publisher, small: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = shutil.disk_usage(small).free
    with monkeypatch.context() as patched:
        # There was room when fetch looked.
        patched.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=len(ENGINE) * 2))
        with pytest.raises(EngineryError, match="No space left on device"):
            fetch(registry, "sst2", version=1, into=small, policy=publisher.policy)
    assert list_visible(small) == []
    assert before - shutil.disk_usage(small).free < 20_000


@pytest.fixture
def flaky(server_uri: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[LyingServer]:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with lying_server(server_uri) as server:
        yield server


@pytest.mark.parametrize("fault", [status(503), cut(1000)], ids=["503", "cut"])
def test_server_that_fails_in_mid_download_is_retried_now_and_by_the_next_fetch(
    fault: Lie,
    flaky: LyingServer,
    server_uri: str,
    manifest_factory: Any,
    in_segments: Publisher,
    tmp_path: Path,
    models: Path,
) -> None:
    in_segments.publish(MlflowStore(server_uri, tmp_path / "state"), manifest_factory(ENGINE, model="sst2"))
    version = MlflowStore(server_uri, tmp_path / "state").versions("sst2")[-1].version
    store = MlflowStore(flaky.address, tmp_path / "state")
    flaky.lie("engine.plan", fault)
    with pytest.raises(Interrupted):
        fetch(store, "sst2", version=version, into=models, policy=in_segments.policy)
    assert list_visible(models) == []
    flaky.lie("engine.plan", fault, times=2)
    fetched = fetch(store, "sst2", version=version, into=models, policy=in_segments.policy)
    assert (fetched.path / "engine.plan").read_bytes() == ENGINE
    assert read_record(models / "sst2").newest_sequence("l4") == 1


def test_unreachable_registry_leaves_the_bundle_in_place(
    registry: MlflowStore, publisher: Publisher, models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    fetched = fetch(registry, "sst2", version=1, into=models, policy=publisher.policy)
    nobody = MlflowStore("http://127.0.0.1:9", tmp_path / "state")
    with pytest.raises(EngineryError):
        fetch(nobody, "sst2", version=2, into=models, policy=Policy(publisher.trust, HOST))
    verify_placed(fetched.path, publisher.trust)

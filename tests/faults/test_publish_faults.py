"""Whatever stops a publish, only whole versions are visible, and the next run finishes."""

import datetime
import errno
import multiprocessing
import os
import shutil
import signal
from collections.abc import Callable
from dataclasses import replace
from itertools import count, takewhile
from pathlib import Path
from typing import Any

import pytest
from mlflow.store.artifact.local_artifact_repo import LocalArtifactRepository
from mlflow.tracking import MlflowClient

from registry.bundle.manifest import MANIFEST_FILE, SIGNATURE_FILE, verify_bundle, write_manifest
from registry.bundle.signing import local_signer, local_trust, sign_bundle, verify_signature
from registry.digest import record_tree
from registry.errors import DigestMismatch, EngineryError, TornBundle
from registry.mlflow.store import MlflowStore, embedded_store
from registry.records import EngineManifest, EngineVersion
from registry.repair import RepairOutcome, repair_unfinished
from registry.serving.download import copy_bundle
from tests.support.manifests import make_manifest

# Forked from a server that has imported MLflow once: a child that dies costs a fraction of a second.
children = multiprocessing.get_context("forkserver")
children.set_forkserver_preload(
    [
        "mlflow.store.tracking.sqlalchemy_store",
        "mlflow.store.model_registry.sqlalchemy_store",
        "model_signing.signing",
        "tests.faults.test_publish_faults",
    ]
)


def now() -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC)


def write_bundle(folder: Path, model: str = "sst2") -> EngineManifest:
    (folder / "tokenizer").mkdir(parents=True)
    (folder / "engine.plan").write_bytes(b"plan" * 1000)
    (folder / "tokenizer" / "vocab.txt").write_text("a\nb\n", encoding="utf-8")
    return make_manifest(record_tree(folder), model=model)


def publish_as_a_release_does(store: MlflowStore, home: Path, scratch: Path, model: str = "sst2") -> EngineVersion:
    """Repair first; then return the engine if it is published, else number, sign and publish it."""
    shutil.rmtree(scratch, ignore_errors=True)
    manifest = write_bundle(scratch, model)
    repair_unfinished(store.repairs, lambda: local_trust(home), clock=now, model=model)
    for engine in store.builds(manifest.build.build_key):
        if engine.model == model:
            return engine
    manifest = replace(manifest, sequence=store.take_sequence(model), created_at=now().isoformat())
    (scratch / MANIFEST_FILE).write_bytes(write_manifest(manifest))
    sign_bundle(scratch, local_signer(home))
    return store.publish(manifest, scratch)


def assert_only_whole_versions(
    store: MlflowStore, home: Path, scratch: Path, model: str | None = None
) -> tuple[EngineVersion, ...]:
    versions = store.versions(model)
    for engine in versions:
        into = scratch / str(engine.version)
        into.mkdir(parents=True)
        copy_bundle(store, engine.model, engine.version, into)
        verify_signature(into, local_trust(home))
        assert verify_bundle(into).build.digest == engine.digest
    return versions


def die(*_: object, **__: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def on_every_call(act: Callable[[int, str, Any], None]) -> None:
    """Call `act(n, name, arguments)` before the n-th call of this process to MLflow or to its artifacts."""
    calls = 0

    def hooked(name: str, original: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **named: Any) -> Any:
            nonlocal calls
            calls += 1
            act(calls, name, arguments)
            return original(*arguments, **named)

        return call

    for name in ("log_artifact", "download_artifacts", "list_artifacts"):
        setattr(LocalArtifactRepository, name, hooked(name, getattr(LocalArtifactRepository, name)))
    for name, original in list(vars(MlflowClient).items()):
        if callable(original) and not name.startswith("_"):
            setattr(MlflowClient, name, hooked(name, original))


def child(home: Path, scratch: Path, strike_at: int, torn: bool, log: Path) -> None:
    """Publish, and die before the n-th call; `torn`: n counts uploads, and half of the file arrives."""
    uploads = 0

    def act(number: int, name: str, arguments: Any) -> None:
        nonlocal uploads
        with log.open("a", encoding="utf-8") as lines:
            lines.write(f"{name}\n")
        if name == "log_artifact" and torn:
            uploads += 1
            if uploads == strike_at:
                repository, file, folder = (*arguments, None)[:3]
                into = Path(repository.artifact_dir) / (folder or "")
                into.mkdir(parents=True, exist_ok=True)
                content = Path(file).read_bytes()
                (into / Path(file).name).write_bytes(content[: len(content) // 2])
                die()
        if number == strike_at and not torn:
            die()

    on_every_call(act)
    publish_as_a_release_does(embedded_store(home), home, scratch)


def run_child(home: Path, scratch: Path, strike_at: int, *, torn: bool) -> tuple[int, list[str]]:
    log = home / "calls"
    process = children.Process(target=child, args=(home, scratch, strike_at, torn, log))
    process.start()
    process.join()
    calls = log.read_text(encoding="utf-8").split() if log.exists() else []
    assert process.exitcode is not None
    return process.exitcode, calls


@pytest.fixture
def new_home(tmp_path: Path, migrated_database: Path) -> Callable[[str], Path]:
    def make(name: str) -> Path:
        home = tmp_path / name
        home.mkdir()
        shutil.copy(migrated_database, home / "mlflow.db")
        return home

    return make


def survive(home: Path, scratch: Path, strike_at: int, *, torn: bool) -> bool:
    """Kill one publish and let the next run finish; return False if the publish ended before it was killed."""
    exitcode, calls = run_child(home, scratch, strike_at, torn=torn)
    if exitcode == 0:
        return False
    assert exitcode == -signal.SIGKILL, calls
    store = embedded_store(home)
    visible = assert_only_whole_versions(store, home, home / "seen")
    finished = publish_as_a_release_does(store, home, scratch)
    (published,) = assert_only_whole_versions(store, home, home / "after")
    assert published == finished, calls
    assert list(visible) in ([], [published]), calls
    assert store.repairs.unfinished() == ()
    assert publish_as_a_release_does(store, home, scratch) == published
    assert store.take_sequence("sst2") > published.sequence
    return True


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.long
def test_a_publish_killed_before_any_of_its_calls_is_finished_by_the_next_run(
    new_home: Callable[[str], Path], tmp_path: Path
) -> None:
    tries = (survive(new_home(f"at {n}"), tmp_path / "bundle", n, torn=False) for n in count(1))
    assert len(list(takewhile(bool, tries))) > 20


@pytest.mark.slow
def test_a_publish_killed_amid_any_of_its_uploads_is_finished_by_the_next_run(
    new_home: Callable[[str], Path], tmp_path: Path
) -> None:
    tries = (survive(new_home(f"at {n}"), tmp_path / "bundle", n, torn=True) for n in count(1))
    assert len(list(takewhile(bool, tries))) == 4  # engine, vocabulary, manifest, signature


# Damages of one file in the bundle's folder.
def truncate(folder: Path) -> None:
    os.truncate(folder / "engine.plan", 100)


def flip(folder: Path) -> None:
    raw = bytearray((folder / "engine.plan").read_bytes())
    raw[7] ^= 1
    (folder / "engine.plan").write_bytes(raw)


def add(folder: Path) -> None:
    (folder / ".hidden").write_bytes(b"")


def remove(folder: Path) -> None:
    (folder / "tokenizer" / "vocab.txt").unlink()


def hard_link(folder: Path) -> None:
    os.link(folder / "engine.plan", folder.parent / "another name")


def flip_manifest(folder: Path) -> None:
    raw = (folder / MANIFEST_FILE).read_bytes()
    (folder / MANIFEST_FILE).write_bytes(raw.replace(b"every gate passed", b"every gate failed"))


def remove_signature(folder: Path) -> None:
    (folder / SIGNATURE_FILE).unlink()


DAMAGES = [truncate, flip, add, remove, hard_link, flip_manifest]


def write_signed_bundle(folder: Path, home: Path) -> EngineManifest:
    manifest = write_bundle(folder)
    (folder / MANIFEST_FILE).write_bytes(write_manifest(manifest))
    sign_bundle(folder, local_signer(home))
    return manifest


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_bundle_is_not_published(
    damage: Callable[[Path], None], new_home: Callable[[str], Path], tmp_path: Path
) -> None:
    home = new_home("home")
    store, manifest = embedded_store(home), write_signed_bundle(tmp_path / "bundle", home)
    damage(tmp_path / "bundle")
    with pytest.raises((TornBundle, DigestMismatch)):
        store.publish(manifest, tmp_path / "bundle")
    assert store.versions() == ()
    assert store.repairs.unfinished() == ()


def published_folder(home: Path) -> Path:
    (manifest,) = (home / "artifacts").rglob(MANIFEST_FILE)
    return manifest.parent


@pytest.mark.parametrize("damage", [*(d for d in DAMAGES if d is not hard_link), remove_signature])
def test_damaged_unfinished_bundle_is_torn_and_the_next_run_publishes_again(
    damage: Callable[[Path], None], new_home: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = new_home("home")
    store = embedded_store(home)
    publish_as_a_release_does(store, home, tmp_path / "bundle")
    store.client.set_model_version_tag("sst2", "1", "version.publish_state", "uploading")
    damage(published_folder(home))
    monkeypatch.setattr("registry.repair.has_ended", lambda _: True)
    (repaired,) = repair_unfinished(store.repairs, lambda: local_trust(home), clock=now)
    assert (repaired.outcome, repaired.version) == (RepairOutcome.TORN, 1), repaired.reason
    assert (store.versions(), store.repairs.unfinished()) == ((), ())
    assert publish_as_a_release_does(store, home, tmp_path / "bundle").version == 2
    assert [engine.version for engine in assert_only_whole_versions(store, home, tmp_path / "seen")] == [2]


@pytest.mark.parametrize("damage", [truncate, flip, remove, flip_manifest, remove_signature])
def test_artifact_changed_after_publishing_is_refused_on_download(
    damage: Callable[[Path], None], new_home: Callable[[str], Path], tmp_path: Path
) -> None:
    home = new_home("home")
    store = embedded_store(home)
    publish_as_a_release_does(store, home, tmp_path / "bundle")
    damage(published_folder(home))
    with pytest.raises((EngineryError, OSError)):
        assert_only_whole_versions(store, home, tmp_path / "seen")
    # A complete version is never marked torn: fetch refuses it.
    assert repair_unfinished(store.repairs, lambda: local_trust(home), clock=now) == ()


def test_upload_that_changed_on_its_way_is_not_registered(
    new_home: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = new_home("home")
    store: MlflowStore = embedded_store(home)
    original: Any = LocalArtifactRepository.log_artifact

    def lossy(self: Any, file: str, folder: str | None = None) -> None:
        original(self, file, folder)
        if file.endswith("engine.plan"):
            flip(Path(self.artifact_dir))

    with monkeypatch.context() as patched:
        patched.setattr(LocalArtifactRepository, "log_artifact", lossy)
        with pytest.raises(DigestMismatch, match=r"engine\.plan"):
            publish_as_a_release_does(store, home, tmp_path / "bundle")
    assert store.versions() == ()
    assert publish_as_a_release_does(store, home, tmp_path / "bundle").version == 1


def test_full_disk_is_one_sentence_and_leaves_nothing_visible(
    new_home: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = new_home("home")
    store = embedded_store(home)

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(LocalArtifactRepository, "log_artifact", full)
        with pytest.raises(EngineryError, match="No space left on device; what was uploaded is not visible"):
            publish_as_a_release_does(store, home, tmp_path / "bundle")
    assert store.versions() == ()
    assert publish_as_a_release_does(store, home, tmp_path / "bundle").version == 1


def take_five_numbers(home: Path, into: Path) -> None:
    store = embedded_store(home)
    into.write_text(" ".join(str(store.take_sequence("sst2")) for _ in range(5)), encoding="utf-8")


def test_processes_that_publish_at_once_share_no_sequence_number(
    new_home: Callable[[str], Path], tmp_path: Path
) -> None:
    home = new_home("home")
    processes = [children.Process(target=take_five_numbers, args=(home, tmp_path / f"{n}.txt")) for n in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    numbers = [list(map(int, (tmp_path / f"{n}.txt").read_text(encoding="utf-8").split())) for n in range(4)]
    assert sorted(number for own in numbers for number in own) == list(range(1, 21))
    assert all(own == sorted(own) for own in numbers)

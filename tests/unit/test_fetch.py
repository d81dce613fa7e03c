"""A serving host sees a whole, verified bundle or none."""

import errno
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from registry.digest import record_tree
from registry.errors import BadInput, BadName, DigestMismatch, EngineryError, NotFound, TornBundle
from registry.fetch import fetch
from registry.manifest import verify_bundle, write_manifest
from registry.records import EngineManifest
from registry.store import Store
from tests.unit.memory_store import MemoryStore


@pytest.fixture
def registry(memory_store: MemoryStore, manifest_factory: Any) -> MemoryStore:
    memory_store.publish(*manifest_factory())
    memory_store.set_alias("sst2", "production-l4", 1)
    return memory_store


def visible(into: Path) -> list[str]:
    return sorted(path.relative_to(into).as_posix() for path in into.rglob("*") if path.is_file())


WHOLE = [
    ".sst2.lock",
    *(f"sst2/1/{name}" for name in ("engine.plan", "manifest.json", "tokenizer/vocab.txt")),
]


def test_fetched_bundle_is_what_was_published(store: Store, manifest_factory: Any, tmp_path: Path) -> None:
    manifest, directory = manifest_factory()
    store.publish(manifest, directory)
    store.set_alias("sst2", "production-l4", 1)
    into = tmp_path / "models"
    fetched = fetch(store, "sst2", alias="production-l4", into=into)
    assert (fetched.version, fetched.digest, fetched.reused) == (1, manifest.build.digest, False)
    assert verify_bundle(fetched.path) == manifest
    assert visible(into) == WHOLE
    assert fetched.path.stat().st_mode & 0o777 == 0o755
    assert fetch(store, "sst2", version=1, into=into) == replace(fetched, reused=True)


@pytest.mark.parametrize("choice", [{}, {"alias": "production-l4", "version": 1}])
def test_exactly_one_of_alias_and_version_is_named(
    choice: dict[str, Any], registry: MemoryStore, tmp_path: Path
) -> None:
    with pytest.raises(BadInput, match="either"):
        fetch(registry, "sst2", into=tmp_path, **choice)


def test_unknown_things_are_not_found(registry: MemoryStore, tmp_path: Path) -> None:
    for choice in ({"alias": "none"}, {"version": 9}):
        with pytest.raises(NotFound):
            fetch(registry, "sst2", into=tmp_path, **choice)
    with pytest.raises(BadName):
        fetch(registry, "../sst2", version=1, into=tmp_path)


def flip(path: Path) -> None:
    path.write_bytes(bytes([path.read_bytes()[0] ^ 1]) + path.read_bytes()[1:])


def link_outside(bundle: Path) -> None:
    (bundle / "engine.plan").rename(bundle.parents[1] / "outside")
    (bundle / "engine.plan").symlink_to(bundle.parents[1] / "outside")


DAMAGE: dict[str, Callable[[Path], object]] = {
    "flipped byte": lambda bundle: flip(bundle / "engine.plan"),
    "flipped byte of the manifest": lambda bundle: flip(bundle / "manifest.json"),
    "truncated": lambda bundle: os.truncate(bundle / "engine.plan", 1),
    "added file": lambda bundle: (bundle / "extra").write_bytes(b""),
    "removed file": lambda bundle: (bundle / "tokenizer" / "vocab.txt").unlink(),
    "hard link": lambda bundle: os.link(bundle / "engine.plan", bundle.parents[1] / "outside"),
    "symbolic link": link_outside,
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE.keys())
def test_damaged_bundle_is_refused_and_fetched_again(
    damage: Callable[[Path], object], registry: MemoryStore, tmp_path: Path
) -> None:
    into = tmp_path / "models"
    fetched = fetch(registry, "sst2", version=1, into=into)
    damage(fetched.path)
    with pytest.raises((TornBundle, DigestMismatch, BadInput)):
        verify_bundle(fetched.path)
    assert fetch(registry, "sst2", version=1, into=into) == fetched
    verify_bundle(fetched.path)
    assert [name for name in visible(into) if name != "outside"] == WHOLE


def test_file_in_the_place_of_the_bundle_is_replaced(registry: MemoryStore, tmp_path: Path) -> None:
    (tmp_path / "sst2").mkdir()
    (tmp_path / "sst2" / "1").write_bytes(b"?")
    verify_bundle(fetch(registry, "sst2", version=1, into=tmp_path).path)


class SpoilingStore(MemoryStore):
    """Spoils what it delivers, or fails half-way."""

    spoil: Callable[[Path], object] = staticmethod(Path.exists)

    def download(self, model: str, version: int, into: Path) -> EngineManifest:
        manifest = super().download(model, version, into)
        self.spoil(into)
        return manifest


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE.keys())
def test_spoiled_download_is_never_placed(
    damage: Callable[[Path], object], manifest_factory: Any, tmp_path: Path
) -> None:
    store = SpoilingStore()
    store.publish(*manifest_factory())
    store.spoil = damage
    with pytest.raises((TornBundle, DigestMismatch, BadInput)):
        fetch(store, "sst2", version=1, into=tmp_path / "models")
    assert list((tmp_path / "models" / "sst2").iterdir()) == []


def test_whole_bundle_of_another_engine_is_refused(manifest_factory: Any, tmp_path: Path) -> None:
    store = SpoilingStore()
    other, _ = manifest_factory()
    store.publish(*manifest_factory())
    store.spoil = lambda bundle: (bundle / "manifest.json").write_bytes(write_manifest(replace(other, release="r0")))
    with pytest.raises(DigestMismatch, match="release"):
        fetch(store, "sst2", version=1, into=tmp_path / "models")


def test_full_disk_leaves_nothing_and_what_was_there_stays(manifest_factory: Any, tmp_path: Path) -> None:
    def fill(bundle: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    store = SpoilingStore()
    for number in (1, 2):
        store.publish(*manifest_factory(bytes([number]), sequence=number))
    first = fetch(store, "sst2", version=1, into=tmp_path / "models")
    store.spoil = fill
    with pytest.raises(EngineryError, match="No space left"):
        fetch(store, "sst2", version=2, into=tmp_path / "models")
    assert visible(tmp_path / "models") == WHOLE
    verify_bundle(first.path)


KILLED = """
import os, pickle, signal, sys
from pathlib import Path
from registry.fetch import fetch
from tests.unit.memory_store import MemoryStore

class Killed(MemoryStore):
    def download(self, model, version, into):
        (into / "engine.plan").write_bytes(b"pl")
        os.kill(os.getpid(), signal.SIGKILL)

store = Killed()
rows, files = pickle.loads(sys.stdin.buffer.read())
store.rows, store.files = rows, files
fetch(store, "sst2", version=1, into=Path(sys.argv[1]))
"""


def test_kill_in_mid_download_shows_nothing_and_the_next_fetch_clears_up(registry: MemoryStore, tmp_path: Path) -> None:
    import pickle

    into = tmp_path / "models"
    given = pickle.dumps((registry.rows, registry.files))
    root = Path(__file__).parents[2]
    died = subprocess.run([sys.executable, "-c", KILLED, str(into)], input=given, cwd=root, check=False)
    assert died.returncode == -signal.SIGKILL
    left = [path.name for path in (into / "sst2").iterdir()]
    assert len(left) == 1
    assert left[0].startswith(".")
    (into / "sst2" / ".damaged-file").write_bytes(b"")
    fetch(registry, "sst2", version=1, into=into)
    assert visible(into) == WHOLE
    assert [path.name for path in (into / "sst2").iterdir()] == ["1"]


def test_folder_that_cannot_be_made_is_one_sentence(registry: MemoryStore, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(EngineryError, match="nothing was placed"):
        fetch(registry, "sst2", version=1, into=tmp_path / "file")


def test_a_pipe_in_a_bundle_is_refused_and_not_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "engine.plan")
    with pytest.raises(TornBundle, match="plain files only"):
        record_tree(tmp_path)

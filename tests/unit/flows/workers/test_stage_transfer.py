"""Stages from host to host: the same bytes arrive as a finished stage, and anything else does not arrive at all."""

import io
import os
import tarfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from flows.workers.stage_transfer import StageArchive, StageTransfer, pack_stage, unpack_stage
from registry.digest import record_tree
from registry.errors import DigestMismatch, NotFound, TornBundle
from registry.mlflow.runs.run_files import RunFiles
from registry.mlflow.store import MlflowStore
from registry.records import PLACE, FileRecord
from tasks.execution.workspace import RECORD, Workspace


@dataclass(frozen=True)
class Thing:
    """What the stage of these tests holds."""

    words: str
    files: tuple[FileRecord, ...]
    directory: Path = field(default=Path(), compare=False, metadata=PLACE)


def make(into: Path) -> Thing:
    (into / "deep").mkdir()
    (into / "deep" / "words.txt").write_text("hello", encoding="utf-8")
    return Thing("hello", record_tree(into), into)


@dataclass(frozen=True)
class Hosts:
    """Two hosts with a workspace each, a run between them, and the archive that the first one sent."""

    sender: StageTransfer
    receiver: StageTransfer
    run_id: str
    thing: Thing
    archive: StageArchive

    def send(self, stage: Path) -> StageArchive:
        return self.sender.send(self.run_id, stage, "handover")

    @property
    def artifact(self) -> Path:
        return Path(self.archive.uri.removeprefix("file://"))

    @property
    def arrived(self) -> list[Path]:
        """Everything in the receiving workspace that a stage could be found by, and what lies about."""
        root = self.receiver.workspace.root
        return [path for path in root.rglob("*") if ".locks" not in path.parts and path.name != ".tmp"]


@pytest.fixture
def hosts(mlflow_store: MlflowStore, tmp_path: Path) -> Hosts:
    files = RunFiles(mlflow_store)
    sender, receiver = (StageTransfer(files, Workspace(tmp_path / host)) for host in ("sender", "receiver"))
    thing, _ = sender.workspace.stage("thing", "inputs", Thing, make)
    run = mlflow_store.client.create_run(mlflow_store.experiment("tiny")).info.run_id
    return Hosts(sender, receiver, run, thing, sender.send(run, thing.directory, "handover"))


def test_what_was_sent_is_found_as_if_it_had_been_made_here(hosts: Hosts) -> None:
    assert hosts.receiver.receive(hosts.archive, Thing) == hosts.thing
    thing, found = hosts.receiver.workspace.stage("thing", "inputs", Thing, make)
    assert found
    assert (thing.directory / "deep" / "words.txt").read_text(encoding="utf-8") == "hello"
    assert [list((host.workspace.root / ".tmp").iterdir()) for host in (hosts.sender, hosts.receiver)] == [[], []]


def test_what_is_there_already_is_not_fetched_again(hosts: Hosts) -> None:
    hosts.receiver.receive(hosts.archive, Thing)
    hosts.artifact.unlink()
    assert hosts.receiver.receive(hosts.archive, Thing) == hosts.thing


def test_what_was_logged_already_is_not_sent_again(hosts: Hosts) -> None:
    before = hosts.artifact.stat().st_mtime_ns
    assert hosts.send(hosts.thing.directory) == hosts.archive
    assert hosts.artifact.stat().st_mtime_ns == before


def test_a_torn_upload_is_sent_again(hosts: Hosts) -> None:
    os.truncate(hosts.artifact, 100)
    hosts.send(hosts.thing.directory)
    assert hosts.receiver.receive(hosts.archive, Thing) == hosts.thing


def flip(raw: bytes) -> bytes:
    return raw[:600] + bytes([raw[600] ^ 1]) + raw[601:]


@pytest.mark.parametrize("change", [flip, lambda raw: raw[:-1], lambda raw: raw + b"\0"])
def test_other_bytes_do_not_arrive(hosts: Hosts, change: Callable[[bytes], bytes]) -> None:
    hosts.artifact.write_bytes(change(hosts.artifact.read_bytes()))
    with pytest.raises(DigestMismatch, match="was announced"):
        hosts.receiver.receive(hosts.archive, Thing)
    assert hosts.arrived == []


def test_an_archive_that_is_gone_is_reported_as_missing(hosts: Hosts) -> None:
    hosts.artifact.unlink()
    with pytest.raises(NotFound):
        hosts.receiver.receive(hosts.archive, Thing)
    assert hosts.arrived == []


def test_an_archive_of_another_stage_does_not_arrive(hosts: Hosts) -> None:
    other = hosts.archive.model_copy(update={"key": "0" * 64})
    with pytest.raises(TornBundle, match="was sent"):
        hosts.receiver.receive(other, Thing)
    assert hosts.arrived == []


def resend(hosts: Hosts, name: str, content: bytes) -> StageArchive:
    """The same stage with one file more, or another one, announced with its true sha256."""
    folder = hosts.sender.workspace.root / "forged" / hosts.archive.key
    unpack_stage(hosts.artifact, folder)
    (folder / name).write_bytes(content)
    return hosts.send(folder).model_copy(update={"kind": "thing"})


@pytest.mark.parametrize(("name", "content"), [("extra.so", b"x"), ("deep/words.txt", b"jello"), (RECORD, b"{}")])
def test_a_stage_that_is_not_what_its_record_lists_does_not_arrive(hosts: Hosts, name: str, content: bytes) -> None:
    archive = resend(hosts, name, content)
    with pytest.raises((TornBundle, DigestMismatch)):
        hosts.receiver.receive(archive, Thing)
    assert hosts.arrived == []


def test_the_same_files_are_the_same_tar(hosts: Hosts, tmp_path: Path) -> None:
    copy = Workspace(tmp_path / "copy").stage("thing", "inputs", Thing, make)[0]
    os.utime(copy.directory / "deep" / "words.txt", (0, 0))
    (copy.directory / "deep" / "words.txt").chmod(0o600)
    for number, folder in enumerate((hosts.thing.directory, copy.directory)):
        pack_stage(folder, tmp_path / f"{number}.tar")
    assert (tmp_path / "0.tar").read_bytes() == (tmp_path / "1.tar").read_bytes()


def link(name: str, kind: bytes) -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.type, member.linkname = kind, "/etc/passwd"
    return member


HOSTILE = {
    "a symbolic link": link("link", tarfile.SYMTYPE),
    "a hard link": link("link", tarfile.LNKTYPE),
    "a device": link("null", tarfile.CHRTYPE),
    "a pipe": link("pipe", tarfile.FIFOTYPE),
    "a way up": tarfile.TarInfo("../out"),
    "a way up behind a folder": tarfile.TarInfo("deep/../../out"),
}


@pytest.mark.parametrize("member", HOSTILE.values(), ids=HOSTILE)
def test_a_hostile_tar_writes_nothing(member: tarfile.TarInfo, tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "hostile.tar", "w") as archive:
        archive.addfile(member, io.BytesIO())
    (tmp_path / "into").mkdir()
    with pytest.raises(TornBundle):
        unpack_stage(tmp_path / "hostile.tar", tmp_path / "into")
    assert list((tmp_path / "into").iterdir()) == []
    assert not (tmp_path / "out").exists()


def test_bytes_that_are_not_a_tar_are_refused(tmp_path: Path) -> None:
    (tmp_path / "not.tar").write_bytes(b"no tar" * 1000)
    with pytest.raises(TornBundle, match="unpacked"):
        unpack_stage(tmp_path / "not.tar", tmp_path)

"""Stages from host to host: the same bytes arrive as a finished stage, and anything else does not arrive at all."""

import io
import os
import tarfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from flows.workers.parcels import StageArchive, pack, receive, send, unpack
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
    """Two hosts with a workspace each, a run between them, and the parcel that the first one sent."""

    files: RunFiles
    run_id: str
    sender: Workspace
    receiver: Workspace
    thing: Thing
    parcel: StageArchive

    @property
    def artifact(self) -> Path:
        return Path(self.parcel.uri.removeprefix("file://"))

    @property
    def arrived(self) -> list[Path]:
        """Everything in the receiving workspace that a stage could be found by, and what lies about."""
        root = self.receiver.root
        return [path for path in root.rglob("*") if ".locks" not in path.parts and path.name != ".tmp"]


@pytest.fixture
def hosts(mlflow_store: MlflowStore, tmp_path: Path) -> Hosts:
    sender, receiver = Workspace(tmp_path / "sender"), Workspace(tmp_path / "receiver")
    thing, _ = sender.stage("thing", "inputs", Thing, make)
    run = mlflow_store.client.create_run(mlflow_store.experiment("tiny")).info.run_id
    files = RunFiles(mlflow_store)
    return Hosts(files, run, sender, receiver, thing, send(files, sender, run, thing.directory, "handover"))


def test_what_was_sent_is_found_as_if_it_had_been_made_here(hosts: Hosts) -> None:
    assert receive(hosts.files, hosts.receiver, hosts.parcel, Thing) == hosts.thing
    thing, found = hosts.receiver.stage("thing", "inputs", Thing, make)
    assert found
    assert (thing.directory / "deep" / "words.txt").read_text(encoding="utf-8") == "hello"
    assert list((hosts.sender.root / ".tmp").iterdir()) == list((hosts.receiver.root / ".tmp").iterdir()) == []


def test_what_is_there_already_is_not_fetched_again(hosts: Hosts) -> None:
    receive(hosts.files, hosts.receiver, hosts.parcel, Thing)
    hosts.artifact.unlink()
    assert receive(hosts.files, hosts.receiver, hosts.parcel, Thing) == hosts.thing


def test_what_was_logged_already_is_not_sent_again(hosts: Hosts) -> None:
    before = hosts.artifact.stat().st_mtime_ns
    assert send(hosts.files, hosts.sender, hosts.run_id, hosts.thing.directory, "handover") == hosts.parcel
    assert hosts.artifact.stat().st_mtime_ns == before


def test_a_torn_upload_is_sent_again(hosts: Hosts) -> None:
    os.truncate(hosts.artifact, 100)
    send(hosts.files, hosts.sender, hosts.run_id, hosts.thing.directory, "handover")
    assert receive(hosts.files, hosts.receiver, hosts.parcel, Thing) == hosts.thing


def flip(raw: bytes) -> bytes:
    return raw[:600] + bytes([raw[600] ^ 1]) + raw[601:]


@pytest.mark.parametrize("change", [flip, lambda raw: raw[:-1], lambda raw: raw + b"\0"])
def test_other_bytes_do_not_arrive(hosts: Hosts, change: Callable[[bytes], bytes]) -> None:
    hosts.artifact.write_bytes(change(hosts.artifact.read_bytes()))
    with pytest.raises(DigestMismatch, match="was announced"):
        receive(hosts.files, hosts.receiver, hosts.parcel, Thing)
    assert hosts.arrived == []


def test_a_parcel_that_is_gone_is_said_to_be(hosts: Hosts) -> None:
    hosts.artifact.unlink()
    with pytest.raises(NotFound):
        receive(hosts.files, hosts.receiver, hosts.parcel, Thing)
    assert hosts.arrived == []


def test_a_parcel_of_another_stage_does_not_arrive(hosts: Hosts) -> None:
    other = hosts.parcel.model_copy(update={"key": "0" * 64})
    with pytest.raises(TornBundle, match="was sent"):
        receive(hosts.files, hosts.receiver, other, Thing)
    assert hosts.arrived == []


def resend(hosts: Hosts, name: str, content: bytes) -> StageArchive:
    """The same stage with one file more, or another one, announced with its true sha256."""
    folder = hosts.sender.root / "forged" / hosts.parcel.key
    unpack(hosts.artifact, folder)
    (folder / name).write_bytes(content)
    return send(hosts.files, hosts.sender, hosts.run_id, folder, "handover").model_copy(update={"kind": "thing"})


@pytest.mark.parametrize(("name", "content"), [("extra.so", b"x"), ("deep/words.txt", b"jello"), (RECORD, b"{}")])
def test_a_stage_that_is_not_what_its_record_lists_does_not_arrive(hosts: Hosts, name: str, content: bytes) -> None:
    parcel = resend(hosts, name, content)
    with pytest.raises((TornBundle, DigestMismatch)):
        receive(hosts.files, hosts.receiver, parcel, Thing)
    assert hosts.arrived == []


def test_the_same_files_are_the_same_tar(hosts: Hosts, tmp_path: Path) -> None:
    copy = Workspace(tmp_path / "copy").stage("thing", "inputs", Thing, make)[0]
    os.utime(copy.directory / "deep" / "words.txt", (0, 0))
    (copy.directory / "deep" / "words.txt").chmod(0o600)
    for number, folder in enumerate((hosts.thing.directory, copy.directory)):
        pack(folder, tmp_path / f"{number}.tar")
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
        unpack(tmp_path / "hostile.tar", tmp_path / "into")
    assert list((tmp_path / "into").iterdir()) == []
    assert not (tmp_path / "out").exists()


def test_bytes_that_are_no_tar_are_refused(tmp_path: Path) -> None:
    (tmp_path / "not.tar").write_bytes(b"no tar" * 1000)
    with pytest.raises(TornBundle, match="unpacked"):
        unpack(tmp_path / "not.tar", tmp_path)

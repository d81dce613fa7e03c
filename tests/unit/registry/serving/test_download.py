"""Files arrive whole and hashed, in parallel ranges; segments that arrived before a break are not requested again."""

from collections.abc import Generator
from hashlib import sha256
from pathlib import Path
from types import SimpleNamespace

import pytest

from registry.errors import DigestMismatch, EngineryError, Interrupted, NotFound, TornBundle
from registry.records import FileRecord
from registry.serving.download import DownloadPlan, download
from tests.support.memory_store import MemoryFiles

ENGINE = bytes(range(256)) * 40  # 10 KiB: five segments and a rest
SMALL = DownloadPlan(segment_bytes=2048, read_back_bytes=1000, pause_seconds=0.0)
FILES = {"engine.plan": ENGINE, "tokenizer/a b.txt": b"a\nb\n", "tokenizer/copy": b"a\nb\n", "empty": b""}


def records(files: dict[str, bytes] = FILES) -> tuple[FileRecord, ...]:
    return tuple(FileRecord(name, sha256(content).hexdigest(), len(content)) for name, content in files.items())


class RecordingFiles(MemoryFiles):
    """Files that record each request; `breaks` lists after how many bytes the next reads break."""

    def __init__(self, files: dict[str, bytes] = FILES, *, ranged: bool = True, breaks: tuple[int, ...] = ()) -> None:
        super().__init__(dict(files), ranged=ranged)
        self.requests: list[tuple[str, int, int | None]] = []
        self.breaks = list(breaks)

    def read(self, path: str, start: int = 0, stop: int | None = None) -> Generator[bytes]:
        self.requests.append((path, start, stop))
        remaining = self.breaks.pop(0) if self.breaks and path == "engine.plan" else None
        for chunk in super().read(path, start, stop):
            if remaining is not None and remaining <= 0:
                raise Interrupted("the connection broke")
            yield chunk
            remaining = None if remaining is None else remaining - len(chunk)


@pytest.fixture
def into(tmp_path: Path) -> Path:
    (tmp_path / "into").mkdir()
    return tmp_path / "into"


def get(files: MemoryFiles, into: Path) -> None:
    download(files, records(), into, into.with_name("journal"), SMALL)


def read_folder(into: Path) -> dict[str, bytes]:
    return {path.relative_to(into).as_posix(): path.read_bytes() for path in into.rglob("*") if path.is_file()}


@pytest.mark.parametrize("ranged", [True, False])
def test_every_file_arrives_as_it_was(into: Path, ranged: bool) -> None:
    source = RecordingFiles(ranged=ranged)
    get(source, into)
    assert read_folder(into) == FILES
    assert len([name for name, *_ in source.requests if name == "engine.plan"]) == (5 if ranged else 1)


def test_segments_that_arrived_are_not_requested_again(into: Path) -> None:
    broken = RecordingFiles(breaks=(9999, 9999, 0, 0, 0, 0, 0, 0, 0, 0, 0))
    with pytest.raises(Interrupted):
        get(broken, into)
    again = RecordingFiles()
    get(again, into)
    assert read_folder(into) == FILES
    requested = [start for name, start, _ in again.requests if name == "engine.plan"]
    assert 0 < len(requested) < 5


@pytest.mark.parametrize("ranged", [True, False])
def test_broken_connection_resumes_where_it_broke(into: Path, ranged: bool) -> None:
    source = RecordingFiles(ranged=ranged, breaks=(1000,))
    get(source, into)
    assert read_folder(into) == FILES
    starts = [start for name, start, _ in source.requests if name == "engine.plan"]
    assert (any(start % 2048 for start in starts)) == ranged


@pytest.mark.parametrize("spoil", [b"", b"gone", ENGINE[:100]])
def test_a_journal_that_outlived_its_bytes_costs_one_more_download(into: Path, spoil: bytes) -> None:
    get(RecordingFiles(), into)
    assert into.with_name("journal").is_file()
    (into / "engine.plan").write_bytes(spoil.ljust(len(ENGINE), b"\0"))
    source = RecordingFiles()
    get(source, into)
    assert read_folder(into) == FILES
    assert {name for name, *_ in source.requests} == {"engine.plan"}


@pytest.mark.parametrize("line", ["", "0 2048", "0 2048 engine.pl", "x", "0 99999 engine.plan", "\0\udcff"])
def test_torn_journal_lines_are_ignored(into: Path, line: str) -> None:
    into.with_name("journal").write_bytes(line.encode(errors="surrogateescape"))
    get(RecordingFiles(), into)
    assert read_folder(into) == FILES


@pytest.mark.parametrize("ranged", [True, False])
def test_bytes_that_differ_from_the_manifest_are_refused(into: Path, ranged: bool) -> None:
    with pytest.raises(DigestMismatch, match=r"engine\.plan"):
        get(RecordingFiles(FILES | {"engine.plan": ENGINE[:-1] + b"?"}, ranged=ranged), into)


@pytest.mark.parametrize(
    ("content", "word"), [(ENGINE[:-1], "fewer"), (ENGINE[:100], "fewer"), (ENGINE + b"?", "more")]
)
def test_a_file_of_another_size_is_refused(into: Path, content: bytes, word: str) -> None:
    with pytest.raises(TornBundle, match=word):
        get(RecordingFiles(FILES | {"engine.plan": content}, ranged=False), into)


def test_a_missing_file_is_refused(into: Path) -> None:
    with pytest.raises(NotFound):
        download(
            RecordingFiles(), (*records(), FileRecord("none", "0" * 64, 3)), into, into.with_name("journal"), SMALL
        )


def test_connection_that_keeps_breaking_is_an_error(into: Path) -> None:
    with pytest.raises(Interrupted):
        get(RecordingFiles(breaks=(0,) * 99), into)


def test_too_small_a_disk_is_refused_before_anything_is_read(into: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=10_000))
    source = RecordingFiles()
    with pytest.raises(EngineryError, match="10000 bytes free, and the download needs 10248"):
        get(source, into)
    assert source.requests == []


def test_planted_link_is_not_written_through(into: Path, tmp_path: Path) -> None:
    (tmp_path / "precious").write_bytes(b"precious")
    (into / "engine.plan").symlink_to(tmp_path / "precious")
    with pytest.raises(OSError, match="symbolic links"):
        get(RecordingFiles(), into)
    assert (tmp_path / "precious").read_bytes() == b"precious"

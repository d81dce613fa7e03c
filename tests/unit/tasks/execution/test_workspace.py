"""Stages: whole or absent after any failure, found by their inputs, made by one process."""

import errno
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from registry.digest import record_tree
from registry.errors import BadInput, DigestMismatch, EngineryError
from registry.records import PLACE, FileRecord
from tasks.execution.workspace import RECORD, Workspace, verify_stage

ROOT = Path(__file__).parents[4]


@dataclass(frozen=True)
class Thing:
    """What the stages of these tests make."""

    words: str
    files: tuple[FileRecord, ...]
    directory: Path = field(default=Path(), compare=False, metadata=PLACE)


class Maker:
    """A `make` that counts its calls."""

    def __init__(self, words: str = "hello") -> None:
        self.words, self.calls = words, 0

    def __call__(self, into: Path) -> Thing:
        self.calls += 1
        (into / "deep").mkdir()
        (into / "deep" / "words.txt").write_text(self.words, encoding="utf-8")
        (into / "empty.bin").write_bytes(b"")
        return Thing(self.words, record_tree(into), into)


def visible(root: Path) -> list[str]:
    """List every file and folder that a stage could be found by, and the remains of scratch folders."""
    return sorted(
        path.relative_to(root).as_posix()
        for path in root.rglob("*")
        if path.relative_to(root).parts[0] != ".locks" and path.name != ".tmp"
    )


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return Workspace(tmp_path / "home")


def test_a_finished_stage_is_found_the_second_time(workspace: Workspace) -> None:
    make = Maker()
    first, was_found = workspace.stage("export", {"a": 1}, Thing, make)
    assert not was_found
    second, was_found = workspace.stage("export", {"a": 1}, Thing, make)
    assert was_found
    assert (second, second.directory, make.calls) == (first, first.directory, 1)
    assert (second.directory / "deep" / "words.txt").read_text(encoding="utf-8") == "hello"
    assert second.directory.parent == workspace.root / "export"


def test_another_kind_or_another_input_is_another_stage(workspace: Workspace) -> None:
    make = Maker()
    folders = {
        workspace.stage(kind, inputs, Thing, make)[0].directory
        for kind, inputs in [("a", {"x": 1}), ("b", {"x": 1}), ("a", {"x": 2}), ("a", {"x": "1"}), ("a", ["x", 1])]
    }
    assert (len(folders), make.calls) == (5, 5)
    workspace.stage("a", {"x": 1, "y": 2}, Thing, make)
    assert workspace.stage("a", {"y": 2, "x": 1}, Thing, make)[1]  # the order of keys is no input


def test_a_value_without_a_folder_is_stored_too(workspace: Workspace) -> None:
    assert workspace.stage("answer", 1, tuple[int, ...], lambda _: (1, 2)) == ((1, 2), False)
    assert workspace.stage("answer", 1, tuple[int, ...], lambda _: ()) == ((1, 2), True)


@pytest.mark.parametrize("error", [ValueError, BadInput, KeyboardInterrupt, MemoryError])
def test_a_failing_make_leaves_nothing_and_keeps_its_error(workspace: Workspace, error: type[BaseException]) -> None:
    def fail(into: Path) -> Thing:
        Maker()(into)
        raise error("mine")

    with pytest.raises(error, match="mine"):
        workspace.stage("export", 1, Thing, fail)
    assert visible(workspace.root) == []
    assert not workspace.stage("export", 1, Thing, Maker())[1]


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO])
def test_a_full_disk_is_reported_with_its_place_and_a_remedy(workspace: Workspace, code: int) -> None:
    def fill(_: Path) -> Thing:
        raise OSError(code, os.strerror(code))

    with pytest.raises(EngineryError) as caught:
        workspace.stage("export", 1, Thing, fill)
    message = str(caught.value)
    assert os.strerror(code) in message
    assert str(workspace.root) in message
    assert "ENGINERY_HOME" in message
    assert len(message.splitlines()) == 1
    assert visible(workspace.root) == []


def test_a_disk_that_fills_at_the_last_step_leaves_nothing(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(EngineryError, match="No space left on device"):
        workspace.stage("export", 1, Thing, Maker())
    assert visible(workspace.root) == []


@pytest.mark.parametrize("step", ["_lock", "scratch"])
def test_a_disk_that_is_full_from_the_start_is_reported(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Workspace, step, full)
    with pytest.raises(EngineryError, match=r"No space left on device; .* ENGINERY_HOME"):
        workspace.stage("export", 1, Thing, Maker())


def test_a_root_that_cannot_be_made_is_reported(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(EngineryError, match="ENGINERY_HOME"):
        Workspace(tmp_path / "file" / "home").stage("export", 1, Thing, Maker())


def remove(file: Path) -> None:
    file.unlink()


def shorten(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-1])


def lengthen(file: Path) -> None:
    file.write_bytes(file.read_bytes() + b"x")


def to_folder(file: Path) -> None:
    file.unlink()
    file.mkdir()


def garble(file: Path) -> None:
    file.write_bytes(b"\x00{")


def empty_object(file: Path) -> None:
    file.write_bytes(b"{}")


def null_parts(file: Path) -> None:
    file.write_bytes(b'{"stage": null, "value": null}')


@pytest.mark.parametrize(
    ("name", "spoil"),
    [
        *(("deep/words.txt", spoil) for spoil in (remove, shorten, lengthen, to_folder)),
        ("empty.bin", remove),
        *((RECORD, spoil) for spoil in (remove, shorten, garble, empty_object, null_parts, to_folder)),
    ],
)
def test_a_spoilt_stage_is_made_again(workspace: Workspace, name: str, spoil: Callable[[Path], None]) -> None:
    make = Maker()
    first, _ = workspace.stage("export", 1, Thing, make)
    spoil(first.directory / name)
    second, was_found = workspace.stage("export", 1, Thing, make)
    assert (was_found, make.calls, second) == (False, 2, first)
    verify_stage(second.directory)
    assert workspace.stage("export", 1, Thing, make)[1]


def test_a_stage_of_an_older_shape_is_made_again(workspace: Workspace) -> None:
    workspace.stage("export", 1, dict[str, int], lambda _: {"before": 1})
    assert not workspace.stage("export", 1, Thing, Maker())[1]


def test_a_discarded_stage_is_made_again(workspace: Workspace) -> None:
    maker = Maker()
    first, _ = workspace.stage("thing", 1, Thing, maker)
    workspace.discard(first.directory)
    assert not first.directory.exists()
    assert [workspace.stage("thing", 1, Thing, maker)[1] for _ in range(2)] == [False, True]
    assert maker.calls == 2


def test_a_flipped_byte_is_caught_before_use(workspace: Workspace) -> None:
    thing, _ = workspace.stage("export", 1, Thing, Maker())
    verify_stage(thing.directory)
    (thing.directory / "deep" / "words.txt").write_text("hellp", encoding="utf-8")
    assert workspace.stage("export", 1, Thing, Maker())[1]  # of the same size, so found: hence verify_stage
    with pytest.raises(DigestMismatch, match=r"words\.txt: sha256 is"):
        verify_stage(thing.directory)


def test_a_moved_workspace_is_still_found(workspace: Workspace, tmp_path: Path) -> None:
    make = Maker()
    first, _ = workspace.stage("export", 1, Thing, make)
    moved = Workspace(tmp_path / "elsewhere" / "home")
    moved.root.parent.mkdir()
    shutil.move(workspace.root, moved.root)
    found, was_found = moved.stage("export", 1, Thing, make)
    assert (was_found, make.calls, found) == (True, 1, first)
    assert found.directory.is_relative_to(moved.root)
    verify_stage(found.directory)


def test_no_file_of_a_stage_names_its_folder(workspace: Workspace) -> None:
    thing, _ = workspace.stage("export", 1, Thing, Maker())
    record = (thing.directory / RECORD).read_text(encoding="utf-8")
    assert str(workspace.root) not in record


CHILD = """
    import sys, time
    from pathlib import Path
    from tasks.execution.workspace import Workspace
    from tests.unit.tasks.execution.test_workspace import Maker, Thing

    root, log, wait = Path(sys.argv[1]), Path(sys.argv[2]), float(sys.argv[3])

    def make(into):
        thing = Maker()(into)
        with log.open("a") as lines:
            lines.write("made\\n")
        time.sleep(wait)
        return thing

    print(Workspace(root).stage("export", 1, Thing, make)[1], flush=True)
"""


def start(root: Path, log: Path, wait: float) -> subprocess.Popen[str]:
    paths = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    command = [sys.executable, "-c", textwrap.dedent(CHILD), str(root), str(log), str(wait)]
    return subprocess.Popen(command, env=os.environ | {"PYTHONPATH": paths}, stdout=subprocess.PIPE, text=True)


def scratch_folders(workspace: Workspace) -> list[str]:
    return sorted(folder.name for folder in (workspace.root / ".tmp").glob("*"))


def wait_for(log: Path) -> None:
    deadline = time.monotonic() + 60
    while not log.exists():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_process_killed_while_making_leaves_nothing_to_be_found(workspace: Workspace, tmp_path: Path) -> None:
    log = tmp_path / "log"
    with start(workspace.root, log, 60) as child:
        try:
            wait_for(log)
            scratch = scratch_folders(workspace)
            workspace.sweep()
            assert scratch_folders(workspace) == scratch != []  # the child still runs: its scratch folder is in use
        finally:
            child.send_signal(signal.SIGKILL)
    assert not (workspace.root / "export").exists()
    assert [name for name in visible(workspace.root) if name.endswith("words.txt")]  # left in .tmp
    make = Maker()
    assert not workspace.stage("export", 1, Thing, make)[1]  # its lock died with it
    assert make.calls == 1
    assert len(scratch_folders(workspace)) == 1
    workspace.sweep()
    assert scratch_folders(workspace) == []


def test_two_processes_make_a_stage_once(workspace: Workspace, tmp_path: Path) -> None:
    log = tmp_path / "log"
    children = [start(workspace.root, log, 0.5) for _ in range(2)]
    answers = [child.communicate(timeout=60)[0].strip() for child in children]
    assert sorted(answers) == ["False", "True"]
    assert log.read_text(encoding="utf-8") == "made\n"
    assert workspace.stage("export", 1, Thing, Maker())[1]


def test_sweeping_a_workspace_that_is_not_there_removes_nothing(workspace: Workspace) -> None:
    workspace.sweep()
    assert not workspace.root.exists()


OWNING = """
import sys
from pathlib import Path
from tasks.execution.workspace import Workspace

print(Workspace(Path(sys.argv[1])).scratch("int8-dynamic").name, flush=True)
sys.stdin.read()
"""


@pytest.mark.parametrize("namespace", [(), ("unshare", "--pid", "--fork", "--mount-proc")])
def test_sweep_keeps_folders_of_living_processes_in_any_container(
    namespace: tuple[str, ...], workspace: Workspace
) -> None:
    if namespace and subprocess.run([*namespace, "true"], check=False, capture_output=True).returncode:
        pytest.skip("no process namespace can be made here")
    own = workspace.scratch("export")
    unknown = workspace.root / ".tmp" / "d-word-x"
    unknown.mkdir()
    command = [*namespace, sys.executable, "-c", OWNING, str(workspace.root)]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout
        name = other.stdout.readline().strip()
        workspace.sweep()
        assert scratch_folders(workspace) == sorted([own.name, unknown.name, name])
        other.communicate("")
    workspace.sweep()
    assert scratch_folders(workspace) == sorted([own.name, unknown.name])


def test_sweep_removes_unfinished_work_that_nobody_resumed(workspace: Workspace) -> None:
    old, recent = workspace.partial("calibration", "old"), workspace.partial("calibration", "recent")
    for file in (old, recent):
        file.touch()
    os.utime(old, (0, 0))
    workspace.sweep()
    assert (old.exists(), recent.exists()) == (False, True)

"""Finished stages by key: a folder appears whole or not at all, and is found again by the digest of its inputs.

Why not a cache library: a stage is a folder of large files that outlives the process, must survive a kill at any
instant, and is verified by sha256 before use (docs/adr/0003-stages-by-key.md).
"""

import errno
import os
import re
import shutil
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, is_dataclass, replace
from pathlib import Path
from threading import Lock
from typing import Any, TypeVar
from uuid import uuid4

from filelock import FileLock, Timeout
from pydantic import TypeAdapter, ValidationError

from registry.digest import check_record, digest_of, record_file, record_tree, verify_tree
from registry.errors import EngineryError, TornBundle
from registry.records import FileRecord

T = TypeVar("T")
RECORD = "stage.json"
# The record of another host is read into memory, so its size is limited.
LARGEST_RECORD = 16 * 2**20
DISK_FULL = (errno.ENOSPC, errno.EDQUOT)
# Nobody resumes a release after this long, and unfinished work only saves time.
PARTIAL_SECONDS = 7 * 86400.0
# The locks by which others see that this process lives: one for each workspace that it writes to.
_OWNED: dict[Path, tuple[str, FileLock]] = {}
_OWNING = Lock()
_OWNER = re.compile(r"[0-9a-f]{32}")


@dataclass(frozen=True)
class Stage:
    """The identity and the files of a finished stage, recorded in its folder beside its value."""

    kind: str
    key: str
    files: tuple[FileRecord, ...]


@dataclass(frozen=True)
class Workspace:
    """Stage folders under `root`: `<kind>/<key>/`, written in `.tmp/` and renamed into place last."""

    root: Path

    def stage(self, kind: str, inputs: object, value_type: type[T], make: Callable[[Path], T]) -> tuple[T, bool]:
        """Find or make a stage; return its value, and whether it was found finished.

        `inputs` identifies the stage (digests, versions, settings; never a path), `make` fills a folder and returns
        a value of type `value_type`. One process makes a stage; others wait for it and find it.

        Raises:
            EngineryError: `make` raised it, or the disk is full.
        """
        key = digest_of((kind, inputs))

        def write(scratch: Path) -> T:
            value = make(scratch)
            self._record(scratch, Stage(kind, key, record_tree(scratch)), value, value_type)
            return value

        return self._make_once(kind, key, value_type, write)

    def find(self, kind: str, key: str, value_type: type[T]) -> T | None:
        """Return the value of the finished stage of that key, or None."""
        return self._load(self.root / kind / key, value_type)

    def adopt(self, kind: str, key: str, value_type: type[T], copy: Callable[[Path], None]) -> T:
        """Adopt a stage of another host and return its value; `copy` brings its folder, whose every byte is checked.

        Raises:
            TornBundle, DigestMismatch: the copied folder is not that stage, or not all of it.
            EngineryError: `copy` raised it, or the disk is full.
        """

        def write(scratch: Path) -> T:
            copy(scratch)
            stage, value = _check_copy(scratch, value_type)
            if (stage.kind, stage.key) != (kind, key):
                received, expected = f"{stage.kind} {stage.key[:12]}", f"{kind} {key[:12]}"
                raise TornBundle(f"stage {received} was sent instead of {expected}: do not trust the host that made it")
            return value

        return self._make_once(kind, key, value_type, write)[0]

    def _make_once(self, kind: str, key: str, value_type: type[T], write: Callable[[Path], T]) -> tuple[T, bool]:
        folder = self.root / kind / key
        try:
            with self._lock(key):
                finished = self._load(folder, value_type)
                if finished is not None:
                    return finished, True
                scratch = self.scratch(kind)
                try:
                    value = write(scratch)
                    folder.parent.mkdir(parents=True, exist_ok=True)
                    shutil.rmtree(folder, ignore_errors=True)
                    scratch.rename(folder)
                finally:
                    shutil.rmtree(scratch, ignore_errors=True)
        except OSError as error:
            fix = "free some space" if error.errno in DISK_FULL else "fix that"
            raise EngineryError(
                f"stage {kind} under {self.root}: {error}; {fix}, or set ENGINERY_HOME to a folder on another disk, "
                "and run again: finished stages are kept"
            ) from error
        return _set_directory(value, folder), False

    def discard(self, folder: Path) -> None:
        """Forget a finished stage, so that it is made again; `folder` is its value's directory."""
        # Renamed first: a reader finds the whole stage or none.
        aside = self.scratch("discarded") / folder.name
        folder.rename(aside)
        shutil.rmtree(aside.parent, ignore_errors=True)

    def partial(self, kind: str, inputs: object) -> Path:
        """Return the file that keeps unfinished work on a stage across a kill; the same for the same inputs."""
        folder = self.root / ".partial"
        folder.mkdir(parents=True, exist_ok=True)
        return folder / digest_of((kind, inputs))

    def sweep(self) -> None:
        """Remove the scratch folders of killed processes, and unfinished work that nobody resumed."""
        for file in (self.root / ".partial").glob("*"):
            with suppress(FileNotFoundError):  # another process finished that work, or sweeps too
                if file.stat().st_mtime < time.time() - PARTIAL_SECONDS:
                    file.unlink()
        for folder in (self.root / ".tmp").glob("*-*-*"):
            owner = folder.name.rsplit("-", 2)[1]
            if _OWNER.fullmatch(owner) and _has_ended(self._owner_lock(owner)):
                shutil.rmtree(folder, ignore_errors=True)

    def _lock(self, key: str) -> FileLock:
        locks = self.root / ".locks"
        locks.mkdir(parents=True, exist_ok=True)
        return FileLock(locks / key)

    def scratch(self, kind: str) -> Path:
        """Make an empty folder that `sweep` removes once this process has ended."""
        parent = self.root / ".tmp"
        parent.mkdir(parents=True, exist_ok=True)
        return Path(tempfile.mkdtemp(prefix=f"{kind}-{self._own()}-", dir=parent))

    def _own(self) -> str:
        """Return this process's name in this workspace, under a lock that the kernel lets go when the process ends.

        A process id would mean nothing to a process in another container with the same home.
        """
        with _OWNING:
            name, lock = _OWNED.get(self.root, ("", None))
            if lock is None or not Path(lock.lock_file).exists():
                name = uuid4().hex
                (self.root / ".locks").mkdir(parents=True, exist_ok=True)
                lock = FileLock(self._owner_lock(name), thread_local=False)
                lock.acquire()
                _OWNED[self.root] = (name, lock)
            return name

    def _owner_lock(self, owner: str) -> Path:
        return self.root / ".locks" / f"owner-{owner}"

    def _record(self, scratch: Path, stage: Stage, value: T, value_type: type[T]) -> None:
        document = {
            "stage": TypeAdapter(Stage).dump_python(stage, mode="json"),
            "value": TypeAdapter(value_type).dump_python(_set_directory(value, Path()), mode="json"),
        }
        with (scratch / RECORD).open("wb") as file:
            file.write(TypeAdapter(dict[str, Any]).dump_json(document, indent=1))
            file.flush()
            os.fsync(file.fileno())

    def _load(self, folder: Path, value_type: type[T]) -> T | None:
        """Return the finished value, or None where there is none or its files have changed."""
        record = folder / RECORD
        if not record.is_file():
            return None
        try:
            stage, value = _parse_record(record.read_bytes(), value_type)
        except (ValidationError, KeyError):
            return None
        # Sizes now, bytes when used: hashing gigabytes would be all that a run does when there is nothing to do.
        sizes = {file.path: file.size_bytes for file in stage.files}
        sizes_now = {name: (folder / name).stat().st_size for name in sizes if (folder / name).is_file()}
        return _set_directory(value, folder) if sizes_now == sizes else None


def verify_stage(folder: Path) -> None:
    """Check every byte of a finished stage folder before its files are used.

    Raises:
        DigestMismatch, TornBundle: the files differ from those that the stage wrote.
    """
    document = TypeAdapter(dict[str, Any]).validate_json((folder / RECORD).read_bytes())
    stage = TypeAdapter(Stage).validate_python(document["stage"])
    for record in stage.files:
        check_record(folder, record)


def _parse_record(raw: bytes, value_type: type[T]) -> tuple[Stage, T]:
    document = TypeAdapter(dict[str, Any]).validate_json(raw)
    stage = TypeAdapter(Stage).validate_python(document["stage"])
    value: T = TypeAdapter(value_type).validate_python(document["value"])
    return stage, value


def _check_copy(folder: Path, value_type: type[T]) -> tuple[Stage, T]:
    """Return the record and the value of a copied folder that holds exactly the recorded files."""
    record = folder / RECORD
    if record.is_symlink() or not record.is_file() or record.stat().st_size > LARGEST_RECORD:
        raise TornBundle(f"{folder} has no readable stage record: do not trust it")
    try:
        stage, value = _parse_record(record.read_bytes(), value_type)
    except (ValidationError, KeyError) as error:
        raise TornBundle(f"{record} is not a stage record: do not trust it") from error
    verify_tree(folder, (*stage.files, record_file(record, root=folder)))
    return stage, value


def _set_directory(value: T, folder: Path) -> T:
    if is_dataclass(value) and not isinstance(value, type) and hasattr(value, "directory"):
        return replace(value, directory=folder)
    return value


def _has_ended(owner_lock: Path) -> bool:
    """Tell whether the process that holds a lock has ended; the lock is removed then."""
    lock = FileLock(owner_lock, timeout=0)
    try:
        with lock:
            owner_lock.unlink(missing_ok=True)
    except Timeout:
        return False
    return True

"""Finished stages by key: a folder appears whole or not at all, and is found again by what it was made of.

Why not a cache library: what is kept are folders of large files that outlive the process, must survive a kill at any
instant, and are verified by sha256 before use (docs/adr/0003-stages-by-key.md).
"""

import errno
import os
import shutil
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, is_dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from filelock import FileLock
from pydantic import TypeAdapter, ValidationError

from registry.digest import check_record, digest_of, record_file, record_tree, verify_tree
from registry.errors import EngineryError, TornBundle
from registry.records import FileRecord

T = TypeVar("T")
RECORD = "stage.json"
# What another host sends is read whole, so not without a limit.
LARGEST_RECORD = 16 * 2**20
FULL = (errno.ENOSPC, errno.EDQUOT)
# Nobody goes on with a release after so long; what is kept of it is only time won.
PARTIAL_SECONDS = 7 * 86400.0


@dataclass(frozen=True)
class Stage:
    """What a stage folder holds besides the value itself."""

    kind: str
    key: str
    files: tuple[FileRecord, ...]


@dataclass(frozen=True)
class Workspace:
    """Stage folders under `root`: `<kind>/<key>/`, written in `.tmp/` and renamed into place last."""

    root: Path

    def stage(self, kind: str, inputs: object, made: type[T], make: Callable[[Path], T]) -> tuple[T, bool]:
        """The value of a stage, and whether it was found finished.

        `inputs` identifies the stage (digests, versions, settings; never a path), `make` fills a folder and returns
        a value of type `made`. One process makes a stage; others wait for it and find it.

        Raises:
            EngineryError: `make` raised it, or the disk is full.
        """
        key = digest_of((kind, inputs))

        def write(scratch: Path) -> T:
            value = make(scratch)
            self._record(scratch, Stage(kind, key, record_tree(scratch)), value, made)
            return value

        return self._once(kind, key, made, write)

    def find(self, kind: str, key: str, made: type[T]) -> T | None:
        """The value of the finished stage of that key, or None."""
        return self._load(self.root / kind / key, made)

    def adopt(self, kind: str, key: str, made: type[T], copy: Callable[[Path], None]) -> T:
        """The value of a stage that another host made; `copy` brings its folder, which is then checked byte for byte.

        Raises:
            TornBundle, DigestMismatch: what was brought is not the whole of that stage.
            EngineryError: `copy` raised it, or the disk is full.
        """

        def bring(scratch: Path) -> T:
            copy(scratch)
            stage, value = _check_brought(scratch, made)
            if (stage.kind, stage.key) != (kind, key):
                raise TornBundle(f"stage {kind} {key[:12]}: {stage.kind} {stage.key[:12]} was sent: do not trust it")
            return value

        return self._once(kind, key, made, bring)[0]

    def _once(self, kind: str, key: str, made: type[T], write: Callable[[Path], T]) -> tuple[T, bool]:
        folder = self.root / kind / key
        try:
            with self._lock(key):
                found = self._load(folder, made)
                if found is not None:
                    return found, True
                scratch = self.scratch(kind)
                try:
                    value = write(scratch)
                    folder.parent.mkdir(parents=True, exist_ok=True)
                    shutil.rmtree(folder, ignore_errors=True)
                    scratch.rename(folder)
                finally:
                    shutil.rmtree(scratch, ignore_errors=True)
        except OSError as error:
            mend = "free some space" if error.errno in FULL else "mend that"
            raise EngineryError(
                f"stage {kind}, kept under {self.root}: {error}; {mend}, or set ENGINERY_HOME to another "
                "disk, and run again: finished stages are kept"
            ) from error
        return _placed(value, folder), False

    def partial(self, kind: str, inputs: object) -> Path:
        """Where unfinished work on a stage may be kept, to go on from after a kill; the same for the same inputs."""
        folder = self.root / ".partial"
        folder.mkdir(parents=True, exist_ok=True)
        return folder / digest_of((kind, inputs))

    def sweep(self) -> int:
        """Remove what a killed process left in `.tmp/`, and what nobody went on from; the number of folders removed."""
        for file in (self.root / ".partial").glob("*"):
            with suppress(FileNotFoundError):  # another process ended it, or sweeps too
                if file.stat().st_mtime < time.time() - PARTIAL_SECONDS:
                    file.unlink()
        stale = [folder for folder in (self.root / ".tmp").glob("*-*") if not _alive(folder)]
        for folder in stale:
            shutil.rmtree(folder, ignore_errors=True)
        return len(stale)

    def _lock(self, key: str) -> FileLock:
        locks = self.root / ".locks"
        locks.mkdir(parents=True, exist_ok=True)
        return FileLock(locks / key)

    def scratch(self, kind: str) -> Path:
        """An empty folder that `sweep` removes once this process has ended."""
        parent = self.root / ".tmp"
        parent.mkdir(parents=True, exist_ok=True)
        return Path(tempfile.mkdtemp(prefix=f"{kind}-{os.getpid()}-", dir=parent))

    def _record(self, scratch: Path, stage: Stage, value: T, made: type[T]) -> None:
        document = {
            "stage": TypeAdapter(Stage).dump_python(stage, mode="json"),
            "value": TypeAdapter(made).dump_python(_placed(value, Path()), mode="json"),
        }
        with (scratch / RECORD).open("wb") as file:
            file.write(TypeAdapter(dict[str, Any]).dump_json(document, indent=1))
            file.flush()
            os.fsync(file.fileno())

    def _load(self, folder: Path, made: type[T]) -> T | None:
        """The finished value, or None where there is none or its files are not as they were."""
        record = folder / RECORD
        if not record.is_file():
            return None
        try:
            stage, value = _parse(record.read_bytes(), made)
        except (ValidationError, KeyError):
            return None
        # Sizes now, bytes when used: hashing gigabytes to learn that nothing is to be done would be the whole run.
        sizes = {file.path: file.size_bytes for file in stage.files}
        there = {name: (folder / name).stat().st_size for name in sizes if (folder / name).is_file()}
        return _placed(value, folder) if there == sizes else None


def verify_stage(folder: Path) -> None:
    """Check every byte of a finished stage folder before its files are used.

    Raises:
        DigestMismatch, TornBundle: the files are not those that the stage wrote.
    """
    document = TypeAdapter(dict[str, Any]).validate_json((folder / RECORD).read_bytes())
    stage = TypeAdapter(Stage).validate_python(document["stage"])
    for record in stage.files:
        check_record(folder, record)


def _parse(raw: bytes, made: type[T]) -> tuple[Stage, T]:
    document = TypeAdapter(dict[str, Any]).validate_json(raw)
    stage = TypeAdapter(Stage).validate_python(document["stage"])
    value: T = TypeAdapter(made).validate_python(document["value"])
    return stage, value


def _check_brought(folder: Path, made: type[T]) -> tuple[Stage, T]:
    """Record and value of a folder that came from outside, which holds exactly what its record lists."""
    record = folder / RECORD
    if record.is_symlink() or not record.is_file() or record.stat().st_size > LARGEST_RECORD:
        raise TornBundle(f"{folder} has no stage record that can be read: do not trust it")
    try:
        stage, value = _parse(record.read_bytes(), made)
    except (ValidationError, KeyError) as error:
        raise TornBundle(f"{record} is no record of a stage: do not trust it") from error
    verify_tree(folder, (*stage.files, record_file(record, root=folder)))
    return stage, value


def _placed(value: T, folder: Path) -> T:
    if is_dataclass(value) and not isinstance(value, type) and hasattr(value, "directory"):
        return replace(value, directory=folder)
    return value


def _alive(scratch: Path) -> bool:
    """Whether the process that made a scratch folder (its pid is in the name) still runs."""
    try:
        os.kill(int(scratch.name.rsplit("-", 2)[1]), 0)
    except ProcessLookupError:
        return False
    except (PermissionError, ValueError, IndexError):
        return True
    return True

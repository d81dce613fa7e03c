"""What a host remembers in `MODEL/.placed.json`: the newest release of each target, and files it has verified.

The first refuses a replay. The second lets a fetch find a bundle in place without hashing gigabytes again: a file
whose size, times, inode and links are those of the verified one has the verified bytes, as git's index assumes. ctime
is in it, which no program can set. It guards against accidents; who can write this folder could change an engine
after any check.
"""

import os
import stat
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from registry.bundle.signing import Trust
from registry.errors import BadInput, TornBundle
from registry.host.durable import replace_file

RECORD_FILE = ".placed.json"


@dataclass(frozen=True)
class FileState:
    """A file as the file system tells it, at the instant it was verified; times in nanoseconds."""

    path: str
    size_bytes: int
    mtime_ns: int
    ctime_ns: int
    inode: int


@dataclass(frozen=True)
class PlacedVersion:
    """A version's folder, verified; `trust` is the digest of the keys that its signature was verified with."""

    version: int
    trust: str
    files: tuple[FileState, ...]


@dataclass(frozen=True)
class Newest:
    """The highest sequence of a target that this host has placed."""

    target: str
    sequence: int


@dataclass(frozen=True)
class HostRecord:
    """All that is remembered of one model. `older` are the reasons given for going back, newest last."""

    newest: tuple[Newest, ...] = ()
    placed: tuple[PlacedVersion, ...] = ()
    older: tuple[str, ...] = ()

    def newest_sequence(self, target: str) -> int:
        """0 where nothing of this target was placed yet."""
        return max((known.sequence for known in self.newest if known.target == target), default=0)

    def with_placed(self, placed: PlacedVersion, target: str, sequence: int) -> "HostRecord":
        """With one more verified folder; the target's newest sequence never falls."""
        highest = Newest(target, max(sequence, self.newest_sequence(target)))
        others = tuple(known for known in self.newest if known.target != target)
        kept = tuple(known for known in self.placed if known.version != placed.version)
        return replace(self, newest=(*others, highest), placed=(*kept, placed))

    def intact(self, folder: Path, version: int, trust: str) -> bool:
        """Whether `folder` is untouched since it was verified with the same keys; no byte is read."""
        known = next((known for known in self.placed if (known.version, known.trust) == (version, trust)), None)
        try:
            return known is not None and known.files == file_states(folder)
        except (OSError, TornBundle):
            return False


_RECORD = TypeAdapter(HostRecord)


def read_record(home: Path) -> HostRecord:
    """The record in the folder `home`; empty where there is none.

    Raises:
        BadInput: it was edited. It is not taken for empty: that would let an old release in.
    """
    path = home / RECORD_FILE
    try:
        return _RECORD.validate_json(path.read_bytes())
    except FileNotFoundError:
        return HostRecord()
    except ValidationError as error:
        raise BadInput(f"{path} is damaged: delete it, and this host forgets which releases it has served") from error


def write_record(home: Path, record: HostRecord) -> None:
    """Replace the record in one rename, durable when this returns.

    Raises:
        OSError: the folder does not take it.
    """
    replace_file(home / RECORD_FILE, _RECORD.dump_json(record))


def trust_digest(trust: Trust) -> str:
    """Names the keys themselves, not their paths: another key in the same file is another trust.

    Raises:
        BadInput: a key cannot be read.
    """
    paths = sorted(trust.roots) if trust.public_key is None else [trust.public_key]
    try:
        return sha256(b"\0".join(path.read_bytes() for path in paths)).hexdigest()
    except OSError as error:
        raise BadInput(f"{error.filename} cannot be read ({error.strerror}): name the publisher's key") from error


def file_states(folder: Path) -> tuple[FileState, ...]:
    """Every file under `folder`, sorted by name.

    Raises:
        TornBundle: a link, a pipe, a file with another name elsewhere, or an empty folder.
        OSError: it cannot be listed.
    """
    return tuple(sorted(_walk(folder, folder), key=lambda state: state.path))


def check_listing(folder: Path, names: Iterable[str]) -> None:
    """Check that `folder` holds exactly the files `names`, each a plain file.

    Raises:
        TornBundle: something is missing or extra, or is no plain file.
    """
    found, wanted = {state.path for state in file_states(folder)}, set(names)
    if missing := sorted(wanted - found):
        raise TornBundle(f"{folder} lacks {', '.join(missing)}: fetch it again")
    if extra := sorted(found - wanted):
        raise TornBundle(f"{folder} holds {', '.join(extra)}, not in its manifest: fetch it again")


def _walk(folder: Path, root: Path) -> Iterator[FileState]:
    with os.scandir(folder) as entries:
        found = list(entries)
    if not found:
        raise TornBundle(f"{folder} is an empty folder, not in its manifest: fetch it again")
    for entry in found:
        state = entry.stat(follow_symlinks=False)
        if stat.S_ISDIR(state.st_mode):
            yield from _walk(Path(entry.path), root)
        elif stat.S_ISREG(state.st_mode) and state.st_nlink == 1:
            name = Path(entry.path).relative_to(root).as_posix()
            yield FileState(name, state.st_size, state.st_mtime_ns, state.st_ctime_ns, state.st_ino)
        else:
            raise TornBundle(f"{entry.path} is a link or no file; a bundle holds plain files only: fetch it again")

"""Record in `MODEL/.placed.json` the newest release of each target and the files that this host has verified.

With the newest release a fetch refuses a replay. With the verified files it reuses a bundle without hashing gigabytes
again: a file with the same size, times, inode and links has the same bytes, as git's index assumes. One of the times is
ctime, which no program can set. This guards against accidents only: anyone who can write the folder can change an
engine after any check.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from registry.bundle.signing import Trust
from registry.digest import list_tree
from registry.errors import BadInput, TornBundle
from registry.host.durable import read_plain, replace_file

RECORD_FILE = ".placed.json"


@dataclass(frozen=True)
class FileState:
    """A file's state in the file system when it was verified; times in nanoseconds."""

    path: str
    size_bytes: int
    mtime_ns: int
    ctime_ns: int
    inode: int


@dataclass(frozen=True)
class PlacedVersion:
    """A verified version's folder; `trust` is the digest of the keys that verified its signature."""

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
    """The host's record of one model; `older` holds the reasons given for going back, newest last."""

    newest: tuple[Newest, ...] = ()
    placed: tuple[PlacedVersion, ...] = ()
    older: tuple[str, ...] = ()

    def newest_sequence(self, target: str) -> int:
        """Return the highest sequence of a target, 0 before its first release."""
        return max((newest.sequence for newest in self.newest if newest.target == target), default=0)

    def with_placed(self, placed: PlacedVersion, target: str, sequence: int) -> "HostRecord":
        """Add a verified folder; the target's newest sequence never falls."""
        highest = Newest(target, max(sequence, self.newest_sequence(target)))
        other_targets = tuple(newest for newest in self.newest if newest.target != target)
        other_versions = tuple(other for other in self.placed if other.version != placed.version)
        return replace(self, newest=(*other_targets, highest), placed=(*other_versions, placed))

    def is_intact(self, folder: Path, version: int, trust: str) -> bool:
        """Tell whether `folder` is untouched since it was verified with the same keys, without reading a byte."""
        verified = next((placed for placed in self.placed if (placed.version, placed.trust) == (version, trust)), None)
        try:
            return verified is not None and verified.files == file_states(folder)
        except (OSError, TornBundle):
            return False


_RECORD = TypeAdapter(HostRecord)


def read_record(model_folder: Path) -> HostRecord:
    """Read a model's record; a host without one has an empty record.

    Raises:
        BadInput: the file is damaged or no plain file. Treating it as empty would admit an old release.
    """
    path = model_folder / RECORD_FILE
    try:
        return _RECORD.validate_json(read_plain(path))
    except FileNotFoundError:
        return HostRecord()
    except ValidationError as error:
        raise BadInput(
            f"{path} is damaged: delete it, after which this host no longer knows the releases it has served"
        ) from error


def write_record(model_folder: Path, record: HostRecord) -> None:
    """Replace the record in one rename; it is on the disk when this returns.

    Raises:
        OSError: the folder cannot be written.
    """
    replace_file(model_folder / RECORD_FILE, _RECORD.dump_json(record))


def trust_digest(trust: Trust) -> str:
    """Digest the keys themselves, not their paths: another key in the same file is another trust.

    Raises:
        BadInput: a key cannot be read.
    """
    paths = sorted(trust.roots or trust.public_keys)
    try:
        return sha256(b"\0".join(path.read_bytes() for path in paths)).hexdigest()
    except OSError as error:
        raise BadInput(
            f"{error.filename} cannot be read ({error.strerror}): name a readable key of the publisher"
        ) from error


def file_states(folder: Path) -> tuple[FileState, ...]:
    """List the state of every file under `folder`, sorted by name.

    Raises:
        TornBundle: an entry is a link, a pipe, a file with a second hard link, or an empty folder.
        OSError: the folder cannot be listed.
    """
    files, empty = list_tree(folder)
    if empty or not files:
        raise TornBundle(
            f"{folder / min(empty, default='')} is an empty folder, which a bundle never holds: fetch it again"
        )
    return tuple(
        FileState(name, state.st_size, state.st_mtime_ns, state.st_ctime_ns, state.st_ino)
        for name, state in sorted(files.items())
    )


def check_listing(folder: Path, names: Iterable[str]) -> None:
    """Check that `folder` holds exactly the files `names`, all of them plain files.

    Raises:
        TornBundle: a file is missing, extra, or not a plain file.
    """
    present, listed = {state.path for state in file_states(folder)}, set(names)
    if missing := sorted(listed - present):
        raise TornBundle(f"{folder} lacks {', '.join(missing)}: fetch it again")
    if extra := sorted(present - listed):
        raise TornBundle(f"{folder} holds {', '.join(extra)}, which its manifest does not list: fetch it again")

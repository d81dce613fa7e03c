"""sha256 of files, folders and values."""

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import fields, is_dataclass
from enum import Enum
from pathlib import Path, PurePath
from typing import Any

import rfc8785

from registry.errors import DigestMismatch, TornBundle
from registry.records import FileRecord


def canonical_json(value: object) -> bytes:
    """RFC 8785 canonical JSON of dataclasses, enums, tuples and plain values.

    Fields marked `records.PLACE` are left out at every depth: a digest names bytes, not a machine's folder.

    Raises:
        ValueError: a float is NaN or infinite, or a value has no JSON form.
    """
    return rfc8785.dumps(_plain(value))


def _plain(value: object) -> Any:
    # Not pydantic: it writes NaN as null, and knows nothing of a dataclass inside an untyped value.
    if is_dataclass(value) and not isinstance(value, type):
        return {f.name: _plain(getattr(value, f.name)) for f in fields(value) if not f.metadata.get("place")}
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, Mapping):
        return {str(_plain(key)): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value.as_posix() if isinstance(value, PurePath) else value


def digest_of(value: object) -> str:
    """Hex sha256 of a value's canonical JSON: equal values, equal digests."""
    return hashlib.sha256(canonical_json(value)).hexdigest()


def file_sha256(path: Path) -> str:
    """Hex sha256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def record_file(path: Path, *, root: Path) -> FileRecord:
    """Name (relative to `root`), sha256 and size in bytes of one file."""
    return FileRecord(path.relative_to(root).as_posix(), file_sha256(path), path.stat().st_size)


def record_tree(root: Path) -> tuple[FileRecord, ...]:
    """Every file under `root`, sorted by name.

    Raises:
        TornBundle: `root` holds a link, or a hard link to a file that may change elsewhere.
    """
    paths = sorted(path for path in root.rglob("*") if path.is_symlink() or not path.is_dir())
    for path in paths:
        if path.is_symlink() or not path.is_file() or path.stat().st_nlink > 1:
            raise TornBundle(f"{path} is a link or no file; a bundle holds plain files only: put a copy there")
    return tuple(record_file(path, root=root) for path in paths)


def verify_tree(root: Path, expected: Iterable[FileRecord]) -> None:
    """Check that `root` holds exactly the `expected` files, byte for byte, and no folder without one.

    Raises:
        TornBundle: a file is missing or extra, or a folder is empty.
        DigestMismatch: a file's bytes differ.
    """
    found = {record.path: record for record in record_tree(root)}
    wanted = {record.path: record for record in expected}
    if missing := sorted(wanted.keys() - found.keys()):
        raise TornBundle(f"{root} lacks {', '.join(missing)}: fetch or build it again")
    if extra := sorted(found.keys() - wanted.keys()):
        raise TornBundle(f"{root} holds {', '.join(extra)}, not in its manifest: do not trust it")
    if empty := sorted(path for path in root.rglob("*") if path.is_dir() and not any(path.iterdir())):
        raise TornBundle(f"{empty[0]} is an empty folder, in no manifest: do not trust {root}")
    for name, record in wanted.items():
        check_record(root, record, actual=found[name])


def check_record(root: Path, record: FileRecord, *, actual: FileRecord | None = None) -> None:
    """Check one file under `root` against its record.

    Raises:
        DigestMismatch: size or sha256 differ.
    """
    actual = actual or record_file(root / record.path, root=root)
    if actual != record:
        raise DigestMismatch(
            f"{root / record.path}: sha256 is {actual.sha256} ({actual.size_bytes} bytes), the record says "
            f"{record.sha256} ({record.size_bytes} bytes); fetch or build it again"
        )

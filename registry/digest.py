"""sha256 of files, folders and values, and the canonical JSON that values are hashed and stored in."""

import errno
import hashlib
import json
import os
import stat
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import Field, fields, is_dataclass
from enum import Enum
from functools import cache
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any, TypeVar

import rfc8785

from registry.errors import BadInput, DigestMismatch, TornBundle, first_line
from registry.records import FileRecord

if TYPE_CHECKING:
    from pydantic import TypeAdapter

T = TypeVar("T")


def canonical_json(value: object) -> bytes:
    """Return the RFC 8785 canonical JSON of dataclasses, enums, tuples and plain values.

    Fields marked `records.PLACE` are left out at every depth: a digest identifies bytes, not a folder of one machine.
    So are fields marked `records.LATER` that are None.
    Bytes, such as those of an image, are written as their sha256.

    Raises:
        ValueError: a float is NaN or infinite, or a value has no JSON form.
    """
    return rfc8785.dumps(_to_json_types(value))


def _to_json_types(value: object) -> Any:
    # Not pydantic: it writes NaN as null, and does not look into a dataclass inside an untyped value.
    if is_dataclass(value) and not isinstance(value, type):
        return {f.name: _to_json_types(getattr(value, f.name)) for f in fields(value) if not _is_left_out(f, value)}
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, bytes):
        return f"sha256:{hashlib.sha256(value).hexdigest()}"
    if isinstance(value, Mapping):
        return {str(_to_json_types(key)): _to_json_types(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_to_json_types(item) for item in value]
    return value.as_posix() if isinstance(value, PurePath) else value


def _is_left_out(field: "Field[Any]", value: object) -> bool:
    is_missing = bool(field.metadata.get("later")) and getattr(value, field.name) is None
    return bool(field.metadata.get("place")) or is_missing


def read_canonical(
    kind: type[T],
    raw: bytes,
    name: str,
    *,
    advice: str,
    write: Callable[[T], bytes] = canonical_json,
    upgrade: Callable[[bytes], bytes] = bytes,
) -> T:
    """Read a dataclass from the only JSON text that `write` would write for it.

    This refuses unknown keys at any depth, repeated keys and NaN by one rule.

    Args:
        kind: the dataclass.
        raw: the text, in UTF-8.
        name: the file's name, for the error message.
        advice: what the user should do about a file that is refused.
        write: writes a value, and may check rules of its own first.
        upgrade: turns the text of an older format into today's fields.

    Raises:
        BadInput: it is not JSON, a field has a wrong type, or the text is not what `write` writes.
    """
    # Most who hash values read none, and each child process of a build would pay its 40 ms.
    from pydantic import ValidationError

    try:
        value: T = _type_adapter(kind).validate_json(upgrade(raw), strict=True)  # type: ignore[arg-type]  # types are hashable
    except ValidationError as error:
        # Not pydantic's own words, which speak of its types.
        place = ".".join(str(part) for part in error.errors(include_url=False)[0]["loc"])
        where = f"{name}: {place}" if place else name
        raise BadInput(f"{where} is not what Enginery writes: {advice}") from error
    try:
        canonical = write(value)
    except ValueError as error:  # NaN or infinity, which pydantic reads
        raise BadInput(f"{name}: {first_line(error)}; {advice}") from error
    if canonical != raw:
        unknown = next(_unknown_keys(json.loads(raw), json.loads(canonical)), None)
        reason = f" (unknown key {unknown})" if unknown else ""
        raise BadInput(f"{name} is not in canonical form, RFC 8785{reason}: {advice}")
    return value


@cache
def _type_adapter(kind: type) -> "TypeAdapter[Any]":
    from pydantic import TypeAdapter

    return TypeAdapter(kind)


def _unknown_keys(found: object, canonical: object, place: str = "") -> Iterator[str]:
    if isinstance(found, dict) and isinstance(canonical, dict):
        for key, value in found.items():
            if key not in canonical:
                yield f"{place}{key}"
            else:
                yield from _unknown_keys(value, canonical[key], f"{place}{key}.")
    elif isinstance(found, list) and isinstance(canonical, list):
        for index, (value, other) in enumerate(zip(found, canonical, strict=False)):
            yield from _unknown_keys(value, other, f"{place}{index}.")


def digest_of(value: object) -> str:
    """Return the hex sha256 of a value's canonical JSON: equal values have equal digests."""
    return hashlib.sha256(canonical_json(value)).hexdigest()


def file_sha256(path: Path) -> str:
    """Return the hex sha256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def record_file(path: Path, *, root: Path) -> FileRecord:
    """Return a file's name (relative to `root`), sha256 and size in bytes."""
    return FileRecord(path.relative_to(root).as_posix(), file_sha256(path), path.stat().st_size)


def record_tree(root: Path) -> tuple[FileRecord, ...]:
    """Return the records of all files under `root`, sorted by name.

    Raises:
        TornBundle: `root` holds a link, or a hard link to a file that may change elsewhere.
    """
    return tuple(record_file(root / name, root=root) for name in sorted(list_tree(root)[0]))


def list_tree(root: Path) -> tuple[dict[str, os.stat_result], list[str]]:
    """Return the state of all files under `root` by name, and its empty folders; no file is read.

    Raises:
        TornBundle: `root` holds a link, a hard link to a file that may change elsewhere, a pipe, or folders in folders
            beyond the length of a path.
        OSError: a folder cannot be listed.
    """
    files, empty, folders = dict[str, os.stat_result](), list[str](), [""]
    while folders:  # not recursive: a stranger's folders may lie deeper than Python can call
        folder = folders.pop()
        try:
            with os.scandir(root / folder) as listing:
                entries = [(entry.name, entry.stat(follow_symlinks=False)) for entry in listing]
        except OSError as error:
            if error.errno == errno.ENAMETOOLONG:
                raise TornBundle(f"{root} holds folders too deep to be listed: do not trust it") from error
            raise
        if folder and not entries:
            empty.append(folder)
        for base, state in entries:
            name = f"{folder}/{base}" if folder else base
            if stat.S_ISDIR(state.st_mode):
                folders.append(name)
            elif stat.S_ISREG(state.st_mode) and state.st_nlink == 1:
                files[name] = state
            else:
                raise TornBundle(
                    f"{root / name!s:.300} is a link or not a regular file: replace it by a copy, a bundle holds only "
                    "files"
                )
    return files, empty


def verify_tree(root: Path, expected: Iterable[FileRecord], *, beside: Collection[str] = ()) -> None:
    """Check that `root` holds exactly the `expected` files, byte for byte, and no empty folder.

    Files whose names are `beside` may be there too, whatever they hold. Names and sizes are compared before any byte is
    read: what is not expected can be of any size.

    Raises:
        TornBundle: a file is missing or extra, or a folder is empty.
        DigestMismatch: a file's bytes differ.
    """
    files, empty = list_tree(root)
    listed = {record.path: record for record in expected}
    if missing := sorted(listed.keys() - files.keys()):
        raise TornBundle(f"{root} lacks {', '.join(missing)}: fetch or build it again")
    if extra := sorted(files.keys() - listed.keys() - set(beside)):
        raise TornBundle(f"{root} holds files that its manifest does not list ({', '.join(extra)}): do not trust it")
    if empty:
        raise TornBundle(f"{root / min(empty)!s:.300} is an empty folder, which no manifest lists: do not trust {root}")
    for name, record in listed.items():
        if files[name].st_size != record.size_bytes:
            raise DigestMismatch(
                f"{root / name} has {files[name].st_size} bytes, the record says {record.size_bytes}: fetch or build "
                "it again"
            )
    for record in listed.values():
        check_record(root, record)


def check_record(root: Path, record: FileRecord) -> None:
    """Check one file under `root` against its record.

    Raises:
        DigestMismatch: size or sha256 differ.
    """
    actual = record_file(root / record.path, root=root)
    if actual != record:
        raise DigestMismatch(
            f"{root / record.path}: sha256 is {actual.sha256} ({actual.size_bytes} bytes), the record says "
            f"{record.sha256} ({record.size_bytes} bytes); fetch or build it again"
        )

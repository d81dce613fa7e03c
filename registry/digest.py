"""sha256 of files, folders and values, and the canonical JSON that values are hashed and stored in."""

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import fields, is_dataclass
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

    Raises:
        ValueError: a float is NaN or infinite, or a value has no JSON form.
    """
    return rfc8785.dumps(_to_json_types(value))


def _to_json_types(value: object) -> Any:
    # Not pydantic: it writes NaN as null, and does not look into a dataclass inside an untyped value.
    if is_dataclass(value) and not isinstance(value, type):
        return {f.name: _to_json_types(getattr(value, f.name)) for f in fields(value) if not f.metadata.get("place")}
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, Mapping):
        return {str(_to_json_types(key)): _to_json_types(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_to_json_types(item) for item in value]
    return value.as_posix() if isinstance(value, PurePath) else value


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
    paths = sorted(path for path in root.rglob("*") if path.is_symlink() or not path.is_dir())
    for path in paths:
        if path.is_symlink() or not path.is_file() or path.stat().st_nlink > 1:
            raise TornBundle(f"{path} is a link or not a regular file: replace it by a copy, a bundle holds only files")
    return tuple(record_file(path, root=root) for path in paths)


def verify_tree(root: Path, expected: Iterable[FileRecord]) -> None:
    """Check that `root` holds exactly the `expected` files, byte for byte, and no empty folder.

    Raises:
        TornBundle: a file is missing or extra, or a folder is empty.
        DigestMismatch: a file's bytes differ.
    """
    actual = {record.path: record for record in record_tree(root)}
    listed = {record.path: record for record in expected}
    if missing := sorted(listed.keys() - actual.keys()):
        raise TornBundle(f"{root} lacks {', '.join(missing)}: fetch or build it again")
    if extra := sorted(actual.keys() - listed.keys()):
        raise TornBundle(f"{root} holds files that its manifest does not list ({', '.join(extra)}): do not trust it")
    if empty := sorted(path for path in root.rglob("*") if path.is_dir() and not any(path.iterdir())):
        raise TornBundle(f"{empty[0]} is an empty folder, which no manifest lists: do not trust {root}")
    for name, record in listed.items():
        check_record(root, record, actual=actual[name])


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

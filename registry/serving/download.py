"""Copy a bundle's files from a `BundleFiles`: in parallel ranges, hashed on the way, resumed after a kill.

Segments that are whole are named in a journal beside the folder, so a killed download goes on with the others. The
journal is no proof of anything: each file's sha256 is over the bytes that lie on this disk.
"""

import hashlib
import os
import re
import shutil
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from threading import Event

from registry.bundle.manifest import MANIFEST_FILE, SIGNATURE_FILE, read_manifest
from registry.errors import DigestMismatch, EngineryError, Interrupted, TornBundle
from registry.records import EngineManifest, FileRecord
from registry.store import Bundle, BundleFiles, ServingStore

SEGMENT_BYTES = 16 * 2**20
STREAMS = 4
# A broken connection is tried again from where it broke; the store's own client has its retries besides.
_ATTEMPTS = 3
_PAUSE_SECONDS = 0.5
_READ_BACK_BYTES = 2**20
_LINE = re.compile(r"(\d+) (\d+) (.+)")


@dataclass(frozen=True)
class Segment:
    """Bytes `start` to before `stop` of one file."""

    path: str
    start: int
    stop: int


def copy_bundle(store: ServingStore, model: str, version: int, into: Path) -> EngineManifest:
    """Copy a whole bundle into the empty folder `into`; its files agree with its manifest then.

    The signature is copied and not verified.

    Raises:
        NotFound, TornBundle, DigestMismatch: as `Store.manifest`, or a file is not what the manifest lists.
        Interrupted: the registry failed in mid-download.
    """
    bundle = store.open_bundle(model, version)
    manifest = write_seal(bundle, into)
    journal = into.with_name(f"{into.name}.journal")
    download(bundle.files, manifest.files, into, journal)
    journal.unlink()
    return manifest


def write_seal(bundle: Bundle, into: Path) -> EngineManifest:
    """Write manifest.json and the signature into the folder `into`; the manifest, parsed, is returned.

    Raises:
        BadInput: the manifest is not acceptable.
    """
    manifest = read_manifest(bundle.manifest)
    (into / MANIFEST_FILE).write_bytes(bundle.manifest)
    if bundle.signature is None:
        (into / SIGNATURE_FILE).unlink(missing_ok=True)
    else:
        (into / SIGNATURE_FILE).write_bytes(bundle.signature)
    return manifest


def download(files: BundleFiles, records: Iterable[FileRecord], into: Path, journal: Path) -> None:
    """Copy `records` into the folder `into`, going on from what `journal` says is there, and make them durable.

    On success every file has its size and sha256. After an error what arrived stays there, for the next try.

    Raises:
        DigestMismatch: the source holds other bytes.
        TornBundle: the source holds fewer or more bytes of a file than its record says.
        NotFound, Interrupted, EngineryError: as `BundleFiles.read`; or the disk has no room for it.
        OSError: the disk does not take it.
    """
    wanted = sorted(records, key=lambda record: -record.size_bytes)
    done = _read_journal(journal)
    ranged = any(record.size_bytes > SEGMENT_BYTES for record in wanted) and files.ranged
    plan = {record: _segments(record, ranged=ranged) for record in wanted}
    _check_room(into, sum(part.stop - part.start for parts in plan.values() for part in parts if part not in done))
    stop = Event()
    with journal.open("ab") as log, ThreadPoolExecutor(STREAMS, thread_name_prefix="fetch") as pool:
        job = _Job(files, into, log.fileno(), pool, stop)
        try:
            started = {record: _start(job, record, parts, done) for record, parts in plan.items()}
            for record, parts in plan.items():
                arrived = _hash(job, record, started[record])
                if arrived != record.sha256 and not done.isdisjoint(parts):
                    # A power cut may leave the journal and not the bytes: this file once more, from nothing.
                    arrived = _hash(job, record, _start(job, record, parts, frozenset()))
                if arrived != record.sha256:
                    raise DigestMismatch(
                        f"{record.path}: the registry sent sha256 {arrived}, the manifest says {record.sha256}: it was "
                        "changed after publishing; do not trust it, and publish the engine again"
                    )
        finally:
            stop.set()
            pool.shutdown(cancel_futures=True)


@dataclass(frozen=True)
class _Job:
    files: BundleFiles
    into: Path
    journal: int
    pool: ThreadPoolExecutor
    stop: Event


_Started = list[tuple[Segment, "Future[None] | None"]]


def _segments(record: FileRecord, *, ranged: bool) -> tuple[Segment, ...]:
    size = record.size_bytes
    step = SEGMENT_BYTES if ranged else max(size, 1)
    return tuple(Segment(record.path, start, min(start + step, size)) for start in range(0, size, step))


def _start(job: _Job, record: FileRecord, parts: Iterable[Segment], done: frozenset[Segment]) -> _Started:
    path = job.into / record.path
    path.parent.mkdir(parents=True, exist_ok=True)
    # NOFOLLOW: a link planted in the folder would have another file overwritten.
    descriptor = os.open(path, os.O_CREAT | os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
    try:
        known = done if os.fstat(descriptor).st_size == record.size_bytes else frozenset[Segment]()
        os.ftruncate(descriptor, record.size_bytes)
    finally:
        os.close(descriptor)
    return [(part, None if part in known else job.pool.submit(_copy, job, record, part)) for part in parts]


def _copy(job: _Job, record: FileRecord, part: Segment) -> None:
    at = part.start
    descriptor = os.open(job.into / part.path, os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        for attempt in range(1, _ATTEMPTS + 1):
            try:
                for chunk in _read(job.files, record, part, at):
                    if job.stop.is_set():
                        return
                    if at + len(chunk) > part.stop:
                        raise TornBundle(_wrong_size(part, "more"))
                    _write(descriptor, chunk, at)
                    at += len(chunk)
                break
            except Interrupted:
                if attempt == _ATTEMPTS or job.stop.wait(_PAUSE_SECONDS * attempt):
                    raise
                at = at if job.files.ranged else part.start
    finally:
        os.close(descriptor)
    if at < part.stop:
        raise TornBundle(_wrong_size(part, "fewer"))
    os.write(job.journal, f"{part.start} {part.stop} {part.path}\n".encode())


def _read(files: BundleFiles, record: FileRecord, part: Segment, at: int) -> Iterator[bytes]:
    # A whole file is asked for without a range, which every server understands.
    whole = (at, part.stop) == (0, record.size_bytes)
    return files.read(part.path) if whole else files.read(part.path, at, part.stop)


def _write(descriptor: int, chunk: bytes, at: int) -> None:
    view = memoryview(chunk)
    while view:
        written = os.pwrite(descriptor, view, at)
        view, at = view[written:], at + written


def _hash(job: _Job, record: FileRecord, parts: _Started) -> str:
    digest, buffer = hashlib.sha256(), memoryview(bytearray(_READ_BACK_BYTES))
    descriptor = os.open(job.into / record.path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        # In the file's order, right behind the streams: the bytes are read back from the page cache.
        for part, arriving in parts:
            if arriving is not None:
                arriving.result()
            at = part.start
            while at < part.stop and (size := os.preadv(descriptor, [buffer[: part.stop - at]], at)):
                digest.update(buffer[:size])
                at += size
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    return digest.hexdigest()


def _read_journal(journal: Path) -> frozenset[Segment]:
    try:
        text = journal.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return frozenset()
    # A line that a kill cut short names no segment of the plan, or is no line at all.
    found = (_LINE.fullmatch(line) for line in text.splitlines())
    return frozenset(Segment(match[3], int(match[1]), int(match[2])) for match in found if match)


def _check_room(into: Path, missing: int) -> None:
    if missing > (free := shutil.disk_usage(into).free):
        raise EngineryError(f"{into.parent} has {free} bytes free and {missing} are to come: free space, fetch again")


def _wrong_size(part: Segment, word: str) -> str:
    return (
        f"{part.path}: the registry holds {word} bytes than the manifest says: it was changed after publishing; "
        "do not trust it, and publish the engine again"
    )

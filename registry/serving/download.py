"""Copy a bundle's files from a `BundleFiles`: in parallel ranges, hashed on the way, resumed after a kill.

A journal beside the folder names the segments that have arrived, so that the next download fetches only the others.
The journal proves nothing: each file's sha256 is computed over the bytes on this disk.
"""

import hashlib
import os
import re
import shutil
from collections.abc import Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from threading import Event

from registry.bundle.manifest import MANIFEST_FILE, SIGNATURE_FILE, read_manifest
from registry.errors import DigestMismatch, EngineryError, Interrupted, TornBundle
from registry.host.durable import read_plain, write_new
from registry.records import EngineManifest, FileRecord
from registry.store import Bundle, BundleFiles, ServingStore

_LINE = re.compile(r"(\d+) (\d+) (.+)")


@dataclass(frozen=True)
class DownloadPlan:
    """The sizes and retries of a download.

    A broken connection is tried again from where it broke, `attempts` times in all, with a pause that grows by
    `pause_seconds`; the store's own client has its retries besides. `read_back_bytes` is the buffer for hashing.
    """

    segment_bytes: int = 16 * 2**20
    streams: int = 4
    attempts: int = 3
    pause_seconds: float = 0.5
    read_back_bytes: int = 2**20


DEFAULT_PLAN = DownloadPlan()


@dataclass(frozen=True)
class Segment:
    """The bytes of one file from `start` to before `stop`."""

    path: str
    start: int
    stop: int


def copy_bundle(store: ServingStore, model: str, version: int, into: Path) -> EngineManifest:
    """Copy a whole bundle into the empty folder `into`, and check its files against its manifest.

    The signature is copied and not verified.

    Raises:
        NotFound, TornBundle, DigestMismatch: as `Store.manifest`, or a file differs from its record in the manifest.
        Interrupted: the registry failed in mid-download.
    """
    bundle = store.open_bundle(model, version)
    manifest = read_manifest(bundle.manifest)
    write_seal(bundle, into)
    journal = into.with_name(f"{into.name}.journal")
    download(bundle.files, manifest.files, into, journal)
    journal.unlink()
    return manifest


def write_seal(bundle: Bundle, into: Path) -> None:
    """Write manifest.json and the signature into the folder `into`."""
    write_new(into / MANIFEST_FILE, bundle.manifest)
    if bundle.signature is None:
        (into / SIGNATURE_FILE).unlink(missing_ok=True)
    else:
        write_new(into / SIGNATURE_FILE, bundle.signature)


def download(
    files: BundleFiles,
    records: Iterable[FileRecord],
    into: Path,
    journal: Path,
    plan: DownloadPlan = DEFAULT_PLAN,
) -> None:
    """Copy the files of `records` into the folder `into` and flush them to the disk, resuming what `journal` lists.

    On success every file has its size and sha256. After an error what arrived stays for the next download.

    Raises:
        DigestMismatch: the source holds other bytes.
        TornBundle: the source holds fewer or more bytes of a file than its record says.
        NotFound, Interrupted, EngineryError: as `BundleFiles.read`; or the disk has too little room.
        OSError: the disk refuses a write.
    """
    largest_first = sorted(records, key=lambda record: -record.size_bytes)
    arrived = _read_journal(journal)
    ranged = any(record.size_bytes > plan.segment_bytes for record in largest_first) and files.ranged
    segments = {record: _split_file(record, plan.segment_bytes if ranged else None) for record in largest_first}
    missing = [part for parts in segments.values() for part in parts if part not in arrived]
    _check_room(into, sum(part.stop - part.start for part in missing))
    stop = Event()
    with (
        open(journal, "ab", opener=_open_plain) as log,
        ThreadPoolExecutor(plan.streams, thread_name_prefix="fetch") as pool,
    ):
        job = _Job(files, into, log.fileno(), pool, stop, plan)
        try:
            started = {record: _start_file(job, record, parts, arrived) for record, parts in segments.items()}
            for record, parts in segments.items():
                digest = _hash_file(job, record, started[record])
                if digest != record.sha256 and not arrived.isdisjoint(parts):
                    # A power cut may keep the journal and lose the bytes: download this file once more, as a whole.
                    digest = _hash_file(job, record, _start_file(job, record, parts, frozenset()))
                if digest != record.sha256:
                    raise DigestMismatch(
                        f"{record.path}: the registry sent sha256 {digest}, the manifest says {record.sha256}: it was "
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
    plan: DownloadPlan


_Started = list[tuple[Segment, "Future[None] | None"]]


def _split_file(record: FileRecord, segment_bytes: int | None) -> tuple[Segment, ...]:
    size = record.size_bytes
    step = segment_bytes or max(size, 1)
    return tuple(Segment(record.path, start, min(start + step, size)) for start in range(0, size, step))


def _start_file(job: _Job, record: FileRecord, parts: Iterable[Segment], arrived: frozenset[Segment]) -> _Started:
    path = job.into / record.path
    path.parent.mkdir(parents=True, exist_ok=True)
    # NOFOLLOW: through a link planted in the folder, the download would overwrite another file.
    descriptor = os.open(path, os.O_CREAT | os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
    try:
        present = arrived if os.fstat(descriptor).st_size == record.size_bytes else frozenset[Segment]()
        os.ftruncate(descriptor, record.size_bytes)
    finally:
        os.close(descriptor)
    return [(part, None if part in present else job.pool.submit(_copy_segment, job, record, part)) for part in parts]


def _copy_segment(job: _Job, record: FileRecord, part: Segment) -> None:
    position = part.start
    descriptor = os.open(job.into / part.path, os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        for attempt in range(1, job.plan.attempts + 1):
            try:
                with closing(_read_chunks(job.files, record, part, position)) as chunks:
                    for chunk in chunks:
                        if job.stop.is_set():
                            return
                        if position + len(chunk) > part.stop:
                            raise TornBundle(_wrong_size(part, "more"))
                        _write_chunk(descriptor, chunk, position)
                        position += len(chunk)
                break
            except Interrupted:
                if attempt == job.plan.attempts or job.stop.wait(job.plan.pause_seconds * attempt):
                    raise
                position = position if job.files.ranged else part.start
    finally:
        os.close(descriptor)
    if position < part.stop:
        raise TornBundle(_wrong_size(part, "fewer"))
    os.write(job.journal, f"{part.start} {part.stop} {part.path}\n".encode())


def _read_chunks(files: BundleFiles, record: FileRecord, part: Segment, position: int) -> Generator[bytes]:
    # A whole file is requested without a range, which every server understands.
    whole = (position, part.stop) == (0, record.size_bytes)
    return files.read(part.path) if whole else files.read(part.path, position, part.stop)


def _write_chunk(descriptor: int, chunk: bytes, position: int) -> None:
    view = memoryview(chunk)
    while view:
        written = os.pwrite(descriptor, view, position)
        view, position = view[written:], position + written


def _hash_file(job: _Job, record: FileRecord, parts: _Started) -> str:
    digest, buffer = hashlib.sha256(), memoryview(bytearray(job.plan.read_back_bytes))
    descriptor = os.open(job.into / record.path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        # In the file's order, right behind the streams: the bytes are read back from the page cache.
        for part, copying in parts:
            if copying is not None:
                copying.result()
            position = part.start
            while position < part.stop and (size := os.preadv(descriptor, [buffer[: part.stop - position]], position)):
                digest.update(buffer[:size])
                position += size
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    return digest.hexdigest()


def _open_plain(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)


def _read_journal(journal: Path) -> frozenset[Segment]:
    try:
        text = read_plain(journal).decode("utf-8", errors="replace")
    except FileNotFoundError:
        return frozenset()
    # A line that a kill cut short does not match, or names a segment that is in no plan.
    matches = (_LINE.fullmatch(line) for line in text.splitlines())
    return frozenset(Segment(match[3], int(match[1]), int(match[2])) for match in matches if match)


def _check_room(into: Path, missing_bytes: int) -> None:
    if missing_bytes > (free := shutil.disk_usage(into).free):
        raise EngineryError(
            f"{into.parent} has {free} bytes free, and the download needs {missing_bytes}: free space and fetch again"
        )


def _wrong_size(part: Segment, comparison: str) -> str:
    return (
        f"{part.path}: the registry holds {comparison} bytes than the manifest says: it was changed after publishing; "
        "do not trust it, and publish the engine again"
    )

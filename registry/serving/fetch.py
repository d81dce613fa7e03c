"""Alias or version → fit for this host? → manifest, signature, order → files → one atomic rename.

A reader sees a whole, verified bundle or none. Everything unfinished lies beside the destination, on its file system,
under names that start with a dot; a download that was cut short is gone on with.
"""

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from uuid import uuid4

from filelock import FileLock

from registry.bundle.manifest import MANIFEST_FILE, SIGNATURE_FILE, check_agrees, read_manifest, verify_bundle
from registry.bundle.signing import Trust, verify_signature
from registry.errors import (
    BadInput,
    DigestMismatch,
    EngineryError,
    Incompatible,
    Replayed,
    SignatureInvalid,
    TornBundle,
)
from registry.host.compatibility import Host, check_compatible, find_incompatibility, production_engines
from registry.host.durable import sync
from registry.names import check_name, production_alias
from registry.promotion.rules import APPROVE, DONE, PENDING, RESTORE, ROLLBACK, UNDONE
from registry.records import EngineManifest, EngineVersion
from registry.serving.download import download, write_seal
from registry.serving.placed import (
    HostRecord,
    PlacedVersion,
    check_listing,
    file_states,
    read_record,
    trust_digest,
    write_record,
)
from registry.store import Store, row_of

_PARTIAL = ".partial-"
_INCOMING = ".incoming-"
_REPLACED = ".replaced-"
# Enough to find the last move among approvals and refusals.
_RECENT_EVENTS = 50
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@dataclass(frozen=True)
class Policy:
    """What a host accepts.

    `trust` says whose signatures; `host` what machine the engine must load on, None for another one's. `older` is the
    reason to take an older release than was here, and `rehash` reads every byte of what is in place.
    """

    trust: Trust
    host: Host | None
    older: str | None = None
    rehash: bool = False


@dataclass(frozen=True)
class Fetched:
    """A verified bundle on this host; `reused` says that it was there, and `digest` is the engine's."""

    path: Path
    version: int
    digest: str
    model: str
    reused: bool


def fetch(
    store: Store, model: str, *, into: Path, policy: Policy, alias: str | None = None, version: int | None = None
) -> Fetched:
    """Place a published engine's bundle at `into`/`model`/`version`, verified as docs/bundle-format.md says.

    An intact bundle there is kept. A damaged one stays until its replacement is verified, then is replaced.

    Raises:
        BadInput: not exactly one of `alias` and `version`, or a manifest that is not acceptable.
        NotFound: no such model, alias or version.
        Incompatible: the engine does not load on the policy's host; nothing was downloaded.
        SignatureInvalid: nobody trusted signed it.
        Replayed: this host has had a newer release, and nothing says that going back is meant.
        TornBundle, DigestMismatch: what the registry holds is not what was published; nothing is placed.
        Interrupted: the registry failed; nothing is placed, and the next fetch goes on.
        EngineryError: this host cannot write the bundle (disk full, permissions); nothing is placed.
    """
    engine = _resolve(store, model, alias, version)
    if policy.host is not None and find_incompatibility(engine, policy.host):
        check_compatible(engine, policy.host, production_engines(store, model))
    home = into / model
    with _on_disk(home, engine), locked(home):
        record = read_record(home)
        _check_order(store, engine, record, policy)
        found = _in_place(engine, home, record, policy) or _place(store, engine, home, policy)
        if not found.reused or not record.intact(found.path, engine.version, trust_digest(policy.trust)):
            write_record(home, _remembering(engine, home, record, policy))
        clear_stale(home)
    return found


def verify_placed(folder: Path, trust: Trust) -> EngineManifest:
    """Verify a bundle's folder: signature, exact listing, and every byte. Its manifest is returned.

    Raises:
        SignatureInvalid, TornBundle, DigestMismatch, BadInput: as `verify_signature` and `verify_bundle`.
    """
    verify_signature(folder, trust)
    return verify_bundle(folder)


@contextmanager
def locked(home: Path) -> Iterator[None]:
    """One fetch of a model at a time on a host, so that a folder with a dot is a dead process's.

    Raises:
        OSError: the folder cannot be made.
    """
    home.mkdir(parents=True, exist_ok=True)
    with FileLock(home.parent / f".{home.name}.lock"):
        yield


def discard(path: Path) -> None:
    """Remove a folder or file so that nobody sees half of it.

    Raises:
        OSError: it cannot be renamed.
    """
    gone = path.with_name(f"{_REPLACED}{path.name}-{uuid4().hex}")
    path.rename(gone)
    _remove(gone)


def clear_stale(home: Path) -> None:
    """Remove what dead processes left in `home`; only under `locked`."""
    for path in home.iterdir():
        if path.name.startswith((_PARTIAL, _INCOMING, _REPLACED)):
            _remove(path)


def _resolve(store: Store, model: str, alias: str | None, version: int | None) -> EngineVersion:
    check_name(model, what="model")
    if alias is not None and version is None:
        return store.resolve(model, check_name(alias, what="alias"))
    if version is not None and alias is None:
        return store.version(model, version)
    raise BadInput("name what to fetch: either an alias or a version, and not both")


def _check_order(store: Store, engine: EngineVersion, record: HostRecord, policy: Policy) -> None:
    # Someone may show an old registry again, or move an alias by hand: every old release is signed perfectly.
    newest = record.newest_sequence(engine.target)
    if engine.sequence >= newest or policy.older is not None or _went_back(store, engine):
        return
    raise Replayed(
        f"{engine.model} version {engine.version} (sequence {engine.sequence}) is older than what this host had for "
        f"{engine.target} (sequence {newest}), and no rollback to it is in the history: ask who moved the alias, or "
        "give the reason to take it with --allow-older"
    )


def _went_back(store: Store, engine: EngineVersion) -> bool:
    recent = store.events(engine.model, alias=production_alias(engine.target), newest=_RECENT_EVENTS)
    moves = [event for event in recent if event.action != APPROVE and event.outcome in (DONE, PENDING, UNDONE)]
    if not moves:
        return False
    last = moves[-1]
    if last.outcome == UNDONE:
        return last.from_version == engine.version
    return last.action in (ROLLBACK, RESTORE) and last.to_version == engine.version


def _in_place(engine: EngineVersion, home: Path, record: HostRecord, policy: Policy) -> Fetched | None:
    folder = home / str(engine.version)
    if not folder.exists():
        return None
    try:
        if not policy.rehash and record.intact(folder, engine.version, trust_digest(policy.trust)):
            manifest = read_manifest((folder / MANIFEST_FILE).read_bytes())
        else:
            manifest = verify_placed(folder, policy.trust)
        check_agrees(engine, manifest)
    except (EngineryError, OSError):
        return None
    return Fetched(folder, engine.version, engine.digest, engine.model, reused=True)


def _place(store: Store, engine: EngineVersion, home: Path, policy: Policy) -> Fetched:
    bundle = store.open_bundle(engine.model, engine.version)
    partial = home / f"{_PARTIAL}{sha256(bundle.manifest).hexdigest()}"
    journal = partial.with_name(f"{partial.name}.journal")
    partial.mkdir(exist_ok=True)
    try:
        manifest = write_seal(bundle, partial)
        verify_signature(partial, policy.trust)
        check_agrees(engine, manifest)
        if policy.host is not None:
            # The row is tags, which can be edited; the manifest is signed.
            check_compatible(row_of(manifest, engine.version), policy.host)
        download(bundle.files, manifest.files, partial, journal)
        check_listing(partial, [*(file.path for file in manifest.files), MANIFEST_FILE, SIGNATURE_FILE])
    except (DigestMismatch, TornBundle, SignatureInvalid, Incompatible):
        # Nothing of it is worth going on with; after any other error there is.
        _remove(partial)
        _remove(journal)
        raise
    _sync_folders(partial)
    _swap(partial, home / str(engine.version))
    return Fetched(home / str(engine.version), engine.version, engine.digest, engine.model, reused=False)


def _remembering(engine: EngineVersion, home: Path, record: HostRecord, policy: Policy) -> HostRecord:
    placed = PlacedVersion(engine.version, trust_digest(policy.trust), file_states(home / str(engine.version)))
    there = tuple(known for known in record.placed if (home / str(known.version)).is_dir())
    went_back = policy.older is not None and engine.sequence < record.newest_sequence(engine.target)
    reasons = (f"version {engine.version}: {policy.older}",) if went_back else ()
    record = replace(record, placed=there, older=(*record.older, *reasons))
    return record.with_placed(placed, engine.target, engine.sequence)


def _swap(partial: Path, destination: Path) -> None:
    partial.chmod(0o755)
    if os.path.lexists(destination):
        destination.rename(destination.with_name(f"{_REPLACED}{destination.name}-{uuid4().hex}"))
    partial.rename(destination)
    sync(destination.parent)


def _sync_folders(root: Path) -> None:
    # A rename that survives a power cut, of bytes that did not, would be a torn bundle that looks whole. The listed
    # files are on the disk already: `download` returns no sooner.
    for path in (root / MANIFEST_FILE, root / SIGNATURE_FILE, *root.rglob("*/"), root):
        sync(path)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


@contextmanager
def _on_disk(home: Path, engine: EngineVersion) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in _NO_ROOM:
            # A full disk harms everything on a host; the next fetch begins anew where there is room.
            for path in home.glob(f"{_PARTIAL}*"):
                _remove(path)
        raise EngineryError(
            f"{home}: cannot place {engine.model} version {engine.version} ({error.strerror or error}); "
            "nothing was placed: free space or fix the folder's rights, and fetch again"
        ) from error

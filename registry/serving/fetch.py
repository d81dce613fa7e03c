"""Fetch a published engine to this host: a reader of the folder sees a whole, verified bundle or none.

A fetch follows these rules, in this order:

1. Either an alias or a version names the engine in the registry, never both. A production alias that the history does
   not know to point there was moved past every gate, and is refused unless the operator accepts it. The registry must
   answer with the model, version and target that were asked for.
2. An engine that does not load on the host is refused before anything is downloaded: for example one that was built
   for another GPU, TensorRT or driver.
3. One fetch of a model runs at a time per host. Whatever it leaves unfinished lies beside the destination, on its file
   system, under names that start with a dot.
4. An engine that is older than one this host has served is refused, because an old release that someone replays
   verifies perfectly. A rollback in the registry's history admits it, or a reason from the operator.
5. A bundle in place is kept: if it is untouched since it was verified with the same keys, no byte of it is read;
   otherwise it is verified again. A damaged one stays until its replacement is verified.
6. The signature of the manifest is verified before it is parsed and the files are downloaded. The manifest, not the
   registry's row, decides again whether the engine loads on the host: tags can be edited, the manifest is signed.
7. The files are downloaded and hashed. A download that was cut short resumes; one that turns out to be spoiled is
   removed.
8. One rename places the folder. Then the host's record is written, for rules 4 and 5.

A caller that only wants to check a folder calls `verify_placed`.
"""

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from hashlib import sha256
from pathlib import Path
from uuid import uuid4

from filelock import FileLock

from registry.bundle.manifest import (
    MANIFEST_FILE,
    SIGNATURE_FILE,
    check_agrees,
    check_requested,
    read_manifest,
    verify_files,
)
from registry.bundle.signing import Trust, verify_signature
from registry.digest import list_tree
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
from registry.names import PRODUCTION, check_name, check_version, production_alias
from registry.promotion.rules import APPROVE, DONE, PENDING, RESTORE, ROLLBACK, UNDONE
from registry.promotion.unrecorded import RECENT_EVENTS, resolve_recorded
from registry.records import EngineManifest, EngineVersion
from registry.serving.download import DEFAULT_PLAN, DownloadPlan, download, write_seal
from registry.serving.placed import (
    HostRecord,
    PlacedVersion,
    check_listing,
    file_states,
    read_record,
    trust_digest,
    write_record,
)
from registry.store import ServingStore, row_of

_PARTIAL = ".partial-"
_INCOMING = ".incoming-"
_REPLACED = ".replaced-"
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@dataclass(frozen=True)
class Policy:
    """What a host accepts, and how it downloads.

    `trust` holds the accepted signatures. `host` is the machine on which the engine must load; None fetches for
    another machine. `older` is the reason to accept an older release than this host has served. `unrecorded` accepts
    a production alias that was moved past Enginery. `rehash` reads every byte of a bundle in place. `plan` sets the
    sizes and retries of the download.
    """

    trust: Trust
    host: Host | None
    older: str | None = None
    unrecorded: bool = False
    rehash: bool = False
    plan: DownloadPlan = DEFAULT_PLAN


@dataclass(frozen=True)
class Fetched:
    """A verified bundle on this host, with the manifest that was verified; `reused`: it was in place already."""

    path: Path
    version: int
    reused: bool
    manifest: EngineManifest = field(repr=False)


def fetch(
    store: ServingStore, model: str, *, into: Path, policy: Policy, alias: str | None = None, version: int | None = None
) -> Fetched:
    """Place a published engine's bundle at `into`/`model`/`version`, verified as docs/bundle-format.md says.

    Raises:
        BadInput: not exactly one of `alias` and `version`, or `read_manifest` refuses the manifest.
        NotFound: the registry has no such model, alias or version.
        Unrecorded: the history does not know the version that the production alias points at.
        Incompatible: the engine does not load on the policy's host; nothing was downloaded.
        SignatureInvalid: the signature of a trusted publisher is missing.
        Replayed: this host has served a newer release, and nothing shows that going back is intended.
        TornBundle, DigestMismatch: the registry no longer holds what was published, or answers with another engine than
            was asked for; nothing is placed.
        Interrupted: the registry failed; nothing is placed, and the next fetch resumes.
        EngineryError: this host cannot write the bundle (disk full, permissions); nothing is placed.
    """
    engine = _resolve_engine(store, model, alias, version, policy)
    check_requested(engine, model, alias, version)
    if policy.host is not None and find_incompatibility(engine, policy.host):
        check_compatible(engine, policy.host, production_engines(store, model))
    model_folder = into / model
    with _explain_disk_errors(model_folder, engine), locked(model_folder):
        record = read_record(model_folder)
        _check_order(store, engine, record, policy)
        fetched = _reuse_bundle(engine, model_folder, record, policy)
        if fetched is None:
            fetched = _place_bundle(store, engine, model_folder, policy)
        if not fetched.reused or not record.is_intact(fetched.path, engine.version, trust_digest(policy.trust)):
            write_record(model_folder, _update_record(engine, model_folder, record, policy))
        clear_stale(model_folder)
    return fetched


def verify_placed(folder: Path, trust: Trust) -> EngineManifest:
    """Verify a bundle's folder, by signature, exact listing and every byte, and return its manifest.

    Raises:
        SignatureInvalid, TornBundle, DigestMismatch, BadInput: as `verify_signature` and `verify_bundle`.
    """
    manifest = read_manifest(verify_signature(folder, trust))
    verify_files(folder, manifest)
    return manifest


@contextmanager
def locked(model_folder: Path) -> Iterator[None]:
    """Run one fetch of a model at a time per host, so that hidden folders belong to dead processes.

    Raises:
        OSError: the folder cannot be created.
    """
    model_folder.mkdir(parents=True, exist_ok=True)
    with FileLock(model_folder.parent / f".{model_folder.name}.lock"):
        yield


def discard(path: Path) -> None:
    """Remove a folder or file without showing half of it to a reader.

    Raises:
        OSError: it cannot be renamed.
    """
    _remove(_set_aside(path))


def clear_stale(model_folder: Path) -> None:
    """Remove the leftovers of dead processes; call it only under `locked`."""
    for path in model_folder.iterdir():
        if path.name.startswith((_PARTIAL, _INCOMING, _REPLACED)):
            _remove(path)


def _resolve_engine(
    store: ServingStore, model: str, alias: str | None, version: int | None, policy: Policy
) -> EngineVersion:
    check_name(model, what="model")
    if alias is not None and version is None:
        is_checked = check_name(alias, what="alias").startswith(PRODUCTION) and not policy.unrecorded
        return resolve_recorded(store, model, alias) if is_checked else store.resolve(model, alias)
    if version is not None and alias is None:
        return store.version(model, check_version(version))
    raise BadInput("name the engine to fetch by either an alias or a version, and not both")


def _check_order(store: ServingStore, engine: EngineVersion, record: HostRecord, policy: Policy) -> None:
    newest = record.newest_sequence(engine.target)
    if engine.sequence >= newest or policy.older is not None or _was_rolled_back_to(store, engine):
        return
    raise Replayed(
        f"{engine.model} version {engine.version} (sequence {engine.sequence}) is older than the release this "
        f"host has served for {engine.target} (sequence {newest}), and the history has no rollback to it: find out who "
        "moved the alias, or give the reason to accept it with --allow-older"
    )


def _was_rolled_back_to(store: ServingStore, engine: EngineVersion) -> bool:
    recent = store.events(engine.model, alias=production_alias(engine.target), newest=RECENT_EVENTS)
    moves = [event for event in recent if event.action != APPROVE and event.outcome in (DONE, PENDING, UNDONE)]
    if not moves:
        return False
    last = moves[-1]
    if last.outcome == UNDONE:
        return last.from_version == engine.version
    return last.action in (ROLLBACK, RESTORE) and last.to_version == engine.version


def _reuse_bundle(engine: EngineVersion, model_folder: Path, record: HostRecord, policy: Policy) -> Fetched | None:
    folder = model_folder / str(engine.version)
    if not folder.exists():
        return None
    try:
        if not policy.rehash and record.is_intact(folder, engine.version, trust_digest(policy.trust)):
            manifest = read_manifest((folder / MANIFEST_FILE).read_bytes())
        else:
            manifest = verify_placed(folder, policy.trust)
        check_agrees(engine, manifest)
    except (EngineryError, OSError):
        return None
    return Fetched(folder, engine.version, reused=True, manifest=manifest)


def _place_bundle(store: ServingStore, engine: EngineVersion, model_folder: Path, policy: Policy) -> Fetched:
    bundle = store.open_bundle(engine.model, engine.version)
    partial = model_folder / f"{_PARTIAL}{sha256(bundle.manifest).hexdigest()}"
    journal = partial.with_name(f"{partial.name}.journal")
    _remove_planted(partial, journal)
    partial.mkdir(exist_ok=True)
    try:
        write_seal(bundle, partial)
        manifest = read_manifest(verify_signature(partial, policy.trust))
        check_agrees(engine, manifest)
        if policy.host is not None:
            check_compatible(row_of(manifest, engine.version), policy.host)
        download(bundle.files, manifest.files, partial, journal, policy.plan)
        check_listing(partial, [*(file.path for file in manifest.files), MANIFEST_FILE, SIGNATURE_FILE])
    except (DigestMismatch, TornBundle, SignatureInvalid, Incompatible):
        # Spoiled: no part of it can be resumed. After any other error the next fetch resumes it.
        _remove(partial)
        _remove(journal)
        raise
    destination = model_folder / str(engine.version)
    _sync_folders(partial)
    _swap_in(partial, destination)
    return Fetched(destination, engine.version, reused=False, manifest=manifest)


def _remove_planted(partial: Path, journal: Path) -> None:
    """Start over where a link or a pipe is in the way: the download would write through it, or wait for ever.

    A kill may leave a folder without its first file, which is no reason to.
    """
    if partial.is_symlink() or (os.path.lexists(journal) and (journal.is_symlink() or not journal.is_file())):
        _remove(partial)
        _remove(journal)
    if partial.exists():
        try:
            while empty := list_tree(partial)[1]:
                for folder in empty:
                    (partial / folder).rmdir()
        except TornBundle:
            _remove(partial)
            _remove(journal)


def _update_record(engine: EngineVersion, model_folder: Path, record: HostRecord, policy: Policy) -> HostRecord:
    placed = PlacedVersion(engine.version, trust_digest(policy.trust), file_states(model_folder / str(engine.version)))
    on_disk = tuple(version for version in record.placed if (model_folder / str(version.version)).is_dir())
    went_back = policy.older is not None and engine.sequence < record.newest_sequence(engine.target)
    reasons = (f"version {engine.version}: {policy.older}",) if went_back else ()
    record = replace(record, placed=on_disk, older=(*record.older, *reasons))
    return record.with_placed(placed, engine.target, engine.sequence)


def _swap_in(partial: Path, destination: Path) -> None:
    partial.chmod(0o755)
    if os.path.lexists(destination):
        _set_aside(destination)
    partial.rename(destination)
    sync(destination.parent)


def _set_aside(path: Path) -> Path:
    hidden = path.with_name(f"{_REPLACED}{path.name}-{uuid4().hex}")
    path.rename(hidden)
    return hidden


def _sync_folders(root: Path) -> None:
    # If the rename survived a power cut and the bytes did not, a torn bundle would look whole. The listed files are
    # on the disk already: `download` returns only then.
    for path in (root / MANIFEST_FILE, root / SIGNATURE_FILE, *root.rglob("*/"), root):
        sync(path)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        with suppress(RecursionError):  # of folders too deep for it: they stay hidden
            shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


@contextmanager
def _explain_disk_errors(model_folder: Path, engine: EngineVersion) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in _NO_ROOM:
            # A full disk harms everything on the host: give the room back. The next fetch starts over.
            for path in model_folder.glob(f"{_PARTIAL}*"):
                _remove(path)
        raise EngineryError(
            f"{model_folder}: cannot place {engine.model} version {engine.version} ({error.strerror or error}); "
            "nothing was placed: free space or fix the folder's permissions, and fetch again"
        ) from error

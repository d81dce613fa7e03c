"""Alias or version → fit for this host? → manifest, signature, order → files → one atomic rename.

A reader sees a whole, verified bundle or none. Everything unfinished lies beside the destination, on its file system,
under names that start with a dot; a download that was cut short is gone on with.
"""

import errno
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path

from filelock import FileLock

from registry.download import download, write_seal
from registry.errors import BadInput, DigestMismatch, EngineryError, Replayed, SignatureInvalid, TornBundle
from registry.manifest import MANIFEST_FILE, SIGNATURE_FILE, check_agrees, read_manifest, verify_bundle
from registry.names import check_name
from registry.placed import (
    HostRecord,
    Placed,
    check_listing,
    file_states,
    read_record,
    sync,
    trust_digest,
    write_record,
)
from registry.promotion import DONE, PENDING, ROLLBACK, production_alias
from registry.records import EngineVersion
from registry.signing import Trust, verify_signature
from registry.store import Store, row_of
from registry.targets import Host, check_compatible, production_engines

__all__ = ["Fetched", "Policy", "fetch"]

_PARTIAL = ".partial-"
_INCOMING = ".incoming-"
_REPLACED = ".replaced-"
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
    if policy.host is not None and _needs(engine, policy.host):
        check_compatible(engine, policy.host, production_engines(store, model))
    home = into / model
    with _on_disk(home, engine), locked(home):
        _clear(home, keep=())
        record = read_record(home)
        record = _check_order(store, engine, record, policy)
        return _place(store, engine, home, record, policy)


@contextmanager
def locked(home: Path) -> Iterator[None]:
    """One fetch of a model at a time on a host, so that a folder with a dot is a dead process's.

    Raises:
        OSError: the folder cannot be made.
    """
    home.mkdir(parents=True, exist_ok=True)
    with FileLock(home.parent / f".{home.name}.lock"):
        yield

"""Alias or version → download → verify → one atomic rename: a reader sees a whole bundle or none.

Everything unfinished lives in folders that start with a dot, beside the destination: on its file system.
"""

import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock

from registry.errors import BadInput, EngineryError
from registry.manifest import check_agrees, verify_bundle
from registry.names import check_name
from registry.records import EngineVersion
from registry.store import Store

__all__ = ["Fetched", "fetch", "verify_bundle"]

_INCOMING = ".incoming-"
_DAMAGED = ".damaged-"


@dataclass(frozen=True)
class Fetched:
    """A verified bundle on this host; `reused` says that it was there, and `digest` is the engine's."""

    path: Path
    version: int
    digest: str
    model: str
    reused: bool


def fetch(store: Store, model: str, *, into: Path, alias: str | None = None, version: int | None = None) -> Fetched:
    """Place a published engine's bundle at `into`/`model`/`version`, verified.

    An intact bundle there is kept. A damaged one stays until its replacement is verified, then is replaced.

    Raises:
        BadInput: not exactly one of `alias` and `version`, or a manifest that is not acceptable.
        NotFound: no such model, alias or version.
        TornBundle, DigestMismatch: what the registry holds is not what was published; nothing is placed.
        EngineryError: this host cannot write the bundle (disk full, permissions); nothing is placed.
    """
    engine = _resolve(store, model, alias, version)
    home = into / model
    try:
        home.mkdir(parents=True, exist_ok=True)
        # One fetch of a model at a time on a host, so that any folder with a dot is a dead process's.
        with FileLock(into / f".{model}.lock"):
            _clear_stale(home)
            return _place(store, engine, home)
    except OSError as error:
        raise EngineryError(
            f"{home}: cannot place {model} version {engine.version} ({error.strerror or error}); "
            "nothing was placed: free space or fix the folder's rights, and fetch again"
        ) from error


def _resolve(store: Store, model: str, alias: str | None, version: int | None) -> EngineVersion:
    check_name(model, what="model")
    if alias is not None and version is None:
        return store.resolve(model, check_name(alias, what="alias"))
    if version is not None and alias is None:
        return store.version(model, version)
    raise BadInput("name what to fetch: either an alias or a version, and not both")


def _place(store: Store, engine: EngineVersion, home: Path) -> Fetched:
    destination = home / str(engine.version)
    if destination.exists() and _intact(destination, engine):
        return Fetched(destination, engine.version, engine.digest, engine.model, reused=True)
    incoming = Path(tempfile.mkdtemp(prefix=_INCOMING, dir=home))
    try:
        store.download(engine.model, engine.version, incoming)
        check_agrees(engine, verify_bundle(incoming))
        # mkdtemp lets only its maker in; a server often runs as another user.
        incoming.chmod(0o755)
        _sync_tree(incoming)
        _swap(incoming, destination)
    finally:
        _clear_stale(home)
    return Fetched(destination, engine.version, engine.digest, engine.model, reused=False)


def _intact(destination: Path, engine: EngineVersion) -> bool:
    try:
        check_agrees(engine, verify_bundle(destination))
    except (EngineryError, OSError):
        return False
    return True


def _swap(incoming: Path, destination: Path) -> None:
    if os.path.lexists(destination):
        destination.rename(destination.parent / f"{_DAMAGED}{incoming.name}")
    incoming.rename(destination)
    _sync(destination.parent)


def _clear_stale(home: Path) -> None:
    for path in home.iterdir():
        if path.name.startswith((_INCOMING, _DAMAGED)):
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink()


def _sync_tree(root: Path) -> None:
    for path in root.rglob("*"):
        _sync(path)
    _sync(root)


def _sync(path: Path) -> None:
    # A rename that survives a power cut, of bytes that did not, would be a torn bundle that looks whole.
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

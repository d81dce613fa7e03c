"""Translate a model version of MLflow into an `EngineVersion` and a `Bundle`; imports no mlflow, as a fetch does not.

A version here is what MLflow's client returns: it has a name, a version, tags and aliases.
"""

import json
from collections.abc import Mapping
from hashlib import sha256
from typing import Any

from pydantic import TypeAdapter

from registry.bundle.manifest import MANIFEST_FILE, MAX_BYTES, SIGNATURE_FILE
from registry.errors import BadInput, DigestMismatch, NotFound
from registry.records import EngineVersion
from registry.store import Bundle, BundleFiles

# Tags of a version: how far its publishing came, and the sha256 of its manifest.
STATE, COMPLETE, PIN = "publish_state", "complete", "manifest_sha256"
# MLflow's own limit on the length of a parameter and of a version's tag.
LONGEST = 5000

_ROW = TypeAdapter(EngineVersion)


def row_from(version: Any, aliases: Mapping[str, int] | None = None) -> EngineVersion:
    """Return the row of an MLflow version.

    `aliases` of its model stand in for its own, which a search leaves empty.

    Raises:
        BadInput: its tags were edited.
    """
    number = int(version.version)
    tags = {name: value for name, value in version.tags.items() if name in EngineVersion.__dataclass_fields__}
    own = version.aliases if aliases is None else [alias for alias, at in aliases.items() if at == number]
    fields = {
        "compute_capability": None,
        "minimum_driver": None,
        **tags,
        "metrics": json.loads(tags.get("metrics", "[]")),
        "model": version.name,
        "version": number,
        "aliases": tuple(sorted(own)),
        "complete": version.tags.get(STATE) == COMPLETE,
    }
    try:
        return _ROW.validate_python(fields)
    except ValueError as error:
        raise BadInput(f"{version.name} version {number} has tags that were edited: {error}") from error


def read_manifest_bytes(version: Any, files: BundleFiles) -> bytes:
    """Return the manifest.json that a version was published with.

    Raises:
        DigestMismatch: it was changed after publishing.
        BadInput: it is larger than any manifest.
        NotFound, Interrupted, EngineryError: as `BundleFiles.read`.
    """
    raw = _read_whole(files, MANIFEST_FILE)
    # MLflow lets anyone overwrite a version's files; the row's tag says which manifest was published.
    if sha256(raw).hexdigest() != version.tags.get(PIN):
        raise DigestMismatch(
            f"{version.name} version {version.version}: its manifest was changed since: do not trust it"
        )
    return raw


def bundle_of(version: Any, files: BundleFiles) -> Bundle:
    """Return a version's bundle; its signature is None if it has none.

    Raises:
        DigestMismatch, BadInput, NotFound, Interrupted, EngineryError: as `read_manifest_bytes`.
    """
    raw = read_manifest_bytes(version, files)
    try:
        return Bundle(raw, _read_whole(files, SIGNATURE_FILE), files)
    except NotFound:
        return Bundle(raw, None, files)


def _read_whole(files: BundleFiles, path: str) -> bytes:
    content = b""
    for chunk in files.read(path):
        content += chunk
        if len(content) > MAX_BYTES:
            raise BadInput(f"{path} is larger than {MAX_BYTES} bytes: it was changed since; do not trust it")
    return content

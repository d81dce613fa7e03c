"""A model version of MLflow as a row and a bundle of ours; imports no mlflow, so that a fetch can do without it.

A version is what MLflow's client gives: it has a name, a version, tags and aliases.
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

_ROW = TypeAdapter(EngineVersion)


def row_from(found: Any, aliases: Mapping[str, int] | None = None) -> EngineVersion:
    """The row of a version.

    `aliases` of its model stand in for its own, which a search leaves empty.

    Raises:
        BadInput: its tags were edited.
    """
    number = int(found.version)
    tags = {name: value for name, value in found.tags.items() if name in EngineVersion.__dataclass_fields__}
    given = found.aliases if aliases is None else [alias for alias, at in aliases.items() if at == number]
    fields = {
        "compute_capability": None,
        "minimum_driver": None,
        **tags,
        "metrics": json.loads(tags.get("metrics", "[]")),
        "model": found.name,
        "version": number,
        "aliases": tuple(sorted(given)),
        "complete": found.tags.get(STATE) == COMPLETE,
    }
    try:
        return _ROW.validate_python(fields)
    except ValueError as error:
        raise BadInput(f"{found.name} version {number} has tags that were edited: {error}") from error


def manifest_of(found: Any, files: BundleFiles) -> bytes:
    """The manifest.json that a version was published with.

    Raises:
        DigestMismatch: it is another one by now.
        BadInput: it is larger than any can be.
        NotFound, Interrupted, EngineryError: as `BundleFiles.read`.
    """
    raw = _whole(files, MANIFEST_FILE)
    # MLflow lets anyone overwrite a version's files; the row says which manifest was published.
    if sha256(raw).hexdigest() != found.tags.get(PIN):
        raise DigestMismatch(f"{found.name} version {found.version}: its manifest was changed since: do not trust it")
    return raw


def bundle_of(found: Any, files: BundleFiles) -> Bundle:
    """A version's bundle; its signature is None where it has none.

    Raises:
        DigestMismatch, BadInput, NotFound, Interrupted, EngineryError: as `manifest_of`.
    """
    raw = manifest_of(found, files)
    try:
        return Bundle(raw, _whole(files, SIGNATURE_FILE), files)
    except NotFound:
        return Bundle(raw, None, files)


def _whole(files: BundleFiles, path: str) -> bytes:
    found = b""
    for chunk in files.read(path):
        found += chunk
        if len(found) > MAX_BYTES:
            raise BadInput(f"{path} is larger than {MAX_BYTES} bytes: it was changed since; do not trust it")
    return found

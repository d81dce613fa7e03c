"""Read and write `manifest.json`, the canonical JSON of an EngineManifest; docs/bundle-format.md is normative.

A manifest has exactly one byte form: `read_manifest` accepts only what `write_manifest` writes. That one rule refuses
unknown keys at any depth, duplicate keys, NaN and machine paths.
"""

import json
import re
from collections import Counter
from hashlib import sha256
from pathlib import Path, PurePosixPath

from registry.bundle import format_1
from registry.digest import canonical_json, read_canonical, verify_tree
from registry.errors import BadInput, DigestMismatch, TornBundle
from registry.host.durable import read_plain
from registry.names import CANDIDATE, PRODUCTION, check_name
from registry.records import EngineManifest, EngineVersion, FileRecord

FORMAT_VERSION = 2
_READABLE = (format_1.VERSION, FORMAT_VERSION)
MANIFEST_FILE = "manifest.json"
SIGNATURE_FILE = "model.sig"
# Both describe the listed files, so neither is listed.
UNLISTED = (MANIFEST_FILE, SIGNATURE_FILE)
# A manifest is some kilobytes; anything larger is an attempt to exhaust the reader.
MAX_BYTES = 4 * 2**20

_SHA256 = re.compile(r"[0-9a-f]{64}")


def write_manifest(manifest: EngineManifest) -> bytes:
    """Write a manifest as canonical JSON (RFC 8785), without machine paths.

    Raises:
        BadInput: the manifest breaks a rule that `read_manifest` also checks, or a figure is NaN or infinite.
    """
    _check_rules(manifest)
    try:
        raw = canonical_json(manifest)
    except ValueError as error:
        raise BadInput(f"the manifest cannot be written as JSON ({error}): measure or name that value again") from error
    return format_1.downgrade(raw) if manifest.format_version == format_1.VERSION else raw


def read_manifest(raw: bytes) -> EngineManifest:
    """Parse and check a manifest.

    Raises:
        BadInput: not canonical JSON of this format version, a wrong type, an unknown key, NaN, a malformed
            sha256, or a path that leaves the bundle.
    """
    _check_format_version(raw)
    advice = "do not trust it, and publish the engine again"
    return read_canonical(
        EngineManifest, raw, MANIFEST_FILE, advice=advice, write=write_manifest, upgrade=format_1.upgrade
    )


def verify_bundle(directory: Path) -> EngineManifest:
    """Check a bundle folder against its own manifest, byte for byte, before anything in it is loaded.

    Raises:
        TornBundle: the manifest or a file is missing, a file is extra, or one is a link.
        DigestMismatch: a file's bytes differ.
        BadInput: `read_manifest` refuses the manifest.
    """
    path = directory / MANIFEST_FILE
    if path.is_symlink() or not path.is_file():
        raise TornBundle(f"{directory} has no {MANIFEST_FILE} that is a plain file: fetch it again")
    if path.stat().st_size > MAX_BYTES:
        raise BadInput(f"{path} is larger than {MAX_BYTES} bytes, too large for a manifest: fetch the bundle again")
    manifest = read_manifest(path.read_bytes())
    verify_files(directory, manifest)
    return manifest


def verify_files(directory: Path, manifest: EngineManifest) -> None:
    """Check a bundle folder, byte for byte, against a manifest that is trusted already.

    Raises:
        TornBundle, DigestMismatch: as `verify_bundle`.
    """
    verify_tree(directory, manifest.files, beside=UNLISTED)


def read_listed(directory: Path, manifest: EngineManifest, name: str, at_most: int) -> bytes | None:
    """Return a listed file of a bundle that is verified already; None where the manifest does not list it.

    Raises:
        BadInput: it has more than `at_most` bytes.
        DigestMismatch: it was changed since the bundle was verified.
    """
    record = next((record for record in manifest.files if record.path == name), None)
    if record is None:
        return None
    path = directory / name
    if record.size_bytes > at_most:
        raise BadInput(f"{path} has {record.size_bytes} bytes, at most {at_most} are read: publish the engine again")
    raw = read_plain(path, record.size_bytes + 1)
    if sha256(raw).hexdigest() != record.sha256:
        raise DigestMismatch(f"{path} was changed since it was verified: fetch the bundle again")
    return raw


def check_agrees(engine: EngineVersion, manifest: EngineManifest) -> None:
    """Check that a registry row and a manifest describe the same engine.

    Raises:
        DigestMismatch: they differ, so tags or files were changed after publishing.
    """
    build = manifest.build
    pairs = {
        "model": (engine.model, manifest.model),
        "digest": (engine.digest, build.digest),
        "build_key": (engine.build_key, build.build_key),
        "target": (engine.target, build.target.name),
        "release": (engine.release, manifest.release),
        "sequence": (engine.sequence, manifest.sequence),
        "verdict": (engine.verdict, manifest.verdict),
    }
    for name, (in_registry, in_manifest) in pairs.items():
        if in_registry != in_manifest:
            raise DigestMismatch(
                f"{engine.model} version {engine.version}: the registry says {name} {in_registry}, its manifest "
                f"says {in_manifest}: one was changed after publishing; publish the engine again"
            )


def check_requested(engine: EngineVersion, model: str, alias: str | None, version: int | None) -> None:
    """Check that a registry row is the answer to what was asked for: the model, and the version or the alias's target.

    With `check_agrees` the signed manifest is the answer too. Only aliases of promotions and releases name a target.

    Raises:
        DigestMismatch: the registry, or somebody in between, answered with another engine.
    """
    asked: dict[str, tuple[object, object]] = {"model": (model, engine.model)}
    if version is not None:
        asked["version"] = (version, engine.version)
    if alias is not None and alias.startswith((PRODUCTION, CANDIDATE)):
        asked["target"] = (alias.removeprefix(PRODUCTION).removeprefix(CANDIDATE), engine.target)
    for name, (requested, answered) in asked.items():
        if requested != answered:
            raise DigestMismatch(
                f"{model}: {alias or f'version {version}'} was requested and the registry answered with an engine of "
                f"{name} {answered}, not {requested}: its rows or the connection were tampered with; do not trust it"
            )
    if engine.version < 1:
        raise DigestMismatch(f"{model}: the registry answered with version {engine.version}; versions count from 1")


def _check_format_version(raw: bytes) -> None:
    try:
        document = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise BadInput("manifest.json is not JSON: fetch it again") from error
    if not isinstance(document, dict):
        raise BadInput("manifest.json is not a JSON object: fetch it again")
    # Check the version before the fields: a later format may have other fields, and the reader must see the version.
    version = document.get("format_version")
    if type(version) is not int or version not in _READABLE:
        raise BadInput(
            f"manifest.json has format_version {version!r}; this Enginery reads {format_1.VERSION} to "
            f"{FORMAT_VERSION}: upgrade Enginery"
        )


def _check_rules(manifest: EngineManifest) -> None:
    if manifest.format_version not in _READABLE:
        raise BadInput(f"format_version is {manifest.format_version}; this Enginery writes {FORMAT_VERSION}")
    check_name(manifest.model, what="model")
    check_name(manifest.build.target.name, what="target")
    if manifest.sequence < 1:
        raise BadInput(f"sequence is {manifest.sequence}; sequences count from 1")
    build = manifest.build
    for name in ("digest", "build_key", "onnx_digest"):
        _check_sha256(getattr(build, name), f"build.{name}")
    calibration = manifest.calibration_set.files if manifest.calibration_set else ()
    for record in (*manifest.files, *build.files, *calibration):
        _check_record(record)
    times = Counter(record.path for record in manifest.files)
    if duplicates := {path for path, count in times.items() if count > 1}:
        raise BadInput(f"files lists {min(duplicates)!r} twice")
    if unlisted := times.keys() & set(UNLISTED):
        raise BadInput(f"files lists {min(unlisted)!r}, which must not be listed")


def _check_record(record: FileRecord) -> None:
    path = PurePosixPath(record.path)
    canonical = path.as_posix() == record.path and path.parts and not path.is_absolute() and ".." not in path.parts
    if not canonical or "\\" in record.path or not record.path.isprintable():
        raise BadInput(f"file path {record.path!r} leaves the bundle or is not in its simplest form")
    _check_sha256(record.sha256, f"sha256 of {record.path}")
    if record.size_bytes < 0:
        raise BadInput(f"size_bytes of {record.path} is {record.size_bytes}: a size cannot be negative")


def _check_sha256(text: str, what: str) -> None:
    if not _SHA256.fullmatch(text):
        raise BadInput(f"{what} is {text[:80]!r}, not 64 lower-case hex digits")

"""A bundle folder and its manifest, ready for a store."""

import importlib.metadata
import shutil
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path

from registry.bundle.manifest import FORMAT_VERSION, MANIFEST_FILE, write_manifest
from registry.bundle.signing import Signer, sign_bundle
from registry.digest import check_record, digest_of, file_sha256, record_tree
from registry.host.tensorrt_releases import minimum_driver
from registry.records import (
    CalibrationSet,
    EngineBuild,
    EngineManifest,
    GateResult,
    Measurement,
    SourceFiles,
)
from registry.triton.model import WarmupRow
from registry.triton.warmup import ROWS_FILE, write_rows
from tasks.model_tasks.text_inputs import text_encoder
from tasks.verdicts.gates import overall

# What a bundle's reader needs besides the engine: text in, so the tokenizer; labels are in the manifest.
SERVING_FILES = ("tokenizer.json",)
TOOLS = (
    "enginery",
    "torch",
    "transformers",
    "optimum",
    "optimum-onnx",
    "onnx",
    "onnxruntime",
    "nvidia-modelopt",
    "tensorrt",
    "tensorrt-rtx-cu13",
    "datasets",
    "tokenizers",
)


def toolchain() -> tuple[tuple[str, str], ...]:
    """(package, version) of every installed tool that decides what an engine is."""
    installed = {name: _version(name) for name in TOOLS}
    return tuple((name, version) for name, version in installed.items() if version)


@cache
def own_code() -> str:
    """Digest of the code that makes and judges engines: between two releases of Enginery its version says nothing."""
    root = Path(__file__).parents[2]
    files = (file for package in ("calibration_data", "tasks", "flows") for file in (root / package).rglob("*.py"))
    return digest_of(sorted((file.relative_to(root).as_posix(), file_sha256(file)) for file in files))


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def assemble_bundle(build: EngineBuild, source: SourceFiles, into: Path) -> None:
    """Copy the engine and the files that serving needs into `into`.

    Raises:
        DigestMismatch: a copy is not what its record says; the original changed since it was made.
    """
    for record in build.files:
        shutil.copyfile(build.directory / record.path, into / record.path)
        check_record(into, record)
    for record in source.files:
        if record.path in SERVING_FILES:
            shutil.copyfile(source.directory / record.path, into / record.path)
            check_record(into, record)


def add_warmup(build: EngineBuild, checkpoint: Path, texts: Sequence[str], into: Path) -> None:
    """Write warmup.json: `texts` with their tokens, which a server runs before it says that it is ready.

    Raises:
        BadInput: no tokenizer.json, or an input that text does not give.
    """
    longest = max((profile.sequence.max for profile in build.profiles), default=512)
    encoder = text_encoder(checkpoint, [tensor.name for tensor in build.inputs], max_length=longest)
    rows = []
    for text in texts:
        feed = encoder.encode([text])
        rows.append(WarmupRow(text, tuple((name, tuple(array[0].tolist())) for name, array in feed.items())))
    (into / ROWS_FILE).write_bytes(write_rows(rows))


def make_manifest(
    build: EngineBuild,
    source: SourceFiles,
    *,
    bundle: Path,
    release: str,
    sequence: int,
    calibration: CalibrationSet | None,
    evaluation_set: str,
    measurements: Sequence[Measurement],
    gates: Sequence[GateResult],
    created_at: str,
) -> EngineManifest:
    """The manifest of an assembled bundle; `created_at` is RFC 3339, given by the caller's clock."""
    verdict, reason = overall(gates)
    return EngineManifest(
        format_version=FORMAT_VERSION,
        model=source.source.name,
        release=release,
        sequence=sequence,
        source=source.source,
        build=build,
        calibration_set=calibration,
        evaluation_set=evaluation_set,
        measurements=tuple(measurements),
        gates=tuple(gates),
        verdict=verdict,
        reason=reason,
        toolchain=toolchain(),
        minimum_driver=minimum_driver(build.backend, build.backend_version),
        files=record_tree(bundle),
        created_at=created_at,
    )


def seal_bundle(manifest: EngineManifest, bundle: Path, signer: Signer) -> EngineManifest:
    """Add the ML-BOM, then manifest.json and its signature: what the folder holds now is what is published.

    Raises:
        BadInput: the manifest breaks the format, or the signer's key cannot sign.
    """
    from tasks.bundle.bom import write_bom  # cyclonedx, whose import a worker does not pay

    write_bom(manifest, bundle)
    manifest = replace(manifest, files=record_tree(bundle))
    (bundle / MANIFEST_FILE).write_bytes(write_manifest(manifest))
    sign_bundle(bundle, signer)
    return manifest

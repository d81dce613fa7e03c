"""A bundle folder and its manifest, ready for a store."""

import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from registry.bundle.manifest import FORMAT_VERSION, MANIFEST_FILE, write_manifest
from registry.bundle.signing import Signer, sign_bundle
from registry.digest import check_record, record_tree
from registry.host.tensorrt_releases import minimum_driver
from registry.records import (
    CalibrationSet,
    EngineBuild,
    EngineManifest,
    GateResult,
    Measurement,
    SourceFiles,
    Tensor,
    largest_axes,
)
from registry.triton.model import WarmupRow
from registry.triton.warmup import ROWS_FILE, holds_inputs, write_rows
from tasks.bundle.toolchain import toolchain
from tasks.model_tasks import source_task
from tasks.verdicts.gates import overall

# MLflow looks for it under this name among a version's files.
MODEL_FILE = "MLmodel"


def assemble_bundle(build: EngineBuild, source: SourceFiles, into: Path) -> None:
    """Copy the engine and the files that serving needs into `into`, and write MLmodel.

    Raises:
        DigestMismatch: a copy is not what its record says; the original changed since it was made.
    """
    for record in build.files:
        shutil.copyfile(build.directory / record.path, into / record.path)
        check_record(into, record)
    serving_files = source_task(source).serving_files
    for record in source.files:
        if record.path in serving_files:
            shutil.copyfile(source.directory / record.path, into / record.path)
            check_record(into, record)
    (into / MODEL_FILE).write_bytes(write_signature(build))


def write_signature(build: EngineBuild) -> bytes:
    """Write an engine's inputs and outputs as MLflow's MLmodel file; its page of a version shows them.

    Without a flavor MLflow can load nothing from it: an engine is loaded by what verified it.
    """
    signature = {
        "inputs": json.dumps([_describe_tensor(tensor) for tensor in build.inputs]),
        "outputs": json.dumps([_describe_tensor(tensor) for tensor in build.outputs]),
        "params": None,
    }
    # MLmodel is YAML, and JSON is YAML.
    return json.dumps({"flavors": {}, "signature": signature}, indent=1).encode()


def _describe_tensor(tensor: Tensor) -> dict[str, object]:
    shape = [size if isinstance(size, int) else -1 for size in tensor.shape]
    return {"name": tensor.name, "type": "tensor", "tensor-spec": {"dtype": tensor.dtype, "shape": shape}}


def add_warmup(build: EngineBuild, source: SourceFiles, inputs: Sequence[Any], into: Path) -> None:
    """Write warmup.json: `inputs` with their feeds, which a server runs before it says that it is ready.

    Nothing is written for an engine whose inputs rows cannot hold, such as images.

    Raises:
        BadInput: a file of the encoder is missing, or the graph has an input that the task's rows do not give.
    """
    if not holds_inputs(build):
        return
    task = source_task(source)
    encoder = task.open_encoder(source.directory, build.input_names, largest_axes(build.profiles))
    rows = []
    for row_input in inputs:
        feed = encoder.encode([row_input])
        tensors = tuple((name, tuple(array[0].tolist())) for name, array in feed.items())
        rows.append(WarmupRow(task.write_request(row_input).decode(), tensors))
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
    exporter: str | None = None,
) -> EngineManifest:
    """Make the manifest of an assembled bundle; `created_at` is RFC 3339, given by the caller's clock.

    `exporter` is what exported the fp32 graph, None where one was given.
    """
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
        exporter=exporter,
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

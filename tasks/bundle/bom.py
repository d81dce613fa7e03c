"""Write the CycloneDX ML-BOM of an engine: what it was made of, in a format that other tools read.

The same manifest gives the same bytes: the serial number comes from the content, the time from the manifest.
cyclonedx-python-lib 11 writes no model cards yet, so the model card is added to its JSON; the tests validate the whole
against the schema.
"""

import json
import re
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any
from uuid import NAMESPACE_URL, uuid5

from cyclonedx.model import HashAlgorithm, HashType, Property
from cyclonedx.model.bom import Bom, BomMetaData
from cyclonedx.model.bom_ref import BomRef
from cyclonedx.model.component import Component, ComponentType
from cyclonedx.output.json import JsonV1Dot6
from packageurl import PackageURL

from registry.digest import digest_of
from registry.records import EngineManifest, FileRecord, Measurement, Tensor

BOM_FILE = "bom.cdx.json"
_ENGINE, _SOURCE, _CALIBRATION, _EVALUATION = "engine", "source", "calibration-set", "evaluation-set"


def write_bom(manifest: EngineManifest, into: Path) -> None:
    """Write `bom.cdx.json` (CycloneDX 1.6) for an engine whose manifest lists every other file."""
    bom = _make_bom(manifest)
    document = json.loads(JsonV1Dot6(bom).output_as_string())
    document["metadata"]["component"]["modelCard"] = _make_model_card(manifest)
    (into / BOM_FILE).write_text(json.dumps(document, indent=1, sort_keys=True) + "\n", encoding="utf-8")


def _make_bom(manifest: EngineManifest) -> Bom:
    engine, source, datasets = _describe_engine(manifest), _describe_source(manifest), _describe_datasets(manifest)
    tools = [
        Component(
            name=name,
            version=version,
            type=ComponentType.LIBRARY,
            bom_ref=f"tool:{name}",
            purl=PackageURL("pypi", None, name, version),
        )
        for name, version in manifest.toolchain
    ]
    bom = Bom(
        serial_number=uuid5(NAMESPACE_URL, f"sha256:{digest_of(manifest)}"),
        metadata=BomMetaData(component=engine, timestamp=datetime.fromisoformat(manifest.created_at)),
        components=[source, *datasets, *tools],
    )
    bom.register_dependency(engine, [source, *datasets, *tools])
    return bom


def _describe_engine(manifest: EngineManifest) -> Component:
    build = manifest.build
    facts = {
        "target": build.target.name,
        "precision": build.precision,
        "backend": build.backend,
        "backend_version": build.backend_version,
        "compute_capability": build.target.compute_capability,
        "minimum_driver": manifest.minimum_driver,
        "build_key": build.build_key,
        "digest": build.digest,
        "onnx_digest": build.onnx_digest,
        "sequence": str(manifest.sequence),
        "verdict": manifest.verdict,
    }
    return Component(
        name=manifest.model,
        version=manifest.release,
        type=ComponentType.MACHINE_LEARNING_MODEL,
        bom_ref=_ENGINE,
        hashes=[_make_hash(record.sha256) for record in build.files if record.path == build.file],
        properties=_make_properties(facts),
        components=[_describe_file(record) for record in manifest.files],
    )


def _describe_source(manifest: EngineManifest) -> Component:
    source = manifest.source
    owner, _, name = source.origin.rpartition("/")
    # A commit of the hub has 40 hex digits; the digest of a local folder is longer, and its path is not a package.
    on_hub = re.fullmatch(r"[0-9a-f]{40}", source.revision) and re.fullmatch(r"[\w.-]+/[\w.-]+", source.origin)
    return Component(
        name=source.origin,
        version=source.revision,
        type=ComponentType.MACHINE_LEARNING_MODEL,
        bom_ref=_SOURCE,
        purl=PackageURL("huggingface", owner, name, source.revision) if on_hub else None,
        properties=_make_properties({"task": source.task, "classes": ", ".join(source.classes)}),
    )


def _describe_datasets(manifest: EngineManifest) -> list[Component]:
    evaluation = Component(
        name="evaluation set",
        type=ComponentType.DATA,
        bom_ref=_EVALUATION,
        properties=_make_properties({"digest": manifest.evaluation_set}),
    )
    rows = manifest.calibration_set
    if rows is None:
        return [evaluation]
    facts = {"split": rows.split, "samples": str(rows.samples), "seed": str(rows.seed), "digest": rows.digest}
    calibration = Component(
        name=rows.dataset,
        version=rows.revision,
        type=ComponentType.DATA,
        bom_ref=_CALIBRATION,
        properties=_make_properties(facts),
    )
    return [calibration, evaluation]


def _make_model_card(manifest: EngineManifest) -> dict[str, Any]:
    used = [_CALIBRATION, _EVALUATION] if manifest.calibration_set else [_EVALUATION]
    return {
        "modelParameters": {
            "task": manifest.source.task,
            "datasets": [{"ref": ref} for ref in used],
            "inputs": [{"format": _format_tensor(tensor)} for tensor in manifest.build.inputs],
            "outputs": [{"format": _format_tensor(tensor)} for tensor in manifest.build.outputs],
        },
        "quantitativeAnalysis": {
            "performanceMetrics": [_describe_metric(measurement) for measurement in manifest.measurements]
        },
    }


def _describe_metric(measurement: Measurement) -> dict[str, Any]:
    metric: dict[str, Any] = {
        "type": f"{measurement.metric} ({measurement.unit})",
        "value": str(measurement.value),
        "slice": f"{measurement.subject}, {measurement.samples} samples on {measurement.measured_on.label}",
    }
    if measurement.low is not None and measurement.high is not None:
        metric["confidenceInterval"] = {"lowerBound": str(measurement.low), "upperBound": str(measurement.high)}
    return metric


def _format_tensor(tensor: Tensor) -> str:
    return f"{tensor.name}: {tensor.dtype}[{', '.join(map(str, tensor.shape))}]"


def _describe_file(record: FileRecord) -> Component:
    return Component(
        name=record.path,
        type=ComponentType.FILE,
        bom_ref=BomRef(f"file:{record.path}"),
        hashes=[_make_hash(record.sha256)],
    )


def _make_hash(sha256: str) -> HashType:
    return HashType(alg=HashAlgorithm.SHA_256, content=sha256)


def _make_properties(facts: Mapping[str, str | None]) -> list[Property]:
    return [Property(name=f"enginery:{name}", value=str(value)) for name, value in facts.items() if value is not None]

"""The ML-BOM is valid CycloneDX, agrees with the manifest, and is the same for the same manifest."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator

from registry.records import EngineManifest
from tasks.bundle.bom import BOM_FILE, write_bom


def bom_of(manifest: EngineManifest, into: Path) -> Any:
    write_bom(manifest, into)
    text = (into / BOM_FILE).read_text(encoding="utf-8")
    error = JsonStrictValidator(SchemaVersion.V1_6).validate_str(text)
    assert error is None, error
    return json.loads(text)


def properties(component: Any) -> dict[str, str]:
    return {entry["name"].removeprefix("enginery:"): entry["value"] for entry in component["properties"]}


def test_bom_is_valid_and_names_engine_source_data_and_tools(manifest_factory: Any, tmp_path: Path) -> None:
    manifest, _ = manifest_factory()
    bom = bom_of(manifest, tmp_path)
    engine = bom["metadata"]["component"]
    sha256 = {record.path: record.sha256 for record in manifest.files}
    assert (engine["type"], engine["name"], engine["version"]) == ("machine-learning-model", "sst2", "r1")
    assert engine["hashes"] == [{"alg": "SHA-256", "content": sha256["engine.plan"]}]
    assert {file["name"]: file["hashes"][0]["content"] for file in engine["components"]} == sha256
    assert properties(engine)["compute_capability"] == "8.9"
    parts = {part["bom-ref"]: part for part in bom["components"]}
    assert parts["source"]["purl"] == f"pkg:huggingface/distilbert/sst2@{'b' * 40}"
    assert parts["source"]["version"] == manifest.source.revision
    assert properties(parts["calibration-set"])["digest"] == "d" * 64
    assert parts["calibration-set"]["version"] == "c" * 40
    assert properties(parts["evaluation-set"])["digest"] == "sst2-validation"
    assert parts["tool:tensorrt"]["version"] == "11.0"
    (uses,) = [entry["dependsOn"] for entry in bom["dependencies"] if entry["ref"] == "engine"]
    assert set(uses) == parts.keys()


def test_model_card_carries_task_data_shapes_and_figures(manifest_factory: Any, tmp_path: Path) -> None:
    manifest, _ = manifest_factory()
    card = bom_of(manifest, tmp_path)["metadata"]["component"]["modelCard"]
    assert card["modelParameters"]["task"] == "text-classification"
    assert card["modelParameters"]["inputs"] == [{"format": "input_ids: int64[batch, sequence]"}]
    (metric,) = card["quantitativeAnalysis"]["performanceMetrics"]
    assert (metric["type"], metric["value"]) == ("latency_p50_ms (ms)", "1.25")
    assert metric["confidenceInterval"] == {"lowerBound": "1.2", "upperBound": "1.3"}


def test_same_manifest_gives_the_same_bytes(manifest_factory: Any, tmp_path: Path) -> None:
    manifest, _ = manifest_factory()
    first = bom_of(manifest, tmp_path)
    raw = (tmp_path / BOM_FILE).read_bytes()
    assert bom_of(manifest, tmp_path) == first
    assert (tmp_path / BOM_FILE).read_bytes() == raw
    assert first["metadata"]["timestamp"] == manifest.created_at
    assert bom_of(replace(manifest, sequence=2), tmp_path)["serialNumber"] != first["serialNumber"]


@pytest.mark.parametrize("origin", ["checkpoint", "some/where/else", "/abs/olute"])
def test_source_that_is_no_hub_repository_has_no_package_url(
    origin: str, manifest_factory: Any, tmp_path: Path
) -> None:
    manifest, _ = manifest_factory()
    source = replace(manifest.source, origin=origin, revision="e" * 64)
    bom = bom_of(replace(manifest, source=source, calibration_set=None, measurements=()), tmp_path)
    parts = {part["bom-ref"]: part for part in bom["components"]}
    assert "purl" not in parts["source"]
    assert "calibration-set" not in parts

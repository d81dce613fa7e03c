"""Golden manifests, one folder per format version, append-only: what an old release wrote stays readable."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import rfc8785

from registry.bundle.manifest import read_manifest, write_manifest
from registry.bundle.signing import Trust, verify_signature
from registry.errors import BadInput
from registry.records import AxisRange

GOLDEN = Path(__file__).parent
VERSIONS = (1, 2)


def read(version: int) -> bytes:
    return (GOLDEN / f"v{version}" / "manifest.json").read_bytes()


@pytest.mark.parametrize("version", VERSIONS)
def test_manifest_is_still_read(version: int) -> None:
    manifest = read_manifest(read(version))
    assert (manifest.format_version, manifest.model, manifest.sequence) == (version, "sst2", 1)
    assert manifest.source.classes == ("no", "yes")
    assert manifest.build.target.compute_capability == "8.9"
    assert manifest.build.profiles[0].axes == (("batch", AxisRange(1, 8, 32)), ("sequence", AxisRange(8, 64, 128)))
    assert manifest.measurements[0].value == 1.25
    assert [record.path for record in manifest.files] == ["engine.plan", "tokenizer/vocab.txt"]


@pytest.mark.parametrize("version", VERSIONS)
def test_manifest_is_still_written_the_same(version: int) -> None:
    assert write_manifest(read_manifest(read(version))) == read(version)


@pytest.mark.parametrize(
    "edit",
    [
        lambda d: d.update(source="sst2"),
        lambda d: d["source"].update(classes=d["source"].pop("labels")),
        lambda d: d["source"].pop("labels"),
        lambda d: d.update(build="plan"),
        lambda d: d["build"].update(profiles=7),
        lambda d: d["build"]["profiles"].append("batch"),
        lambda d: d["build"]["profiles"][0].update(frames=d["build"]["profiles"][0]["batch"]),
    ],
)
def test_manifest_of_format_1_that_was_edited_is_refused(edit: Callable[[dict[str, Any]], object]) -> None:
    document = json.loads(read(1))
    edit(document)
    with pytest.raises(BadInput, match=r"manifest\.json"):
        read_manifest(rfc8785.dumps(document))


@pytest.mark.parametrize("version", VERSIONS)
def test_signature_still_verifies(version: int) -> None:
    folder = GOLDEN / f"v{version}"
    verify_signature(folder, Trust((folder / "signing.pub",)))

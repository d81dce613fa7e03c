"""Golden manifests, one folder a format version, append-only: what an old release wrote stays readable."""

from pathlib import Path

from registry.bundle.manifest import read_manifest, write_manifest
from registry.bundle.signing import Trust, verify_signature

V1 = Path(__file__).parent / "v1" / "manifest.json"


def test_manifest_of_format_1_is_still_read() -> None:
    manifest = read_manifest(V1.read_bytes())
    assert (manifest.format_version, manifest.model, manifest.sequence) == (1, "sst2", 1)
    assert manifest.build.target.compute_capability == "8.9"
    assert manifest.measurements[0].value == 1.25
    assert [record.path for record in manifest.files] == ["engine.plan", "tokenizer/vocab.txt"]


def test_manifest_of_format_1_is_still_written_the_same() -> None:
    assert write_manifest(read_manifest(V1.read_bytes())) == V1.read_bytes()


def test_signature_of_format_1_still_verifies() -> None:
    verify_signature(V1.parent, Trust(public_key=V1.parent / "signing.pub"))

"""A bundle that was spoiled, replayed or signed by somebody else reaches no host."""

import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from registry.bundle.signing import Signer, Trust
from registry.errors import DigestMismatch, EngineryError, NotFound, Replayed, SignatureInvalid, TornBundle
from registry.mlflow.store import MlflowStore
from registry.serving.fetch import fetch, verify_placed
from tests.support.fetching import ENGINE, assert_next_fetch_succeeds, list_visible
from tests.support.publisher import Publisher, make_publisher


def find_stored_bundle(registry: MlflowStore, tmp_path: Path) -> Path:
    """The bundle of version 1 in the registry's own folder."""
    run = registry.client.get_run(str(registry.client.get_model_version("sst2", "1").run_id))
    return Path(run.info.artifact_uri.removeprefix("file://")) / "bundle"


def replace_by(content: bytes) -> Callable[[Path], object]:
    return lambda bundle: (bundle / "engine.plan").write_bytes(content)


def put_pipe(bundle: Path) -> None:
    (bundle / "engine.plan").unlink()
    os.mkfifo(bundle / "engine.plan")


SPOILED: dict[str, tuple[Callable[[Path], object], type[EngineryError]]] = {
    "flipped": (replace_by(ENGINE[:-1] + bytes([ENGINE[-1] ^ 1]) + b"\1"), DigestMismatch),
    "truncated": (replace_by(ENGINE[:1000]), TornBundle),
    "emptied": (replace_by(b""), TornBundle),
    "longer": (replace_by(ENGINE + b"\1!"), TornBundle),
    "removed": (lambda bundle: (bundle / "engine.plan").unlink(), NotFound),
    "a pipe": (put_pipe, TornBundle),
    "another manifest": (lambda bundle: (bundle / "manifest.json").write_bytes(b"{}"), DigestMismatch),
    "huge manifest": (lambda bundle: os.truncate(bundle / "manifest.json", 2**30), EngineryError),
    "another signature": (lambda bundle: (bundle / "model.sig").write_bytes(b"{}"), SignatureInvalid),
    "no signature": (lambda bundle: (bundle / "model.sig").unlink(), SignatureInvalid),
}


@pytest.mark.parametrize(("spoil", "error"), SPOILED.values(), ids=SPOILED.keys())
def test_spoiled_bundle_is_refused_until_the_registry_is_restored(
    spoil: Callable[[Path], object],
    error: type[EngineryError],
    registry: MlflowStore,
    publisher: Publisher,
    tmp_path: Path,
    models: Path,
) -> None:
    bundle = find_stored_bundle(registry, tmp_path)
    shutil.copytree(bundle, tmp_path / "backup")
    spoil(bundle)
    with pytest.raises(error):
        fetch(registry, "sst2", version=1, into=models, policy=publisher.policy)
    assert list_visible(models) == []
    shutil.rmtree(bundle)
    shutil.copytree(tmp_path / "backup", bundle)
    assert_next_fetch_succeeds(registry, models, publisher)


def test_extra_files_and_shared_links_in_the_registry_do_not_reach_a_host(
    registry: MlflowStore, publisher: Publisher, tmp_path: Path, models: Path
) -> None:
    bundle = find_stored_bundle(registry, tmp_path)
    (bundle / "evil.so").write_bytes(b"")
    (bundle / ".hidden").write_bytes(b"")
    os.link(bundle / "engine.plan", tmp_path / "outside")
    fetched = fetch(registry, "sst2", version=1, into=models, policy=publisher.policy)
    with (tmp_path / "outside").open("r+b") as shared:
        shared.write(b"changed")
    verify_placed(fetched.path, publisher.trust)


def test_replayed_release_is_refused_whatever_the_clock_says(
    registry: MlflowStore, publisher: Publisher, models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = replace(publisher.policy, unrecorded=True)
    registry.set_alias("sst2", "production-l4", 2)
    fetch(registry, "sst2", alias="production-l4", into=models, policy=policy)
    registry.set_alias("sst2", "production-l4", 1)
    monkeypatch.setattr("time.time", lambda: 0.0)
    with pytest.raises(Replayed):
        fetch(registry, "sst2", alias="production-l4", into=models, policy=policy)
    assert list_visible(models) == ["2"]


def test_a_clock_set_back_changes_nothing(
    registry: MlflowStore, publisher: Publisher, models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("time.time", lambda: 0.0)
    assert_next_fetch_succeeds(registry, models, publisher)
    for path in (models / "sst2" / "1").rglob("*"):
        os.utime(path, (0, 0))
    assert fetch(registry, "sst2", version=1, into=models, policy=publisher.policy).reused


def test_signature_of_a_stranger_is_refused(
    registry: MlflowStore, publisher: Publisher, tmp_path: Path, models: Path
) -> None:
    stranger = make_publisher(tmp_path / "stranger")
    with pytest.raises(SignatureInvalid):
        fetch(registry, "sst2", version=1, into=models, policy=stranger.policy)
    assert list_visible(models) == []
    assert_next_fetch_succeeds(registry, models, publisher)


def make_certified_publisher(folder: Path, begins: datetime, days: int) -> Publisher:
    """A publisher whose certificate begins then, and is its own root."""
    folder.mkdir()
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "publisher")])
    usage = dict.fromkeys(("content_commitment", "key_encipherment", "data_encipherment", "key_agreement"), False)
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(begins)
        .not_valid_after(begins + timedelta(days=days))
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CODE_SIGNING]), critical=False)
        .add_extension(
            x509.KeyUsage(True, key_cert_sign=True, crl_sign=False, encipher_only=False, decipher_only=False, **usage),
            critical=True,
        )
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )
    plain = serialization.NoEncryption()
    pem, form = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    (folder / "key.pem").write_bytes(key.private_bytes(pem, form, plain))
    (folder / "cert.pem").write_bytes(certificate.public_bytes(pem))
    return Publisher(Signer(folder / "key.pem", folder / "cert.pem"), Trust(roots=(folder / "cert.pem",)))


def test_a_certificate_that_expired_is_refused(
    mlflow_store: MlflowStore, manifest_factory: Any, tmp_path: Path, models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = datetime.now(UTC)
    expired = make_certified_publisher(tmp_path / "expired", now - timedelta(days=30), days=20)
    valid = make_certified_publisher(tmp_path / "valid", now - timedelta(days=1), days=20)
    monkeypatch.setattr("registry.bundle.signing.check_certificate", lambda _: None)  # it was valid when it signed
    expired.publish(mlflow_store, manifest_factory(b"one"))
    valid.publish(mlflow_store, manifest_factory(b"two", sequence=2))
    with pytest.raises(SignatureInvalid, match="expired"):
        fetch(mlflow_store, "sst2", version=1, into=models, policy=expired.policy)
    assert list_visible(models) == []
    assert fetch(mlflow_store, "sst2", version=2, into=models, policy=valid.policy).version == 2

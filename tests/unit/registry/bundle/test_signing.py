"""A signature is worth what its refusals are."""

import base64
import datetime
import json
import os
import stat
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from model_signing import hashing, signing, verifying

from registry.bundle import signing as module
from registry.bundle.manifest import MANIFEST_FILE, SIGNATURE_FILE
from registry.bundle.signing import MAX_BYTES, Signer, Trust, local_signer, local_trust, sign_bundle, verify_signature
from registry.errors import BadInput, SignatureInvalid, TornBundle


def hashing_config() -> hashing.Config:
    return hashing.Config()  # type: ignore[no-untyped-call]


def signing_config() -> signing.Config:
    return signing.Config()  # type: ignore[no-untyped-call]


def verifying_config() -> verifying.Config:
    return verifying.Config()  # type: ignore[no-untyped-call]


NOW = datetime.datetime.now(datetime.UTC)
DAY = datetime.timedelta(days=1)
PrivateKey = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey | ed25519.Ed25519PrivateKey
VARIABLES = ("SIGNING_KEY", "SIGNING_CERTIFICATE", "SIGNING_CHAIN", "VERIFY_KEY", "VERIFY_ROOTS")


@pytest.fixture(autouse=True)
def _no_keys_of_the_developer(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in VARIABLES:
        monkeypatch.delenv(f"ENGINERY_{name}", raising=False)


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    folder = tmp_path / "bundle"
    folder.mkdir()
    (folder / "manifest.json").write_bytes(b'{"files":[]}')
    return folder


@dataclass(frozen=True)
class Issued:
    """A certificate with its key, as PEM files."""

    key: Path
    certificate: Path
    issued: x509.Certificate
    private: ec.EllipticCurvePrivateKey


Issue = Callable[..., Issued]


@pytest.fixture
def issue(tmp_path: Path) -> Issue:
    """`issue(name, by=issuer, start=…, end=…)`; without an issuer it is a root."""

    def make(
        name: str,
        by: Issued | None = None,
        *,
        start: datetime.datetime = NOW - DAY,
        end: datetime.datetime = NOW + DAY,
        authority: bool = False,
        purposes: tuple[x509.ObjectIdentifier, ...] = (ExtendedKeyUsageOID.CODE_SIGNING,),
    ) -> Issued:
        private = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        builder = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(by.issued.subject if by else subject)
            .public_key(private.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(start)
            .not_valid_after(end)
            .add_extension(x509.BasicConstraints(ca=authority, path_length=None), critical=True)
            .add_extension(
                x509.KeyUsage(not authority, False, False, False, False, authority, authority, False, False),
                critical=True,
            )
        )
        if purposes and not authority:
            builder = builder.add_extension(x509.ExtendedKeyUsage(purposes), critical=False)
        issued = builder.sign(by.private if by else private, hashes.SHA256())
        certificate = tmp_path / f"{name}.crt"
        certificate.write_bytes(issued.public_bytes(serialization.Encoding.PEM))
        return Issued(write_key(tmp_path / f"{name}.pem", private), certificate, issued, private)

    return make


def write_key(path: Path, key: PrivateKey, password: bytes | None = None) -> Path:
    lock = serialization.BestAvailableEncryption(password) if password else serialization.NoEncryption()
    path.write_bytes(key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, lock))
    return path


def public_of(key: ec.EllipticCurvePrivateKey, path: Path) -> Path:
    form = serialization.PublicFormat.SubjectPublicKeyInfo
    path.write_bytes(key.public_key().public_bytes(serialization.Encoding.PEM, form))
    return path


def test_the_manifest_that_was_verified_is_returned_whatever_becomes_of_the_folder(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sign_bundle(bundle, local_signer(tmp_path / "home"))
    signed, verify = (bundle / MANIFEST_FILE).read_bytes(), module._verify_with_any

    def swap_first(manifest: Path, signature: Path, trust: Trust) -> None:
        (bundle / MANIFEST_FILE).write_bytes(b"{}")
        (bundle / SIGNATURE_FILE).write_bytes(b"{}")
        verify(manifest, signature, trust)

    monkeypatch.setattr(module, "_verify_with_any", swap_first)
    assert verify_signature(bundle, local_trust(tmp_path / "home")) == signed


def test_verification_needs_only_the_public_part(bundle: Path, tmp_path: Path) -> None:
    home = tmp_path / "home"
    sign_bundle(bundle, local_signer(home))
    trust = local_trust(home)
    (home / "keys" / "signing.pem").unlink()
    verify_signature(bundle, trust)
    assert trust.public_keys
    assert "PRIVATE" not in trust.public_keys[0].read_text(encoding="utf-8")


def test_own_key_is_created_once_and_readable_by_its_owner_only(tmp_path: Path) -> None:
    private = local_signer(tmp_path).private_key
    first = private.read_bytes()
    assert stat.S_IMODE(private.stat().st_mode) == 0o600
    assert stat.S_IMODE(private.parent.stat().st_mode) == 0o700
    assert local_signer(tmp_path).private_key.read_bytes() == first


def test_processes_that_race_for_the_first_key_sign_with_one(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from registry.bundle.signing import local_signer;"
        "print(local_signer(Path(sys.argv[1])).private_key.read_bytes().hex())"
    )

    def run(_: int) -> str:
        command = [sys.executable, "-c", code, str(tmp_path)]
        return subprocess.run(command, check=True, capture_output=True, text=True, cwd=Path(__file__).parents[4]).stdout

    with ThreadPoolExecutor(4) as pool:
        assert len(set(pool.map(run, range(4)))) == 1


def test_public_key_missing_after_a_crash_is_derived_from_the_key(bundle: Path, tmp_path: Path) -> None:
    sign_bundle(bundle, local_signer(tmp_path))
    (tmp_path / "keys" / "signing.pub").unlink()
    with pytest.raises(BadInput, match="ENGINERY_VERIFY_KEY"):
        local_trust(tmp_path)
    local_signer(tmp_path)
    verify_signature(bundle, local_trust(tmp_path))


def test_configured_key_is_used(bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    key = ec.generate_private_key(ec.SECP384R1())
    monkeypatch.setenv("ENGINERY_SIGNING_KEY", str(write_key(tmp_path / "team.pem", key)))
    monkeypatch.setenv("ENGINERY_VERIFY_KEY", str(public_of(key, tmp_path / "team.pub")))
    sign_bundle(bundle, local_signer(tmp_path))
    verify_signature(bundle, local_trust(tmp_path))
    assert not (tmp_path / "keys").exists()


def test_another_key_is_refused(bundle: Path, tmp_path: Path) -> None:
    sign_bundle(bundle, local_signer(tmp_path / "one"))
    local_signer(tmp_path / "two")
    with pytest.raises(SignatureInvalid, match="Key mismatch"):
        verify_signature(bundle, local_trust(tmp_path / "two"))


def test_a_forged_hint_of_the_key_does_not_help(bundle: Path, tmp_path: Path) -> None:
    sign_bundle(bundle, local_signer(tmp_path / "thief"))
    local_signer(tmp_path / "team")
    other = bundle / "model.sig"
    stolen = json.loads(other.read_bytes())
    sign_bundle(bundle, local_signer(tmp_path / "team"))
    honest = json.loads(other.read_bytes())
    stolen["verificationMaterial"] = honest["verificationMaterial"]
    other.write_text(json.dumps(stolen), encoding="utf-8")
    with pytest.raises(SignatureInvalid, match="InvalidSignature"):
        verify_signature(bundle, local_trust(tmp_path / "team"))


def test_every_flipped_byte_of_the_manifest_is_detected(bundle: Path, tmp_path: Path) -> None:
    sign_bundle(bundle, local_signer(tmp_path))
    raw = (bundle / "manifest.json").read_bytes()
    for place in range(len(raw)):
        flipped = raw[:place] + bytes([raw[place] ^ 1]) + raw[place + 1 :]
        (bundle / "manifest.json").write_bytes(flipped)
        with pytest.raises(SignatureInvalid, match="does not verify"):
            verify_signature(bundle, local_trust(tmp_path))


def test_signature_of_another_bundle_is_refused(bundle: Path, tmp_path: Path) -> None:
    sign_bundle(bundle, local_signer(tmp_path))
    (bundle / "manifest.json").write_bytes(b'{"files":[1]}')
    with pytest.raises(SignatureInvalid, match="mismatch"):
        verify_signature(bundle, local_trust(tmp_path))


@pytest.mark.parametrize(
    "content",
    [b"", b"{}", b"[]", b"\xff\xfe", b"[" * 100_000, b'{"verificationMaterial":{},"dsseEnvelope":{}}', b"null"],
)
def test_malformed_signature_is_refused(content: bytes, bundle: Path, tmp_path: Path) -> None:
    local_signer(tmp_path)
    (bundle / "model.sig").write_bytes(content)
    with pytest.raises(SignatureInvalid, match="does not verify"):
        verify_signature(bundle, local_trust(tmp_path))


def test_missing_linked_and_huge_signatures_are_refused(bundle: Path, tmp_path: Path) -> None:
    local_signer(tmp_path)
    trust, signature = local_trust(tmp_path), bundle / "model.sig"
    with pytest.raises(SignatureInvalid, match="is unsigned"):
        verify_signature(bundle, trust)
    sign_bundle(bundle, local_signer(tmp_path))
    signature.rename(tmp_path / "elsewhere")
    signature.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(SignatureInvalid, match="is unsigned"):
        verify_signature(bundle, trust)
    signature.unlink()
    signature.write_bytes(b" " * (MAX_BYTES + 1))
    with pytest.raises(SignatureInvalid, match="larger than"):
        verify_signature(bundle, trust)
    (bundle / "manifest.json").unlink()
    with pytest.raises(TornBundle):
        verify_signature(bundle, trust)
    with pytest.raises(TornBundle):
        sign_bundle(bundle, local_signer(tmp_path))


def test_signature_that_ignores_the_manifest_is_refused(bundle: Path, tmp_path: Path) -> None:
    """A trusted key may have signed other things with model-signing; none of them vouches for this manifest."""
    signer = local_signer(tmp_path)
    ignoring = hashing_config().set_ignored_paths(paths=["manifest.json", "model.sig"], ignore_git_paths=False)
    config = signing_config().use_elliptic_key_signer(private_key=signer.private_key).set_hashing_config(ignoring)
    config.sign(bundle, bundle / "model.sig")
    with pytest.raises(SignatureInvalid):
        verify_signature(bundle, local_trust(tmp_path))
    config.set_hashing_config(hashing_config().use_file_serialization(hashing_algorithm="blake2"))
    config.sign(bundle / "manifest.json", bundle / "model.sig")
    with pytest.raises(SignatureInvalid):
        verify_signature(bundle, local_trust(tmp_path))


def test_chain_to_a_trusted_root_verifies(
    bundle: Path, tmp_path: Path, issue: Issue, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = issue("root", authority=True)
    between = issue("between", root, authority=True)
    leaf = issue("leaf", between)
    monkeypatch.setenv("ENGINERY_SIGNING_KEY", str(leaf.key))
    monkeypatch.setenv("ENGINERY_SIGNING_CERTIFICATE", str(leaf.certificate))
    monkeypatch.setenv("ENGINERY_SIGNING_CHAIN", str(between.certificate))
    monkeypatch.setenv("ENGINERY_VERIFY_ROOTS", os.pathsep.join([str(root.certificate)]))
    sign_bundle(bundle, local_signer(tmp_path))
    verify_signature(bundle, local_trust(tmp_path))
    stranger = issue("stranger", authority=True)
    with pytest.raises(SignatureInvalid, match="does not verify"):
        verify_signature(bundle, Trust(roots=(stranger.certificate,)))
    sign_bundle(bundle, Signer(leaf.key, leaf.certificate))
    with pytest.raises(SignatureInvalid, match="does not verify"):
        verify_signature(bundle, Trust(roots=(root.certificate,)))


def sign_with(bundle: Path, leaf: Issued, *chain: Issued) -> None:
    """As a publisher would whose tool does not look at its certificate."""
    signing_config().use_certificate_signer(
        private_key=leaf.key,
        signing_certificate=leaf.certificate,
        certificate_chain=[c.certificate for c in chain or (leaf,)],
    ).set_hashing_config(hashing_config().set_ignored_paths(paths=(), ignore_git_paths=False)).sign(
        bundle / "manifest.json", bundle / "model.sig"
    )


def test_certificate_expired_by_now_is_refused(bundle: Path, issue: Issue) -> None:
    root = issue("root", authority=True, start=NOW - 9 * DAY)
    leaf = issue("leaf", root, start=NOW - 3 * DAY, end=NOW - DAY)
    with pytest.raises(BadInput, match="renew it"):
        sign_bundle(bundle, Signer(leaf.key, leaf.certificate))
    sign_with(bundle, leaf)
    # The reason for our own check: model-signing alone accepts it.
    verifying_config().use_certificate_verifier(certificate_chain=[root.certificate]).verify(
        bundle / "manifest.json", bundle / "model.sig"
    )
    with pytest.raises(SignatureInvalid, match="expired"):
        verify_signature(bundle, Trust(roots=(root.certificate,)))


def test_expired_intermediate_certificate_is_refused(bundle: Path, issue: Issue) -> None:
    root = issue("root", authority=True, start=NOW - 9 * DAY)
    between = issue("between", root, authority=True, start=NOW - 9 * DAY, end=NOW - DAY)
    leaf = issue("leaf", between, start=NOW - 3 * DAY)
    sign_with(bundle, leaf, between)
    with pytest.raises(SignatureInvalid, match="expired"):
        verify_signature(bundle, Trust(roots=(root.certificate,)))


@pytest.mark.parametrize("purposes", [(ExtendedKeyUsageOID.SERVER_AUTH,), ()])
def test_certificate_of_a_web_server_signs_no_engine(
    purposes: tuple[x509.ObjectIdentifier, ...], bundle: Path, issue: Issue
) -> None:
    root = issue("root", authority=True)
    leaf = issue("leaf", root, purposes=purposes)
    with pytest.raises(BadInput, match="code signing"):
        sign_bundle(bundle, Signer(leaf.key, leaf.certificate))
    sign_with(bundle, leaf)
    with pytest.raises(SignatureInvalid):
        verify_signature(bundle, Trust(roots=(root.certificate,)))


def test_certificate_swapped_for_a_trusted_one_is_refused(bundle: Path, issue: Issue) -> None:
    root = issue("root", authority=True)
    honest, thief = issue("honest", root), issue("thief")
    sign_with(bundle, thief)
    document = json.loads((bundle / "model.sig").read_bytes())
    raw = base64.b64encode(honest.issued.public_bytes(serialization.Encoding.DER)).decode()
    document["verificationMaterial"]["x509CertificateChain"]["certificates"][0]["rawBytes"] = raw
    (bundle / "model.sig").write_text(json.dumps(document), encoding="utf-8")
    with pytest.raises(SignatureInvalid, match="InvalidSignature"):
        verify_signature(bundle, Trust(roots=(root.certificate,)))


def test_key_signature_is_refused_where_roots_are_trusted(bundle: Path, tmp_path: Path, issue: Issue) -> None:
    sign_bundle(bundle, local_signer(tmp_path))
    with pytest.raises(SignatureInvalid):
        verify_signature(bundle, Trust(roots=(issue("root", authority=True).certificate,)))


def test_keys_of_the_wrong_kind_are_the_users_error(bundle: Path, tmp_path: Path, issue: Issue) -> None:
    weak = write_key(tmp_path / "rsa.pem", rsa.generate_private_key(65537, 2048))
    locked = write_key(tmp_path / "locked.pem", ec.generate_private_key(ec.SECP256R1()), b"secret")
    koblitz = write_key(tmp_path / "k1.pem", ec.generate_private_key(ec.SECP256K1()))
    text = tmp_path / "text.pem"
    text.write_text("not a key", encoding="utf-8")
    for key in (weak, locked, koblitz, text):
        with pytest.raises(BadInput, match="signing with"):
            sign_bundle(bundle, Signer(key))
    one, two = issue("one"), issue("two")
    with pytest.raises(BadInput, match="does not match"):
        sign_bundle(bundle, Signer(one.key, two.certificate))
    sign_bundle(bundle, local_signer(tmp_path))
    for trust in (Trust((text,)), Trust(roots=(text,)), Trust((tmp_path / "none",))):
        with pytest.raises(BadInput, match=r"verifying with|cannot be read as a key"):
            verify_signature(bundle, trust)


def test_half_a_configuration_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "some.pem"
    file.touch()
    monkeypatch.setenv("ENGINERY_SIGNING_CERTIFICATE", str(file))
    with pytest.raises(BadInput, match="ENGINERY_SIGNING_KEY is not"):
        local_signer(tmp_path)
    monkeypatch.delenv("ENGINERY_SIGNING_CERTIFICATE")
    monkeypatch.setenv("ENGINERY_SIGNING_KEY", str(file))
    monkeypatch.setenv("ENGINERY_SIGNING_CHAIN", str(file))
    with pytest.raises(BadInput, match="ENGINERY_SIGNING_CERTIFICATE is not"):
        local_signer(tmp_path)
    monkeypatch.setenv("ENGINERY_SIGNING_KEY", str(tmp_path / "none"))
    with pytest.raises(BadInput, match=r"names .*none"):
        local_signer(tmp_path)
    monkeypatch.setenv("ENGINERY_VERIFY_KEY", str(file))
    monkeypatch.setenv("ENGINERY_VERIFY_ROOTS", str(file))
    with pytest.raises(BadInput, match="one of the two"):
        local_trust(tmp_path)


def test_model_signings_own_command_verifies_a_bundle(bundle: Path, tmp_path: Path) -> None:
    sign_bundle(bundle, local_signer(tmp_path))
    public = str(local_trust(tmp_path).public_keys[0])
    command = [sys.executable, "-m", "model_signing", "verify", "key", "manifest.json"]
    command += ["--signature", "model.sig", "--public_key", public]
    assert subprocess.run(command, cwd=bundle, check=False, capture_output=True).returncode == 0
    (bundle / "manifest.json").write_bytes(b"{}")
    assert subprocess.run(command, cwd=bundle, check=False, capture_output=True).returncode != 0


def test_each_of_several_keys_is_accepted_while_a_publisher_changes_its_key(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = []
    for name in ("old", "new", "stranger"):
        local_signer(tmp_path / name)
        keys.append(local_trust(tmp_path / name).public_keys[0])
    old, new, stranger = keys
    for home, accepted in (("old", (old, new)), ("new", (old, new)), ("new", (new, old)), ("new", (new,))):
        sign_bundle(bundle, local_signer(tmp_path / home))
        monkeypatch.setenv("ENGINERY_VERIFY_KEY", os.pathsep.join(map(str, accepted)))
        verify_signature(bundle, local_trust(tmp_path))
    for refused in ((old,), (old, stranger)):
        with pytest.raises(SignatureInvalid, match=r"does not verify with .*signing\.pub"):
            verify_signature(bundle, Trust(refused))


def write_pair(path: Path, key: PrivateKey) -> None:
    public = serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    path.with_suffix(".pub").write_bytes(key.public_key().public_bytes(*public))
    write_key(path, key)


KEYS: dict[str, Callable[[], PrivateKey]] = {
    "RSA": lambda: rsa.generate_private_key(65537, 2048),
    "Ed25519": ed25519.Ed25519PrivateKey.generate,
    "another curve": lambda: ec.generate_private_key(ec.SECP256K1()),
}
UNFIT = (*KEYS, "text", "empty", "folder", "pipe", "device")


def write_unfit(kind: str, private: Path) -> None:
    """Write what no engine is signed with, or verified by, as a private and as a public key."""
    if kind in KEYS:
        write_pair(private, KEYS[kind]())
        return
    for file in (private, private.with_suffix(".pub")):
        match kind:
            case "text" | "empty":
                file.write_text("no key" if kind == "text" else "", encoding="utf-8")
            case "folder":
                file.mkdir()
            case "pipe":
                os.mkfifo(file)
            case _:
                file.symlink_to("/dev/zero")


@pytest.mark.parametrize("kind", UNFIT)
def test_a_key_that_cannot_sign_is_refused_before_a_release_begins(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_unfit(kind, tmp_path / "key.pem")
    monkeypatch.setenv("ENGINERY_SIGNING_KEY", str(tmp_path / "key.pem"))
    with pytest.raises(BadInput, match=r"key\.pem") as caught:
        local_signer(tmp_path / "home")
    assert "attribute" not in str(caught.value)
    assert "PEM file" in str(caught.value)


@pytest.mark.parametrize("kind", UNFIT)
def test_a_key_that_cannot_verify_is_bad_input(
    kind: str, bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sign_bundle(bundle, local_signer(tmp_path / "home"))
    write_unfit(kind, tmp_path / "key.pem")
    monkeypatch.setenv("ENGINERY_VERIFY_KEY", str(tmp_path / "key.pub"))
    with pytest.raises(BadInput, match=r"key\.pub") as caught:
        verify_signature(bundle, local_trust(tmp_path / "home"))
    assert "attribute" not in str(caught.value)


def test_a_key_with_a_password_is_refused_before_a_release_begins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = write_key(tmp_path / "key.pem", ec.generate_private_key(ec.SECP256R1()), b"secret")
    monkeypatch.setenv("ENGINERY_SIGNING_KEY", str(key))
    with pytest.raises(BadInput, match="without a password"):
        local_signer(tmp_path / "home")

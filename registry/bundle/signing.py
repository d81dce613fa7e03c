"""Sign and verify a bundle with OpenSSF model-signing.

The signature covers `manifest.json` alone, which lists the sha256 of every other file: a large engine is hashed once,
by `manifest.verify_bundle`, and not again by the signature (docs/adr/0012-signatures.md). A signature proves who
published; registry/serving/fetch.py refuses the replay of an old release by its sequence number.
"""

import base64
import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from filelock import FileLock

from registry.bundle.certificates import check_certificate, check_chain, check_private_key, check_public_key
from registry.bundle.manifest import MANIFEST_FILE, SIGNATURE_FILE
from registry.bundle.manifest import MAX_BYTES as MANIFEST_BYTES
from registry.digest import file_sha256
from registry.errors import BadInput, EngineryError, SignatureInvalid, TornBundle
from registry.host.durable import replace_file

if TYPE_CHECKING:
    from model_signing.hashing import Config

PRIVATE_KEY, PUBLIC_KEY = "signing.pem", "signing.pub"
# A signature with a chain of certificates is some kilobytes; anything larger is an attempt to exhaust the reader.
MAX_BYTES = 2**20


@dataclass(frozen=True)
class Signer:
    """A publisher's PEM files: an elliptic curve key (P-256, P-384, P-521), certificate and chain below the root."""

    private_key: Path
    certificate: Path | None = None
    chain: tuple[Path, ...] = ()


@dataclass(frozen=True)
class Trust:
    """The signatures a machine accepts: any of its keys', or every code-signing certificate's under one of the `roots`.

    Exactly one of the two is given. Several keys are accepted while a publisher changes its key.
    """

    public_keys: tuple[Path, ...] = ()
    roots: tuple[Path, ...] = ()

    def __post_init__(self) -> None:
        if bool(self.public_keys) == bool(self.roots):
            raise BadInput(
                "signatures are verified with public keys or with root certificates: name exactly one of the two"
            )


def local_signer(home: Path) -> Signer:
    """Return the key that signs on this machine.

    That is ENGINERY_SIGNING_KEY (PEM), with ENGINERY_SIGNING_CERTIFICATE and ENGINERY_SIGNING_CHAIN (paths separated by
    `:`) where it has a certificate; otherwise this machine's own key under `home`/keys, created on first use.

    Raises:
        BadInput: a variable names a missing file or a key that cannot sign, or a certificate is named without its key.
    """
    key, certificate = _read_paths("ENGINERY_SIGNING_KEY"), _read_paths("ENGINERY_SIGNING_CERTIFICATE")
    chain = _read_paths("ENGINERY_SIGNING_CHAIN")
    if not key:
        if certificate or chain:
            raise BadInput(
                "ENGINERY_SIGNING_CERTIFICATE is set and ENGINERY_SIGNING_KEY is not: set it to the certificate's key"
            )
        return Signer(_local_key(home))
    if chain and not certificate:
        raise BadInput(
            "ENGINERY_SIGNING_CHAIN is set and ENGINERY_SIGNING_CERTIFICATE is not: set it to the signing certificate"
        )
    check_private_key(key[0])
    return Signer(key[0], certificate[0] if certificate else None, chain)


def local_trust(home: Path) -> Trust:
    """Return the keys this machine trusts: ENGINERY_VERIFY_KEY, ENGINERY_VERIFY_ROOTS, or its own.

    Each variable may name several files, separated by `:`.

    Raises:
        BadInput: all three are missing, both variables are set, or one names a missing file.
    """
    keys, roots = _read_paths("ENGINERY_VERIFY_KEY"), _read_paths("ENGINERY_VERIFY_ROOTS")
    if keys or roots:
        return Trust(keys, roots)
    public = home / "keys" / PUBLIC_KEY
    if not public.is_file():
        raise BadInput(
            "this machine has no key to verify engines with: set ENGINERY_VERIFY_KEY to the publisher's public key "
            f"(keys/{PUBLIC_KEY} in its ENGINERY_HOME), or ENGINERY_VERIFY_ROOTS to root certificates"
        )
    return Trust((public,))


def sign_bundle(directory: Path, signer: Signer) -> None:
    """Write `model.sig`, the signature of the folder's manifest.json (a Sigstore bundle).

    Raises:
        TornBundle: the folder has no manifest.json.
        BadInput: the key or a certificate cannot be read, they do not match, or the certificate is not valid now.
    """
    if not _is_plain_file(directory / MANIFEST_FILE):
        raise TornBundle(f"{directory} has no {MANIFEST_FILE} to sign: write the manifest first")
    with _errors_as_bad_input(f"signing with {signer.private_key}", "check the key and its certificate"):
        from model_signing import signing  # 0.7 s, which only commands that sign should pay

        config = signing.Config().set_hashing_config(_hashing_config())  # type: ignore[no-untyped-call]
        if signer.certificate is None:
            config.use_elliptic_key_signer(private_key=signer.private_key)
        else:
            check_certificate(signer.certificate)
            # It cannot read an empty chain; the certificate once more, among the untrusted ones, changes nothing.
            config.use_certificate_signer(
                private_key=signer.private_key,
                signing_certificate=signer.certificate,
                certificate_chain=signer.chain or (signer.certificate,),
            )
        config.sign(directory / MANIFEST_FILE, directory / SIGNATURE_FILE)


def verify_signature(directory: Path, trust: Trust) -> bytes:
    """Check that a trusted publisher signed exactly this folder's manifest.json and no other file; return its bytes.

    Both files are read once, so that what was verified is what is returned, whatever becomes of the folder.

    A certificate must be valid now: nothing here proves when a signature was made.

    Raises:
        SignatureInvalid: the signature is missing or another key's, the certificate has expired, does not permit code
            signing or was issued under another root, or another manifest was signed.
        BadInput: the trusted key or roots cannot be read, or the manifest is larger than any.
        TornBundle: the folder has no manifest.json.
    """
    manifest, signature = directory / MANIFEST_FILE, directory / SIGNATURE_FILE
    if not _is_plain_file(manifest):
        raise TornBundle(f"{directory} has no {MANIFEST_FILE} that is a plain file: fetch it again")
    if manifest.stat().st_size > MANIFEST_BYTES:
        raise BadInput(f"{manifest} is larger than {MANIFEST_BYTES} bytes, too large for a manifest: do not trust it")
    if not _is_plain_file(signature):
        raise SignatureInvalid(f"{directory} has no {SIGNATURE_FILE}: it is unsigned, so do not trust it")
    if signature.stat().st_size > MAX_BYTES:
        raise SignatureInvalid(
            f"{signature} is larger than {MAX_BYTES} bytes, too large for a signature: do not trust it"
        )
    raw = manifest.read_bytes()
    try:
        with tempfile.TemporaryDirectory(prefix="enginery-verify-") as scratch:
            copies = Path(scratch, MANIFEST_FILE), Path(scratch, SIGNATURE_FILE)
            copies[0].write_bytes(raw)
            copies[1].write_bytes(signature.read_bytes())
            _verify_manifest(*copies, trust)
    except EngineryError:
        raise
    except Exception as error:
        # Hostile bytes pass through JSON, base64, X.509 and OpenSSL, and each raises exceptions of its own.
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise SignatureInvalid(
            f"{signature} does not verify with {_describe_trust(trust)} ({reason}): do not trust it, or name the "
            "publisher's key"
        ) from error
    return raw


def _verify_manifest(manifest: Path, signature: Path, trust: Trust) -> None:
    _verify_with_any(manifest, signature, trust)
    document = json.loads(signature.read_bytes())
    # model-signing skips the files that the signer chose to ignore, so check here which files were signed.
    resources = json.loads(base64.b64decode(document["dsseEnvelope"]["payload"]))["predicate"]["resources"]
    if resources != [{"algorithm": "sha256", "digest": file_sha256(manifest), "name": "."}]:
        raise SignatureInvalid(f"{signature} signs other files than {MANIFEST_FILE} alone: do not trust it")
    if trust.roots:
        chain = document["verificationMaterial"]["x509CertificateChain"]["certificates"]
        check_chain([base64.b64decode(certificate["rawBytes"]) for certificate in chain], trust.roots)


def _verify_with_any(manifest: Path, signature: Path, trust: Trust) -> None:
    from model_signing import verifying  # as in sign_bundle

    configs = []
    with _errors_as_bad_input(f"verifying with {_describe_trust(trust)}", "name a PEM file of the right kind"):
        for key in trust.public_keys or (None,):
            config = verifying.Config().set_hashing_config(_hashing_config())  # type: ignore[no-untyped-call]
            if key is not None:
                check_public_key(key)
                config.use_elliptic_key_verifier(public_key=key)
            else:
                config.use_certificate_verifier(certificate_chain=trust.roots)
            configs.append(config)
    for config in configs[:-1]:
        with suppress(Exception):  # the next key may fit; the last one's error is raised
            config.verify(manifest, signature)
            return
    configs[-1].verify(manifest, signature)


def _hashing_config() -> "Config":
    from model_signing import hashing  # as in sign_bundle

    # By default model-signing skips .git and the like: the signature would then allow exceptions.
    return hashing.Config().set_ignored_paths(paths=(), ignore_git_paths=False)  # type: ignore[no-untyped-call]


def _local_key(home: Path) -> Path:
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    keys = home / "keys"
    keys.mkdir(parents=True, exist_ok=True, mode=0o700)
    private, public = keys / PRIVATE_KEY, keys / PUBLIC_KEY
    if private.is_file() and public.is_file():
        return private
    # Without the lock, two first uses would each create a key, and one would sign with a key that is overwritten.
    with FileLock(keys / ".lock"):
        if not private.is_file():
            key = ec.generate_private_key(ec.SECP256R1())
            unencrypted = serialization.NoEncryption()
            form = serialization.PrivateFormat.PKCS8
            replace_file(private, key.private_bytes(serialization.Encoding.PEM, form, unencrypted), mode=0o600)
        if not public.is_file():
            with _errors_as_bad_input(f"reading {private}", "restore the key file from a backup"):
                public_key = serialization.load_pem_private_key(private.read_bytes(), None).public_key()
            info = serialization.PublicFormat.SubjectPublicKeyInfo
            replace_file(public, public_key.public_bytes(serialization.Encoding.PEM, info), mode=0o644)
    return private


def _read_paths(variable: str) -> tuple[Path, ...]:
    paths = tuple(Path(part) for part in os.environ.get(variable, "").split(os.pathsep) if part)
    for path in paths:
        if not path.is_file():
            raise BadInput(f"{variable} names {path}, which is not a file: set it to a PEM file")
    return paths


def _is_plain_file(path: Path) -> bool:
    return path.is_file() and not path.is_symlink()


def _describe_trust(trust: Trust) -> str:
    return ", ".join(map(str, trust.roots or trust.public_keys))


@contextmanager
def _errors_as_bad_input(what: str, advice: str) -> Iterator[None]:
    try:
        yield
    except BadInput:
        raise
    except Exception as error:
        # PEM parsers raise ValueError, TypeError (a password is missing), UnsupportedAlgorithm and OSError.
        raise BadInput(f"{what} failed ({error or type(error).__name__}): {advice}") from error

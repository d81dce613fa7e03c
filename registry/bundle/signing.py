"""Sign and verify a bundle with OpenSSF model-signing.

What is signed is `manifest.json` alone: it lists the sha256 of every other file, so a large engine is hashed once,
by `manifest.verify_bundle`, and not again by the signature (docs/adr/0012-signatures.md). A signature says who
published; a replay of an old release is refused by its sequence number, elsewhere.
"""

import base64
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from filelock import FileLock

from registry.bundle.certificates import check_certificate, check_chain
from registry.bundle.manifest import MANIFEST_FILE, SIGNATURE_FILE
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
    """PEM files: an elliptic curve key (P-256, P-384, P-521), and its certificate with the chain below the root."""

    private_key: Path
    certificate: Path | None = None
    chain: tuple[Path, ...] = ()


@dataclass(frozen=True)
class Trust:
    """Whose signatures count: one public key, or every code-signing certificate that one of the `roots` vouches for.

    Exactly one of the two is given.
    """

    public_key: Path | None = None
    roots: tuple[Path, ...] = ()

    def __post_init__(self) -> None:
        if (self.public_key is None) == (not self.roots):
            raise BadInput("signatures are verified with a public key or with root certificates: name one of the two")


def local_signer(home: Path) -> Signer:
    """Whoever signs on this machine.

    ENGINERY_SIGNING_KEY (PEM), with ENGINERY_SIGNING_CERTIFICATE and ENGINERY_SIGNING_CHAIN (paths with `:` between)
    where a certificate vouches for it; else a key of this machine's own under `home`/keys, made on first use.

    Raises:
        BadInput: one of them names no file, or a certificate is named without its key.
    """
    key, certificate = _named("ENGINERY_SIGNING_KEY"), _named("ENGINERY_SIGNING_CERTIFICATE")
    chain = _named("ENGINERY_SIGNING_CHAIN")
    if not key:
        if certificate or chain:
            raise BadInput("ENGINERY_SIGNING_CERTIFICATE is set and ENGINERY_SIGNING_KEY is not: set it to its key")
        return Signer(_own_key(home))
    if chain and not certificate:
        raise BadInput("ENGINERY_SIGNING_CHAIN is set and ENGINERY_SIGNING_CERTIFICATE is not: set it to the first one")
    return Signer(key[0], certificate[0] if certificate else None, chain)


def local_trust(home: Path) -> Trust:
    """Whose signatures this machine accepts: ENGINERY_VERIFY_KEY, ENGINERY_VERIFY_ROOTS, or its own key's.

    Raises:
        BadInput: none of the three is there, both variables are set, or one names no file.
    """
    key, roots = _named("ENGINERY_VERIFY_KEY"), _named("ENGINERY_VERIFY_ROOTS")
    if key or roots:
        return Trust(key[0] if key else None, roots)
    public = home / "keys" / PUBLIC_KEY
    if not public.is_file():
        raise BadInput(
            f"there is no key to verify engines with: set ENGINERY_VERIFY_KEY to the publisher's public key (its "
            f"ENGINERY_HOME has it as keys/{PUBLIC_KEY}), or ENGINERY_VERIFY_ROOTS to root certificates"
        )
    return Trust(public)


def sign_bundle(directory: Path, signer: Signer) -> None:
    """Write `model.sig`, the signature of the folder's manifest.json (a Sigstore bundle).

    Raises:
        TornBundle: no manifest.json there.
        BadInput: the key or a certificate cannot be read, does not fit the other, or the certificate is not valid now.
    """
    if not _is_plain(directory / MANIFEST_FILE):
        raise TornBundle(f"{directory} has no {MANIFEST_FILE} to sign: write the manifest first")
    with _refused_as_input(f"signing with {signer.private_key}", "check the key and its certificate"):
        from model_signing import signing  # 0.7 s, which a command that signs nothing does not wait for

        config = signing.Config().set_hashing_config(_hashing())  # type: ignore[no-untyped-call]
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


def verify_signature(directory: Path, trust: Trust) -> None:
    """Check that somebody trusted signed exactly the manifest.json of this folder. It says nothing of other files.

    A certificate must be valid now: nothing here proves when a signature was made.

    Raises:
        SignatureInvalid: no signature, another key, a certificate that is expired, not for code signing or of another
            root, or a manifest that is not the one signed.
        BadInput: the trusted key or roots cannot be read.
        TornBundle: no manifest.json there.
    """
    manifest, signature = directory / MANIFEST_FILE, directory / SIGNATURE_FILE
    if not _is_plain(manifest):
        raise TornBundle(f"{directory} has no {MANIFEST_FILE} that is a plain file: fetch it again")
    if not _is_plain(signature):
        raise SignatureInvalid(f"{directory} has no {SIGNATURE_FILE}: it was never signed, so do not trust it")
    if signature.stat().st_size > MAX_BYTES:
        raise SignatureInvalid(f"{signature} is larger than {MAX_BYTES} bytes: it is no signature")
    try:
        _verify(manifest, signature, trust)
    except EngineryError:
        raise
    except Exception as error:
        # Hostile bytes go through JSON, base64, X.509 and OpenSSL, and each has exceptions of its own.
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise SignatureInvalid(
            f"{signature} does not verify with {_words(trust)} ({reason}): do not trust it, or name the key of "
            "whoever published it"
        ) from error


def _verify(manifest: Path, signature: Path, trust: Trust) -> None:
    from model_signing import verifying  # as in sign_bundle

    config = verifying.Config().set_hashing_config(_hashing())  # type: ignore[no-untyped-call]
    with _refused_as_input(f"verifying with {_words(trust)}", "name a PEM file of the right kind"):
        if trust.public_key is not None:
            config.use_elliptic_key_verifier(public_key=trust.public_key)
        else:
            config.use_certificate_verifier(certificate_chain=trust.roots)
    config.verify(manifest, signature)
    document = json.loads(signature.read_bytes())
    # What the signer asked to be ignored is ignored by model-signing: so look at what was signed ourselves.
    resources = json.loads(base64.b64decode(document["dsseEnvelope"]["payload"]))["predicate"]["resources"]
    if resources != [{"algorithm": "sha256", "digest": file_sha256(manifest), "name": "."}]:
        raise SignatureInvalid(f"{signature} signs something else than {MANIFEST_FILE} alone: do not trust it")
    if trust.roots:
        chain = document["verificationMaterial"]["x509CertificateChain"]["certificates"]
        found = [base64.b64decode(certificate["rawBytes"]) for certificate in chain]
        check_chain(found, trust.roots)


def _hashing() -> "Config":
    from model_signing import hashing  # as in sign_bundle

    # Left alone it skips .git and the like, and a signature that says so would be one with an exception.
    return hashing.Config().set_ignored_paths(paths=(), ignore_git_paths=False)  # type: ignore[no-untyped-call]


def _own_key(home: Path) -> Path:
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    keys = home / "keys"
    keys.mkdir(parents=True, exist_ok=True, mode=0o700)
    private, public = keys / PRIVATE_KEY, keys / PUBLIC_KEY
    if private.is_file() and public.is_file():
        return private
    # Two processes that both made one would sign with a key that the other has overwritten.
    with FileLock(keys / ".lock"):
        if not private.is_file():
            made = ec.generate_private_key(ec.SECP256R1())
            plain = serialization.NoEncryption()
            form = serialization.PrivateFormat.PKCS8
            replace_file(private, made.private_bytes(serialization.Encoding.PEM, form, plain), mode=0o600)
        if not public.is_file():
            with _refused_as_input(f"reading {private}", "put the key back that was there"):
                key = serialization.load_pem_private_key(private.read_bytes(), None).public_key()
            info = serialization.PublicFormat.SubjectPublicKeyInfo
            replace_file(public, key.public_bytes(serialization.Encoding.PEM, info), mode=0o644)
    return private


def _named(variable: str) -> tuple[Path, ...]:
    paths = tuple(Path(part) for part in os.environ.get(variable, "").split(os.pathsep) if part)
    for path in paths:
        if not path.is_file():
            raise BadInput(f"{variable} names {path}, which is no file: set it to a PEM file")
    return paths


def _is_plain(path: Path) -> bool:
    return path.is_file() and not path.is_symlink()


def _words(trust: Trust) -> str:
    return ", ".join(map(str, trust.roots)) or str(trust.public_key)


@contextmanager
def _refused_as_input(what: str, advice: str) -> Iterator[None]:
    try:
        yield
    except BadInput:
        raise
    except Exception as error:
        # PEM parsers raise ValueError, TypeError (a password is missing), UnsupportedAlgorithm and OSError.
        raise BadInput(f"{what} failed ({error or type(error).__name__}): {advice}") from error

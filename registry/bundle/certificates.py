"""Check the keys and certificates that sign engines: for code signing, valid now, and issued under a trusted root.

`cryptography` and OpenSSL take a tenth of a second to import, so only commands that use certificates import them.
"""

import datetime
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from registry.errors import BadInput, SignatureInvalid, first_line

if TYPE_CHECKING:
    from cryptography.x509 import Certificate


# Those that model-signing signs with, and Sigstore's specification names.
_CURVES = ("secp256r1", "secp384r1", "secp521r1")


def check_private_key(path: Path) -> None:
    """Check that a private key (PEM) can sign engines: at the start of a release, not at its end.

    Raises:
        BadInput: it is no key, needs a password, or is not of an elliptic curve that signs.
    """
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    _check_key(path, lambda raw: load_pem_private_key(raw, None).public_key())


def check_public_key(path: Path) -> None:
    """Check that a public key (PEM) can verify engines.

    Raises:
        BadInput: it is no key, or not of an elliptic curve that signs.
    """
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    _check_key(path, load_pem_public_key)


def _check_key(path: Path, load: Callable[[bytes], object]) -> None:
    fix = "name the PEM file of a key on P-256, P-384 or P-521, without a password"
    try:
        key = load(path.read_bytes())
    except Exception as error:  # ValueError, TypeError (a password is missing), UnsupportedAlgorithm, OSError
        raise BadInput(f"{path} cannot be read as a key ({first_line(error)}): {fix}") from error
    if getattr(getattr(key, "curve", None), "name", None) not in _CURVES:
        raise BadInput(f"{path} is a key of another kind ({type(key).__name__.lstrip('_')}): {fix}")


def check_chain(certificates: Sequence[bytes], roots: Sequence[Path]) -> None:
    """Check that a chain (DER, the signing certificate first) leads to one of the `roots` (PEM) now.

    model-signing 1.1.1 checks this only for the moment at which the signing certificate became valid.

    Raises:
        SignatureInvalid: the certificate is not for code signing.
        OpenSSL.crypto.X509StoreContextError: it has expired, is not valid yet, or was issued under another root.
    """
    from cryptography import x509
    from OpenSSL import crypto

    leaf, *intermediates = [x509.load_der_x509_certificate(raw) for raw in certificates]
    store = crypto.X509Store()
    for path in roots:
        for root in x509.load_pem_x509_certificates(path.read_bytes()):
            store.add_cert(crypto.X509.from_cryptography(root))
    chain = [crypto.X509.from_cryptography(certificate) for certificate in intermediates]
    crypto.X509StoreContext(store, crypto.X509.from_cryptography(leaf), chain).verify_certificate()
    if not _permits_code_signing(leaf):
        raise SignatureInvalid(
            f"the certificate of {leaf.subject.rfc4514_string()} does not permit code signing: sign with one that does"
        )


def _permits_code_signing(certificate: "Certificate") -> bool:
    """Tell whether a certificate permits code signing: a server's TLS certificate does not."""
    from cryptography import x509

    try:
        purposes = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    except x509.ExtensionNotFound:
        return False
    return x509.oid.ExtendedKeyUsageOID.CODE_SIGNING in purposes


def check_certificate(path: Path) -> None:
    """Check that a certificate (PEM) may sign engines now.

    Raises:
        BadInput: it has expired, is not valid yet, or does not permit code signing.
    """
    from cryptography import x509

    certificate, now = x509.load_pem_x509_certificate(path.read_bytes()), datetime.datetime.now(datetime.UTC)
    begin, end = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    if not begin <= now <= end:
        raise BadInput(f"{path} is valid only from {begin} to {end}: renew it")
    if not _permits_code_signing(certificate):
        raise BadInput(f"{path} does not permit code signing (extended key usage): request one that does")

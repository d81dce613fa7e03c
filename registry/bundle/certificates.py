"""Certificates that sign engines: for code signing, valid now, and vouched for by a root that is trusted.

`cryptography` and OpenSSL take a tenth of a second to import, and only who uses certificates waits for them.
"""

import datetime
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from registry.errors import BadInput, SignatureInvalid

if TYPE_CHECKING:
    from cryptography.x509 import Certificate


def check_chain(certificates: Sequence[bytes], roots: Sequence[Path]) -> None:
    """Check that a chain (DER, the signing certificate first) leads to one of the `roots` (PEM) at the present time.

    model-signing 1.1.1 asks only whether it did when the signing certificate began to be valid.

    Raises:
        SignatureInvalid: it is not for code signing.
        OpenSSL.crypto.X509StoreContextError: expired, not valid yet, or of another root.
    """
    from cryptography import x509
    from OpenSSL import crypto

    leaf, *between = [x509.load_der_x509_certificate(raw) for raw in certificates]
    store = crypto.X509Store()
    for path in roots:
        for root in x509.load_pem_x509_certificates(path.read_bytes()):
            store.add_cert(crypto.X509.from_cryptography(root))
    chain = [crypto.X509.from_cryptography(certificate) for certificate in between]
    crypto.X509StoreContext(store, crypto.X509.from_cryptography(leaf), chain).verify_certificate()
    if not _for_code_signing(leaf):
        raise SignatureInvalid(f"the certificate of {leaf.subject.rfc4514_string()} is not for code signing: refused")


def _for_code_signing(certificate: "Certificate") -> bool:
    """A server's TLS certificate may sign digitally too; its owner is no publisher of engines."""
    from cryptography import x509

    try:
        purposes = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    except x509.ExtensionNotFound:
        return False
    return x509.oid.ExtendedKeyUsageOID.CODE_SIGNING in purposes


def check_certificate(path: Path) -> None:
    """Check that a certificate (PEM) may sign engines now.

    Raises:
        BadInput: it is expired, not valid yet, or not for code signing.
    """
    from cryptography import x509

    found, now = x509.load_pem_x509_certificate(path.read_bytes()), datetime.datetime.now(datetime.UTC)
    if not found.not_valid_before_utc <= now <= found.not_valid_after_utc:
        raise BadInput(
            f"{path} is valid from {found.not_valid_before_utc} to {found.not_valid_after_utc} only: renew it"
        )
    if not _for_code_signing(found):
        raise BadInput(f"{path} is not for code signing (extended key usage): ask for one that is")

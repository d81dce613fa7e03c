"""A certificate authority of the test's own, and a server's certificate by it."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

DAY = timedelta(days=1)


def make_authority(folder: Path, host: str) -> Path:
    """Write server.pem and server.key for `host` into `folder`, and return the authority\'s certificate."""
    own, servers = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "authority of the tests")])
    signs = x509.KeyUsage(False, False, False, False, False, True, True, False, False)
    key_id = x509.SubjectKeyIdentifier.from_public_key(own.public_key())
    authority = (
        _valid(name, name, own.public_key())
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .add_extension(signs, critical=True)
        .add_extension(key_id, critical=False)
    )
    server = (
        _valid(x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, host)]), name, servers.public_key())
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(host)]), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(own.public_key()), critical=False)
    )
    for file, builder in (("authority.pem", authority), ("server.pem", server)):
        (folder / file).write_bytes(builder.sign(own, hashes.SHA256()).public_bytes(Encoding.PEM))
    (folder / "server.key").write_bytes(servers.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    return folder / "authority.pem"


def _valid(subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey) -> x509.CertificateBuilder:
    now = datetime.now(UTC)
    return x509.CertificateBuilder(issuer, subject, key, x509.random_serial_number(), now - DAY, now + DAY)

"""Certificates of the server and keys of the sites, where an institution does not issue them itself.

Keys are on the curve P-384, in the forms that Flower reads: OpenSSH for the sites, PEM for the server.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path
from typing import Any

VALID_DAYS = 365
AUTHORITY, CERTIFICATE, KEY = "authority.crt", "server.crt", "server.key"


def make_certificate(folder: Path, host: str) -> None:
    """An authority of its own and a server certificate that it signed, into a folder.

    The authority's key is not kept: nobody can sign a second server with it.

    Args:
        folder: receives `AUTHORITY`, which goes to the sites, `CERTIFICATE` and `KEY`, which stay at the server.
        host: name or address by which the sites reach the server; the machine itself is always named too.
    """
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    start = datetime.now(UTC) - timedelta(minutes=5)
    authority_key, server_key = (ec.generate_private_key(ec.SECP384R1()) for _ in range(2))
    authority_name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "MTMed3D federation authority")])
    server_name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, host)])

    def builder(subject: x509.Name, key: Any) -> x509.CertificateBuilder:
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(authority_name)
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(start)
            .not_valid_after(start + timedelta(days=VALID_DAYS))
        )

    use = x509.KeyUsage(False, False, False, False, False, True, True, False, False)
    identifier = x509.SubjectKeyIdentifier.from_public_key(authority_key.public_key())
    authority = (
        builder(authority_name, authority_key.public_key())
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(use, critical=True)
        .add_extension(identifier, critical=False)
        .sign(authority_key, hashes.SHA384())
    )
    names = dict.fromkeys([host, "localhost", "127.0.0.1", "::1"])
    server = (
        builder(server_name, server_key.public_key())
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.SubjectAlternativeName([_name(name) for name in names]), critical=False)
        .add_extension(x509.ExtendedKeyUsage([x509.ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(identifier), critical=False)
        .sign(authority_key, hashes.SHA384())
    )
    folder.mkdir(parents=True, exist_ok=True)
    pem = serialization.Encoding.PEM
    (folder / AUTHORITY).write_bytes(authority.public_bytes(pem))
    (folder / CERTIFICATE).write_bytes(server.public_bytes(pem))
    plain = serialization.NoEncryption()
    _write_secret(folder / KEY, server_key.private_bytes(pem, serialization.PrivateFormat.PKCS8, plain))


def make_site_key(path: Path) -> Path:
    """A site's private key at `path`, unless there is one, and its public key beside it with the suffix ``.pub``.

    Returns:
        The public key's file, which goes to the server's administrator.
    """
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    public = path.with_name(f"{path.name}.pub")
    if not path.is_file():
        key = ec.generate_private_key(ec.SECP384R1())
        form, plain = serialization.PrivateFormat.OpenSSH, serialization.NoEncryption()
        path.parent.mkdir(parents=True, exist_ok=True)
        _write_secret(path, key.private_bytes(serialization.Encoding.PEM, form, plain))
        encoding = serialization.Encoding.OpenSSH
        public.write_bytes(key.public_key().public_bytes(encoding, serialization.PublicFormat.OpenSSH) + b"\n")
    return public


def _name(host: str) -> Any:
    from cryptography import x509

    try:
        return x509.IPAddress(ip_address(host.strip("[]")))
    except ValueError:
        return x509.DNSName(host)


def _write_secret(path: Path, content: bytes) -> None:
    path.touch(mode=0o600)
    path.chmod(0o600)
    path.write_bytes(content)

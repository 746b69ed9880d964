"""Certificates made on the spot: an authority, and one that it signed."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from manta.orchestrator.tls_check import AUTHORITY, CERTIFICATE, KEY, SWITCH


def certificates(folder: Path, addresses: Sequence[str]) -> dict[str, str]:
    """The environment in which Ray speaks TLS with a certificate for these IP `addresses`."""
    folder.mkdir(parents=True)
    authority_key, key = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
    can_sign = x509.BasicConstraints(ca=True, path_length=None)
    authority = (
        _builder("authority", "authority", authority_key)
        .add_extension(can_sign, critical=True)
        .sign(authority_key, hashes.SHA256())
    )
    names = x509.SubjectAlternativeName([x509.IPAddress(ip_address(each)) for each in addresses])
    node = (
        _builder("node", "authority", key)
        .add_extension(names, critical=False)
        .sign(authority_key, hashes.SHA256())
    )
    files = {
        CERTIFICATE: node.public_bytes(serialization.Encoding.PEM),
        KEY: key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        ),
        AUTHORITY: authority.public_bytes(serialization.Encoding.PEM),
    }
    for variable, content in files.items():
        (folder / variable).write_bytes(content)
    return {SWITCH: "1", **{variable: str(folder / variable) for variable in files}}


def _builder(subject: str, issuer: str, key: ec.EllipticCurvePrivateKey) -> x509.CertificateBuilder:
    now = datetime.now(UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(_name(subject))
        .issuer_name(_name(issuer))
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(days=2))
    )


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, text)])

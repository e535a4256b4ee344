"""Certificates of a day, made for a test."""

from __future__ import annotations

import datetime
import ipaddress

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID


def certificate(name: str, issuer=None):
    """(certificate, key): a CA's, or a server's for 127.0.0.1 that `issuer` signed."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.datetime.now(datetime.UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer[0].subject if issuer else subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(minutes=5))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.BasicConstraints(ca=issuer is None, path_length=None), critical=True)
    )
    if issuer:
        loopback = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
        builder = builder.add_extension(loopback, critical=False)
    return builder.sign(issuer[1] if issuer else key, hashes.SHA256()), key


def pem(made) -> str:
    """The certificate's text."""
    return made[0].public_bytes(serialization.Encoding.PEM).decode()


def key_pem(made) -> str:
    """The private key's text."""
    encoding, form = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    return made[1].private_bytes(encoding, form, serialization.NoEncryption()).decode()

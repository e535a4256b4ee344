"""Certificates for keepers, made on the spot."""

from __future__ import annotations

import datetime
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

from fedkeeper.config.keepers import Tls

_DAY = datetime.timedelta(days=1)


def _named(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])


@dataclass(frozen=True)
class Authority:
    """A CA of our own."""

    name: str
    key: ec.EllipticCurvePrivateKey
    certificate: x509.Certificate

    def files(self, folder: Path, name: str, *, sans: tuple[str, ...] | None = None, days: int = 1) -> Tls:
        """The three files for the keeper `name`: valid from two days ago for `days` days from now.

        `sans`: its DNS names; None: its name; (): none, only the common name.
        """
        now = datetime.datetime.now(datetime.UTC)
        key = ec.generate_private_key(ec.SECP256R1())
        builder = (
            x509.CertificateBuilder()
            .subject_name(_named(name))
            .issuer_name(self.certificate.subject)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - 2 * _DAY)
            .not_valid_after(now + days * _DAY)
        )
        names = (name,) if sans is None else sans
        if names:
            builder = builder.add_extension(
                x509.SubjectAlternativeName([x509.DNSName(one) for one in names]), critical=False
            )
        certificate = builder.sign(self.key, SHA256())
        paths = [folder / f"{self.name}-{name}-{part}.pem" for part in ("ca", "cert", "key")]
        paths[0].write_bytes(self.certificate.public_bytes(Encoding.PEM))
        paths[1].write_bytes(certificate.public_bytes(Encoding.PEM))
        paths[2].write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
        return Tls(ca_file=paths[0], cert_file=paths[1], key_file=paths[2])


def authority(name: str = "ca") -> Authority:
    """The CA of that name, always the same in one process."""
    return _made(name)


@cache
def _made(name: str) -> Authority:
    now = datetime.datetime.now(datetime.UTC)
    key = ec.generate_private_key(ec.SECP256R1())
    certificate = (
        x509.CertificateBuilder()
        .subject_name(_named(name))
        .issuer_name(_named(name))
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - 30 * _DAY)
        .not_valid_after(now + 30 * _DAY)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, SHA256())
    )
    return Authority(name, key, certificate)

"""Authorities for tests: certificates for this machine and for clients, made in memory, good or bad on purpose."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

DAY = timedelta(days=1)


@dataclass(frozen=True, slots=True)
class Pair:
    """A certificate and its key, PEM."""

    certificate: bytes
    key: bytes = field(repr=False)

    def write(self, directory: Path, name: str) -> tuple[Path, Path]:
        """Write both to files that only their owner reads."""
        paths = directory / f"{name}.pem", directory / f"{name}.key"
        for path, content in zip(paths, (self.certificate, self.key), strict=True):
            path.touch(0o600)
            path.write_bytes(content)
        return paths


def named(common_name: str) -> x509.Name:
    """A subject that has a common name and nothing else."""
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])


def private(key: ec.EllipticCurvePrivateKey) -> bytes:
    """A key as PEM."""
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


class Authority:
    """Signs certificates."""

    def __init__(self, name: str = "test authority") -> None:
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = named(name)
        builder = self._builder(self._name, self._key, timedelta(0))
        builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        self.certificate = builder.sign(self._key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)

    def server(self, *hosts: str, age: timedelta = timedelta(0)) -> Pair:
        """Sign for names and addresses, by default those of this machine; with an age of over a day it has expired."""
        alternatives: list[x509.GeneralName] = []
        for host in hosts or ("localhost", "127.0.0.1", "::1"):
            try:
                alternatives.append(x509.IPAddress(ipaddress.ip_address(host)))
            except ValueError:
                alternatives.append(x509.DNSName(host))
        return self._signed(named("daemon"), alternatives, age)

    def client(self, *uris: str, common_name: str = "client", age: timedelta = timedelta(0)) -> Pair:
        """Sign for the identities of a client."""
        return self._signed(named(common_name), [x509.UniformResourceIdentifier(uri) for uri in uris], age)

    def _signed(self, subject: x509.Name, alternatives: list[x509.GeneralName], age: timedelta) -> Pair:
        key = ec.generate_private_key(ec.SECP256R1())
        builder = self._builder(subject, key, age)
        if alternatives:
            builder = builder.add_extension(x509.SubjectAlternativeName(alternatives), critical=False)
        signed = builder.sign(self._key, hashes.SHA256())
        return Pair(signed.public_bytes(serialization.Encoding.PEM), private(key))

    def _builder(self, subject: x509.Name, key: ec.EllipticCurvePrivateKey, age: timedelta) -> x509.CertificateBuilder:
        start = datetime.now(UTC) - age - timedelta(hours=1)
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(start)
            .not_valid_after(start + DAY)
        )

"""The certificate that the daemon shows, its key, and the authorities of its clients' certificates, as PEM.

Above: `rotation`, which serves with them, and `planning.auth`, which reads them; below: the standard library's ssl,
which judges them before anything changes. Nothing here imports grpc.
"""

from __future__ import annotations

import os
import ssl
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field


class TlsUnusable(ValueError):
    """Raised when a certificate, its key or the authorities cannot be used. `field` names which."""

    def __init__(self, field_name: str, problem: str) -> None:
        super().__init__(problem)
        self.field = field_name


@dataclass(frozen=True, slots=True)
class Tls:
    """PEM texts. With `client_authorities` every client must show a certificate that one of them has signed."""

    certificate: bytes = field(repr=False)
    """The daemon's own first, then those between it and its authority."""
    key: bytes = field(repr=False)
    client_authorities: bytes = field(default=b"", repr=False)


def check(tls: Tls) -> None:
    """See that certificate and key are readable and belong together, and so are the authorities. Raises TlsUnusable."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    with ExitStack() as stack:
        certificate, key = (stack.enter_context(_in_memory(pem)) for pem in (tls.certificate, tls.key))
        try:
            context.load_cert_chain(certificate, key, password=_no_password)
        except ssl.SSLError as error:
            if error.reason == "KEY_VALUES_MISMATCH":
                raise TlsUnusable("key", "it is not the key of the certificate") from None
            if b"-----BEGIN CERTIFICATE-----" not in tls.certificate:
                raise TlsUnusable("certificate", "it holds no certificate in PEM") from None
            raise TlsUnusable("key", "certificate and key cannot be read as PEM, the key without a password") from None
    if tls.client_authorities:
        try:
            context.load_verify_locations(cadata=tls.client_authorities.decode("ascii"))
        except (ssl.SSLError, UnicodeDecodeError):
            raise TlsUnusable("client_ca", "it holds no certificates in PEM") from None


def _no_password() -> bytes:
    # Without this OpenSSL would ask on the terminal.
    return b""


@contextmanager
def _in_memory(content: bytes) -> Iterator[str]:
    """Give content a path that exists nowhere on a disk: what reads it takes files only."""
    descriptor = os.memfd_create("behestd-pem")
    try:
        os.write(descriptor, content)
        yield f"/proc/self/fd/{descriptor}"
    finally:
        os.close(descriptor)

"""The certificate that a client showed: the identities in it, and when it ends.

Above: `identity`; below: the package cryptography, loaded for the first certificate. The transport has verified the
certificate against the authorities of the configuration before a call exists. Identities are the URIs of the subject
alternative name, never the common name, which anybody's certificate may carry.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from behestd.errors import Unsupported

KEY = "x509_pem_cert"
CACHED = 1024


@dataclass(frozen=True, slots=True)
class PeerCertificate:
    """What is read of a certificate."""

    uris: tuple[str, ...]
    expires_ns: int


def of(auth_context: Mapping[str, Iterable[bytes]]) -> PeerCertificate | None:
    """Read the certificate of a connection, None when there is none."""
    found = tuple(auth_context.get(KEY, ()))
    return _read(found[0]) if found else None


def check_installed() -> None:
    """See that certificates can be read. Raises Unsupported."""
    _x509()


@lru_cache(maxsize=CACHED)
def _read(pem: bytes) -> PeerCertificate:
    x509 = _x509()
    certificate = x509.load_pem_x509_certificate(pem)
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        uris = tuple(names.get_values_for_type(x509.UniformResourceIdentifier))
    except x509.ExtensionNotFound:
        uris = ()
    return PeerCertificate(uris, int(certificate.not_valid_after_utc.timestamp()) * 1_000_000_000)


def _x509() -> Any:
    try:
        return importlib.import_module("cryptography.x509")
    except ImportError:
        raise Unsupported(
            "REQUEST_UNSUPPORTED",
            "client certificates need the package cryptography: pip install 'behestd[auth]'",
            feature="auth",
        ) from None

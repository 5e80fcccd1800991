"""Who answers on TLS: the identity by which a server that was registered by a call is known from then on.

Above it `remote_channel`, which asks before it dials; below it the system's TLS. A certificate that the authorities
have signed for the right name is not enough: whoever can get another one, or take over the name, would get the calls.
So the first certificate that is met says who the server is, by its SPIFFE id or else by its public key, and the
connection trusts that very certificate and no other. Whoever is met is checked as the connection checks, and told
nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import ssl
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from behestd.errors import Forbidden
from behestd.wire.endpoint import EndpointRefused

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from behestd.wire.remote_channel import Tls

_SPIFFE = "spiffe://"
_SEQUENCE, _VERSION = 0x30, 0xA0
_BEFORE_KEY = 5
"""Serial number, algorithm, issuer, validity and subject stand before the key of a certificate."""

_UNREADABLE = "the certificate of the server cannot be read"


class IdentityChanged(EndpointRefused):
    """Raised when who answers at an address is not who was registered there. Nothing was sent."""

    def __init__(self, address: str, expected: str, shown: str) -> None:
        Forbidden.__init__(
            self,
            "TOOL_SERVER_IDENTITY_CHANGED",
            f"{shown[:128]} answers at {address[:128]!r}, which was registered as {expected[:128]}; "
            "if that is meant, register the server again, with replace",
            endpoint=address[:128],
            expected=expected[:128],
            actual=shown[:128],
        )


class Unmet(Exception):
    """Raised when nobody could be met whom the authorities know by the right name. The text may be shown."""


@dataclass(frozen=True, slots=True)
class Met:
    """Who was met: `spiffe://…` or `sha256:…` of the public key, and the certificate, PEM."""

    identity: str
    certificate: bytes


async def meet(places: Iterable[tuple[str, int]], tls: Tls, name: str) -> Met:
    """Meet who answers at the first of some addresses where anybody does, checked against the authorities and a name.

    Raises Unmet. To be bounded in time by the caller.
    """
    context = _context(tls)
    problem = "the server cannot be reached"
    for host, port in places:
        try:
            _, writer = await asyncio.open_connection(host, port, ssl=context, server_hostname=name)
        except ssl.SSLError:
            problem = "the certificate of the server is not one that is trusted for its name"
        except OSError:
            continue
        else:
            with contextlib.closing(writer):
                return _met(writer.get_extra_info("ssl_object"))
    raise Unmet(problem)


def _met(connection: ssl.SSLObject) -> Met:
    der = connection.getpeercert(binary_form=True) or b""
    names: Any = (connection.getpeercert() or {}).get("subjectAltName", ())
    spiffe = [value for kind, value in names if kind == "URI" and value.startswith(_SPIFFE)]
    identity = spiffe[0] if len(spiffe) == 1 else "sha256:" + hashlib.sha256(public_key(der)).hexdigest()
    return Met(identity, ssl.DER_cert_to_PEM_cert(der).encode())


def public_key(certificate: bytes) -> bytes:
    """Cut the public key, with its algorithm, out of a certificate, both DER. Raises Unmet when it is none."""
    try:
        _, start, _ = _element(certificate, 0)
        _, start, _ = _element(certificate, start)
        kind, _, end = _element(certificate, start)
        if kind == _VERSION:
            start = end
        for _ in range(_BEFORE_KEY):
            _, _, start = _element(certificate, start)
        kind, _, end = _element(certificate, start)
    except IndexError as exc:
        raise Unmet(_UNREADABLE) from exc
    if kind != _SEQUENCE or end > len(certificate):
        raise Unmet(_UNREADABLE)
    return certificate[start:end]


def _element(der: bytes, start: int) -> tuple[int, int, int]:
    """The kind of an element of DER, where its content begins and where it ends. Raises IndexError."""
    length, content = der[start + 1], start + 2
    if length >= 0x80:
        count = length - 0x80
        length, content = int.from_bytes(der[content : content + count], "big"), content + count
    return der[start], content, content + length


def _context(tls: Tls) -> ssl.SSLContext:
    """What the connection would be made with. Raises Unmet for material that makes no sense."""
    try:
        context = ssl.create_default_context(cadata=tls.authorities.decode() or None)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.set_alpn_protocols(["h2"])
        context.hostname_checks_common_name = False
        # What newer versions of Python ask of authorities beyond what the connection does.
        context.verify_flags &= ~ssl.VERIFY_X509_STRICT
        if tls.certificate:
            with _file(tls.certificate + b"\n" + tls.key) as path:
                context.load_cert_chain(path)
    except (ssl.SSLError, ValueError) as exc:
        raise Unmet("the certificates for the server cannot be used") from exc
    return context


@contextlib.contextmanager
def _file(content: bytes) -> Iterator[str]:
    """A file of memory alone: the system's TLS reads keys from files only."""
    number = os.memfd_create("tls")
    try:
        with open(number, "wb", closefd=False) as file:
            file.write(content)
        yield f"/proc/self/fd/{number}"
    finally:
        os.close(number)

"""Which addresses the daemon dials: `HOST:PORT`, and nothing that the transport could understand otherwise.

Above it `remote_channel`, which dials what `target` returns and nothing else. This is the one place where a rule about
addresses belongs; it sees literal addresses and names, not what a name resolves to.
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass

from behestd.errors import Forbidden

_NAME = re.compile(r"(?=.{1,253}$)[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?(\.[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?)*", re.I)
_NUMERIC_TAIL = re.compile(r"(^|\.)(\d+|0x[0-9a-f]*)$", re.I)
"""Names that resolvers read as numbers: 2130706433, 0x7f.1, 127.1."""
_LOCAL_NAMES = frozenset({"localhost", "localhost.localdomain"})

Address = ipaddress.IPv4Address | ipaddress.IPv6Address


class EndpointRefused(Forbidden):
    """Raised when an address is not one that may be called."""

    def __init__(self, address: str, rule: str) -> None:
        shown = address[:128]
        super().__init__("TOOL_ENDPOINT_REFUSED", f"{shown!r} may not be called: {rule}", endpoint=shown, rule=rule)


@dataclass(frozen=True, slots=True)
class Rules:
    """What may be dialled. The defaults are those for addresses that come from callers beyond local mode."""

    allow_loopback: bool = False
    """True in local mode."""
    allow_unix: bool = False
    """True for addresses of the configuration file only."""


def target(address: str, rules: Rules, *, has_tls: bool) -> str:
    """Turn an address into what the transport dials. Raises EndpointRefused."""
    if address.startswith("unix:"):
        path = address.removeprefix("unix:")
        if not rules.allow_unix:
            raise EndpointRefused(address, "unix: is taken from the configuration only")
        if not path.startswith("/") or path.startswith("//"):
            raise EndpointRefused(address, "unix: needs an absolute path")
        return f"unix:{path}"
    host, port = _split(address)
    literal = _literal(host)
    if literal is None:
        _check_name(address, host)
    is_loopback = host.lower() in _LOCAL_NAMES if literal is None else literal.is_loopback
    if is_loopback and not rules.allow_loopback:
        raise EndpointRefused(address, "loopback is allowed in local mode only")
    if literal is not None and _is_never_a_server(literal):
        raise EndpointRefused(address, "not the address of a server")
    if not is_loopback and not has_tls:
        raise EndpointRefused(address, "plaintext is allowed to loopback only")
    if literal is None:
        return f"dns:///{host}:{port}"
    return f"ipv4:{literal}:{port}" if literal.version == 4 else f"ipv6:[{literal}]:{port}"


def _split(address: str) -> tuple[str, int]:
    host, colon, port = address.rpartition(":")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
        if ":" not in host:
            raise EndpointRefused(address, "brackets are for IPv6 addresses")
    elif ":" in host:
        raise EndpointRefused(address, "it must be HOST:PORT, an IPv6 address in brackets")
    if not colon or not host or not re.fullmatch(r"[0-9]{1,5}", port) or not 1 <= int(port) <= 65535:
        raise EndpointRefused(address, "it must be HOST:PORT")
    return host, int(port)


def _literal(host: str) -> Address | None:
    if "%" in host:
        # A zone, which only makes sense on one machine; taken for a name, and refused as one.
        return None
    try:
        literal = ipaddress.ip_address(host)
    except ValueError:
        return None
    mapped = literal.ipv4_mapped if isinstance(literal, ipaddress.IPv6Address) else None
    return mapped or literal


def _check_name(address: str, host: str) -> None:
    if not host.isascii() or not _NAME.fullmatch(host):
        raise EndpointRefused(address, "the host is no name and no IP address")
    if _NUMERIC_TAIL.search(host):
        raise EndpointRefused(address, "an IP address is written with four decimal numbers")


def _is_never_a_server(literal: Address) -> bool:
    return literal.is_multicast or literal.is_unspecified or literal.is_link_local

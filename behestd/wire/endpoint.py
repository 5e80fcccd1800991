"""Which addresses the daemon dials: `HOST:PORT`, and nothing that the transport could understand otherwise.

Above it `remote_channel`, which dials what an `Endpoint` says and nothing else. This is the one place for rules about
addresses. A name is judged twice: as a name when it is given, and by every address that it stands for each time that it
is dialled; the transport gets the addresses that were judged, so that no second answer of a name server counts.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from behestd.errors import Forbidden

_NAME = re.compile(r"(?=.{1,253}$)[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?(\.[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?)*", re.I)
_NUMERIC_TAIL = re.compile(r"(^|\.)(\d+|0x[0-9a-f]*)$", re.I)
"""Names that resolvers read as numbers: 2130706433, 0x7f.1, 127.1."""
_LOCAL_NAMES = frozenset({"localhost", "localhost.localdomain"})

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network

_GLOBAL_V6 = ipaddress.ip_network("2000::/3")
_SPECIAL = tuple(map(ipaddress.ip_network, ("192.0.0.0/24", "192.88.99.0/24", "2001::/23", "2002::/16", "3fff::/20")))
"""Networks for special purposes that some versions of Python take for public, among them Teredo and 6to4."""
_METADATA = frozenset(
    map(
        ipaddress.ip_address,
        (
            "169.254.169.254",
            "169.254.170.2",
            "fd00:ec2::254",
            "fd20:ce::254",
            "100.100.100.200",
            "168.63.129.16",
            "192.0.0.192",
        ),
    )
)
"""Where clouds tell machines their secrets."""


class EndpointRefused(Forbidden):
    """Raised when an address is not one that may be called. Never tells what a name stands for."""

    def __init__(self, address: str, rule: str) -> None:
        shown = address[:128]
        super().__init__("TOOL_ENDPOINT_REFUSED", f"{shown!r} may not be called: {rule}", endpoint=shown, rule=rule)


@dataclass(frozen=True, slots=True)
class AllowList:
    """What the operator allows: names (`*.` before one: everything under it) and networks. Empty: nothing is said."""

    names: frozenset[str] = frozenset()
    networks: tuple[Network, ...] = ()

    @property
    def is_empty(self) -> bool:
        """Whether it restricts nothing."""
        return not self.names and not self.networks

    def names_host(self, host: str) -> bool:
        """Whether a name is on the list."""
        labels = host.lower().split(".")
        above = (".".join(["*", *labels[index:]]) for index in range(1, len(labels)))
        return host.lower() in self.names or any(pattern in self.names for pattern in above)

    def holds(self, literal: Address) -> bool:
        """Whether an address is in one of the networks. One that tells secrets has to be on the list by itself."""
        covering = [network for network in self.networks if literal in network]
        if literal in _METADATA:
            return any(network.prefixlen == network.max_prefixlen for network in covering)
        return bool(covering)


def allow_list(entries: Iterable[str]) -> AllowList:
    """Read an allow-list: names, `*.` names, IP addresses and networks. Raises ValueError for anything else."""
    names, networks = set[str](), list[Network]()
    for entry in entries:
        try:
            networks.append(ipaddress.ip_network(entry))
            continue
        except ValueError:
            name = entry.removeprefix("*.")
        if not name.isascii() or not _NAME.fullmatch(name) or _NUMERIC_TAIL.search(name):
            raise ValueError(f"{entry!r} is no name, no address and no network") from None
        names.add(entry.lower())
    return AllowList(frozenset(names), tuple(networks))


@dataclass(frozen=True, slots=True)
class Rules:
    """What may be dialled. The defaults are those for addresses that come from callers beyond local mode."""

    allow_loopback: bool = False
    """True in local mode."""
    allow_unix: bool = False
    """True for addresses of the configuration file only."""
    allow_private: bool = False
    """True for addresses of the configuration file only, for which the list need not hold either."""
    allowed: AllowList = AllowList()


@dataclass(frozen=True, slots=True)
class Endpoint:
    """An address that may be dialled, as far as it says itself. Made by `check`."""

    address: str
    target: str
    """What the transport dials. Empty for a name, whose addresses are looked up and judged first."""
    host: str = ""
    port: int = 0
    rules: Rules = Rules()
    has_tls: bool = False

    def targets(self, found: Sequence[str]) -> tuple[str, ...]:
        """Turn all addresses of the name into what the transport dials: one target a family, the first one's first.

        Raises EndpointRefused when any of them is refused: who answers with a good and a bad one is up to something.
        """
        literals = [literal for text in found if (literal := _literal(text)) is not None]
        if len(literals) != len(found) or not literals:
            raise EndpointRefused(self.address, "its name stands for no IP address")
        named = self.rules.allowed.names_host(self.host)
        for literal in literals:
            _judge(self.address, literal, self.rules, has_tls=self.has_tls, is_named=named)
        families: dict[int, dict[str, None]] = {}
        for literal in literals:
            families.setdefault(literal.version, {})[_place(literal, self.port)] = None
        return tuple(f"ipv{family}:{','.join(places)}" for family, places in families.items())


def check(address: str, rules: Rules, *, has_tls: bool) -> Endpoint:
    """Judge an address by what it says. Raises EndpointRefused."""
    if address.startswith("unix:"):
        path = address.removeprefix("unix:")
        if not rules.allow_unix:
            raise EndpointRefused(address, "unix: is taken from the configuration only")
        if not path.startswith("/") or path.startswith("//"):
            raise EndpointRefused(address, "unix: needs an absolute path")
        return Endpoint(address, f"unix:{path}", has_tls=has_tls)
    host, port = _split(address)
    literal = _literal(host)
    if literal is not None:
        _judge(address, literal, rules, has_tls=has_tls, is_named=False)
        return Endpoint(address, f"ipv{literal.version}:{_place(literal, port)}", host, port, rules, has_tls)
    _check_name(address, host)
    is_local = host.lower() in _LOCAL_NAMES
    if is_local and not rules.allow_loopback:
        raise EndpointRefused(address, _LOOPBACK)
    if not is_local and not has_tls:
        raise EndpointRefused(address, _PLAINTEXT)
    if _is_off_list(rules, is_named=is_local or rules.allowed.names_host(host)) and not rules.allowed.networks:
        raise EndpointRefused(address, _OFF_LIST)
    return Endpoint(address, "", host, port, rules, has_tls)


_LOOPBACK = "loopback is allowed in local mode only"
_PLAINTEXT = "plaintext is allowed to loopback only"
_OFF_LIST = "it is not on the list of what is allowed"


def _judge(address: str, literal: Address, rules: Rules, *, has_tls: bool, is_named: bool) -> None:
    """Judge one IP address. Raises EndpointRefused."""
    if literal.is_multicast or literal.is_unspecified or literal == ipaddress.ip_address("255.255.255.255"):
        raise EndpointRefused(address, "not the address of a server")
    is_listed = rules.allowed.holds(literal)
    if literal.is_loopback:
        if not (rules.allow_loopback or is_listed):
            raise EndpointRefused(address, _LOOPBACK)
        return
    if not has_tls:
        raise EndpointRefused(address, _PLAINTEXT)
    if is_listed:
        return
    if literal.is_link_local or literal in _METADATA:
        raise EndpointRefused(address, "link-local and metadata addresses are called only when they are allowed")
    if not rules.allow_private and not _is_public(literal):
        raise EndpointRefused(address, "addresses that are not public are called only when they are allowed")
    if _is_off_list(rules, is_named=is_named):
        raise EndpointRefused(address, _OFF_LIST)


def _is_off_list(rules: Rules, *, is_named: bool) -> bool:
    return not (rules.allowed.is_empty or rules.allow_private or is_named)


def _is_public(literal: Address) -> bool:
    is_special = any(literal in network for network in _SPECIAL)
    return literal.is_global and not is_special and (literal.version == 4 or literal in _GLOBAL_V6)


def _place(literal: Address, port: int) -> str:
    return f"{literal}:{port}" if literal.version == 4 else f"[{literal}]:{port}"


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

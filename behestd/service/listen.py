"""Where the daemon listens: addresses, and Unix sockets that others left behind.

Above it is `server`; below it the system. An address is `HOST:PORT` or `unix:PATH`. Without TLS and credentials only
local ones are allowed: loopback, or a socket whose file's owner and group are the authority.
"""

from __future__ import annotations

import contextlib
import ipaddress
import os
import socket
import stat
from dataclasses import dataclass
from pathlib import Path

UNIX_PREFIX = "unix:"
SOCKET_MODE = 0o660
PROBE_SECONDS = 1.0


class AddressUnusable(OSError):
    """Raised when an address is taken or cannot be listened on. The process ends with 69."""


class AddressRefused(ValueError):
    """Raised when an address makes no sense, or is not local without TLS and credentials. Ends with 78."""


@dataclass(frozen=True, slots=True)
class Address:
    """One place to listen. `path` is set for a Unix socket, else `host` and `port` (0: any that is free)."""

    host: str = ""
    port: int = 0
    path: str = ""

    @property
    def is_local(self) -> bool:
        """Tell whether only this machine can reach it."""
        if self.path or self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host.strip("[]")).is_loopback
        except ValueError:
            return False

    def __str__(self) -> str:
        return f"{UNIX_PREFIX}{self.path}" if self.path else f"{self.host}:{self.port}"


def parse(text: str) -> Address:
    """Read an address. Raises AddressRefused."""
    if text.startswith(UNIX_PREFIX):
        path = text.removeprefix(UNIX_PREFIX)
        if not path:
            raise AddressRefused(f"address {text!r} names no path")
        return Address(path=path)
    host, colon, port = text.rpartition(":")
    if not colon or not host or not port.isascii() or not port.isdigit() or int(port) > 65535:
        raise AddressRefused(f"address {text!r} is neither HOST:PORT nor unix:PATH")
    return Address(host=host, port=int(port))


def check_open(address: Address, *, has_tls: bool, has_credentials: bool) -> None:
    """See that an address which others can reach may be listened on. Raises AddressRefused."""
    missing = [what for what, is_there in (("TLS", has_tls), ("credentials", has_credentials)) if not is_there]
    if missing and not address.is_local:
        raise AddressRefused(f"{address} is not local: it needs {' and '.join(missing)}")


def clear_stale_socket(path: str) -> None:
    """Remove a socket that nobody listens on; gRPC itself would take a living one away from its daemon.

    Raises AddressUnusable when somebody listens, or when the path is something else.
    """
    try:
        mode = os.stat(path, follow_symlinks=False).st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise AddressUnusable(f"{path} exists and is no socket")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(PROBE_SECONDS)
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            Path(path).unlink()
        except OSError as exc:
            raise AddressUnusable(f"cannot tell whether anybody listens on {path}: {exc.strerror}") from exc
        else:
            raise AddressUnusable(f"another process listens on {path}")


def open_to_group(path: str) -> None:
    """Let the owner and the group of a socket connect, and nobody else."""
    Path(path).chmod(SOCKET_MODE)


def remove_socket(path: str) -> None:
    """Remove a socket of ours that is no longer listened on. Idempotent."""
    with contextlib.suppress(FileNotFoundError):
        Path(path).unlink()

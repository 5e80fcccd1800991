"""Words to the service manager that started the daemon (sd_notify): ready, reloading, stopping, alive, more time.

Used by the command line, which knows the environment, and by `watchdog`. What cannot be told is left out: the daemon
serves all the same, and without a service manager nothing here does anything.
"""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Mapping
from typing import Self

STATUS_CHARACTERS = 200
"""What a status is cut to."""


def notify(address: str, *words: str) -> None:
    """Tell systemd, by the socket in NOTIFY_SOCKET, words such as READY=1. An empty address means nobody listens."""
    if not address:
        return
    path = "\0" + address[1:] if address.startswith("@") else address
    with (
        contextlib.suppress(OSError),
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as channel,
    ):
        channel.setblocking(False)
        channel.sendto("\n".join(words).encode(), path)


class ServiceManager:
    """Who started the daemon and watches over it. `watchdog_seconds` None: it asks for no sign of life."""

    def __init__(self, address: str = "", watchdog_seconds: float | None = None) -> None:
        self._address = address
        self.watchdog_seconds = watchdog_seconds

    @classmethod
    def from_environment(cls, environ: Mapping[str, str], pid: int) -> Self:
        """Read NOTIFY_SOCKET, WATCHDOG_USEC and WATCHDOG_PID, as systemd sets them for the process `pid`."""
        microseconds = environ.get("WATCHDOG_USEC", "")
        is_meant = environ.get("WATCHDOG_PID", str(pid)) == str(pid)
        seconds = int(microseconds) / 1e6 if is_meant and microseconds.isdecimal() else 0.0
        return cls(environ.get("NOTIFY_SOCKET", ""), seconds or None)

    def ready(self, status: str) -> None:
        """Tell that the daemon serves, for the first time or again after a reload."""
        notify(self._address, "READY=1", _status(status))

    def reloading(self) -> None:
        """Tell that a reload has begun; `ready` tells its end."""
        now = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
        notify(self._address, "RELOADING=1", f"MONOTONIC_USEC={now}", _status("reloading"))

    def stopping(self, status: str) -> None:
        """Tell that the daemon has begun to stop."""
        notify(self._address, "STOPPING=1", _status(status))

    def status(self, text: str) -> None:
        """Tell people what the daemon is doing."""
        notify(self._address, _status(text))

    def alive(self, status: str) -> None:
        """Give the sign of life that the watchdog waits for."""
        notify(self._address, "WATCHDOG=1", _status(status))

    def extend(self, seconds: float) -> None:
        """Ask for that many seconds more, from now, for a start or a stop that takes long."""
        notify(self._address, f"EXTEND_TIMEOUT_USEC={int(seconds * 1e6)}")


def _status(text: str) -> str:
    """Write a status on one line: a newline would begin a word of its own."""
    printable = "".join(character if character.isprintable() else " " for character in text)
    return f"STATUS={printable[:STATUS_CHARACTERS]}"

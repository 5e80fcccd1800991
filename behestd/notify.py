"""Words to the service manager that started the daemon (sd_notify), in ten lines. Used by the command line."""

from __future__ import annotations

import contextlib
import socket


def notify(address: str, *words: str) -> None:
    """Tell systemd, by the socket in NOTIFY_SOCKET, words such as READY=1. An empty address means nobody listens.

    What cannot be told is left out: the daemon serves all the same.
    """
    if not address:
        return
    path = "\0" + address[1:] if address.startswith("@") else address
    with (
        contextlib.suppress(OSError),
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as channel,
    ):
        channel.setblocking(False)
        channel.sendto("\n".join(words).encode(), path)

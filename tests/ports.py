"""Loopback ports for servers that come back where they were.

A port that the system gave out may be given to somebody else as soon as its server is dead, so that a client which
waits for the restart meets a stranger. These lie below those that Linux gives out by itself, and each belongs to one
test process until it ends: an abstract socket of that name says so to the others.
"""

from __future__ import annotations

import random
import socket

RANGE = range(20_000, 32_000)
_held: list[socket.socket] = []


def reserved() -> int:
    """Take a port that nobody else in these tests gets. Raises RuntimeError when none is left."""
    for port in random.sample(RANGE, len(RANGE)):
        mark = socket.socket(socket.AF_UNIX)
        try:
            mark.bind(f"\0behest-test-port-{port}")
            with socket.socket() as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind(("127.0.0.1", port))
        except OSError:
            mark.close()
            continue
        _held.append(mark)
        return port
    raise RuntimeError(f"no port from {RANGE.start} to {RANGE.stop} is free")


def address() -> str:
    """Take such a port, as `HOST:PORT`."""
    return f"127.0.0.1:{reserved()}"

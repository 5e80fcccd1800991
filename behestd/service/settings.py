"""The numbers of the edge, and what they are called in gRPC.

Above it are `server` and the configuration; below it nothing. The option names are the ones that work: the
`min_recv_ping_interval…` that circulates is ignored, and `keepalive_timeout_ms` alone needs a minute to see a
frozen client.
"""

from __future__ import annotations

from dataclasses import dataclass

MIB = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Keepalive:
    """How dead clients are found, and how often live ones may ask."""

    interval_seconds: float = 20.0
    """Between our pings on a silent connection."""
    timeout_seconds: float = 10.0
    """How long we wait for the answer to one."""
    min_interval_seconds: float = 5.0
    """Least time between a client's pings that we put up with; two that come sooner end the connection."""


@dataclass(frozen=True, slots=True)
class Settings:
    """The numbers of the edge. Every one of them that matters to clients is in GetServerInfo."""

    request_bytes: int = 4 * MIB
    response_bytes: int = 4 * MIB
    """Largest response; clients that set nothing take no more."""
    metadata_bytes: int = 16 * 1024
    """Beyond half of it calls are refused at random, the more the larger; beyond it always."""
    streams_per_connection: int = 1000
    unary_seconds: float = 60.0
    """Deadline of a unary call that brings none."""
    write_seconds: float = 30.0
    """How long one write of a stream may wait for its reader."""
    abort_seconds: float = 1.0
    """How long the error that ends a stream may wait for its reader."""
    watches: int = 10_000
    """Most streams of class WATCH at once."""
    lists: int = 1_000
    """Most calls of class LIST at once."""
    look_seconds: float = 60.0
    """Between two looks at the callers of open streams."""
    keepalive: Keepalive = Keepalive()

    def options(self) -> tuple[tuple[str, int], ...]:
        """Return the channel arguments of the server."""
        keepalive = self.keepalive
        return (
            # Without it a second daemon starts silently on the same port.
            ("grpc.so_reuseport", 0),
            ("grpc.max_receive_message_length", self.request_bytes),
            ("grpc.max_send_message_length", self.response_bytes),
            ("grpc.max_metadata_size", self.metadata_bytes // 2),
            ("grpc.absolute_max_metadata_size", self.metadata_bytes),
            ("grpc.max_concurrent_streams", self.streams_per_connection),
            ("grpc.keepalive_time_ms", _milliseconds(keepalive.interval_seconds)),
            ("grpc.keepalive_timeout_ms", _milliseconds(keepalive.timeout_seconds)),
            ("grpc.keepalive_permit_without_calls", 1),
            ("grpc.http2.max_pings_without_data", 0),
            ("grpc.http2.ping_timeout_ms", _milliseconds(keepalive.timeout_seconds)),
            ("grpc.http2.min_ping_interval_without_data_ms", _milliseconds(keepalive.min_interval_seconds)),
        )


def _milliseconds(seconds: float) -> int:
    return max(1, round(seconds * 1000))

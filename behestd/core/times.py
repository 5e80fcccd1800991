"""Conversions between the contract's times and plain integers of unix nanoseconds. Used everywhere in the daemon."""

from __future__ import annotations

from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

SECOND = 1_000_000_000


def timestamp(ns: int) -> Timestamp:
    """Make a Timestamp of unix nanoseconds."""
    time = Timestamp()
    set_timestamp(time, ns)
    return time


def set_timestamp(time: Timestamp, ns: int) -> None:
    """Set a Timestamp, which stands in its message already, to unix nanoseconds."""
    time.seconds, time.nanos = divmod(ns, SECOND)


def nanoseconds(time: Timestamp) -> int:
    """Unix nanoseconds of a Timestamp."""
    return time.seconds * SECOND + time.nanos


def duration(seconds: float) -> Duration:
    """Make a Duration of seconds, to the nanosecond."""
    whole, nanos = divmod(round(seconds * SECOND), SECOND)
    return Duration(seconds=whole, nanos=nanos)


def duration_ns(value: Duration) -> int:
    """Nanoseconds of a Duration."""
    return value.seconds * SECOND + value.nanos

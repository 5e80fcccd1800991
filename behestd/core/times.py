"""Conversions between the contract's times and plain integers of unix nanoseconds. Used everywhere in the daemon."""

from __future__ import annotations

from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

SECOND = 1_000_000_000


def timestamp(ns: int) -> Timestamp:
    """Make a Timestamp of unix nanoseconds."""
    time = Timestamp()
    time.seconds, time.nanos = divmod(ns, SECOND)
    return time


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

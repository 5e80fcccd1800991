"""Checks the stored log of one run against itself and against its row. Pure; used at start, by `check` and by fsck."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator

from google.protobuf.message import DecodeError

from behest.v1 import event_pb2
from behestd.log import frames
from behestd.log.store import Chunk, RunRow


def problems(row: RunRow, chunks: Iterable[Chunk]) -> Iterator[tuple[int, str]]:
    """Yield (sequence, problem) for whatever is wrong with a run; nothing when it is sound.

    Sound: events 1..n without a gap, each with the hash of the one before, epochs that never fall, and a row that
    agrees.
    """
    if row.first_sequence > row.last_sequence:
        if any(True for _ in chunks):
            yield row.last_sequence, "a deleted log still has chunks"
        return
    last = 0
    size = 0
    epoch = 0
    previous = b""
    for chunk in chunks:
        size += len(chunk.data)
        try:
            events = frames.split(chunk.data)
        except ValueError as error:
            yield chunk.first_sequence, str(error)
            return
        if chunk.first_sequence != last + 1 or chunk.last_sequence - chunk.first_sequence + 1 != len(events):
            claimed = f"{chunk.first_sequence} to {chunk.last_sequence}"
            yield chunk.first_sequence, f"a chunk of {len(events)} events claims {claimed} after {last}"
            return
        for data in events:
            last += 1
            try:
                event = event_pb2.Event.FromString(data)
            except DecodeError:
                yield last, "the event does not parse"
                return
            yield from ((last, problem) for problem in _event_problems(event, row.run_id, last, epoch, previous))
            epoch = event.epoch
            previous = hashlib.sha256(data).digest()
    if (last, epoch, previous, size) != (row.last_sequence, row.epoch, row.last_hash, row.log_bytes):
        yield last, f"the row says {row.last_sequence} events and epoch {row.epoch}, the log ends otherwise"


def _event_problems(event: event_pb2.Event, run_id: str, sequence: int, epoch: int, previous: bytes) -> Iterator[str]:
    if event.run_id != run_id or event.sequence != sequence:
        yield f"the event calls itself {event.sequence} of run {event.run_id}"
    if event.prev_hash != previous:
        yield "the hash of the event before does not match"
    if event.epoch < epoch:
        yield f"the epoch falls from {epoch} to {event.epoch}"

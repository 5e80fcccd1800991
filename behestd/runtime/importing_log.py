"""Follows the log of a run that comes from a file: what no daemon wrote is refused. Pure. Part of `importing`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields
from hashlib import sha256

from google.protobuf.message import DecodeError

from behest.v1.artifact_pb2 import Artifact
from behest.v1.definition_pb2 import RunDefinition
from behest.v1.event_pb2 import Event
from behest.v1.session_data_service_pb2 import SessionDataEntry
from behest.v1.session_pb2 import Session
from behestd.errors import BehestError
from behestd.log import frames
from behestd.log.rebuild import Views, rebuild
from behestd.log.store import Chunk, Entry, RunRow
from behestd.log.usage import Spent
from behestd.reasoning.graph import validate
from behestd.runtime.session_file import FileInvalid

_MOST = (1 << 63) - 1
"""The largest number that a column holds."""
_DAMAGE = (
    *(DecodeError, ArithmeticError, AssertionError, AttributeError, LookupError, RecursionError, StopIteration),
    *(TypeError, ValueError),
)
"""What the fold may meet in a log that no daemon wrote."""


@dataclass(frozen=True, slots=True)
class Checks:
    """How the edge checks what clients set: each raises InvalidRequest or TooLarge."""

    identifier: Callable[[str], None]
    session: Callable[[Session], None]
    labels: Callable[[Mapping[str, str]], object]
    data: Callable[[SessionDataEntry], None]
    artifact: Callable[[Artifact], None]
    max_data: int
    """Most entries of scratch data of a session."""


def follow(
    place: tuple[str, str], chunks: list[Chunk], definition: Callable[[bytes], bytes | None], line: int
) -> tuple[Views, list[Chunk]]:
    """The views of a log, and the log as it is kept. `place` is (run, namespace). Raises FileInvalid.

    To be called in another thread: events may be many.
    """
    run_id, namespace = place

    def sound(digest: bytes) -> bytes | None:
        found = definition(digest)
        if found is not None and (pinned := RunDefinition.FromString(found)).HasField("graph"):
            for problem in validate(pinned.graph):
                raise FileInvalid(line, f"the graph of the run is not valid: {problem.message}")
        return found

    try:
        kept = _moved(chunks, namespace)
        made = rebuild(run_id, kept, sound)
        for event in _events(kept):
            if (event.run_id, event.session_id) != (run_id, made.row.session_id):
                raise FileInvalid(line, f"event {event.sequence} is of another run or session")
    except FileInvalid:
        raise
    except BehestError as error:
        raise FileInvalid(line, str(error)) from None
    except _DAMAGE:
        # What the fold meets in a log that no daemon wrote may be anything; it is damage all the same.
        raise FileInvalid(line, "the log cannot be followed") from None
    return made, kept


def check_numbers(line: int, row: RunRow, entries: Iterable[Entry], usage: Iterable[Spent]) -> None:
    """Refuse numbers that no column of a store holds. Raises FileInvalid."""
    numbers = [getattr(row, field.name) for field in fields(row)]
    numbers += [value for spent in usage for value in spent]
    numbers += [entry.position for entry in entries]
    if any(type(value) is int and not 0 <= value <= _MOST for value in numbers):
        raise FileInvalid(line, "a number is out of range")


def _events(chunks: Iterable[Chunk]) -> Iterable[Event]:
    return (Event.FromString(raw) for chunk in chunks for raw in frames.split(chunk.data))


def _moved(chunks: list[Chunk], namespace: str) -> list[Chunk]:
    """The log with the namespace that it comes into in its first event, and the chain of hashes that follows from it.

    A log of the same namespace stays as it is, byte by byte.
    """
    if not chunks:
        return chunks
    first = Event.FromString(frames.split(chunks[0].data)[0])
    if first.run_created.namespace == namespace:
        return chunks
    moved: list[Chunk] = []
    digest = b""
    for chunk in chunks:
        events: list[bytes] = []
        for raw in frames.split(chunk.data):
            event = Event.FromString(raw)
            if event.HasField("run_created"):
                event.run_created.namespace = namespace
            event.prev_hash = digest
            events.append(event.SerializeToString(deterministic=True))
            digest = sha256(events[-1]).digest()
        moved.append(frames.chunk(chunk.first_sequence, events))
    return moved

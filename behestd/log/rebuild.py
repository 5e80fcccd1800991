"""Makes the views of a run from its log: its row, entries and usage, as the appends wrote them, commit by commit. Pure.

Above: `fsck`, which compares them with what is stored, and imports, for which they are all there is. Below: the fold
and the projections, which are those of an append.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

from behest.v1.definition_pb2 import RunDefinition
from behest.v1.event_pb2 import Event
from behest.v1.tool_call_pb2 import ToolCallRecord
from behestd.core.run import Payload, evolve, rooted
from behestd.core.state import Run
from behestd.core.times import nanoseconds
from behestd.errors import LogCorrupt
from behestd.log import frames, views
from behestd.log.spending import spent
from behestd.log.store import Chunk, Entry, RunRow
from behestd.log.usage import Spent

EntryKey = tuple[str, str]


@dataclass(frozen=True, slots=True)
class Views:
    """What a log comes to. Entries by kind and id, in the order in which they were first written."""

    run: Run
    row: RunRow
    entries: dict[EntryKey, Entry]
    usage: tuple[Spent, ...]


def rebuild(run_id: str, chunks: Iterable[Chunk], definition: Callable[[bytes], bytes | None]) -> Views:
    """Fold a log, each chunk one commit. `definition` looks the bytes of one up by its hash.

    Raises LogCorrupt for what is no log of a run, NewerFormat, ValueError and DecodeError for what does not parse.
    """
    run: Run | None = None
    calls: dict[str, ToolCallRecord] = {}
    entries: dict[EntryKey, Entry] = {}
    usage: list[Spent] = []
    size_bytes = 0
    for chunk in chunks:
        before, payloads, now_ns = run, [], 0
        for data in frames.split(chunk.data):
            event = Event.FromString(data)
            run = _first(run_id, event, data, definition) if run is None else evolve(run, event, data)
            payloads.append(_payload(event))
            now_ns = nanoseconds(event.record_time)
        if run is None:
            raise LogCorrupt(run_id, chunk.first_sequence, "a chunk without events")
        size_bytes += len(chunk.data)
        written, calls = views.entries(before, calls, run, payloads, now_ns)
        entries.update(((entry.kind, entry.id), entry) for entry in written)
        usage += spent(before, run, payloads, now_ns)
    if run is None:
        raise LogCorrupt(run_id, 1, "the log is empty")
    return Views(run, replace(views.row(run), log_bytes=size_bytes), entries, tuple(usage))


def _first(run_id: str, event: Event, data: bytes, definition: Callable[[bytes], bytes | None]) -> Run:
    digest = event.run_created.definition_hash
    found = definition(digest)
    if found is None:
        raise LogCorrupt(run_id, event.sequence, f"its definition {digest.hex()} is gone")
    return rooted(run_id, event, data, RunDefinition.FromString(found))


def _payload(event: Event) -> Payload:
    return getattr(event, event.WhichOneof("payload") or "")

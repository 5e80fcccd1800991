"""Makes an append of a decision: events stamped and chained, views projected. Pure but for the ids it is given.

Above: the driver and the supervisor. Below: `core` (the fold) and `log.views` (the rows).
"""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import sha256

from behest.v1.event_pb2 import Event
from behest.v1.run_event_pb2 import RunClaimed
from behest.v1.tool_call_pb2 import ToolCallRecord
from behestd.core.run import KIND, Payload
from behestd.core.state import Head, Run, replace
from behestd.core.times import SECOND
from behestd.log import frames, views
from behestd.log.frames import varint
from behestd.log.spending import spent
from behestd.log.store import Append, Chunk, Claim, Guard, Put
from behestd.runtime.clock import Ids
from behestd.values import dataclass

_NOTHING = Head()
_TAGS = {kind: frames.tag(Event.DESCRIPTOR.fields_by_name[name].number) for kind, name in KIND.items()}


@dataclass(frozen=True, slots=True)
class Extras:
    """What goes with an append beside its events."""

    definition: tuple[bytes, bytes] | None = None
    claim: Claim | None = None
    guards: tuple[Guard, ...] = ()
    puts: tuple[Put, ...] = ()


NO_EXTRAS = Extras()


@dataclass(frozen=True, slots=True)
class Prepared:
    """An append, and the run and its records once it is committed."""

    append: Append
    run: Run
    payloads: tuple[Payload, ...]
    calls: dict[str, ToolCallRecord]


@dataclass(frozen=True, slots=True)
class Before:
    """Where an append starts: the run as it is committed (None: not at all) and the records of its open calls."""

    run: Run | None
    calls: dict[str, ToolCallRecord]
    trace_id: str = ""
    """Of a run that was read back: the trace that it is part of."""


def prepare(
    before: Before, after: Run, payloads: Sequence[Payload], stamp: tuple[Ids, int, str], extras: Extras
) -> Prepared:
    """Stamp the payloads as the run's next events and project them. `stamp` is (ids, time, trace id)."""
    ids, now_ns, trace_id = stamp
    start = before.run.head if before.run is not None else _NOTHING
    chunk, head = _events(start, after, payloads, (ids.make("evt"), now_ns, trace_id))
    after = replace(after, head=head)
    entries, calls = views.entries(before.run, before.calls, after, payloads, now_ns)
    append = Append(
        row=views.row(after),
        chunk=chunk,
        epoch=start.epoch,
        last_sequence=start.sequence,
        entries=entries,
        definition=extras.definition,
        claim=extras.claim,
        guards=extras.guards,
        puts=extras.puts,
        usage=spent(before.run, after, payloads, now_ns),
    )
    return Prepared(append, after, tuple(payloads), calls)


def _events(start: Head, run: Run, payloads: Sequence[Payload], stamp: tuple[str, int, str]) -> tuple[Chunk, Head]:
    """Encode the payloads as the events after `start`, and the head after them. `stamp` is (seed, time, trace id).

    The fields that all events of a commit share are set once: an event is its envelope and, behind it, its payload,
    whose field has a higher number than any of the envelope's.
    """
    seed, now_ns, trace_id = stamp
    sequence, epoch, digest = start.sequence, start.epoch, start.hash
    envelope = Event()
    envelope.run_id, envelope.session_id, envelope.trace_id = run.id, run.created.session_id, trace_id
    envelope.record_time.seconds, envelope.record_time.nanos = divmod(now_ns, SECOND)
    events: list[bytes] = []
    for payload in payloads:
        kind = type(payload)
        sequence += 1
        epoch += kind is RunClaimed
        envelope.event_id = f"{seed}_{sequence}"
        envelope.sequence, envelope.epoch, envelope.prev_hash = sequence, epoch, digest
        body = payload.SerializeToString()
        data = b"".join((envelope.SerializeToString(), _TAGS[kind], varint(len(body)), body))
        digest = sha256(data).digest()
        events.append(data)
    chunk = frames.chunk(start.sequence + 1, events)
    return chunk, Head(sequence, epoch, digest, start.log_bytes + len(chunk.data))

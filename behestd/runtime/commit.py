"""Makes an append of a decision: events stamped and chained, views projected. Pure but for the ids it is given.

Above: the driver and the supervisor. Below: `core` (the fold) and `log.views` (the rows).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256

from behest.v1.event_pb2 import Event
from behest.v1.tool_call_pb2 import ToolCallRecord
from behestd.core.run import KIND, Payload
from behestd.core.state import Head, Run, replace
from behestd.core.times import timestamp
from behestd.log import frames, views
from behestd.log.store import Append, Claim, Guard, Put
from behestd.runtime.clock import Ids


@dataclass(frozen=True, slots=True)
class Extras:
    """What goes with an append beside its events."""

    definition: tuple[bytes, bytes] | None = None
    claim: Claim | None = None
    guards: tuple[Guard, ...] = ()
    puts: tuple[Put, ...] = ()


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


def prepare(
    before: Before, after: Run, payloads: Sequence[Payload], stamp: tuple[Ids, int, str], extras: Extras
) -> Prepared:
    """Stamp the payloads as the run's next events and project them. `stamp` is (ids, time, trace id)."""
    ids, now_ns, trace_id = stamp
    start = before.run.head if before.run is not None else None
    sequence = start.sequence if start is not None else 0
    epoch = start.epoch if start is not None else 0
    digest = start.hash if start is not None else b""
    record_time = timestamp(now_ns)
    events: list[bytes] = []
    seed = ids.make("evt")
    for payload in payloads:
        kind = KIND[type(payload)]
        sequence += 1
        epoch += kind == "run_claimed"
        event = Event(
            event_id=f"{seed}_{sequence}",
            run_id=after.id,
            session_id=after.created.session_id,
            sequence=sequence,
            epoch=epoch,
            record_time=record_time,
            trace_id=trace_id,
            prev_hash=digest,
            **{kind: payload},
        )
        data = event.SerializeToString()
        digest = sha256(data).digest()
        events.append(data)
    first = start.sequence + 1 if start is not None else 1
    chunk = frames.chunk(first, events)
    stored = (start.log_bytes if start is not None else 0) + len(chunk.data)
    after = replace(after, head=Head(sequence, epoch, digest, stored))
    entries, calls = views.entries(before.run, before.calls, after, payloads, now_ns)
    append = Append(
        row=views.row(after),
        chunk=chunk,
        epoch=start.epoch if start is not None else 0,
        last_sequence=start.sequence if start is not None else 0,
        entries=entries,
        definition=extras.definition,
        claim=extras.claim,
        guards=extras.guards,
        puts=extras.puts,
    )
    return Prepared(append, after, tuple(payloads), calls)

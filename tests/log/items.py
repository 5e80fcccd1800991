"""Builds what the tests of the log write: runs of real events, chained by their hashes."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

from behest.v1 import event_pb2, run_state_pb2
from behestd.log import frames
from behestd.log.store import Append, Entry, Put, Record, RunRow

NAMESPACE = "default"


@dataclass
class Script:
    """A run and how far it has come. `append` takes the next step, `attempt` builds one without taking it."""

    run_id: str = "run_1"
    session_id: str = "session_1"
    namespace: str = NAMESPACE
    agent_id: str = "agent_1"
    create_time_ns: int = 1_000
    epoch: int = 0
    last: int = 0
    last_hash: bytes = b""
    log_bytes: int = 0

    def append(self, events: int = 1, **changes: Any) -> Append:
        """Build the next commit and take it for done."""
        item = self.attempt(events, **changes)
        row = item.row
        self.epoch, self.last, self.last_hash, self.log_bytes = (
            row.epoch,
            row.last_sequence,
            row.last_hash,
            row.log_bytes,
        )
        return item

    def attempt(
        self, events: int = 1, *, epoch: int | None = None, is_ended: bool = False, padding: int = 0, **changes: Any
    ) -> Append:
        """Build the next commit. `changes` are fields of Append, or of RunRow where that has them."""
        new_epoch = max(1, self.epoch) if epoch is None else epoch
        previous, serialized = self.last_hash, []
        for sequence in range(self.last + 1, self.last + events + 1):
            event = event_pb2.Event(
                event_id=f"{self.run_id}-{sequence}" + "x" * padding,
                run_id=self.run_id,
                session_id=self.session_id,
                sequence=sequence,
                epoch=new_epoch,
                prev_hash=previous,
            )
            serialized.append(event.SerializeToString())
            previous = hashlib.sha256(serialized[-1]).digest()
        chunk = frames.chunk(self.last + 1, serialized)
        row_changes = {name: changes.pop(name) for name in list(changes) if name in RunRow.__slots__}
        row = {
            "namespace": self.namespace,
            "run_id": self.run_id,
            "session_id": self.session_id,
            "agent_id": self.agent_id,
            "state": run_state_pb2.RUN_STATE_COMPLETED if is_ended else run_state_pb2.RUN_STATE_RUNNING,
            "epoch": new_epoch,
            "last_sequence": chunk.last_sequence,
            "last_hash": previous,
            "session_index": 1,
            "create_time_ns": self.create_time_ns,
            "body": f"body of {self.run_id} at {chunk.last_sequence}".encode(),
            "is_active": not is_ended,
            "is_ended": is_ended,
            "log_bytes": self.log_bytes + len(chunk.data),
        }
        return Append(RunRow(**(row | row_changes)), chunk, self.epoch, self.last, **changes)


def sequences(data: bytes) -> list[int]:
    """Return the sequences of the events of a frame."""
    return [event_pb2.Event.FromString(event).sequence for event in frames.split(data)]


def entry(name: str, position: int, kind: str = "message", **changes: Any) -> Entry:
    """Build a row of a view."""
    fields = {"session_id": "session_1", "run_id": "run_1", "body": f"{kind} {name}".encode()} | changes
    return Entry(kind=kind, id=name, position=position, **fields)


def put(name: str, expected: int | None = None, *, kind: str = "agent", **changes: Any) -> Put:
    """Build a write of a record."""
    fields = {"namespace": NAMESPACE, "body": f"{kind} {name}".encode(), "create_time_ns": 5} | changes
    return Put(Record(kind=kind, id=name, **fields), expected)

"""What outlives the daemon of direct calls: one record a key, written before the call leaves and before it is answered.

Above: `direct_calls`, which keeps the recent keys in memory and asks here for all others. Below: records of the store.
A key without a record was never sent to a tool, so it may be buried and said to be unexecuted; a record that was begun
and not done is of a call that a crash cut. Calls of pure tools leave no record, as they need none.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from enum import StrEnum

from behest.v1.message_pb2 import ToolResult
from behest.v1.run_state_pb2 import DurabilityClass
from behest.v1.tool_pb2 import SideEffect
from behestd.core.times import SECOND
from behestd.errors import StorageFull
from behestd.log.log import Log
from behestd.log.store import Change, Full, Put, Record
from behestd.runtime.clock import Clock

KIND = "direct_call"
RETENTION_SECONDS = 72 * 3600.0
"""How long a key is known after its last change: what may be told to whoever registers the daemon as a tool server."""
RESULT_BYTES = 3 * 1024 * 1024
"""A result is cut to so many bytes; who waits for the call itself gets the whole."""

Key = tuple[str, str]
"""(namespace, the key as the client gave it)."""


class Stage(StrEnum):
    """How far a key has come."""

    BEGUN = "begun"
    DONE = "done"
    BURIED = "buried"
    """It was never begun, and must not be with the entry's epoch and attempt, or what came before."""


@dataclass(frozen=True, slots=True)
class Entry:
    """What is remembered of a key. All but stage, epoch and attempt are of the call, and empty of a buried key."""

    stage: Stage
    epoch: int
    attempt: int
    tool: str = ""
    tool_hash: bytes = b""
    server_id: str = ""
    side_effect: SideEffect.ValueType = SideEffect.SIDE_EFFECT_UNSPECIFIED
    digest: bytes = b""
    result: ToolResult | None = None


class Journal:
    """Writes and reads the records of keys."""

    __slots__ = ("_clock", "_log", "is_durable")

    def __init__(self, log: Log, clock: Clock) -> None:
        self._log = log
        self._clock = clock
        self.is_durable = log.store.durability >= DurabilityClass.DURABILITY_CLASS_LOCAL
        """Whether a key that is not here was never begun."""

    async def find(self, key: Key) -> Entry | None:
        """What is known of a key."""
        if not self.is_durable:
            return None
        record = await self._log.store.record(key[0], KIND, key[1], self._clock.now_ns())
        return None if record is None else _read(record.body)

    async def put(self, key: Key, entry: Entry) -> None:
        """Remember; durable on return. Raises StorageFull and StorageFailed."""
        if not self.is_durable:
            return
        now_ns = self._clock.now_ns()
        expires_ns = now_ns + int(RETENTION_SECONDS * SECOND)
        record = Record(key[0], KIND, key[1], _written(entry), create_time_ns=now_ns, expire_time_ns=expires_ns)
        if isinstance(await self._log.commit(Change(puts=(Put(record),))), Full):
            raise StorageFull


def cut(result: ToolResult, limit_bytes: int = RESULT_BYTES) -> ToolResult:
    """Cut a result to so many bytes: text is shortened, other parts are left out."""
    if result.ByteSize() <= limit_bytes:
        return result
    made = ToolResult(call_id=result.call_id, name=result.name, is_error=result.is_error, truncated=True)
    room = limit_bytes
    for part in result.parts:
        if part.WhichOneof("kind") == "text":
            text = part.text.text.encode()[:room].decode(errors="ignore")
            made.parts.add().text.text = text
            room -= len(text.encode())
    return made


def _written(entry: Entry) -> bytes:
    """A line of JSON, and behind it the result."""
    said = {
        "stage": entry.stage.value,
        "epoch": entry.epoch,
        "attempt": entry.attempt,
        "tool": entry.tool,
        "tool_hash": entry.tool_hash.hex(),
        "server_id": entry.server_id,
        "side_effect": SideEffect.Name(entry.side_effect),
        "digest": entry.digest.hex(),
    }
    result = b"" if entry.result is None else cut(entry.result).SerializeToString()
    return json.dumps(said).encode() + b"\n" + result


def _read(body: bytes) -> Entry:
    line, _, result = body.partition(b"\n")
    said = json.loads(line)
    stage = Stage(said["stage"])
    return Entry(
        stage,
        said["epoch"],
        said["attempt"],
        said["tool"],
        bytes.fromhex(said["tool_hash"]),
        said["server_id"],
        SideEffect.Value(said["side_effect"]),
        bytes.fromhex(said["digest"]),
        ToolResult.FromString(result) if stage is Stage.DONE else None,
    )

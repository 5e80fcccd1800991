"""What the audit log is told of calls: who asked for what, of which things, and what came of it.

Above it are the registered methods; below it is the log's writer. Of a request and a response only ids and names of
things are taken, found by the names of their fields: contents, prompts, arguments and secrets are in fields of other
names, and are not looked at. A method that is to be recorded durably is not answered before its row is on the disk, and
is refused while rows cannot be written.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

from google.protobuf.descriptor import EnumDescriptor, FieldDescriptor
from google.protobuf.message import Message

from behestd.log.audit import Row
from behestd.service.status import code_of

if TYPE_CHECKING:
    from behestd.errors import BehestError
    from behestd.log.audit_writer import AuditLog
    from behestd.service.call import Call

_NAMES = frozenset({"id", "name", "key", "model", "namespace", "tool_name", "server_name"})
_CHOICES = frozenset({"decision", "executed", "mode", "all"})
_DEPTH = 3


class Trail:
    """Records calls of the methods that are to be recorded."""

    def __init__(self, log: AuditLog) -> None:
        self._log = log
        self._targets = Targets()

    def check(self) -> None:
        """Refuse what must not go unrecorded while rows cannot be written. Raises StorageFull and StorageFailed."""
        self._log.check()

    async def answered(self, method: str, call: Call, *, is_durable: bool) -> None:
        """Record a call that is about to be answered. Raises StorageFull and StorageFailed when that fails."""
        row = self._row(method, call, None)
        if is_durable:
            await self._log.keep(row)
        else:
            self._log.note(row)

    def failed(self, method: str, call: Call, failure: BehestError) -> None:
        """Record a call that failed; of callers who did not say who they are nothing is recorded."""
        if call.caller.principal:
            self._log.note(self._row(method, call, failure))

    def begun(self, method: str, call: Call) -> None:
        """Record that a call has begun which lasts."""
        self._log.note(self._row(method, call, None, code="BEGUN"))

    def _row(self, method: str, call: Call, failure: BehestError | None, code: str = "OK") -> Row:
        caller, exchange = call.caller, call.exchange
        targets: dict[str, str] = {}
        if exchange is not None:
            for message in (exchange.request, exchange.reply):
                if message is not None:
                    self._targets.find(message, targets)
            targets |= exchange.targets
        return Row(
            time_ns=time.time_ns(),
            method=method.rpartition(".")[2],
            principal=caller.principal,
            credential=caller.credential,
            namespace=caller.namespace,
            targets=targets,
            code=code if failure is None else code_of(failure).name,
            reason="" if failure is None else failure.reason,
            peer=call.peer,
            trace_id=call.traceparent[3:35],
        )


class _Field(NamedTuple):
    """A field that is looked at, and what it is called in a row."""

    name: str
    told: str
    enum: EnumDescriptor | None = None
    is_message: bool = False
    is_text: bool = False


class Targets:
    """Finds what messages name. Which fields of a type are looked at is found out once."""

    def __init__(self) -> None:
        self._fields: dict[str, tuple[_Field, ...]] = {}

    def find(self, message: Message, targets: dict[str, str], depth: int = 1) -> None:
        """Add the ids and names of things that a message names to targets, by the names of their fields."""
        name = message.DESCRIPTOR.full_name
        fields = self._fields.get(name)
        if fields is None:
            fields = self._fields[name] = tuple(_fields(message.DESCRIPTOR))
        for field in fields:
            if field.is_message:
                if depth < _DEPTH and message.HasField(field.name):
                    self.find(getattr(message, field.name), targets, depth + 1)
                continue
            value = getattr(message, field.name)
            if not value:
                continue
            known = field.enum.values_by_number.get(value) if field.enum is not None else None
            targets[field.told] = value if field.is_text else known.name if known is not None else str(value).lower()


def _fields(descriptor: Any) -> Iterator[_Field]:
    for field in descriptor.fields:
        if field.is_repeated:
            continue
        if field.type == FieldDescriptor.TYPE_STRING:
            if field.name in _NAMES or field.name.endswith("_id"):
                yield _Field(field.name, _told(descriptor, field), is_text=True)
        elif field.name in _CHOICES:
            yield _Field(field.name, field.name, enum=field.enum_type)
        elif field.message_type is not None and field.message_type.name in _THINGS:
            yield _Field(field.name, field.name, is_message=True)


def _told(descriptor: Any, field: FieldDescriptor) -> str:
    """What a field is called in a row: an id by the thing that it is of."""
    if field.name in ("id", "name"):
        thing = descriptor.name.removesuffix("Request").removesuffix("Response").removesuffix("Record")
        return f"{thing[:1].lower()}{thing[1:]}.{field.name}"
    return field.name


_THINGS = frozenset(
    {"Run", "RunSpec", "Session", "Agent", "Graph", "Server", "Artifact", "ToolCallRecord", "Approval", "PauseTarget"}
)
"""Messages that are things with ids, and not the content of one."""

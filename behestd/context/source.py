"""The port of context sources that are asked: one question, never a retry.

Above: the runtime, which asks all sources of a step at once and records what they gave; `core.sources` says what
becomes of it. Below: `function` (code in the daemon) and `remote` (registered servers). What a source gives is checked
here, since it goes before a model as it is.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Protocol

from behest.v1.context_service_pb2 import ProvideContextRequest
from behest.v1.message_pb2 import Message, Part, Role, TextPart
from behestd.errors import NotFound, Unavailable

MAX_MESSAGES = 256
MAX_BYTES = 1024 * 1024
DEFAULT_TIMEOUT_SECONDS = 5.0
_KINDS = ("text", "json", "image", "audio", "file")
_ROLES = (Role.ROLE_USER, Role.ROLE_SYSTEM)


class SourceNotFound(NotFound):
    """Raised when there is no such context source."""

    def __init__(self, source: str) -> None:
        super().__init__("CONTEXT_SOURCE_NOT_FOUND", f"context source {source} not found", source=source)


class SourceFailure(Unavailable):
    """Raised when a source that was asked gave nothing that can be used."""

    def __init__(self, message: str, reason: str = "CONTEXT_SOURCE_FAILED", source: str = "") -> None:
        super().__init__(reason, message)
        if source:
            self.metadata["source"] = source


class Source(Protocol):
    """Gives context. Cancelling the task that awaits `provide` ends the question."""

    async def provide(self, request: ProvideContextRequest, timeout_seconds: float) -> Sequence[Message]:
        """Give the messages for one step of a run, within a time. Raises SourceFailure."""
        ...


def checked(messages: Iterable[Message]) -> tuple[Message, ...]:
    """What a source gave, as it goes before a model. Raises SourceFailure for what may not."""
    made: list[Message] = []
    size_bytes = 0
    for given in messages:
        role = given.role or Role.ROLE_USER
        if role not in _ROLES:
            raise SourceFailure(f"a message has the role {role}, and only USER and SYSTEM are taken")
        kinds = {part.WhichOneof("kind") for part in given.parts}
        if not kinds or not kinds <= set(_KINDS):
            raise SourceFailure("a message is empty, or holds what is no content")
        size_bytes += given.ByteSize()
        if size_bytes > MAX_BYTES or len(made) == MAX_MESSAGES:
            raise SourceFailure(f"it gave more than {MAX_MESSAGES} messages or {MAX_BYTES} bytes")
        made.append(Message(role=role, parts=given.parts))
    return tuple(made)


def message_of(text: str) -> Message:
    """The message of a source that gave a text."""
    return Message(role=Role.ROLE_USER, parts=[Part(text=TextPart(text=text))])

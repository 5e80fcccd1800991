"""Calls a ToolService and reports all that comes back, good or bad, as values.

Above: the checks of tools. Below: `wire`, whose guarantees hold here.
"""

from __future__ import annotations

import itertools
import uuid
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, TypeAlias

from behest.conformance.wire import Link, Ongoing, Stream
from behest.v1.tool_service_pb2 import CallToolRequest, CallToolResponse

if TYPE_CHECKING:
    from collections.abc import Sequence

    from behest.v1.message_pb2 import ToolResult
    from behest.v1.tool_pb2 import Progress


@dataclass(frozen=True, slots=True)
class Reply(Stream[CallToolResponse]):
    """What a CallTool gave."""

    request: CallToolRequest

    @property
    def kinds(self) -> list[str]:
        """What each frame holds; empty for one that holds nothing."""
        return [frame.WhichOneof("frame") or "" for frame in self.frames]

    @property
    def result(self) -> ToolResult | None:
        """The first result, as it was sent."""
        return next((frame.result for frame in self.frames if frame.WhichOneof("frame") == "result"), None)

    @property
    def progress(self) -> list[Progress]:
        """All progress, in order."""
        return [frame.progress for frame in self.frames if frame.WhichOneof("frame") == "progress"]

    @property
    def chunks(self) -> list[bytes]:
        """All chunks, in order."""
        return [frame.chunk for frame in self.frames if frame.WhichOneof("frame") == "chunk"]

    @property
    def is_good(self) -> bool:
        """Whether the call ended well with a result that is no error."""
        return not self.is_open and self.ending.is_ok and self.result is not None and not self.result.is_error

    def __str__(self) -> str:
        if self.result is None:
            return self.told("OK without a result")
        return self.told("an error result" if self.result.is_error else "a result")


Call: TypeAlias = Ongoing[CallToolResponse, Reply]
"""A CallTool that was sent."""


class Probe(Link):
    """A channel to one server, and names for calls that no other examination uses. Used as `async with`."""

    def __init__(self, address: str, *, token: str = "", seconds: float = 10.0, tls: bool = False) -> None:
        """`seconds` is how long an answer is waited for."""
        super().__init__(address, token=token, seconds=seconds, tls=tls)
        self._session = uuid.uuid4().hex[:12]
        self._numbers = itertools.count(1)

    def key(self) -> str:
        """Make a key that was never used."""
        return f"conformance-{self._session}-{next(self._numbers)}"

    def request(self, tool_name: str, arguments_json: str, **fields: Any) -> CallToolRequest:
        """Make the first attempt of a new call; fields change it."""
        key = str(fields.pop("idempotency_key", None) or self.key())
        given = {"call_id": f"call-{key}", "idempotency_key": key, "attempt": 1, "epoch": 1, **fields}
        return CallToolRequest(tool_name=tool_name, arguments_json=arguments_json, **given)

    def start(self, request: CallToolRequest, *, deadline_seconds: float | None = None) -> Call:
        """Send a call. Without a deadline of the RPC, only `finish` bounds it."""
        metadata = (
            ("behest-idempotency-key", request.idempotency_key),
            ("behest-attempt", str(request.attempt)),
            ("behest-epoch", str(request.epoch)),
        )
        told = tuple((key, value) for key, value in metadata if value)
        return self.stream(
            "ToolService/CallTool",
            request,
            CallToolResponse,
            partial(Reply, request),
            deadline_seconds=deadline_seconds,
            metadata=told,
        )

    async def call(self, request: CallToolRequest, *, seconds: float | None = None) -> Reply:
        """Send a call and wait for its end."""
        return await self.start(request).finish(self.seconds if seconds is None else seconds)

    async def calls(self, requests: Sequence[CallToolRequest]) -> list[Reply]:
        """Send calls at once and wait for all."""
        started = [self.start(request) for request in requests]
        return [await each.finish(self.seconds) for each in started]

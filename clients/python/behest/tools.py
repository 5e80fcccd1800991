"""A tool server in a few lines: decorate typed functions, serve them, register the address with a daemon.

    server = ToolServer()

    @server.tool
    async def search(query: str, limit: int = 10) -> list[str]:
        \"\"\"Find lines that hold a text.\"\"\"

    async with server:
        port = await server.serve("127.0.0.1:0")
        await server.wait()

Schemas come from signatures (`behest.schema` lists the types), descriptions from docstrings. Calls are remembered by
key (`dedupe=PATH` keeps them over restarts), so that a repeated attempt is not executed again. What a function raises
is an error result for the model. Below it `behest.tool_calls`.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
import re
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from fnmatch import fnmatchcase
from types import TracebackType
from typing import Any, NoReturn, TypeVar, overload

import grpc
from google.protobuf.any_pb2 import Any as AnyMessage
from google.rpc.error_details_pb2 import ErrorInfo
from google.rpc.status_pb2 import Status

from behest.dedupe import RETENTION_SECONDS, Dedupe, MemoryDedupe, SqliteDedupe, State
from behest.schema import description, parameters
from behest.tool_calls import Calls, Context, Function, Refused, Running, ToolError
from behest.v1.message_pb2 import Part, ToolResult
from behest.v1.tool_pb2 import SideEffect, Tool, ToolHints
from behest.v1.tool_service_pb2 import (
    CallState,
    CallToolRequest,
    CallToolResponse,
    CancelCallRequest,
    CancelCallResponse,
    GetCallStatusRequest,
    GetCallStatusResponse,
    GetToolRequest,
    GetToolResponse,
    ListToolsRequest,
    ListToolsResponse,
)
from behest.v1.tool_service_pb2_grpc import ToolServiceServicer, add_ToolServiceServicer_to_server

__all__ = ["Context", "ToolError", "ToolServer"]

CHUNK_BYTES = 1024 * 1024
FRAME_LIMIT_BYTES = 4 * 1024 * 1024
STATUS_LIMIT_BYTES = 3 * 1024 * 1024
_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")
_EFFECTS = {
    "": SideEffect.SIDE_EFFECT_UNSPECIFIED,
    "pure": SideEffect.SIDE_EFFECT_PURE,
    "idempotent": SideEffect.SIDE_EFFECT_IDEMPOTENT,
    "non_idempotent_queryable": SideEffect.SIDE_EFFECT_NON_IDEMPOTENT_QUERYABLE,
    "non_idempotent": SideEffect.SIDE_EFFECT_NON_IDEMPOTENT,
}

_Function = TypeVar("_Function", bound=Callable[..., Any])


class ToolServer:
    """Serves functions as tools, from `async with` to its end. Register tools before `serve`.

    `dedupe` is a path that remembers calls over restarts; empty remembers them in memory, which is enough for pure
    tools: the server then never promises that an unknown call was not executed. `token` is the bearer token that
    callers must bring. `threads` bounds the plain functions that run at once; async ones run on the loop.
    """

    def __init__(
        self,
        *,
        dedupe: str = "",
        retention_seconds: float = RETENTION_SECONDS,
        token: str = "",
        credentials: grpc.ServerCredentials | None = None,
        threads: int = 32,
    ) -> None:
        self._functions: dict[str, Function] = {}
        self._dedupe: Dedupe = SqliteDedupe(dedupe, retention_seconds) if dedupe else MemoryDedupe(retention_seconds)
        self._token = token
        self._credentials = credentials
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix="tool")
        self._group = asyncio.TaskGroup()
        self._calls = Calls(self._group, self._dedupe, self._threads)
        self._servers: list[grpc.aio.Server] = []

    @overload
    def tool(self, function: _Function, /) -> _Function: ...
    @overload
    def tool(
        self, *, name: str = "", description: str = "", side_effect: str = ""
    ) -> Callable[[_Function], _Function]: ...

    def tool(self, function: Any = None, *, name: str = "", description: str = "", side_effect: str = "") -> Any:
        """Register a function, as `@server.tool` or `@server.tool(name=…, description=…, side_effect=…)`.

        Name and description default to those of the function. `side_effect` ("pure", "idempotent",
        "non_idempotent_queryable", "non_idempotent") is a hint for the operator of the daemon; here it decides whether
        a call that a crash of this server interrupted is executed again when it is repeated. Raises TypeError for a
        signature without a form in JSON, ValueError for a name that is taken or not allowed.
        """

        def register(function: _Function) -> _Function:
            self._add(_function(function, name or function.__name__, description, _EFFECTS[side_effect]))
            return function

        return register if function is None else register(function)

    def _add(self, made: Function) -> None:
        if not _NAME.fullmatch(made.tool.name):
            raise ValueError(f"{made.tool.name!r} is not [A-Za-z0-9_-]{{1,64}}")
        if made.tool.name in self._functions:
            raise ValueError(f"tool {made.tool.name} is registered already")
        self._functions[made.tool.name] = made

    @property
    def tools(self) -> list[Tool]:
        """The tools, by ascending name."""
        return [self._functions[name].tool for name in sorted(self._functions)]

    async def __aenter__(self) -> ToolServer:
        """Start what calls run in."""
        await self._group.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop serving at once; calls that run are lost, and remembered as such where `dedupe` is a path."""
        try:
            await self.stop()
        finally:
            self._calls.stop()
            # Not told of the error: the group would wrap it, and its calls are stopped already.
            await self._group.__aexit__(None, None, None)
            self._threads.shutdown(wait=False, cancel_futures=True)
            await self._dedupe.close()

    async def serve(self, address: str) -> int:
        """Listen on `HOST:PORT` or `unix:PATH`, and return the port; port 0 takes a free one.

        Raises RuntimeError when the address cannot be taken.
        """
        options = (
            ("grpc.so_reuseport", 0),
            ("grpc.max_receive_message_length", FRAME_LIMIT_BYTES),
            ("grpc.max_send_message_length", FRAME_LIMIT_BYTES),
        )
        server = grpc.aio.server(options=options)
        add_ToolServiceServicer_to_server(_Servicer(self._functions, self._calls, self._token), server)
        if self._credentials is None:
            port = server.add_insecure_port(address)
        else:
            port = server.add_secure_port(address, self._credentials)
        await server.start()
        self._servers.append(server)
        return port

    async def wait(self) -> None:
        """Wait until the server is stopped."""
        for server in self._servers:
            await server.wait_for_termination()

    async def stop(self, grace_seconds: float = 0.0) -> None:
        """Take no more calls, and let the streams of those that run end within the grace."""
        for server in self._servers:
            await server.stop(grace_seconds)


class _Servicer(ToolServiceServicer):
    """The service. Every method checks the token first; every refusal carries a reason, and proof if there is any."""

    def __init__(self, functions: dict[str, Function], calls: Calls, token: str) -> None:
        self._functions = functions
        self._calls = calls
        self._token = f"Bearer {token}".encode() if token else b""

    async def ListTools(self, request: ListToolsRequest, context: Any) -> ListToolsResponse:
        await self._authorize(context)
        size = min(request.page_size or 50, 1_000)
        names = [name for name in sorted(self._functions) if name > request.page_token]
        if request.name_glob:
            names = [name for name in names if fnmatchcase(name, request.name_glob)]
        more = names[size - 1] if len(names) > size else ""
        return ListToolsResponse(tools=[self._functions[name].tool for name in names[:size]], next_page_token=more)

    async def GetTool(self, request: GetToolRequest, context: Any) -> GetToolResponse:
        await self._authorize(context)
        function = self._functions.get(request.tool_name)
        if function is None:
            await _abort(context, _not_found(request.tool_name))
        return GetToolResponse(tool=function.tool)

    # A coroutine that writes is the other form of a streaming method, which the stubs do not know.
    async def CallTool(self, request: CallToolRequest, context: Any) -> None:  # type: ignore[override]
        await self._authorize(context)
        try:
            running = self._calls.join(request, self._find)
            result = await self._follow(running, context)
        except Refused as exc:
            await _abort(context, exc)
        for chunk, last in _frames(result):
            await context.write(CallToolResponse(result=last) if last is not None else CallToolResponse(chunk=chunk))

    async def GetCallStatus(self, request: GetCallStatusRequest, context: Any) -> GetCallStatusResponse:
        await self._authorize(context)
        wait_seconds = min(request.wait.seconds + request.wait.nanos / 1e9, 30.0)
        found = await self._calls.status(request.idempotency_key, request.epoch, wait_seconds)
        if found is None:
            text = "this server forgets its calls when it stops, and does not know this one"
            await _abort(context, Refused("UNIMPLEMENTED", "REQUEST_UNSUPPORTED", text, is_proof=False))
        if isinstance(found, Running):
            return GetCallStatusResponse(state=CallState.CALL_STATE_RUNNING)
        if found.state is State.BURIED:
            return GetCallStatusResponse(state=CallState.CALL_STATE_NEVER_SEEN)
        if found.state is State.RUNNING:
            text = "the server stopped while the call ran; whether it took effect is not known"
            await _abort(context, Refused("ABORTED", "TOOL_OUTCOME_UNKNOWN", text, is_proof=False))
        result = _cut(ToolResult.FromString(found.result))
        return GetCallStatusResponse(state=CallState.CALL_STATE_DONE, result=result)

    async def CancelCall(self, request: CancelCallRequest, context: Any) -> CancelCallResponse:
        await self._authorize(context)
        acknowledged = self._calls.cancel_key(request.idempotency_key, request.epoch)
        return CancelCallResponse(acknowledged=acknowledged)

    async def _follow(self, running: Running, context: Any) -> ToolResult:
        """Send progress until there is an outcome. Raises Refused."""
        position = 0
        try:
            while True:
                position, shown = running.since(position)
                for progress in shown:
                    await context.write(CallToolResponse(progress=progress))
                if running.since(position)[1]:
                    continue
                if running.outcome is not None:
                    break
                await running.change()
        except asyncio.CancelledError:
            if not running.key:
                self._calls.cancel(running)
            raise
        if isinstance(running.outcome, Refused):
            raise running.outcome
        return running.outcome

    def _find(self, request: CallToolRequest) -> Function:
        """Find the function of a request that may begin now. Raises Refused, with proof."""
        function = self._functions.get(request.tool_name)
        if function is None:
            raise _not_found(request.tool_name)
        if request.tool_hash and request.tool_hash != function.tool.hash:
            text = f"tool {request.tool_name} is not what the caller pinned"
            raise Refused("FAILED_PRECONDITION", "TOOL_CHANGED", text)
        if request.HasField("start_by") and request.start_by.ToNanoseconds() < time.time_ns():
            raise Refused("FAILED_PRECONDITION", "TOOL_START_EXPIRED", "the time to begin is over")
        return function

    async def _authorize(self, context: Any) -> None:
        given = dict(context.invocation_metadata() or ()).get("authorization", "")
        if self._token and not hmac.compare_digest(str(given).encode(), self._token):
            await _abort(context, Refused("UNAUTHENTICATED", "AUTH_REQUIRED", "the bearer token is missing or wrong"))


def _function(function: Callable[..., Any], name: str, text: str, effect: SideEffect.ValueType) -> Function:
    found = parameters(function, Context)
    tool = Tool(
        name=name,
        description=text or description(function),
        input_schema_json=json.dumps(found.form.schema, ensure_ascii=False),
        hints=ToolHints(side_effect=effect) if effect else None,
    )
    tool.hash = _hash(tool)
    return Function(tool, function, found)


def _hash(tool: Tool) -> bytes:
    """SHA-256 over name, description, input schema and output schema, each as its length in 8 bytes and its UTF-8."""
    digest = hashlib.sha256()
    for text in (tool.name, tool.description, tool.input_schema_json, tool.output_schema_json):
        data = text.encode()
        digest.update(len(data).to_bytes(8, "big") + data)
    return digest.digest()


def _frames(result: ToolResult) -> list[tuple[bytes, ToolResult | None]]:
    """Split a result over 1 MiB into chunks of its last part, when that is text or JSON, and the rest."""
    last = result.parts[-1] if result.parts else Part()
    kind = last.WhichOneof("kind")
    content = last.text.text if kind == "text" else last.json.json if kind == "json" else ""
    if result.ByteSize() <= CHUNK_BYTES or not content:
        return [(b"", result)]
    rest = ToolResult()
    rest.CopyFrom(result)
    if kind == "text":
        rest.parts[-1].text.text = ""
    else:
        rest.parts[-1].json.json = ""
    data = content.encode()
    chunks = [data[start : start + CHUNK_BYTES] for start in range(0, len(data), CHUNK_BYTES)]
    return [*((chunk, None) for chunk in chunks), (b"", rest)]


def _cut(result: ToolResult) -> ToolResult:
    """Cut a result to what one message holds: text is shortened, other parts are left out."""
    if result.ByteSize() <= STATUS_LIMIT_BYTES:
        return result
    cut = ToolResult(call_id=result.call_id, name=result.name, is_error=result.is_error, truncated=True)
    room = STATUS_LIMIT_BYTES
    for part in result.parts:
        if part.WhichOneof("kind") == "text":
            text = part.text.text.encode()[:room].decode(errors="ignore")
            cut.parts.add().text.text = text
            room -= len(text.encode())
    return cut


def _not_found(name: str) -> Refused:
    return Refused("NOT_FOUND", "TOOL_NOT_FOUND", f"tool {name[:64]} not found")


async def _abort(context: Any, refused: Refused) -> NoReturn:
    detail = AnyMessage()
    detail.Pack(ErrorInfo(reason=refused.reason, domain="behest"))
    code = grpc.StatusCode[refused.code]
    status = Status(code=code.value[0], message=refused.message, details=[detail])
    trailers: list[tuple[str, str | bytes]] = [("grpc-status-details-bin", status.SerializeToString())]
    if refused.is_proof:
        trailers.append(("behest-not-executed", "1"))
    abort: Awaitable[NoReturn] = context.abort(code, refused.message, tuple(trailers))
    await abort
    raise AssertionError("abort returned")

"""A tool server written from the contract alone, without the SDK, that breaks it in one way for each switch.

With no fault switched on it keeps the contract, so that what an examination finds is the fault and nothing else. Above:
`test_tools`, whose table says which check must find which fault.

    python -m tests.conformance.broken_server [HOST:PORT [FAULT …]]
"""

from __future__ import annotations

import asyncio
import math
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
from google.protobuf.any_pb2 import Any as AnyMessage
from google.rpc.error_details_pb2 import ErrorInfo
from google.rpc.status_pb2 import Status

from behest.conformance.schemas import load
from behest.v1.message_pb2 import ToolResult
from behest.v1.tool_pb2 import SideEffect
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
from tests.conformance import broken_tools
from tests.conformance.broken_tools import Misfit

LIMIT_BYTES = 4 * 1024 * 1024
STATUS_BYTES = 64 * 1024
REPEATABLE = {SideEffect.SIDE_EFFECT_PURE, SideEffect.SIDE_EFFECT_IDEMPOTENT}
REFUSALS = {
    "TOOL_NOT_FOUND": grpc.StatusCode.NOT_FOUND,
    "TOOL_ARGUMENTS_INVALID": grpc.StatusCode.INVALID_ARGUMENT,
    "TOOL_CHANGED": grpc.StatusCode.FAILED_PRECONDITION,
    "TOOL_START_EXPIRED": grpc.StatusCode.FAILED_PRECONDITION,
    "TOOL_TIMEOUT": grpc.StatusCode.DEADLINE_EXCEEDED,
    "TOOL_OUTCOME_UNKNOWN": grpc.StatusCode.ABORTED,
    "REQUEST_ID_REUSED": grpc.StatusCode.ALREADY_EXISTS,
    "REQUEST_INVALID": grpc.StatusCode.INVALID_ARGUMENT,
    "AUTH_REQUIRED": grpc.StatusCode.UNAUTHENTICATED,
    "RUNTIME_INTERNAL": grpc.StatusCode.INTERNAL,
}


class Call:
    """A call that runs or has ended: the frames so far, and a task that adds to them."""

    def __init__(self, request: CallToolRequest) -> None:
        self.request = request
        self.epoch = request.epoch
        self.frames: list[CallToolResponse | bytes] = []
        self.task: asyncio.Task[None] | None = None
        self.has_ended = False
        self.is_cut = False
        self.changed = asyncio.Event()

    @property
    def result(self) -> ToolResult:
        """The result, its chunks put back."""
        frames = [frame for frame in self.frames if isinstance(frame, CallToolResponse)]
        result = ToolResult()
        for frame in frames:
            if frame.WhichOneof("frame") == "result":
                result.CopyFrom(frame.result)
                break
        joined = b"".join(frame.chunk for frame in frames).decode(errors="ignore")
        if joined and result.parts:
            result.parts[-1].text.text = joined
        return result

    def add(self, *frames: CallToolResponse | bytes, is_end: bool = False) -> None:
        """Add frames, and wake who waits."""
        self.frames += frames
        self.has_ended = self.has_ended or is_end
        changed, self.changed = self.changed, asyncio.Event()
        changed.set()


class Broken:
    """The server, with its faults."""

    def __init__(self, faults: frozenset[str], group: asyncio.TaskGroup, token: str) -> None:
        self.faults = faults
        self._group = group
        self._token = token
        self._tools = broken_tools.definitions(faults)
        self._schemas = {each.name: load(each.input_schema_json) for each in broken_tools.definitions(frozenset())}
        self._work = broken_tools.Work(faults)
        self._calls: dict[str, Call] = {}
        self._buried: dict[str, tuple[int, float]] = {}
        self._alone = asyncio.Lock()

    def has(self, fault: str) -> bool:
        """Whether a fault is switched on."""
        return fault in self.faults

    def stop(self) -> None:
        """Let go of the calls."""
        for call in self._calls.values():
            if call.task is not None:
                call.task.cancel()

    async def list_tools(self, request: ListToolsRequest, context: Any) -> ListToolsResponse:
        """ListTools."""
        await self._check_token(context)
        if self.has("list-fails"):
            await self._refuse(context, "RUNTIME_INTERNAL")
        if request.page_size < 0 and not self.has("negative-page-taken"):
            await self._refuse(context, "REQUEST_INVALID")
        tools = self._listed(request.name_glob)
        start = int(request.page_token or 0)
        size = abs(request.page_size) or 50
        if self.has("page-size-ignored"):
            size = 50
        end = start + size
        token = str(end) if end < len(tools) else ""
        if self.has("pages-without-end"):
            token = str(end % max(len(tools), 1)) if request.page_size else ""
        if self.has("page-drops-one") and request.page_size:
            start += 1 if start == 0 else 0
        return ListToolsResponse(tools=tools[start:end], next_page_token=token)

    def _listed(self, glob: str) -> list[Any]:
        tools = sorted(self._tools, key=lambda tool: tool.name, reverse=self.has("order-lost"))
        if glob and not self.has("glob-ignored"):
            tools = [tool for tool in tools if tool.name == glob]
        if self.has("list-changes"):
            tools[0].description += " Again."
        return tools

    async def get_tool(self, request: GetToolRequest, context: Any) -> GetToolResponse:
        """GetTool."""
        await self._check_token(context)
        for tool in self._tools:
            if tool.name == request.tool_name:
                got = GetToolResponse(tool=tool)
                got.tool.description += " Another." if self.has("get-differs") else ""
                return got
        return await self._refuse(context, "TOOL_NOT_FOUND")

    async def call_tool(self, request: CallToolRequest, context: Any) -> AsyncIterator[CallToolResponse | bytes]:
        """CallTool."""
        await self._check_token(context)
        if self.has("oversize-hangs") and len(request.arguments_json) > LIMIT_BYTES:
            await asyncio.Event().wait()
        call = await self._joined(request, context)
        position = 0
        try:
            async with asyncio.timeout(self._left(request)):
                while position < len(call.frames) or not call.has_ended:
                    if position == len(call.frames):
                        await call.changed.wait()
                        continue
                    position += 1
                    yield call.frames[position - 1]
        except TimeoutError:
            await self._refuse(context, "TOOL_TIMEOUT")
        except asyncio.CancelledError:
            has_deadline = self.has("deadline-stops-work") and context.time_remaining() is not None
            if (has_deadline or self.has("leaves-with-stream")) and call.task is not None:
                call.task.cancel()
            raise
        if self.has("proof-always"):
            context.set_trailing_metadata((("behest-not-executed", "1"),))

    async def _joined(self, request: CallToolRequest, context: Any) -> Call:
        """Find the call of a key, or begin it."""
        key = request.idempotency_key
        if self.has("attempt-is-new"):
            key += f"/{request.attempt}"
        if self.has("epoch-is-new"):
            key += f"/{request.epoch}"
        if self.has("key-with-arguments"):
            key += request.arguments_json
        known = self._calls.get(key) if key or self.has("keyless-shared") else None
        if known is not None and not self._is_forgotten(known):
            await self._check_same(known, request, context)
            known.epoch = max(known.epoch, request.epoch)
            return known
        if self._is_buried(key, request.epoch, request.attempt):
            is_proof = not self.has("tombstone-unproved")
            await self._refuse(context, "TOOL_START_EXPIRED", is_proof=is_proof)
        await self._check(request, context)
        if not key and not self.has("keyless-shared"):
            key = f"keyless-{len(self._calls)}"
        call = self._calls[key] = Call(request)
        call.task = self._group.create_task(self._execute(call))
        return call

    def _is_buried(self, key: str, epoch: int, attempt: int) -> bool:
        grave = self._buried.get(key)
        if grave is None:
            return False
        if self.has("tombstone-for-ever"):
            return True
        return epoch <= grave[0] if self.has("tombstone-of-epoch") else (epoch, attempt) <= grave

    def _is_forgotten(self, call: Call) -> bool:
        if call.is_cut and call.request.side_effect in REPEATABLE and not self.has("cancelled-remembered"):
            return True
        return self.has("forgets") or (self.has("joins-nobody") and not call.has_ended)

    async def _check_same(self, known: Call, request: CallToolRequest, context: Any) -> None:
        before = known.request
        if not self.has("keyless-shared") and before.arguments_json != request.arguments_json:
            await self._refuse(context, "REQUEST_ID_REUSED", is_proof=False)
        if request.epoch < known.epoch and not self.has("epoch-ignored"):
            await self._refuse(context, "TOOL_OUTCOME_UNKNOWN", is_proof=False)

    async def _check(self, request: CallToolRequest, context: Any) -> None:
        """Refuse what may not begin."""
        tool = next((each for each in self._tools if each.name == request.tool_name), None)
        if tool is None:
            await self._refuse(context, "TOOL_NOT_FOUND")
            raise AssertionError
        if request.tool_hash not in (b"", broken_tools.definition_hash(tool)) and not self.has("hash-ignored"):
            await self._refuse(context, "TOOL_CHANGED")
        is_late = request.HasField("start_by") and request.start_by.seconds < time.time()
        if is_late and not self.has("start-by-ignored"):
            await self._refuse(context, "TOOL_START_EXPIRED", is_proof=not self.has("expired-unproved"))
        try:
            broken_tools.arguments(request, self._schemas[tool.name], self.faults)
        except Misfit:
            await self._refuse(context, "TOOL_ARGUMENTS_INVALID")

    def _left(self, request: CallToolRequest) -> float | None:
        if not request.HasField("deadline") or not self.has("deadline-proves"):
            return None
        return max(0.0, request.deadline.ToNanoseconds() / 1e9 - time.time())

    async def _execute(self, call: Call) -> None:
        schema = self._schemas[call.request.tool_name]
        try:
            if self.has("one-at-a-time"):
                async with self._alone:
                    await self._work.make(call.request, schema, call.add)
            else:
                await self._work.make(call.request, schema, call.add)
        except asyncio.CancelledError:
            call.is_cut = True
            call.add(CallToolResponse(result=broken_tools.failed(call.request, "it was cancelled")))
            raise
        finally:
            call.add(is_end=True)

    async def get_call_status(self, request: GetCallStatusRequest, context: Any) -> GetCallStatusResponse:
        """GetCallStatus."""
        await self._check_token(context)
        call = self._calls.get(request.idempotency_key)
        if call is None or (self.has("status-running-unknown") and not call.has_ended):
            if not self.has("tombstone-missing"):
                grave = (request.epoch, request.attempt or math.inf)
                self._buried[request.idempotency_key] = max(self._buried.get(request.idempotency_key, grave), grave)
            return GetCallStatusResponse(state=CallState.CALL_STATE_NEVER_SEEN)
        wait = 0 if self.has("status-wait-ignored") else min(request.wait.seconds, 30)
        try:
            async with asyncio.timeout(wait):
                while not call.has_ended:
                    await call.changed.wait()
        except TimeoutError:
            return GetCallStatusResponse(state=CallState.CALL_STATE_RUNNING)
        if self.has("status-running-for-ever"):
            return GetCallStatusResponse(state=CallState.CALL_STATE_RUNNING)
        if self.has("status-without-result"):
            return GetCallStatusResponse(state=CallState.CALL_STATE_DONE)
        result = call.result
        if self.has("status-differs"):
            result.is_error = True
        if result.ByteSize() > STATUS_BYTES and not self.has("status-huge"):
            result.parts[-1].text.text = result.parts[-1].text.text[:STATUS_BYTES]
            result.truncated = not self.has("status-cut-silently")
        return GetCallStatusResponse(state=CallState.CALL_STATE_DONE, result=result)

    async def cancel_call(self, request: CancelCallRequest, context: Any) -> CancelCallResponse:
        """CancelCall."""
        await self._check_token(context)
        call = self._calls.get(request.idempotency_key)
        if call is None or call.has_ended:
            return CancelCallResponse(acknowledged=self.has("cancel-always-acknowledged"))
        if request.epoch < call.epoch and not self.has("cancel-any-epoch"):
            return CancelCallResponse()
        if self.has("cancel-unacknowledged"):
            return CancelCallResponse()
        stopped = list(self._calls.values()) if self.has("cancel-all") else [call]
        for each in stopped:
            if each.task is not None and not self.has("cancel-ignored"):
                each.task.cancel()
        return CancelCallResponse(acknowledged=True)

    async def _check_token(self, context: Any) -> None:
        told = dict(context.invocation_metadata()).get("authorization", "")
        if self._token and told != f"Bearer {self._token}" and not self.has("token-ignored"):
            await self._refuse(context, "AUTH_REQUIRED")

    async def _refuse(self, context: Any, reason: str, *, is_proof: bool = True) -> Any:
        """End a call with a status, its reason and the proof, less what the faults leave out."""
        code = REFUSALS[reason]
        detail = AnyMessage()
        detail.Pack(ErrorInfo(reason=reason, domain="behest"))
        told = Status(code=code.value[0], message=reason, details=[detail])
        if self.has("details-differ"):
            told.code = 13
        trailers: list[tuple[str, Any]] = []
        if not self.has("refusals-untyped"):
            trailers.append(("grpc-status-details-bin", told.SerializeToString()))
        if is_proof and not self.has("refusals-unproved"):
            trailers.append(("behest-not-executed", "1"))
        if self.has("refusals-internal"):
            code = grpc.StatusCode.INTERNAL
        await context.abort(code, reason, tuple(trailers))


@asynccontextmanager
async def serving(*faults: str, token: str = "", address: str = "127.0.0.1:0") -> AsyncIterator[str]:
    """Serve with faults, on a free port unless an address is given; gives the address."""
    options = (("grpc.max_receive_message_length", -1 if "oversize-hangs" in faults else LIMIT_BYTES),)
    server = grpc.aio.server(options=(*options, ("grpc.max_send_message_length", -1)))
    async with asyncio.TaskGroup() as group:
        broken = Broken(frozenset(faults), group, token)
        server.add_generic_rpc_handlers((_handlers(broken),))
        port = server.add_insecure_port(address)
        await server.start()
        try:
            yield f"{address.rpartition(':')[0]}:{port}"
        finally:
            await server.stop(0)
            broken.stop()


def _handlers(broken: Broken) -> grpc.GenericRpcHandler:
    def unary(method: Any, request: Any) -> Any:
        return grpc.unary_unary_rpc_method_handler(method, request.FromString, _bytes)

    calls = grpc.unary_stream_rpc_method_handler(broken.call_tool, CallToolRequest.FromString, _bytes)
    methods = {
        "ListTools": unary(broken.list_tools, ListToolsRequest),
        "GetTool": unary(broken.get_tool, GetToolRequest),
        "CallTool": calls,
        "GetCallStatus": unary(broken.get_call_status, GetCallStatusRequest),
        "CancelCall": unary(broken.cancel_call, CancelCallRequest),
    }
    return grpc.method_handlers_generic_handler("behest.v1.ToolService", methods)


def _bytes(message: Any) -> bytes:
    return message if isinstance(message, bytes) else bytes(message.SerializeToString())


async def main() -> None:
    """Serve until the process ends."""
    wanted, *faults = sys.argv[1:] or ["127.0.0.1:0"]
    async with serving(*faults, address=wanted) as address:
        sys.stdout.write(f"ready {address}\n")
        sys.stdout.flush()
        await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main())

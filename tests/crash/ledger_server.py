"""A tool server in a process of its own that writes down what it does, synced to the disk before it does it.

    python -m tests.crash.ledger_server LEDGER

Each line of the ledger is a JSON object: `what` is dispatch, effect, status, bury or cancel. Four tools, one for each
class of effect; none but `idempotent` looks at keys before it acts, so a second dispatch of another is a second effect.
A call takes effect, shows progress, works for `ms` milliseconds, and answers. Prints `ready HOST:PORT`.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from pathlib import Path
from typing import Any

import grpc

from behest.v1.message_pb2 import Part, TextPart, ToolResult
from behest.v1.tool_pb2 import Progress, Tool
from behest.v1.tool_service_pb2 import (
    CallState,
    CallToolRequest,
    CallToolResponse,
    CancelCallRequest,
    CancelCallResponse,
    GetCallStatusRequest,
    GetCallStatusResponse,
    ListToolsRequest,
    ListToolsResponse,
)
from behest.v1.tool_service_pb2_grpc import ToolServiceServicer, add_ToolServiceServicer_to_server
from behestd.tools.catalog import tool_hash

TOOLS = ("idempotent", "payment", "pure", "queryable")


class Ledger:
    """The lines, in a file that is synced after each."""

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        self.lines = [json.loads(line) for line in path.read_text().splitlines()]

    def write(self, what: str, **facts: Any) -> None:
        """Add a line, durably."""
        line = {"what": what, **facts}
        os.write(self._file, json.dumps(line).encode() + b"\n")
        os.fsync(self._file)
        self.lines.append(line)

    def count(self, what: str, key: str) -> int:
        """How many lines there are of a kind and a key."""
        return sum(line["what"] == what and line["key"] == key for line in self.lines)


class Servicer(ToolServiceServicer):
    """The service: dispatches, effects and answers by the ledger alone."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._running: dict[str, asyncio.Event] = {}

    async def CallTool(self, request: CallToolRequest, context: Any) -> None:  # type: ignore[override]
        """Act, and answer."""
        ledger, key, tool = self._ledger, request.idempotency_key, request.tool_name
        buried = [line for line in ledger.lines if line["what"] == "bury" and line["key"] == key]
        if any((request.epoch, request.attempt) <= (line["epoch"], line["attempt"]) for line in buried):
            await context.abort(grpc.StatusCode.FAILED_PRECONDITION, "buried", (("behest-not-executed", "1"),))
        facts = {"key": key, "tool": tool, "run": request.run_id, "call": request.call_id}
        ledger.write("dispatch", attempt=request.attempt, epoch=request.epoch, **facts)
        if tool != "idempotent" or not ledger.count("effect", key):
            ledger.write("effect", **facts)
        arguments = json.loads(request.arguments_json)
        await context.write(CallToolResponse(progress=Progress(text="working")))
        stop = self._running.setdefault(key, asyncio.Event())
        try:
            async with asyncio.timeout(arguments.get("ms", 0) / 1000):
                await (asyncio.Event() if arguments.get("stubborn") else stop).wait()
        except TimeoutError:
            pass
        finally:
            self._running.pop(key, None)
        await context.write(CallToolResponse(result=self._result(key, request.call_id, tool)))

    async def ListTools(self, request: ListToolsRequest, context: Any) -> ListToolsResponse:
        """List the four tools."""
        tools = [Tool(name=name, description=name, input_schema_json='{"type": "object"}') for name in TOOLS]
        for tool in tools:
            tool.hash = tool_hash(tool)
        return ListToolsResponse(tools=tools)

    async def GetCallStatus(self, request: GetCallStatusRequest, context: Any) -> GetCallStatusResponse:
        """Tell what became of a call; one that never came is buried."""
        key = request.idempotency_key
        self._ledger.write("status", key=key, epoch=request.epoch)
        async with asyncio.timeout(request.wait.seconds + 1):
            while key in self._running:
                await asyncio.sleep(0.01)
        done = [line for line in self._ledger.lines if line["what"] == "effect" and line["key"] == key]
        if done:
            result = self._result(key, done[0]["call"], done[0]["tool"])
            return GetCallStatusResponse(state=CallState.CALL_STATE_DONE, result=result)
        self._ledger.write("bury", key=key, epoch=request.epoch, attempt=request.attempt or 1 << 31)
        return GetCallStatusResponse(state=CallState.CALL_STATE_NEVER_SEEN)

    async def CancelCall(self, request: CancelCallRequest, context: Any) -> CancelCallResponse:
        """Stop a call, unless it is stubborn."""
        key = request.idempotency_key
        self._ledger.write("cancel", key=key)
        if key in self._running:
            self._running[key].set()
        return CancelCallResponse(acknowledged=key in self._running)

    def _result(self, key: str, call_id: str, tool: str) -> ToolResult:
        text = f"effect {self._ledger.count('effect', key)}"
        return ToolResult(call_id=call_id, name=tool, parts=[Part(text=TextPart(text=text))])


async def main(path: Path) -> None:
    """Serve until the process is ended."""
    server = grpc.aio.server(options=(("grpc.so_reuseport", 0),))
    add_ToolServiceServicer_to_server(Servicer(Ledger(path)), server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    sys.stdout.write(f"ready 127.0.0.1:{port}\n")
    sys.stdout.flush()
    await server.wait_for_termination()


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1])))

"""A tool server on nothing but the contract's stubs, that writes down each call as it came before it answers.

    python -m tests.approvals.witness LEDGER

Each line of the ledger, synced to the disk, is a JSON object with the run, the tool and the text of the arguments.
The tools take any arguments: what they are sent is what the daemon let through. Prints `ready HOST:PORT`.
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
from behest.v1.tool_pb2 import Tool
from behest.v1.tool_service_pb2 import CallToolRequest, CallToolResponse, ListToolsRequest, ListToolsResponse
from behest.v1.tool_service_pb2_grpc import ToolServiceServicer, add_ToolServiceServicer_to_server
from behestd.tools.catalog import tool_hash

TOOLS = ("pay", "shell", "look")


class Servicer(ToolServiceServicer):
    """Notes calls, and answers each."""

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

    async def CallTool(self, request: CallToolRequest, context: Any) -> None:  # type: ignore[override]
        """Note a call, and answer it."""
        line = {"run": request.run_id, "tool": request.tool_name, "arguments": request.arguments_json}
        os.write(self._file, json.dumps(line).encode() + b"\n")
        os.fsync(self._file)
        result = ToolResult(
            call_id=request.call_id,
            name=request.tool_name,
            parts=[Part(text=TextPart(text=f"did {request.tool_name}"))],
        )
        await context.write(CallToolResponse(result=result))

    async def ListTools(self, request: ListToolsRequest, context: Any) -> ListToolsResponse:
        """List the tools."""
        tools = [Tool(name=name, description=name, input_schema_json='{"type": "object"}') for name in TOOLS]
        for tool in tools:
            tool.hash = tool_hash(tool)
        return ListToolsResponse(tools=tools)


async def main(path: Path) -> None:
    """Serve until the process is ended."""
    server = grpc.aio.server(options=(("grpc.so_reuseport", 0),))
    add_ToolServiceServicer_to_server(Servicer(path), server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    sys.stdout.write(f"ready 127.0.0.1:{port}\n")
    sys.stdout.flush()
    await server.wait_for_termination()


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1])))

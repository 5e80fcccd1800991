"""A dialled TypeScript tool server: called by a daemon, and asked everything that ToolService promises by raw stubs."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.timestamp_pb2 import Timestamp

from behest.client import Client
from behest.errors import from_rpc
from behest.v1.message_pb2 import ToolResult
from behest.v1.run_state_pb2 import RunState
from behest.v1.server_pb2 import Server, ServerConnection, ServerOffer
from behest.v1.tool_pb2 import SideEffect, ToolPolicy
from behest.v1.tool_service_pb2 import (
    CallState,
    CallToolRequest,
    CallToolResponse,
    GetCallStatusRequest,
    GetCallStatusResponse,
)
from behest.v1.tool_service_pb2_grpc import ToolServiceStub
from tests.daemon_process import running
from tests.interop.typescript.node import INSTALL_SECONDS, SECONDS, Program, program

pytestmark = pytest.mark.timeout(INSTALL_SECONDS + 120)

TOOLS = ["break", "count", "fail", "long", "pay", "wait"]
WIDE = (("grpc.max_receive_message_length", 16 * 1024 * 1024),)


class Tools:
    """The server of the tests in a process, a stub to it, and its ledger. Made by `served`."""

    def __init__(self, process: Program, port: str, stub: Any, ledger: Path) -> None:
        self.process = process
        self.port = port
        self.stub = stub
        self._ledger = ledger

    @property
    def ledger(self) -> list[dict[str, Any]]:
        """What it has executed."""
        return [json.loads(line) for line in self._ledger.read_text().splitlines()]

    async def frames(self, name: str, arguments: str = "{}", key: str = "", **fields: Any) -> list[CallToolResponse]:
        """Call a tool, and give all frames. Raises grpc.aio.AioRpcError."""
        async with asyncio.timeout(SECONDS):
            return [frame async for frame in self.stub.CallTool(request(name, arguments, key, **fields))]

    async def call(self, name: str, arguments: str = "{}", key: str = "", **fields: Any) -> ToolResult:
        """Call a tool, and give its result. Raises grpc.aio.AioRpcError."""
        return (await self.frames(name, arguments, key, **fields))[-1].result

    async def status(self, key: str, **fields: Any) -> GetCallStatusResponse:
        """Ask for a key. Raises grpc.aio.AioRpcError."""
        async with asyncio.timeout(SECONDS):
            response: GetCallStatusResponse = await self.stub.GetCallStatus(
                GetCallStatusRequest(idempotency_key=key, **{"epoch": 1} | fields)
            )
            return response


def request(name: str, arguments: str = "{}", key: str = "", **fields: Any) -> CallToolRequest:
    """Make the request of a call as a daemon does."""
    known = {"epoch": 1, "attempt": 1, "call_id": "call-1"} | fields
    return CallToolRequest(tool_name=name, arguments_json=arguments, idempotency_key=key, **known)


@asynccontextmanager
async def served(folder: Path, *, dedupe: bool = True, token: str = "") -> AsyncIterator[Tools]:
    """Serve until the block ends; a second server in the same folder knows what the first one did."""
    ledger = folder / "ledger"
    store = str(folder / "calls.sqlite3") if dedupe else ""
    async with program("tools", "dialled", "127.0.0.1:0", str(ledger), store, token) as process:
        port = await process.expect("ready")
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}", options=WIDE) as channel:
            yield Tools(process, port, ToolServiceStub(channel), ledger)


async def refusal(call: Any) -> tuple[str, str, bool]:
    """Wait for a call to fail: its code, its reason, and whether it is proved that nothing was executed."""
    with pytest.raises(grpc.aio.AioRpcError) as failed:
        await call
    trailers = dict(failed.value.trailing_metadata() or ())
    return failed.value.code().name, from_rpc(failed.value).reason, trailers.get("behest-not-executed") == "1"


def text(result: ToolResult) -> str:
    """Join the texts of a result."""
    return "".join(part.text.text for part in result.parts)


def document(result: ToolResult) -> Any:
    """Read the JSON of a result."""
    return json.loads(result.parts[-1].json.json)


async def test_a_run_calls_a_tool_and_its_cancel_reaches_another(tmp_path: Path) -> None:  # C024
    async with served(tmp_path) as tools, running(tmp_path / "daemon") as daemon, Client(daemon.address) as client:
        server = Server(
            name="typescript",
            connection=ServerConnection.SERVER_CONNECTION_DIALLED,
            address=f"127.0.0.1:{tools.port}",
            offers=[ServerOffer.SERVER_OFFER_TOOLS],
            tool_policies={"wait": ToolPolicy(side_effect=SideEffect.SIDE_EFFECT_PURE)},
        )
        registered = await client.servers.register(server)
        assert sorted(registered.tool_names) == TOOLS
        run = await client.run('/tool pay {"text": "rent"}')
        async with asyncio.timeout(SECONDS):
            output = await run.result()
        [paid] = tools.ledger
        assert (paid["name"], paid["attempt"], paid["run"]) == ("pay", 1, run.run_id)
        receipt = json.dumps({"payment": 1, "for": "rent", "key": paid["key"]}, separators=(",", ":"))
        assert output.text == f"pay: {receipt}"
        waiting = await client.run('/tool wait {"ms": 600000}')
        await tools.process.expect("began wait")
        assert (await waiting.cancel()).state in (RunState.RUN_STATE_CANCELLING, RunState.RUN_STATE_CANCELLED)
        await tools.process.expect("stopped wait")


async def test_a_call_without_a_key_ends_with_its_stream(tmp_path: Path) -> None:
    async with served(tmp_path) as tools:
        stream = tools.stub.CallTool(request("wait", '{"ms": 600000}'))
        await tools.process.expect("began wait")
        stream.cancel()
        await tools.process.expect("stopped wait")


async def test_what_a_tool_throws_is_a_result_and_no_failure(tmp_path: Path) -> None:
    async with served(tmp_path) as tools:
        failed, broken = await tools.call("fail"), await tools.call("break")
        misfit = await tools.call("pay", '{"text": 1, "more": 2}')
        doubled = await tools.call("pay", '{"text": "a", "text": "b"}')
        assert tools.ledger == []
    assert failed.is_error and broken.is_error and misfit.is_error and doubled.is_error
    assert (text(failed), text(broken)) == ("disk is full", "RangeError: out of range")
    assert document(misfit)["error"] == "TOOL_ARGUMENTS_INVALID"
    assert sorted(error["path"] for error in document(misfit)["errors"]) == ["/more", "/text"]
    assert "duplicate" in document(doubled)["errors"][0]["message"]


async def test_refusals_carry_their_reason_and_the_proof_that_nothing_was_executed(tmp_path: Path) -> None:
    past = Timestamp(seconds=1)
    async with served(tmp_path) as tools:
        assert await refusal(tools.call("nothing")) == ("NOT_FOUND", "TOOL_NOT_FOUND", True)
        changed = await refusal(tools.call("pay", '{"text": "a"}', "key-1", tool_hash=b"another"))
        late = await refusal(tools.call("pay", '{"text": "a"}', "key-1", start_by=past))
        assert tools.ledger == []
    assert changed == ("FAILED_PRECONDITION", "TOOL_CHANGED", True)
    assert late == ("FAILED_PRECONDITION", "TOOL_START_EXPIRED", True)


async def test_a_server_that_forgets_never_promises_that_a_call_was_not_executed(tmp_path: Path) -> None:
    async with served(tmp_path, dedupe=False) as tools:
        assert await refusal(tools.status("key-1")) == ("UNIMPLEMENTED", "REQUEST_UNSUPPORTED", False)
        first = await tools.call("pay", '{"text": "a"}', "key-2")
        assert await tools.call("pay", '{"text": "a"}', "key-2") == first
        assert (await tools.status("key-2")).state == CallState.CALL_STATE_DONE


async def test_a_long_result_travels_in_pieces_and_arrives_whole(tmp_path: Path) -> None:
    async with served(tmp_path) as tools:
        frames = await tools.frames("long", '{"size": 400000}', "key-1")
        refused = await tools.call("long", '{"size": 2000000}')
        told = await tools.status("key-1")
    assert b"".join(frame.chunk for frame in frames[:-1]).decode() == "漢字🙂" * 400_000
    assert max(len(frame.chunk) for frame in frames) <= 1024 * 1024
    assert text(frames[-1].result) == ""
    assert refused.is_error
    assert "exceeds the limit" in text(refused)
    assert told.result.truncated
    assert text(told.result).startswith("漢字🙂")


async def test_it_finishes_what_runs_before_it_stops(tmp_path: Path) -> None:
    async with served(tmp_path) as tools, asyncio.TaskGroup() as group:
        call = group.create_task(tools.call("wait", '{"ms": 800}', "key-1"))
        await tools.process.expect("began wait")
        tools.process.process.terminate()
        assert text(await call) == "waited 800 ms"
        assert await tools.process.end() == 0

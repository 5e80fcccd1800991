"""Tool servers in Go against a real daemon, dialled and attached: what a run gets, and what the ledger says of it.

The ledger is written by the tool itself, before it answers: it alone says how often a tool took effect.
"""

from __future__ import annotations

import asyncio
import json
import re
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest

from behest.client import Client
from behest.errors import BehestError, RunCancelledError, from_rpc
from behest.order import duration
from behest.v1.delta_pb2 import Delta
from behest.v1.event_pb2 import Event
from behest.v1.server_pb2 import Server, ServerConnection, ServerOffer, ServerState
from behest.v1.tool_pb2 import SideEffect, ToolPolicy, ToolTimeouts
from behest.v1.tool_service_pb2 import CallState, CallToolRequest, CallToolResponse, GetCallStatusRequest
from behest.v1.tool_service_pb2_grpc import ToolServiceStub
from tests.daemon_process import DaemonProcess, running
from tests.interop.go.golang import BUILD_SECONDS, MODULE, SECONDS, Program, program

pytestmark = pytest.mark.timeout(BUILD_SECONDS + 120)

SERVER = "./internal/interop/toolserver"
QUICK_STOP = "[limits]\ndrain_seconds = 0.1\n"
NAME = "go"
IDEMPOTENT = ToolPolicy(
    side_effect=SideEffect.SIDE_EFFECT_IDEMPOTENT, timeouts=ToolTimeouts(start_to_close=duration(SECONDS))
)
KNOWN = Server(
    name=NAME,
    connection=ServerConnection.SERVER_CONNECTION_DIALLED,
    offers=[ServerOffer.SERVER_OFFER_TOOLS],
    tool_policies={"pay": IDEMPOTENT},
    dedupe_retention=duration(72 * 3600),
)


@dataclass(frozen=True, slots=True)
class Scene:
    """A daemon, a Go tool server that it knows, a client, and the ledger."""

    daemon: DaemonProcess
    server: Program
    client: Client
    ledger: Path

    def effects(self, tool: str) -> list[str]:
        """The keys of the effects of a tool, in order."""
        lines = [line.split() for line in self.ledger.read_text().splitlines()] if self.ledger.exists() else []
        return [line[1] for line in lines if line[0] == tool]

    async def effect(self, tool: str) -> None:
        """Wait until a tool has taken effect."""
        async with asyncio.timeout(SECONDS):
            while not self.effects(tool):
                await asyncio.sleep(0.02)


def remembering(home: Path) -> list[str]:
    """Give what each server of these tests is started with."""
    return ["-ledger", str(home / "ledger"), "-remember", str(home / "calls.db")]


async def ready(server: Program) -> str:
    """Wait until a server listens. Gives its address."""
    found = re.search(r"address=(\S+)", await server.expect("tool server ready"))
    assert found is not None
    return found[1]


async def listed(client: Client) -> None:
    """Wait until the daemon has the server's tools."""
    async with asyncio.timeout(SECONDS):
        while True:
            servers = [server async for server in client.servers.list()]
            if any(each.name == NAME and each.state == ServerState.SERVER_STATE_READY for each in servers):
                return
            await asyncio.sleep(0.05)


@asynccontextmanager
async def dialled(home: Path) -> AsyncIterator[Scene]:
    """A Go server that the daemon dials."""
    async with (
        running(home / "daemon", config=QUICK_STOP) as daemon,
        program(SERVER, "-serve", "127.0.0.1:0", *remembering(home)) as server,
        Client(daemon.address) as client,
    ):
        known = Server()
        known.CopyFrom(KNOWN)
        known.address = await ready(server)
        await client.servers.register(known)
        await listed(client)
        yield Scene(daemon, server, client, home / "ledger")


@asynccontextmanager
async def attached(home: Path) -> AsyncIterator[Scene]:
    """A Go server that attaches itself to the daemon."""
    async with running(home / "daemon", config=QUICK_STOP) as daemon, Client(daemon.address) as client:
        known = Server()
        known.CopyFrom(KNOWN)
        known.connection = ServerConnection.SERVER_CONNECTION_ATTACHED
        await client.servers.register(known)
        command = ["-attach", daemon.address, "-name", NAME, *remembering(home)]
        async with program(SERVER, *command) as server:
            await server.expect("tool server attached")
            await listed(client)
            yield Scene(daemon, server, client, home / "ledger")


WAYS = pytest.mark.parametrize("way", [dialled, attached], ids=["dialled", "attached"])


async def called(client: Client, order: str) -> tuple[str, list[Event]]:
    """Order a run, and follow it to its end: its output and its events."""
    async with asyncio.timeout(SECONDS):
        run = await client.run(order)
        events = [event async for event in run.events()]
        return (await run.result()).text, events


async def answer(stub: ToolServiceStub, request: CallToolRequest) -> CallToolResponse:
    """Call the server itself. Gives the last frame; raises BehestError."""
    try:
        frames = [frame async for frame in stub.CallTool(request, timeout=SECONDS)]
    except grpc.aio.AioRpcError as exc:
        raise from_rpc(exc) from exc
    return frames[-1]


@WAYS
async def test_a_run_calls_a_tool_in_go(way: Any, tmp_path: Path) -> None:  # C024, C025
    async with way(tmp_path) as scene:
        output, events = await called(scene.client, '/tool add {"a": 2, "b": 3}')
        assert output.endswith("5")
        assert [event.tool_completed.is_error for event in events if event.HasField("tool_completed")] == [False]


@WAYS
async def test_what_a_tool_fails_with_is_told_to_the_model(way: Any, tmp_path: Path) -> None:  # C031
    async with way(tmp_path) as scene:
        failed, _ = await called(scene.client, "/tool fail {}")
        panicked, _ = await called(scene.client, "/tool panic {}")
    assert "the till is empty" in failed
    assert "no till at all" in panicked


@WAYS
async def test_progress_is_shown_while_a_tool_works(way: Any, tmp_path: Path) -> None:
    async with (
        way(tmp_path) as scene,
        program("./internal/interop/client", scene.daemon.address, "stream", "/tool steps {}") as client,
    ):
        told = [json.loads(line) async for line in client.lines()]
    assert "step 3" in [line.get("progress") for line in told]
    assert "three steps" in told[-1]["result"]


@WAYS
async def test_a_result_of_many_frames_arrives(way: Any, tmp_path: Path) -> None:
    async with way(tmp_path) as scene:
        _, events = await called(scene.client, '/tool big {"size": 3000000}')
    [completed] = [event.tool_completed for event in events if event.HasField("tool_completed")]
    assert not completed.is_error
    assert "xxx" in completed.result.parts[0].text.text


@WAYS
async def test_a_cancelled_run_stops_the_tool(way: Any, tmp_path: Path) -> None:  # C045
    async with way(tmp_path) as scene, asyncio.timeout(SECONDS):
        run = await scene.client.run("/tool wait {}")
        async for update in run.updates():
            if isinstance(update, Delta) and update.HasField("tool_progress"):
                await run.cancel()
        with pytest.raises(RunCancelledError):
            await run.result()
        await scene.effect("cancelled")


@WAYS
async def test_a_daemon_killed_in_a_call_gets_its_result_and_the_effect_is_once(way: Any, tmp_path: Path) -> None:
    async with way(tmp_path) as scene:
        run = await scene.client.run('/tool pay {"amount": 5, "delay_ms": 3000}')
        await scene.effect("pay")
        await scene.daemon.kill()
        await scene.daemon.start()
        async with asyncio.timeout(SECONDS):
            output = await run.result()
        assert "paid 5" in output.text
        assert len(scene.effects("pay")) == 1


@WAYS
async def test_a_server_that_is_asked_to_end_gives_what_runs(way: Any, tmp_path: Path) -> None:
    async with way(tmp_path) as scene:
        run = await scene.client.run('/tool pay {"amount": 5, "delay_ms": 500}')
        await scene.effect("pay")
        assert await scene.server.terminate() == 0
        async with asyncio.timeout(SECONDS):
            output = await run.result()
        assert "paid 5" in output.text


async def test_the_same_key_twice_is_one_effect_also_over_a_crash_of_the_server(tmp_path: Path) -> None:  # N02
    request = CallToolRequest(
        tool_name="pay", arguments_json='{"amount": 5}', idempotency_key="key-1", attempt=1, epoch=1
    )
    async with AsyncExitStack() as stack:
        for _ in range(2):
            server = await stack.enter_async_context(program(SERVER, "-serve", "127.0.0.1:0", *remembering(tmp_path)))
            channel = await stack.enter_async_context(grpc.aio.insecure_channel(await ready(server)))
            for _ in range(2):
                frame = await answer(ToolServiceStub(channel), request)
                assert frame.result.parts[0].text.text == "paid 5"
            await server.kill()
    assert (tmp_path / "ledger").read_text() == "pay key-1 1\n"


async def test_a_call_that_a_crash_of_the_server_interrupted_is_unknown(tmp_path: Path) -> None:  # N02
    request = CallToolRequest(
        tool_name="pay", arguments_json='{"amount": 5, "delay_ms": 60000}', idempotency_key="key-1", attempt=1, epoch=1
    )
    asked = GetCallStatusRequest(idempotency_key="key-1", epoch=1)
    scene_ledger = tmp_path / "ledger"
    async with program(SERVER, "-serve", "127.0.0.1:0", *remembering(tmp_path)) as server:
        async with grpc.aio.insecure_channel(await ready(server)) as channel:
            call = ToolServiceStub(channel).CallTool(request, timeout=SECONDS)
            async with asyncio.timeout(SECONDS):
                while not scene_ledger.exists() or not scene_ledger.read_text():
                    await asyncio.sleep(0.02)
            status = await ToolServiceStub(channel).GetCallStatus(asked, timeout=SECONDS)
            assert status.state == CallState.CALL_STATE_RUNNING
            call.cancel()
        await server.kill()
    async with (
        program(SERVER, "-serve", "127.0.0.1:0", *remembering(tmp_path)) as server,
        grpc.aio.insecure_channel(await ready(server)) as channel,
    ):
        request.attempt = 2
        with pytest.raises(BehestError) as refused:
            await answer(ToolServiceStub(channel), request)
        with pytest.raises(grpc.aio.AioRpcError) as asked_again:
            await ToolServiceStub(channel).GetCallStatus(asked, timeout=SECONDS)
    assert refused.value.reason == from_rpc(asked_again.value).reason == "TOOL_OUTCOME_UNKNOWN"
    assert scene_ledger.read_text() == "pay key-1 1\n"


async def test_the_conformance_kit_finds_no_fault(tmp_path: Path) -> None:  # N05 N14
    async with program(SERVER, "-serve", "127.0.0.1:0", *remembering(tmp_path)) as server:
        command = ["conformance", "tools", await ready(server), "--call", 'big={"size": 2000000}']
        process = await asyncio.create_subprocess_exec(
            str(Path(sys.executable).parent / "behest"),
            *command,
            *("--call", 'nap={"ms": 1500}', "--patience", str(SECONDS)),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        output, _ = await process.communicate()
    assert process.returncode == 0, output.decode()
    assert " 0 fail" in output.decode()


async def test_the_snippet_of_the_readme_serves_and_is_called(tmp_path: Path) -> None:  # C024
    fences = re.findall(
        r"^```go\n(package main\n.*?)^```", (MODULE / "README.md").read_text(), re.MULTILINE | re.DOTALL
    )
    [snippet] = fences
    assert len(snippet.splitlines()) <= 25
    source = tmp_path / "main.go"
    code = snippet.replace('"127.0.0.1:7801"', '"127.0.0.1:0"').replace('"calls.db"', f'"{tmp_path}/calls.db"')
    source.write_text(code)
    assert code.count(str(tmp_path)) == code.count("127.0.0.1:0") == 1
    async with (
        running(tmp_path / "daemon", config=QUICK_STOP) as daemon,
        program(str(source)) as server,
        Client(daemon.address) as client,
    ):
        known = Server(
            name=NAME,
            connection=ServerConnection.SERVER_CONNECTION_DIALLED,
            offers=[ServerOffer.SERVER_OFFER_TOOLS],
            address=await ready(server),
        )
        await client.servers.register(known)
        await listed(client)
        output, _ = await called(client, '/tool add {"a": 2, "b": 3}')
    assert output.endswith("5")


async def test_the_example_counts_words(tmp_path: Path) -> None:
    async with program("./examples/toolserver", "127.0.0.1:0") as server:
        async with grpc.aio.insecure_channel(await ready(server)) as channel:
            request = CallToolRequest(tool_name="count_words", arguments_json='{"text": "three little words"}')
            frame = await answer(ToolServiceStub(channel), request)
        assert frame.result.parts[0].json.json == "3"
        assert await server.terminate() == 0

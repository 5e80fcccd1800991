"""What is special to tool servers in Go: panics, a dialled server in a daemon's hands, the snippet and the example."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path

import grpc
import pytest

from behest.client import Client
from behest.v1.server_pb2 import Server, ServerConnection, ServerOffer, ServerState
from behest.v1.tool_service_pb2 import CallToolRequest
from behest.v1.tool_service_pb2_grpc import ToolServiceStub
from tests.daemon_process import running
from tests.interop.go.golang import BUILD_SECONDS, MODULE, SECONDS, Program, program

pytestmark = pytest.mark.timeout(BUILD_SECONDS + 120)

SERVER = "./internal/interop/toolserver"
QUICK_STOP = "[limits]\ndrain_seconds = 0.1\n"
NAME = "go"


async def ready(server: Program) -> str:
    """Wait until a server listens. Gives its address."""
    found = re.search(r"address=(\S+)", await server.expect("tool server ready"))
    assert found is not None
    return found[1]


async def registered(client: Client, address: str) -> None:
    """Have the daemon dial a server, and wait until it has the server's tools."""
    dialled, tools = ServerConnection.SERVER_CONNECTION_DIALLED, ServerOffer.SERVER_OFFER_TOOLS
    await client.servers.register(Server(name=NAME, connection=dialled, offers=[tools], address=address))
    async with asyncio.timeout(SECONDS):
        while True:
            servers = [server async for server in client.servers.list()]
            if any(each.name == NAME and each.state == ServerState.SERVER_STATE_READY for each in servers):
                return
            await asyncio.sleep(0.05)


async def called(client: Client, order: str) -> str:
    """Order a run, and wait for what it says."""
    async with asyncio.timeout(SECONDS):
        return (await (await client.run(order)).result()).text


async def test_a_run_calls_a_dialled_server_and_a_panic_is_told_to_the_model(tmp_path: Path) -> None:  # C024, C031
    remembering = ["-ledger", str(tmp_path / "ledger"), "-remember", str(tmp_path / "calls.db")]
    async with (
        running(tmp_path / "daemon", config=QUICK_STOP) as daemon,
        program(SERVER, "-serve", "127.0.0.1:0", *remembering) as server,
        Client(daemon.address) as client,
    ):
        await registered(client, await ready(server))
        added = await called(client, '/tool add {"a": 2, "b": 3}')
        panicked = await called(client, "/tool panic {}")
        again = await called(client, '/tool add {"a": 2, "b": 4}')
    assert (added[-1], again[-1]) == ("5", "6")
    assert "no till at all" in panicked


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
        await registered(client, await ready(server))
        output = await called(client, '/tool add {"a": 2, "b": 3}')
    assert output.endswith("5")


async def test_the_example_counts_words(tmp_path: Path) -> None:
    async with program("./examples/toolserver", "127.0.0.1:0") as server:
        async with grpc.aio.insecure_channel(await ready(server)) as channel:
            request = CallToolRequest(tool_name="count_words", arguments_json='{"text": "three little words"}')
            async with asyncio.timeout(SECONDS):
                frames = [frame async for frame in ToolServiceStub(channel).CallTool(request)]
        assert frames[-1].result.parts[0].json.json == "3"
        assert await server.terminate() == 0

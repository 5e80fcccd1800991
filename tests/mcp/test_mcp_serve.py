"""`behest mcp-serve`: tools and runs of a daemon for MCP clients. All parts are real, each a process of its own."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from behest.client import Client
from behest.services.ids import new_request_id
from behest.v1.run_state_pb2 import RunState
from tests.daemon_process import running
from tests.mcp.scenes import SECONDS, Ledger, McpClient, behest, bridge, ended, face, mcp_client, stdio_server, until

pytestmark = pytest.mark.timeout(300)


@asynccontextmanager
async def example(directory: Path) -> AsyncIterator[tuple[Client, Ledger]]:
    """A daemon with the tools of the example MCP server."""
    ledger = Ledger(directory / "ledger")
    async with running(directory / "daemon") as daemon, Client(daemon.address) as client:
        async with bridge(daemon.address, "--", *stdio_server(ledger)):
            yield client, ledger


async def next_progress(mcp: McpClient) -> str:
    """Wait for the next progress, and return its text."""
    happened = await mcp.next()
    assert "progress" in happened, happened
    return str(happened["message"])


async def test_mcp_tools_pass_through_the_daemon_to_an_mcp_client(tmp_path: Path) -> None:  # N18
    async with example(tmp_path) as (client, ledger), face(client.address) as mcp:
        tools = await mcp.tools()
        [added] = await mcp.call("add", a=2, b=3)
        [weather] = await mcp.call("weather_x2e_of", city="Bern")
        [media] = await mcp.call("media")
        [failed] = await mcp.call("fail")
        *shown, counted = await mcp.call("count", to=3)
        [unknown] = await mcp.call("nothing")
        [wrong] = await mcp.call("add", a="two", b=3)
    assert tools["add"]["inputSchema"]["required"] == ["a", "b"]
    assert tools["add"]["annotations"] == {"readOnlyHint": False, "idempotentHint": False}
    assert tools["weather_x2e_of"]["title"] == "Weather"
    assert added["result"]["structuredContent"] == {"result": 5}
    assert added["result"]["content"] == [{"type": "text", "text": '{"result": 5}'}]
    assert weather["result"]["structuredContent"] == {"city": "Bern", "degrees": 21.5}
    image = media["result"]["content"][1]
    assert (image["type"], base64.b64decode(image["data"])) == ("image", b"\x89PNG small")
    assert failed["result"]["isError"]
    assert "there is no such account" in failed["result"]["content"][0]["text"]
    assert [(each["progress"], each["total"], each["message"]) for each in shown] == [
        (1, 3, "at 1"),
        (2, 3, "at 2"),
        (3, 3, "at 3"),
    ]
    assert counted["result"]["content"][0]["text"] == "counted to 3"
    assert unknown["code"] == -32602
    assert wrong["result"]["isError"]
    assert wrong["result"]["content"][0]["text"].startswith("TOOL_ARGUMENTS_INVALID")
    assert ledger.lines == ["add 2 3", "weather Bern"]


async def test_a_cancelled_call_is_cancelled_at_the_other_end(tmp_path: Path) -> None:  # N18
    async with example(tmp_path) as (client, ledger), face(client.address) as mcp:
        await mcp.tell(do="call", id="1", tool="wait")
        assert await next_progress(mcp) == "waiting"
        await mcp.tell(do="cancel", id="1")
        assert await mcp.next() == {"id": "1", "cancelled": True}
        await until(lambda: "wait cancelled" in ledger.lines)


async def test_a_call_with_the_same_key_is_executed_once(tmp_path: Path) -> None:  # N18
    async with example(tmp_path) as (client, ledger), face(client.address) as mcp:
        meta = {"behest/idempotencyKey": new_request_id()}
        answers = [(await mcp.call("add", _meta=meta, a=1, b=1))[-1]["result"]["structuredContent"] for _ in range(2)]
    assert answers == [{"result": 2}] * 2
    assert ledger.lines == ["add 1 1"]


async def test_an_order_is_carried_out_and_shown(tmp_path: Path) -> None:  # N18
    async with running(tmp_path) as daemon, Client(daemon.address) as client, face(daemon.address) as mcp:
        tools = await mcp.tools()
        *shown, done = await mcp.call("run", text="/say hello there")
        run = await client.runs.get(done["result"]["structuredContent"]["run_id"])
        *_, failed = await mcp.call("run", text="/fail REQUEST_INVALID")
        [wrong] = await mcp.call("run", text="hi", budget=3)
        meta = {"behest/idempotencyKey": new_request_id()}
        twice = [(await mcp.call("run", _meta=meta, text="/say once"))[-1]["result"] for _ in range(2)]
    assert list(tools) == ["run"]
    assert done["result"]["content"] == [{"type": "text", "text": "hello there"}]
    assert run.state == RunState.RUN_STATE_COMPLETED
    numbers = [each["progress"] for each in shown]
    assert numbers == sorted(set(numbers))
    assert shown[0]["message"] == "run created"
    assert "model completed, step 1" in [each["message"] for each in shown]
    assert failed["result"]["isError"]
    assert failed["result"]["structuredContent"]["error"] == "PROVIDER_REQUEST_INVALID"
    assert wrong["code"] == -32602
    assert twice[0]["structuredContent"]["run_id"] == twice[1]["structuredContent"]["run_id"]


async def test_a_cancelled_order_cancels_its_run(tmp_path: Path) -> None:  # N18
    async with running(tmp_path) as daemon, Client(daemon.address) as client, face(daemon.address) as mcp:
        await mcp.tell(do="call", id="1", tool="run", arguments={"text": "/delay 50 /words 100000"})
        while await next_progress(mcp) != "model requested, step 1":
            pass
        await mcp.tell(do="cancel", id="1")
        while "cancelled" not in await mcp.next():
            pass
        async with asyncio.timeout(SECONDS):
            while [run.state async for run in client.runs.list()] != [RunState.RUN_STATE_CANCELLED]:
                await asyncio.sleep(0.05)


async def test_a_client_that_goes_away_cancels_what_it_waits_for(tmp_path: Path) -> None:  # N18
    async with running(tmp_path) as daemon, Client(daemon.address) as client:
        async with face(daemon.address) as mcp:
            await mcp.tell(do="call", id="1", tool="run", arguments={"text": "/delay 50 /words 100000"})
            await next_progress(mcp)
        async with asyncio.timeout(SECONDS):
            while [run.state async for run in client.runs.list()] != [RunState.RUN_STATE_CANCELLED]:
                await asyncio.sleep(0.05)


async def test_what_is_offered_is_chosen(tmp_path: Path) -> None:  # N18
    async with example(tmp_path) as (client, _):
        async with face(client.address, "--tools", "a*", "--tools", "weather*", "--run-tool", "order") as mcp:
            assert sorted(await mcp.tools()) == ["add", "order", "weather_x2e_of"]
            [hidden] = await mcp.call("count", to=1)
            assert hidden["code"] == -32602
        async with face(client.address, "--no-tools", "--agent", "nobody") as mcp:
            tools = await mcp.tools()
            assert list(tools) == ["run"]
            assert "agent_id" not in tools["run"]["inputSchema"]["properties"]
            *_, refused = await mcp.call("run", text="hi")
            assert refused["result"]["content"][0]["text"].startswith("AGENT_NOT_FOUND")
        async with face(client.address, "--run-tool", "add") as mcp:
            await mcp.tell(do="list")
            assert "--run-tool" in (await mcp.next())["error"]


async def test_streamable_http_asks_for_the_token(tmp_path: Path) -> None:  # N18
    async with running(tmp_path) as daemon:
        arguments = ("mcp-serve", "--target", daemon.address, "--http", "127.0.0.1:0", "--token-env", "MCP_TOKEN")
        async with behest(*arguments, MCP_TOKEN="s3cret") as command:
            url = (await command.ready())["url"]
            async with mcp_client(url, MCP_TOKEN="s3cret") as mcp:
                *shown, done = await mcp.call("run", text="/say over http")
                assert shown[0]["message"] == "run created"
                assert done["result"]["content"][0]["text"] == "over http"
                await mcp.tell(do="call", id="2", tool="run", arguments={"text": "/delay 50 /words 100000"})
                await next_progress(mcp)
                await mcp.tell(do="cancel", id="2")
                while "cancelled" not in await mcp.next():
                    pass
            async with Client(daemon.address) as client, asyncio.timeout(SECONDS):
                while RunState.RUN_STATE_CANCELLED not in [run.state async for run in client.runs.list()]:
                    await asyncio.sleep(0.05)
            assert await status_of(url, "wrong") == 401
            assert await status_of(url, "") == 401
            assert await command.stop() == 0
    assert (await ended("mcp-serve", "--http", "0.0.0.0:0"))[0] == 2


async def status_of(url: str, token: str) -> int:
    """Post to a URL, and return the status of the answer."""
    address, _, path = url.removeprefix("http://").partition("/")
    host, _, port = address.partition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    authorization = f"Authorization: Bearer {token}\r\n" if token else ""
    writer.write(f"POST /{path} HTTP/1.1\r\nHost: {address}\r\n{authorization}Content-Length: 0\r\n\r\n".encode())
    async with asyncio.timeout(SECONDS):
        line = await reader.readline()
    writer.close()
    await writer.wait_closed()
    return int(line.split()[1])


async def test_a_daemon_that_is_not_there_is_an_error_of_the_call_and_no_end() -> None:  # N18
    async with face("127.0.0.1:1") as mcp:
        await mcp.tell(do="list")
        assert "TRANSPORT_UNAVAILABLE" in (await mcp.next())["error"]

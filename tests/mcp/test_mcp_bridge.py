"""`behest mcp-bridge`: tools of an MCP server are tools of a daemon. All parts are real, each a process of its own."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from behest.client import Client
from behest.errors import BehestError, RunCancelledError
from behest.runs import RunHandle
from behest.v1.event_pb2 import Event
from behest.v1.server_pb2 import Server, ServerConnection, ServerOffer
from behest.v1.tool_pb2 import Executed, Progress, SideEffect, ToolPolicy
from tests import ports
from tests.daemon_process import running
from tests.mcp.scenes import (
    PIPE,
    SECONDS,
    Ledger,
    behest,
    bridge,
    ended,
    http_server,
    killed,
    listening,
    stdio_server,
    until,
)

pytestmark = pytest.mark.timeout(300)

PURE = ToolPolicy(side_effect=SideEffect.SIDE_EFFECT_PURE)


@pytest.fixture
async def client(tmp_path: Path) -> AsyncIterator[Client]:
    """A client of a daemon that asks for no approvals."""
    async with running(tmp_path / "daemon") as daemon, Client(daemon.address) as made:
        yield made


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return Ledger(tmp_path / "ledger")


async def answer(run: RunHandle) -> str:
    async with asyncio.timeout(SECONDS):
        return (await run.result()).text


async def events_until(run: RunHandle, kind: str) -> list[Event]:
    """Follow a run up to the first event of a kind."""
    events = []
    async with asyncio.timeout(SECONDS):
        async for event in run.events():
            events.append(event)
            if event.WhichOneof("payload") == kind:
                return events
    raise AssertionError([event.WhichOneof("payload") for event in events])


def of_kind(events: list[Event], kind: str) -> list[Event]:
    return [event for event in events if event.WhichOneof("payload") == kind]


async def back(client: Client) -> None:
    """Call until the MCP server is there again."""
    async with asyncio.timeout(SECONDS):
        while True:
            try:
                await client.tools.call("add", '{"a": 3, "b": 3}')
            except BehestError as error:
                assert error.reason == "TOOL_UNAVAILABLE"
                continue
            return


async def known_as(client: Client, **policies: ToolPolicy) -> None:
    """Register the bridge's name beforehand, with the operator's word on its tools."""
    offers = [ServerOffer.SERVER_OFFER_TOOLS]
    attached = ServerConnection.SERVER_CONNECTION_ATTACHED
    await client.servers.register(Server(name="example", connection=attached, offers=offers, tool_policies=policies))


async def test_a_run_calls_an_mcp_tool_and_gets_its_structured_result(client: Client, ledger: Ledger) -> None:  # N18
    async with bridge(client.address, "--", *stdio_server(ledger)) as command:
        weather = await client.tools.get("weather_x2e_of")
        add = await client.tools.get("add")
        run = await client.run('/tool add {"a": 2, "b": 3} /tool weather_x2e_of {"city": "Bern"}')
        text = await answer(run)
        failed = await client.tools.call("fail")
        wrong = await client.tools.call("add", '{"a": 1, "b": 2}', idempotency_key="one")
        assert await command.stop() == 0
    assert weather.hints.title == "Weather"
    assert add.policy.side_effect == SideEffect.SIDE_EFFECT_NON_IDEMPOTENT
    assert "reads only" in add.description
    assert '{"result": 5}' in text
    assert '{"city": "Bern", "degrees": 21.5}' in text
    assert failed.is_error
    assert "there is no such account" in failed.parts[0].text.text
    assert [part.json.json for part in wrong.parts] == ['{"result": 3}']
    assert sorted(ledger.lines) == ["add 1 2", "add 2 3", "weather Bern"]


async def test_content_of_every_kind_comes_as_parts_and_artifacts(client: Client, ledger: Ledger) -> None:  # N18
    async with bridge(client.address, "--", *stdio_server(ledger)):
        result = await client.tools.call("media")
        artifacts = {artifact.name or artifact.media_type: artifact async for artifact in client.artifacts.list()}
        content = await client.artifacts.read(artifacts["b.pdf"].id)
    texts = [part.text.text for part in result.parts]
    assert texts[0] == "all kinds"
    assert result.parts[1].image.data == b"\x89PNG small"
    assert result.parts[1].image.media_type == "image/png"
    assert artifacts["image/png"].id in texts[2]
    assert artifacts["image/png"].size_bytes == 300_004
    assert artifacts["audio/wav"].id in texts[3]
    assert texts[4] == "resource note://1:\na note"
    assert artifacts["b.pdf"].id in texts[5]
    assert content == b"hello"
    assert "https://example.com/doc" in texts[6]


@asynccontextmanager
async def bridged(way: str, client: Client, ledger: Ledger) -> AsyncIterator[None]:
    """Bridge the example server over a transport and an era of MCP."""
    transport, _, era = way.partition(" ")
    options = ["--legacy"] if era == "legacy" else []
    if transport == "stdio":
        async with bridge(client.address, "--", *stdio_server(ledger, *options)):
            yield
        return
    port = ports.reserved()
    async with http_server(ledger, port, *options):
        async with bridge(client.address, "--url", f"http://127.0.0.1:{port}/mcp"):
            yield


WAYS = pytest.mark.parametrize("way", ["stdio modern", "stdio legacy", "http modern", "http legacy"])


@WAYS
async def test_progress_cancel_and_changes_pass(way: str, client: Client, ledger: Ledger) -> None:  # N18
    async with bridged(way, client, ledger):
        shown: list[Progress] = []
        counted = await client.tools.call("count", '{"to": 3}', on_progress=shown.append)
        key = await client.tools.call("key", idempotency_key="my-key")

        run = await client.run("/tool wait")
        await until(lambda: "wait begins" in ledger.lines)
        await run.cancel()
        with pytest.raises(RunCancelledError):
            await answer(run)
        await until(lambda: "wait cancelled" in ledger.lines)

        assert [tool async for tool in client.tools.list() if tool.name == "grown"] == []
        await client.tools.call("grow")
        async with asyncio.timeout(SECONDS):
            while "grown" not in [tool.name async for tool in client.tools.list()]:
                await asyncio.sleep(0.05)
        grown = await client.tools.call("grown")
    assert counted.parts[0].text.text == "counted to 3"
    assert [(each.text, each.current, each.total) for each in shown] == [(f"at {n}", n, 3) for n in (1, 2, 3)]
    assert key.parts[0].text.text
    assert grown.parts[0].text.text == "grown"


async def test_a_server_that_dies_in_a_call_leaves_its_outcome_unknown(client: Client, ledger: Ledger) -> None:  # N18
    async with bridge(client.address, "--", *stdio_server(ledger)):
        run = await client.run("/tool die")
        events = await events_until(run, "tool_outcome_unknown")
        [record] = [call async for call in client.tool_calls.list()]
        # The bridge has started another process by itself.
        added = await answer(await client.run('/tool add {"a": 1, "b": 1}'))
        await client.tool_calls.resolve(record.id, Executed.EXECUTED_YES, reason="the ledger says so")
        await answer(run)
    assert len(of_kind(events, "tool_started")) == 1
    assert record.attempts[0].error.details
    assert "TOOL_UNAVAILABLE" in str(record.attempts[0].error)
    assert ledger.lines == ["die", "add 1 1"]
    assert '{"result": 2}' in added
    assert len(ledger.pids) == 2


async def test_an_http_server_that_dies_in_a_call_leaves_its_outcome_unknown(
    client: Client, ledger: Ledger
) -> None:  # N18
    port = ports.reserved()
    async with http_server(ledger, port), bridge(client.address, "--url", f"http://127.0.0.1:{port}/mcp"):
        events = await events_until(await client.run("/tool die"), "tool_outcome_unknown")
    assert len(of_kind(events, "tool_started")) == 1
    assert ledger.lines == ["die"]


async def test_the_operators_word_decides_that_a_call_may_be_repeated(client: Client, ledger: Ledger) -> None:  # N18
    await known_as(client, die=PURE)
    async with bridge(client.address, "--", *stdio_server(ledger)):
        run = await client.run("/tool die /next /say sorry")
        text = await answer(run)
        events = await events_until(client.watch(run.run_id), "run_completed")
    failures = [event.tool_failed.reason for event in of_kind(events, "tool_failed")]
    assert text == "sorry"
    assert ledger.lines == ["die"] * 3
    assert failures == ["TOOL_UNAVAILABLE"] * 3


@pytest.mark.parametrize("era", ["--legacy", ""])
async def test_a_call_while_the_server_is_away_is_proved_not_executed(
    era: str, client: Client, ledger: Ledger
) -> None:  # N18
    port = ports.reserved()
    options = [era] if era else []
    async with http_server(ledger, port, *options) as first:
        async with bridge(client.address, "--url", f"http://127.0.0.1:{port}/mcp"):
            await client.tools.call("add", '{"a": 1, "b": 1}')
            await killed(first)
            run = await client.run('/tool add {"a": 2, "b": 2}')
            events = await events_until(run, "tool_failed")
            async with http_server(ledger, port, *options):
                # Whether that is in time for the last attempt or not, nothing was executed twice.
                await answer(run)
                await back(client)
    failed = events[-1].tool_failed
    assert failed.reason == "TOOL_UNAVAILABLE"
    assert failed.executed == Executed.EXECUTED_NO
    assert ledger.lines[0] == "add 1 1"
    assert ledger.lines.count("add 2 2") <= 1
    assert ledger.lines[-1] == "add 3 3"


async def test_a_session_that_the_server_forgot_is_opened_again(client: Client, ledger: Ledger) -> None:  # N18
    port = ports.reserved()
    async with http_server(ledger, port, "--legacy") as first:
        async with bridge(client.address, "--url", f"http://127.0.0.1:{port}/mcp"):
            await client.tools.call("add", '{"a": 1, "b": 1}')
            await killed(first)
            async with http_server(ledger, port, "--legacy"):
                await listening(port)
                run = await client.run('/tool add {"a": 2, "b": 2}')
                text = await answer(run)
                events = await events_until(client.watch(run.run_id), "run_completed")
    assert '{"result": 4}' in text
    assert {event.tool_failed.executed for event in of_kind(events, "tool_failed")} <= {Executed.EXECUTED_NO}
    assert ledger.lines == ["add 1 1", "add 2 2"]


async def test_a_server_killed_while_idle_is_started_again(client: Client, ledger: Ledger) -> None:  # N18
    async with bridge(client.address, "--", *stdio_server(ledger)):
        os.kill(ledger.pids[-1], signal.SIGKILL)
        await until(lambda: len(ledger.pids) == 2)
        assert '{"result": 9}' in await answer(await client.run('/tool add {"a": 4, "b": 5}'))
    assert ledger.lines == ["add 4 5"]


async def test_a_bridge_can_be_dialled(client: Client, ledger: Ledger) -> None:  # N18
    async with behest("mcp-bridge", "--listen", "127.0.0.1:0", "--", *stdio_server(ledger)) as command:
        address = (await command.ready())["address"]
        dialled = ServerConnection.SERVER_CONNECTION_DIALLED
        offers = [ServerOffer.SERVER_OFFER_TOOLS]
        await client.servers.register(Server(name="example", connection=dialled, address=address, offers=offers))
        text = await answer(await client.run('/tool add {"a": 2, "b": 3}'))
        media = await client.tools.call("media")
        assert await command.stop() == 0
    assert '{"result": 5}' in text
    assert any("not kept" in part.text.text for part in media.parts)


async def test_an_offer_that_cannot_be_kept_ends_the_bridge(client: Client, ledger: Ledger) -> None:  # N18
    start = ("mcp-bridge", "--name", "example", "--target", client.address)
    code, told = await ended(*start, "--prefix", "p" * 60, "--", *stdio_server(ledger))
    assert code == 1
    assert "weather.of" in told
    code, told = await ended(*start, "--patience", "3", "--url", "http://127.0.0.1:1/mcp")
    assert code == 1
    assert "ConnectError" in told
    assert [server async for server in client.servers.list()] == []


async def test_wrong_usage_is_told() -> None:
    nowhere = ["--name", "n", "--url", "http://example.com/mcp"]
    for arguments in (
        ["--name", "n"],
        ["--", "true"],
        [*nowhere, "--", "true"],
        [*nowhere, "--header", "Authorization=HOME"],
        ["--name", "n", "--", "/no/such/command"],
        ["--name", "n", "--env", "NO_SUCH_VARIABLE", "--", "true"],
    ):
        assert (await ended("mcp-bridge", *arguments))[0] == 2


async def test_without_the_extra_the_command_says_what_to_install() -> None:
    without = "import sys; sys.modules['mcp'] = None; from behest.cli import main; main()"
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", without, "mcp-serve", stderr=PIPE)
    async with asyncio.timeout(SECONDS):
        _, told = await process.communicate()
    assert process.returncode == 1
    assert "pip install 'behest[mcp]'" in told.decode()

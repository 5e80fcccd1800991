"""The SDK's tool server attached to real daemons, which stop, crash and come back while calls run."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from behest.calls import Patience
from behest.client import Client
from behest.errors import BehestError
from behest.runs import RunHandle
from behest.tools import Context, ToolServer
from behest.v1.server_pb2 import ServerState
from behest.v1.tool_service_pb2 import ListToolsRequest
from behestd.runtime.house import Limits
from tests.daemon_process import DaemonProcess, running
from tests.daemons import Served, serve
from tests.runs.scenes import OPEN

SECONDS = 30
PATIENCE = Patience(pause_seconds=0.5)
QUICK_STOP = "[limits]\ndrain_seconds = 0.1\n"


@pytest.fixture
async def served() -> AsyncIterator[Served]:
    """A daemon that asks for no approvals."""
    async with serve(operator=OPEN) as made:
        yield made


class Till:
    """A tool that pays: what it did is written here alone, and it waits until it may go on."""

    def __init__(self) -> None:
        self.paid: list[str] = []
        self.stopped: list[str] = []
        self.begun = asyncio.Event()
        self.opened = asyncio.Event()

    async def pay(self, context: Context, to: str) -> str:
        """Pay somebody."""
        self.paid.append(f"{to} {context.idempotency_key}")
        context.progress("paying")
        self.begun.set()
        try:
            await self.opened.wait()
        except asyncio.CancelledError:
            self.stopped.append(to)
            raise
        return f"paid {to}"


@asynccontextmanager
async def till(address: str, *, dedupe: Path | None = None) -> AsyncIterator[tuple[ToolServer, Till]]:
    """Attach a till to a daemon."""
    server, made = ToolServer(dedupe=str(dedupe) if dedupe else ""), Till()
    server.tool(made.pay)
    async with server:
        async with asyncio.timeout(SECONDS):
            await server.attach(address, name="till")
        yield server, made


async def kinds(run: RunHandle) -> list[str]:
    return [event.WhichOneof("payload") or "" async for event in run.events()]


async def test_a_run_calls_the_tool_of_an_attached_server(served: Served) -> None:  # C025
    async with till(served.client.address) as (_, made):
        made.opened.set()
        [tool] = [tool async for tool in served.client.tools.list(ListToolsRequest(name_glob="pay"))]
        run = await served.client.run('/tool pay {"to": "ann"}')
        async with asyncio.timeout(SECONDS):
            output = await run.result()
    assert tool.description == "Pay somebody."
    assert "paid ann" in output.text
    assert len(made.paid) == 1


async def test_what_a_server_offers_goes_when_it_does_not_come_back(tmp_path: Path) -> None:  # C025
    async with serve(operator=OPEN, limits=Limits(reconnect_seconds=0.5)) as served:
        client = served.client
        async with till(client.address) as (server, _):
            assert [tool.name async for tool in client.tools.list()] == ["pay"]
            await server.stop()
            async with asyncio.timeout(SECONDS):
                while [tool async for tool in client.tools.list()]:
                    await asyncio.sleep(0.05)
            [known] = [server async for server in client.servers.list()]
            assert known.state == ServerState.SERVER_STATE_DISCONNECTED


@pytest.mark.parametrize("ending", [DaemonProcess.kill, DaemonProcess.terminate])
async def test_a_call_goes_on_over_a_restart_of_the_daemon_and_is_executed_once(
    ending: object, tmp_path: Path
) -> None:  # C025
    async with running(tmp_path, config=QUICK_STOP) as daemon, Client(daemon.address, patience=PATIENCE) as client:
        async with till(daemon.address, dedupe=tmp_path / "calls") as (_, made), asyncio.timeout(SECONDS):
            run = await client.run('/tool pay {"to": "ann"} /next /say thanks')
            await made.begun.wait()
            await ending(daemon)  # type: ignore[operator]
            await daemon.start()
            made.opened.set()
            output = await run.result()
            assert output.text == "thanks"
            assert len(made.paid) == 1
            assert "tool_outcome_unknown" not in await kinds(run)


@pytest.mark.parametrize("runs", [10, pytest.param(250, marks=[pytest.mark.proof, pytest.mark.timeout(600)])])
async def test_many_calls_in_flight_are_each_executed_once_over_a_crash(runs: int, tmp_path: Path) -> None:  # C025
    config = "[limits]\ntool_calls = 2000\n"
    async with running(tmp_path, config=config) as daemon, Client(daemon.address, patience=PATIENCE) as client:
        async with till(daemon.address, dedupe=tmp_path / "calls") as (_, made), asyncio.timeout(SECONDS + runs):
            orders = [" ".join(f'/tool pay {{"to": "{run}-{call}"}}' for call in range(4)) for run in range(runs)]
            handles = [await client.run(order + " /next /say thanks") for order in orders]
            while len(made.paid) < 4 * runs:
                await asyncio.sleep(0.05)
            await daemon.kill()
            await daemon.start()
            made.opened.set()
            assert {(await handle.result()).text for handle in handles} == {"thanks"}
    assert len(made.paid) == len(set(made.paid)) == 4 * runs


async def test_a_result_that_was_ready_while_the_daemon_was_away_is_taken(tmp_path: Path) -> None:  # C025
    async with running(tmp_path) as daemon, Client(daemon.address, patience=PATIENCE) as client:
        async with till(daemon.address) as (_, made), asyncio.timeout(SECONDS):
            run = await client.run('/tool pay {"to": "ann"} /next /say thanks')
            await made.begun.wait()
            await daemon.kill()
            made.opened.set()
            await daemon.start()
            assert (await run.result()).text == "thanks"
            assert len(made.paid) == 1


async def test_a_server_that_drains_gives_its_results_first(served: Served) -> None:  # C025
    async with till(served.client.address) as (server, made), asyncio.timeout(SECONDS):
        run = await served.client.run('/tool pay {"to": "ann"} /next /say thanks')
        await made.begun.wait()
        draining = asyncio.ensure_future(server.drain())
        await asyncio.sleep(0)
        made.opened.set()
        await draining
        assert (await run.result()).text == "thanks"
        assert len(made.paid) == 1


async def test_a_cancelled_run_stops_the_tool(served: Served) -> None:  # C025
    async with till(served.client.address) as (_, made), asyncio.timeout(SECONDS):
        run = await served.client.run('/tool pay {"to": "ann"}')
        await made.begun.wait()
        await run.cancel()
        with pytest.raises(BehestError):
            await run.result()
        assert made.stopped == ["ann"]


async def test_large_arguments_and_results_pass(served: Served) -> None:  # C025
    server = ToolServer()

    @server.tool
    def double(text: str) -> str:
        return text * 4

    async with server, asyncio.timeout(SECONDS):
        await server.attach(served.client.address, name="large")
        text = "ü" * 400_000
        result = await served.client.tools.call("double", '{"text": "' + text + '"}')
    assert result.is_error is False
    assert result.parts[0].text.text[:1000] == text[:1000]


async def test_an_artifact_of_a_tool_is_found_in_the_session_of_its_run(served: Served) -> None:
    server = ToolServer()

    @server.tool
    async def report(context: Context) -> dict[str, str]:
        stored = await context.artifact(b"%PDF", name="report.pdf", media_type="application/pdf")
        return {"artifact_id": stored.id}

    async with server, asyncio.timeout(SECONDS):
        await server.attach(served.client.address, name="reports")
        run = await served.client.run("/tool report")
        await run.result()
        [artifact] = [artifact async for artifact in served.client.artifacts.list()]
    assert (artifact.name, artifact.session_id) == ("report.pdf", (await run.get()).session_id)
    assert await served.client.artifacts.read(artifact.id) == b"%PDF"


async def test_a_name_that_is_taken_is_refused_at_once(served: Served) -> None:  # C026
    def pay(to: int) -> None:
        """Pay a number."""

    other = ToolServer()
    other.tool(pay)
    async with till(served.client.address), other:
        async with asyncio.timeout(SECONDS):
            with pytest.raises(BehestError) as refused:
                await other.attach(served.client.address, name="other")
    assert refused.value.reason == "TOOL_NAME_TAKEN"


async def test_a_server_that_is_unregistered_is_told_and_does_not_come_back(served: Served) -> None:  # C025
    server = ToolServer()
    server.tool(name="pay")(Till().pay)
    async with server, asyncio.timeout(SECONDS):
        attachment = await server.attach(served.daemon.addresses[0], name="till")
        (known,) = [each async for each in served.client.servers.list()]
        await served.client.servers.unregister(known.id)
        with pytest.raises(BehestError) as refusal:
            await attachment.ended()
        assert refusal.value.reason == "TOOL_SERVER_NOT_FOUND"
        assert [each async for each in served.client.servers.list()] == []


async def test_a_second_server_of_a_name_takes_the_place_of_the_first(served: Served) -> None:  # C025
    async with till(served.client.address) as (first, one), till(served.client.address) as (_, two):
        async with asyncio.timeout(SECONDS):
            with pytest.raises(BehestError) as replaced:
                await first.wait()
            two.opened.set()
            await (await served.client.run('/tool pay {"to": "ann"}')).result()
    assert replaced.value.reason == "TOOL_SERVER_REPLACED"
    assert (len(one.paid), len(two.paid)) == (0, 1)

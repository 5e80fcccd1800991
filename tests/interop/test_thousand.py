"""A thousand calls in flight over attached servers in three languages, and the daemon is killed: none lost, none twice.

The ledgers of the servers, written before a call answers, are the witness.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest

from behest.client import Client
from behest.v1.server_pb2 import Server, ServerConnection, ServerOffer, ServerState
from behest.v1.tool_pb2 import SideEffect, ToolPolicy
from tests.daemon_process import running
from tests.interop.go import golang
from tests.interop.go.test_tools import SERVER
from tests.interop.typescript import node
from tests.payment.shop import NAME

pytestmark = pytest.mark.timeout(golang.BUILD_SECONDS + node.INSTALL_SECONDS + 300)

CONFIG = """
[limits]
tool_calls = 2000
active_runs = 1200
cancel_grace_seconds = 1.0

[permissions]
default = "allow"
"""
SECONDS = 180.0


@asynccontextmanager
async def _shop(home: Path, address: str) -> AsyncIterator[None]:
    command = ["-m", "tests.payment.shop", str(home / "shop"), str(home / "shop-calls"), "--attach", address]
    process = await asyncio.create_subprocess_exec(sys.executable, *command, stdout=asyncio.subprocess.DEVNULL)
    try:
        yield
    finally:
        process.kill()
        await process.wait()


def _orders(number: int, work_ms: int) -> str:
    """The words that call each language's tool, which takes effect at once and then works on."""
    calls = {
        NAME: f'/tool shop-payment {{"mark": "{number}", "work_ms": {work_ms}}}',
        "go": f'/tool go-pay {{"amount": {number}, "delay_ms": {work_ms}}}',
        "typescript": f'/tool typescript-wait {{"ms": {work_ms + number}}}',
    }
    return f"{calls[NAME]} {calls['go']} {calls['typescript']} /next /say done"


def _effects(home: Path) -> dict[str, list[str]]:
    """The keys of what took effect, by server, as each ledger has them."""

    def read(name: str) -> list[str]:
        place = home / name
        return place.read_text().splitlines() if place.exists() else []

    shop = [json.loads(line) for line in read("shop")]
    return {
        NAME: [line["key"] for line in shop if line["what"] == "effect"],
        "go": [line.split()[1] for line in read("go")],
        "typescript": [json.loads(line)["key"] for line in read("typescript")],
    }


async def _ready(client: Client) -> None:
    async with asyncio.timeout(SECONDS):
        while True:
            servers = [server async for server in client.servers.list()]
            if all(server.state == ServerState.SERVER_STATE_READY for server in servers):
                return
            await asyncio.sleep(0.05)


@pytest.mark.parametrize(
    ("count", "work_ms"), [(30, 8_000), pytest.param(334, 60_000, marks=pytest.mark.proof)], ids=["90", "1002"]
)
async def test_calls_in_flight_in_three_languages_survive_the_death_of_the_daemon(
    tmp_path: Path, count: int, work_ms: int
) -> None:  # C025, N02
    async with AsyncExitStack() as stack:
        daemon = await stack.enter_async_context(running(tmp_path / "daemon", config=CONFIG))
        client = await stack.enter_async_context(Client(daemon.address))
        for name in (NAME, "go", "typescript"):
            server = Server(
                name=name,
                connection=ServerConnection.SERVER_CONNECTION_ATTACHED,
                offers=[ServerOffer.SERVER_OFFER_TOOLS],
                name_prefix=f"{name}-",
                tool_policies={"*": ToolPolicy(side_effect=SideEffect.SIDE_EFFECT_NON_IDEMPOTENT)},
            )
            server.tool_policies["*"].timeouts.start_to_close.seconds = int(SECONDS) * 2
            server.tool_policies["*"].timeouts.schedule_to_close.seconds = int(SECONDS) * 2
            await client.servers.register(server)
        await stack.enter_async_context(_shop(tmp_path, daemon.address))
        go = ["-attach", daemon.address, "-remember", str(tmp_path / "go-calls"), "-ledger", str(tmp_path / "go")]
        await stack.enter_async_context(golang.program(SERVER, *go))
        typescript = ["attached", daemon.address, str(tmp_path / "typescript"), str(tmp_path / "typescript-calls")]
        await stack.enter_async_context(node.program("tools", *typescript))
        await _ready(client)
        runs = [await client.run(_orders(number, work_ms)) for number in range(count)]
        async with asyncio.timeout(SECONDS):
            while sum(map(len, _effects(tmp_path).values())) < 3 * count:
                await asyncio.sleep(0.1)
        await daemon.kill()
        await daemon.start()
        async with asyncio.timeout(SECONDS):
            outcomes = [await run.result() for run in runs]
        records = [record async for record in client.tool_calls.list()]
    assert [outcome.text for outcome in outcomes] == ["done"] * count
    assert len(records) == 3 * count
    for name, keys in _effects(tmp_path).items():
        assert len(keys) == len(set(keys)) == count, name

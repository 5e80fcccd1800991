"""The README's tool server, in each of its languages: it attaches to a daemon, and a run gets its answer."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest

from behest.client import Client
from behest.v1.server_pb2 import ServerState
from tests.daemon_process import running
from tests.interop.go import golang
from tests.interop.typescript import node
from tests.interop.typescript.test_package import written
from tests.test_readme import fences

pytestmark = pytest.mark.timeout(golang.BUILD_SECONDS + node.INSTALL_SECONDS + 120)

SECONDS = 60.0
ALLOWED = '[permissions]\ndefault = "allow"\n'


@asynccontextmanager
async def _python(code: str, home: Path) -> AsyncIterator[None]:
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", code)
    try:
        yield
    finally:
        process.kill()
        await process.wait()


@asynccontextmanager
async def _go(code: str, home: Path) -> AsyncIterator[None]:
    source = home / "main.go"
    source.write_text(code)
    async with golang.program(str(source)):
        yield


@asynccontextmanager
async def _typescript(code: str, home: Path) -> AsyncIterator[None]:
    async with node.running(await asyncio.to_thread(written, "main-readme", code)):
        yield


SERVERS = {"python": (_python, 1), "go": (_go, 0), "ts": (_typescript, 0)}
"""How the snippet of a language is run, and which of its snippets it is."""


@pytest.mark.parametrize("language", SERVERS)
async def test_the_tool_server_of_the_readme_attaches_and_is_called(tmp_path: Path, language: str) -> None:  # C025
    run, number = SERVERS[language]
    snippet = fences(language)[number]
    assert "127.0.0.1:7717" in snippet
    async with AsyncExitStack() as stack:
        daemon = await stack.enter_async_context(running(tmp_path / "daemon", config=ALLOWED))
        client = await stack.enter_async_context(Client(daemon.address))
        await stack.enter_async_context(run(snippet.replace("127.0.0.1:7717", daemon.address), tmp_path))
        async with asyncio.timeout(SECONDS):
            while not await _is_there(client):
                await asyncio.sleep(0.05)
            result = await (await client.run('/tool add {"a": 2, "b": 3}')).result()
    assert result.text.endswith("5")


async def _is_there(client: Client) -> bool:
    servers = [server async for server in client.servers.list()]
    return any(server.name == "calc" and server.state == ServerState.SERVER_STATE_READY for server in servers)

"""What every attached tool server does with a real daemon, in every language."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from behest.client import Client
from behest.errors import RunCancelledError
from behest.v1.delta_pb2 import Delta
from behest.v1.event_pb2 import Event
from behest.v1.tool_service_pb2 import CallToolRequest
from tests.daemon_process import DaemonProcess, running
from tests.interop.common.languages import BUILD_SECONDS, LANGUAGES, SECONDS, Language, Program, program

pytestmark = pytest.mark.timeout(BUILD_SECONDS + 180)

UNICODE = "Ünïcödé 漢字 🙂"
TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
CONFIG = '[limits]\ndrain_seconds = 0.1\n[permissions]\ndefault = "allow"\n'


@asynccontextmanager
async def attached(language: Language, home: Path) -> AsyncIterator[tuple[DaemonProcess, Client, Program]]:
    """Run a daemon, and the tool server of a language attached to it."""
    async with running(home / "daemon", config=CONFIG) as daemon, Client(daemon.address) as client:
        async with program(language, "tools", "attach", daemon.address, str(home / "calls"), "") as server:
            await server.ready()
            yield daemon, client, server


async def completed(client: Client, order: str) -> Event:
    """Order a run, and return how its call of a tool ended."""
    async with asyncio.timeout(SECONDS):
        run = await client.run(order)
        events = [event async for event in run.events()]
    [found] = [event for event in events if event.HasField("tool_completed")]
    return found


async def test_runs_call_an_attached_server_and_their_cancel_reaches_it(  # C025, C045
    language: Language, tmp_path: Path
) -> None:
    async with attached(language, tmp_path) as (_, client, server):
        said = await completed(client, f"/tool echo {json.dumps({'text': UNICODE})}")
        failed = await completed(client, '/tool fail {"why": "of course"}')
        large = await completed(client, '/tool large {"bytes": 3000000}')
        async with asyncio.timeout(SECONDS):
            run = await client.run('/tool work {"seconds": 3600}')
            shown = []
            async for update in run.updates():
                if isinstance(update, Delta) and update.HasField("tool_progress"):
                    shown.append(update.tool_progress.text)
                    await run.cancel()
            with pytest.raises(RunCancelledError):
                await run.result()
        # Its end, not an hour of work, lets the server end.
        assert await server.terminate() == 0
    assert said.tool_completed.result.parts[0].text.text == UNICODE
    assert failed.tool_completed.is_error
    assert failed.tool_completed.result.parts[0].text.text == "of course"
    assert not large.tool_completed.is_error
    assert "äää" in large.tool_completed.result.parts[0].text.text
    assert shown[0] == "step 0"
    assert len(server.begun) == 1


@pytest.mark.parametrize("language", [each for each in LANGUAGES if "keep" not in each.lacks], ids=str)
async def test_a_tool_keeps_an_artifact_in_the_session_of_its_run_once_a_call(  # C025
    language: Language, tmp_path: Path
) -> None:
    text = UNICODE * 35_000
    async with attached(language, tmp_path) as (_, client, _):
        kept = await completed(client, f"/tool keep {json.dumps({'text': text}, ensure_ascii=False)}")
        told = json.loads(kept.tool_completed.result.parts[0].json.json)
        stored = await client.artifacts.get(told["id"])
        content = await client.artifacts.read(told["id"])
        direct = CallToolRequest(tool_name="keep", arguments_json='{"text": "a"}', idempotency_key="key")
        call = client.stubs.tools.CallTool(direct, metadata=(("traceparent", TRACE),))
        async with asyncio.timeout(SECONDS):
            frames = [frame async for frame in call]
    assert (stored.name, stored.media_type, stored.session_id) == ("kept.txt", "text/plain", kept.session_id)
    assert content.decode() == text
    trace = json.loads(frames[-1].result.parts[0].json.json)["trace"]
    assert trace.split("-")[1] == TRACE.split("-")[1]


async def test_a_call_survives_the_death_of_the_daemon_and_a_server_that_ends_gives_what_runs(  # C025, N02
    language: Language, tmp_path: Path
) -> None:
    async with attached(language, tmp_path) as (daemon, client, server):
        run = await client.run('/tool work {"seconds": 3}')
        await server.work()
        await daemon.kill()
        await daemon.start()
        async with asyncio.timeout(SECONDS):
            survived = await run.result()
        ending = await client.run('/tool work {"seconds": 1}')
        await server.work()
        assert await server.terminate() == 0
        async with asyncio.timeout(SECONDS):
            given = await ending.result()
    assert survived.text.endswith("worked 1")
    assert given.text.endswith("worked 2")
    assert len(server.begun) == len(set(server.begun)) == 2

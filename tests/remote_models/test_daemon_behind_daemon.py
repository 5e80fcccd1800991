"""A daemon as the model provider of another daemon, both real processes: ids, trace, deadline, cancel and errors."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from behest.client import Client
from behest.errors import BehestError
from behest.v1.chat_service_pb2 import Chat, ChatEnd
from behest.v1.embedding_service_pb2 import EmbedRequest
from behest.v1.run_service_pb2 import CreateRunRequest
from behest.v1.run_spec_pb2 import RunSpec
from tests.daemon_process import DaemonProcess, running
from tests.providers.conformance import user
from tests.remote_models.model_peer import WAIT_SECONDS, Raw, end, endless, piece, raw, saying
from tests.runs.scenes import kinds, only

pytestmark = pytest.mark.timeout(120)

TRACE_ID = "0af7651916cd43dd8448eb211c80319c"
PARENT = f"00-{TRACE_ID}-b7ad6b7169203331-01"
SERVER = """
[[tools.servers]]
name = "{name}"
address = "{address}"
offers = ["chat", "embeddings"]
"""
QUICK = """
[models]
default = "far/hand/m"
[models.retries]
base_seconds = 0.01
cap_seconds = 0.02
attempts_per_endpoint = 1
attempts_per_step = 1
[models.breaker]
failures = 0
"""


@dataclass
class Place:
    """The near daemon, a client of it, and the model server behind the far one."""

    near: DaemonProcess
    far: DaemonProcess
    client: Client
    hand: Raw

    async def ids(self) -> list[str]:
        """The models that the near daemon lists of the far one."""
        return [model.id async for model in self.client.models.list() if model.provider_id == "far"]


@asynccontextmanager
async def place(home: Path) -> AsyncIterator[Place]:
    """A model server that is registered with a daemon, which is registered with a daemon."""
    async with raw(saying(piece("hi"), end("hi"))) as hand:
        behind = SERVER.format(name="hand", address=hand.address)
        async with running(home / "far", config=behind) as far:
            config = SERVER.format(name="far", address=far.address) + QUICK
            async with running(home / "near", config=config) as near, Client(near.address) as client:
                made = Place(near, far, client, hand)
                async with asyncio.timeout(WAIT_SECONDS):
                    while "far/hand/m" not in await made.ids():
                        await asyncio.sleep(0.05)
                yield made


def chat(model: str = "far/hand/m", text: str = "hello", **fields: Any) -> Chat:
    return Chat(model=model, messages=[user(text)], **fields)


async def failing(place: Place, asked: Chat) -> BehestError:
    with pytest.raises(BehestError) as caught:
        await place.client.chat.complete(asked)
    return caught.value


async def test_models_of_the_far_daemon_are_models_of_the_near_one(tmp_path: Path) -> None:  # N05
    async with place(tmp_path) as at:
        assert {"far/hand/m", "far/hand/vectors", "far/scripted/echo", "far/scripted/embed"} <= set(await at.ids())
        # It is the default of the near daemon's configuration.
        events = [event async for event in (await at.client.run("hello")).events()]
        assert kinds(events)[-1] == "run_completed"
        assert only(events, "model_completed")[0].message.parts[0].text.text == "hi"
        assert at.hand.seen[0].chat.model == "m"
        asked = chat("far/scripted/echo", '/say Let me look. /tool look_up {"id": 9007199254740993}')
        asked.tools.add(name="look_up", input_schema_json='{"type": "object"}')
        told = await at.client.chat.complete(asked)
        assert told.message.parts[1].tool_call.arguments_json == '{"id": 9007199254740993}'
        assert told.model == "far/scripted/echo"
        response = await at.client.stubs.embeddings.Embed(EmbedRequest(model="far/scripted/embed", inputs=["a", "b"]))
        assert len(response.embeddings) == 2


async def test_trace_deadline_and_cancel_pass_through_both_daemons(tmp_path: Path) -> None:  # N05
    async with place(tmp_path) as at:
        spec = RunSpec(run_id="run-1", input=user("hello").parts)
        request = CreateRunRequest(request_id="r", spec=spec)
        await at.client.stubs.runs.CreateRun(request, metadata=(("traceparent", PARENT),))
        events = [event async for event in at.client.watch("run-1").events()]
        assert kinds(events)[-1] == "run_completed"
        seen = at.hand.seen[0]
        assert seen.metadata["traceparent"].split("-")[1] == TRACE_ID
        assert 0 < seen.chat.timeout.ToSeconds() <= 600
        at.hand.play = endless
        await at.client.run("hello", run_id="run-2")
        seen = await at.hand.until(2)
        await at.client.runs.cancel("run-2")
        async with asyncio.timeout(WAIT_SECONDS):
            await seen.cancelled.wait()
        asked = chat()
        asked.timeout.FromSeconds(1)
        assert (await failing(at, asked)).reason == "PROVIDER_TIMEOUT"
        async with asyncio.timeout(WAIT_SECONDS):
            await at.hand.seen[2].cancelled.wait()


async def test_errors_keep_their_meaning_through_both_daemons(tmp_path: Path) -> None:  # N05
    async with place(tmp_path) as at:
        for reason in ("RATE_LIMITED", "QUOTA", "CONTEXT_TOO_LONG", "CONTENT_REFUSED", "CREDENTIALS_REJECTED"):
            error = await failing(at, chat("far/scripted/echo", f"/fail {reason}"))
            assert error.reason == f"PROVIDER_{reason}"
            assert error.code.name != "UNAUTHENTICATED"
        assert (await failing(at, chat("far/scripted/echo", "/say a b c /cut 1"))).reason == "PROVIDER_STREAM_BROKEN"
        assert (await failing(at, chat("far/nobody/m"))).reason == "PROVIDER_MODEL_NOT_FOUND"


async def test_a_far_daemon_that_dies_in_an_answer_breaks_the_attempt(tmp_path: Path) -> None:  # N05
    async with place(tmp_path) as at:
        at.hand.play = endless
        async with aclosing(at.client.chat.stream(chat())) as pieces:
            first = await anext(pieces)
            assert not isinstance(first, ChatEnd)
            await at.far.kill()
            with pytest.raises(BehestError) as caught:
                await anext(pieces)
        assert caught.value.reason == "PROVIDER_STREAM_BROKEN"
        await at.far.start()
        at.hand.play = saying(piece("again"), end("again"))
        async with asyncio.timeout(WAIT_SECONDS):
            while True:
                try:
                    told = await at.client.chat.complete(chat())
                    break
                except BehestError as error:
                    assert error.reason in ("PROVIDER_UNAVAILABLE", "PROVIDER_MODEL_NOT_FOUND")
                    await asyncio.sleep(0.1)
        assert told.message.parts[0].text.text == "again"

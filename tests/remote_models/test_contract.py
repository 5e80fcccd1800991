"""Remote providers are providers: the suite of all adapters, dialled and attached."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest

from behest.v1.chat_service_pb2 import Chat
from behestd.providers.provider import Provider
from behestd.providers.scripted import Scripted
from tests.attach.peer import attached
from tests.daemons import serve
from tests.providers.conformance import SUITE, Subject, user
from tests.remote_models.model_peer import Attending, model, raw, scripted


@asynccontextmanager
async def dialled() -> AsyncIterator[Provider]:
    async with raw(scripted(Scripted())) as server, serve() as served:
        server.models = [model("echo")]
        await served.client.servers.register(server.registration())
        yield served.daemon.house.models.of("default").provider("far")


@asynccontextmanager
async def attaching() -> AsyncIterator[Provider]:
    async with (
        serve() as served,
        attached(served.daemon.addresses[0], "far", models=[model("echo")], tools=[]) as peer,
        asyncio.TaskGroup() as group,
    ):
        task = group.create_task(Attending(peer, scripted(Scripted())).run())
        yield served.daemon.house.models.of("default").provider("far")
        task.cancel()


def chat(script: str) -> Chat:
    return Chat(model="far/echo", run_id="run-1", messages=[user(script)])


# C001
@pytest.mark.parametrize("made", [dialled, attaching], ids=["dialled", "attached"])
@pytest.mark.parametrize("check", SUITE, ids=lambda check: check.__name__)
async def test_it_is_a_provider(made: Callable[[], object], check: Callable[[Subject], Awaitable[None]]) -> None:
    async with made() as provider:  # type: ignore[attr-defined]
        await check(
            Subject(
                provider,
                text=lambda: chat("/reasoning I think /say Grüße, 世界 🦜!"),
                tools=lambda: chat('/say Let me look. /tool look_up {"id": 9007199254740993} /tool now'),
                failing=lambda: chat("/fail RATE_LIMITED"),
                failing_reason="PROVIDER_RATE_LIMITED",
                cut=lambda: chat("/say one two three /cut 2"),
                endless=lambda: chat("/say a /stall"),
            )
        )

"""Several attached servers: replicas of one tool, load and failover, a thousand idle ones, and frames of garbage."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack
from typing import Any

import grpc
import pytest
from google.protobuf.message import DecodeError
from google.rpc.status_pb2 import Status

from behest.tools import ToolServer
from behest.v1.message_pb2 import JsonPart, Part, TextPart, ToolResult
from behest.v1.registry_service_pb2 import (
    AttachEnd,
    AttachHello,
    AttachServerRequest,
    AttachServerResponse,
)
from behest.v1.server_pb2 import Server, ServerConnection, ServerOffer
from behest.v1.tool_pb2 import Executed, ToolPolicy
from behest.v1.tool_service_pb2 import CallState, CallToolResponse, GetCallStatusResponse
from behestd.core.times import duration
from behestd.runtime.house import Limits
from tests.attach.peer import WAIT_SECONDS, Peer, attached, keys, result, tool
from tests.attach.scenes import AWAY, READY, address, call_tool, registration, until, until_state
from tests.daemons import Served, rejection, serve
from tests.runs.scenes import IDEMPOTENT, OPEN, PURE, events_of, kinds, only
from tests.service import edges
from tests.service.edges import reason

DAYS = duration(72 * 3600)


@pytest.fixture
async def served() -> AsyncIterator[Served]:
    """A daemon that asks for no approvals."""
    async with serve(operator=OPEN) as made:
        yield made


# --- replicas ---


async def register(served: Served, policy: ToolPolicy, *names: str) -> None:
    for name in names:
        await served.client.servers.register(registration(name, tool_policies={"pay": policy}))


def loads(served: Served, *names: str) -> list[int]:
    """How many calls each server has, -1 for one that takes none."""
    standings = [server.standing() for name in names if (server := served.daemon.rooms.registry.named("default", name))]
    return [standing.in_flight if standing.is_there else -1 for standing in standings]


async def until_loads(served: Served, *expected: int) -> None:
    async with asyncio.timeout(WAIT_SECONDS):
        while loads(served, "one", "two") != list(expected):
            await asyncio.sleep(0.01)


async def test_a_call_goes_to_the_least_loaded_server_that_is_there(served: Served) -> None:  # C025
    async with attached(address(served), "one") as one, attached(address(served), "two") as two:
        assert [found.name async for found in served.client.tools.list()] == ["pay"]
        calling = []
        for total in range(1, 5):
            calling.append(asyncio.ensure_future(call_tool(served)))
            async with asyncio.timeout(WAIT_SECONDS):
                while sum(loads(served, "one", "two")) < total:
                    await asyncio.sleep(0.01)
        assert loads(served, "one", "two") == [2, 2]
        for peer in (one, one, two, two):
            await peer.finish(await peer.call())
        await asyncio.wait(calling)
        await one.drain()
        await until_loads(served, -1, 0)
        calling += [asyncio.ensure_future(call_tool(served)) for _ in range(3)]
        for _ in range(3):
            await two.finish(await two.call())
        for task in calling:
            assert (await task).parts[0].text.text == "paid"


async def test_a_call_without_effect_fails_over_to_another_server_when_its_own_dies() -> None:  # C025
    async with serve(operator=OPEN, limits=Limits(reconnect_seconds=0.3)) as served:
        await register(served, PURE, "one", "two")
        async with attached(address(served), "one") as one, attached(address(served), "two") as two:
            run = await served.client.run("/tool pay {}")
            await until_busy(served)
            dying, other = (one, two) if loads(served, "one", "two") == [1, 0] else (two, one)
            first = await dying.call()
            dying.drop()
            second = await other.call()
            assert second.call_tool.idempotency_key == first.call_tool.idempotency_key
            assert second.call_tool.attempt == 2
            await other.finish(second)
            events = await events_of(run, seconds=WAIT_SECONDS)
            assert kinds(events)[-1] == "run_completed"
            endpoints = [started.endpoint for started in only(events, "tool_started")]
            assert endpoints == [dying.welcome.server.id, other.welcome.server.id]


@pytest.mark.parametrize(("policy", "end"), [(IDEMPOTENT, "tool_failed"), (None, "tool_outcome_unknown")])
async def test_a_call_that_may_have_taken_effect_goes_to_no_other_server(policy: ToolPolicy | None, end: str) -> None:
    async with serve(operator=OPEN, limits=Limits(reconnect_seconds=0.3)) as served:
        await register(served, policy or ToolPolicy(), "one", "two")
        async with (
            attached(address(served), "one", dedupe_retention=DAYS) as one,
            attached(address(served), "two", dedupe_retention=DAYS) as two,
        ):
            run = await served.client.run("/tool pay {}")
            await until_busy(served)
            dying, other = (one, two) if loads(served, "one", "two") == [1, 0] else (two, one)
            await dying.call()
            dying.drop()
            await until(run, end)
            # A welcome comes after everything that was on its way, so no call was.
            await other.hello(other.welcome.server.name, dedupe_retention=DAYS)
            await run.cancel()


async def test_a_call_that_was_proved_not_to_be_executed_goes_to_another_server(served: Served) -> None:  # C025
    async with attached(address(served), "one") as one, attached(address(served), "two") as two:
        run = await served.client.run("/tool pay {}")
        await until_busy(served)
        refusing, other = (one, two) if loads(served, "one", "two") == [1, 0] else (two, one)
        first = await refusing.call()
        full = Status(code=grpc.StatusCode.RESOURCE_EXHAUSTED.value[0], message="full")
        await refusing.reply(first.call_number, end=AttachEnd(error=full, not_executed=True))
        await other.finish(await other.call())
        assert kinds(await events_of(run, seconds=WAIT_SECONDS))[-1] == "run_completed"


async def test_a_dialled_and_an_attached_server_offer_the_same_tool(served: Served) -> None:  # C025
    async def double(number: int) -> int:
        """Double a number."""
        return number * 2

    dialled = ToolServer()
    dialled.tool(name="double")(double)
    async with dialled:
        port = await dialled.serve("127.0.0.1:0")
        asked = Server(
            name="dialled",
            connection=ServerConnection.SERVER_CONNECTION_DIALLED,
            address=f"127.0.0.1:{port}",
            offers=[ServerOffer.SERVER_OFFER_TOOLS],
        )
        await served.client.servers.register(asked)
        offered = await served.client.tools.get("double")
        async with attached(address(served), tools=[offered]) as peer:
            calling = [asyncio.ensure_future(call_tool(served, "double", '{"number": 4}'))]
            # The second looks for a place when the first one has its own: else chance may send both to the same.
            await edges.until(lambda: calling[0].done() or loads(served, "till") == [1])
            calling.append(asyncio.ensure_future(call_tool(served, "double", '{"number": 4}')))
            done, _ = await asyncio.wait(calling, return_when=asyncio.FIRST_COMPLETED, timeout=WAIT_SECONDS)
            # The dialled one answers by itself; what went to the attached one waits for the test.
            assert done
            if loads(served, "till") == [1]:
                call = await peer.call()
                assert call.call_tool.tool_hash == offered.hash
                await peer.finish(call, "8")
            await peer.drain()
            assert len([await task for task in calling]) == 2
            assert (await call_tool(served, "double", '{"number": 4}')).parts[0].json.json == "8"


async def until_busy(served: Served) -> None:
    async with asyncio.timeout(WAIT_SECONDS):
        while not sum(loads(served, "one", "two")):
            await asyncio.sleep(0.01)


# --- many ---


@pytest.mark.timeout(300)
async def test_a_thousand_idle_servers_are_attached_and_the_last_one_serves(served: Served) -> None:  # C025
    count = 1_000
    async with AsyncExitStack() as stack:
        channels = [
            await stack.enter_async_context(
                grpc.aio.insecure_channel(address(served), (("grpc.use_local_subchannel_pool", 1), ("n", number)))
            )
            for number in range(4)
        ]
        peers = []
        for number in range(count):
            peers.append(peer := Peer(channels[number % len(channels)]))
            await peer.hello(f"server-{number}", tools=[tool(f"tool-{number}")])
        refused = await rejection(Peer(served.channel).hello("one-more"))
        assert refused.reason == "RUNTIME_OVERLOADED"
        calling = asyncio.ensure_future(call_tool(served, f"tool-{count - 1}"))
        await peers[-1].finish(await peers[-1].call())
        assert (await calling).parts[0].text.text == "paid"
        for peer in peers:
            peer.drop()


# --- garbage ---


def unreadable(count: int) -> Iterator[bytes]:
    """Bytes by chance that are no frame."""
    chance = random.Random(7)
    while count:
        made = chance.randbytes(chance.randint(1, 200))
        try:
            AttachServerRequest.FromString(made)
        except DecodeError:
            count -= 1
            yield made


async def test_bytes_that_are_no_frame_end_the_stream_with_a_typed_error_and_nothing_else(served: Served) -> None:
    raw = served.channel.stream_stream("/behest.v1.RegistryService/AttachServer")
    for number, garbage in enumerate(unreadable(60)):
        name = f"server-{number % 5}"
        good = AttachServerRequest(hello=AttachHello(server_name=name, tools=[tool(f"tool-{number % 5}")]))
        stream = raw()
        await stream.write(good.SerializeToString())
        assert AttachServerResponse.FromString(await stream.read()).HasField("welcome")
        await stream.write(garbage)
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            async with asyncio.timeout(WAIT_SECONDS):
                while await stream.read() is not grpc.aio.EOF:
                    pass
        assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert reason(refused.value) == "REQUEST_MALFORMED"
    async with attached(address(served)) as peer:
        calling = asyncio.ensure_future(call_tool(served))
        await peer.finish(await peer.call())
        assert (await calling).parts[0].text.text == "paid"


async def test_a_frame_over_the_limit_ends_the_stream_and_the_call_is_joined_on_the_next_one(served: Served) -> None:
    async with attached(address(served)) as peer:
        run = await served.client.run("/tool pay {}")
        call = await peer.call()
        huge = CallToolResponse(result=result("x" * (5 * 1024 * 1024)))
        await peer.reply(call.call_number, call_tool=huge)
        error = await peer.broken()
        assert error.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
        await until_state(served, "till", AWAY)
        held = keys(call, done=True)
        async with attached(address(served), held=held, lease_id=peer.welcome.lease_id) as again:
            await again.finish(await again.call())
            assert kinds(await events_of(run, seconds=WAIT_SECONDS))[-1] == "run_completed"


WRONG = (
    {"get_call_status": GetCallStatusResponse(state=CallState.CALL_STATE_DONE)},
    {"call_tool": CallToolResponse(result=ToolResult(parts=[Part(json=JsonPart(json="{"))]))},
    {"call_tool": CallToolResponse(result=ToolResult(parts=[Part()]))},
    {"call_tool": CallToolResponse(chunk=b"\xff")},
    {"embed": {}},
)


@pytest.mark.parametrize("wrong", WRONG)
async def test_an_answer_that_makes_no_sense_fails_its_call_as_executed_and_no_other(
    served: Served, wrong: dict[str, Any]
) -> None:
    async with attached(address(served)) as peer:
        run = await served.client.run("/tool pay {}")
        other = asyncio.ensure_future(call_tool(served))
        calls = {call.call_tool.run_id: call for call in [await peer.call(), await peer.call()]}
        bad, good = calls[run.run_id], calls[""]
        await peer.reply(bad.call_number, **wrong)
        if "chunk" in str(wrong):
            empty = ToolResult(parts=[Part(text=TextPart())])
            await peer.reply(bad.call_number, call_tool=CallToolResponse(result=empty))
        await peer.reply(bad.call_number, end=AttachEnd())
        # What belongs to no call is dropped.
        for number in (0, -1, bad.call_number, 99):
            await peer.reply(number, call_tool=CallToolResponse(result=result("stray")))
            await peer.reply(number, end=AttachEnd())
        await peer.finish(good)
        assert (await other).parts[0].text.text == "paid"
        [failed] = only(await events_of(run, seconds=WAIT_SECONDS), "tool_failed")
        assert (failed.reason, failed.executed) == ("TOOL_RESULT_INVALID", Executed.EXECUTED_YES)
        assert (await served.client.servers.get(peer.welcome.server.id)).state == READY

"""A call that is lost on its way to a server that can be asked: found never seen, and sent again in the same epoch."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest

from behest.tools import Context, ToolServer
from behest.v1.registry_service_pb2 import RegisterServerRequest
from behest.v1.run_state_pb2 import WaitReason
from behest.v1.server_pb2 import Server, ServerConnection, ServerOffer
from behest.v1.tool_pb2 import Executed, SideEffect, ToolPolicy, ToolTimeouts
from behest.v1.tool_service_pb2 import (
    CallToolRequest,
    CancelCallRequest,
    CancelCallResponse,
    GetCallStatusRequest,
    GetCallStatusResponse,
    ListToolsRequest,
    ListToolsResponse,
)
from behest.v1.tool_service_pb2_grpc import ToolServiceServicer, ToolServiceStub, add_ToolServiceServicer_to_server
from behestd.core.times import duration
from tests import daemons
from tests.daemons import Served
from tests.runs.scenes import OPEN, PURE, events_of, finished, kinds, only, tools, until_kind

QUERYABLE = ToolPolicy(side_effect=SideEffect.SIDE_EFFECT_NON_IDEMPOTENT_QUERYABLE)


class LossyLink(ToolServiceServicer):
    """Stands between daemon and server, and loses the first calls on their way there."""

    def __init__(self, channel: grpc.aio.Channel, losses: int) -> None:
        self._stub = ToolServiceStub(channel)
        self._losses = losses
        self.lost: list[CallToolRequest] = []
        self.asked: list[GetCallStatusRequest] = []
        self.is_cut = False

    async def ListTools(self, request: ListToolsRequest, context: Any) -> ListToolsResponse:
        """Pass it on."""
        return await self._stub.ListTools(request)

    async def CallTool(self, request: CallToolRequest, context: Any) -> None:  # type: ignore[override]
        """Lose it, without a word on whether it arrived, or pass it on."""
        if len(self.lost) < self._losses:
            self.lost.append(request)
            await context.abort(grpc.StatusCode.UNAVAILABLE, "the link broke")
        async for frame in self._stub.CallTool(request):
            await context.write(frame)

    async def GetCallStatus(self, request: GetCallStatusRequest, context: Any) -> GetCallStatusResponse:
        """Pass it on, unless the link is cut."""
        self.asked.append(request)
        if self.is_cut:
            await context.abort(grpc.StatusCode.UNAVAILABLE, "the link is cut")
        return await self._stub.GetCallStatus(request)

    async def CancelCall(self, request: CancelCallRequest, context: Any) -> CancelCallResponse:
        """Pass it on."""
        return await self._stub.CancelCall(request)

    async def deliver(self, request: CallToolRequest) -> grpc.aio.AioRpcError | None:
        """Let a lost request arrive after all: what it was refused with."""
        try:
            async for _ in self._stub.CallTool(request):
                pass
        except grpc.aio.AioRpcError as error:
            return error
        return None


@asynccontextmanager
async def linked(server: ToolServer, losses: int) -> AsyncIterator[tuple[LossyLink, int]]:
    """Serve a tool server behind a link that loses calls; gives the link and its port."""
    async with server:
        port = await server.serve("127.0.0.1:0")
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            link = LossyLink(channel, losses)
            front = grpc.aio.server(options=(("grpc.so_reuseport", 0),))
            add_ToolServiceServicer_to_server(link, front)
            there = front.add_insecure_port("127.0.0.1:0")
            await front.start()
            try:
                yield link, there
            finally:
                await front.stop(0)


async def register(served: Served, port: int, **policies: ToolPolicy) -> None:
    """Register the server behind a port, and wait for its tools."""
    server = Server(
        name="bank",
        connection=ServerConnection.SERVER_CONNECTION_DIALLED,
        address=f"127.0.0.1:{port}",
        offers=[ServerOffer.SERVER_OFFER_TOOLS],
        tool_policies=policies,
        dedupe_retention=duration(72 * 3600),
    )
    await served.client.stubs.registry.RegisterServer(RegisterServerRequest(server=server))
    async with asyncio.timeout(20):
        while not [tool async for tool in served.client.tools.list()]:
            await asyncio.sleep(0.02)


@pytest.fixture
def paid() -> list[tuple[int, int]]:
    """Epoch and attempt of each payment made."""
    return []


@pytest.fixture
def bank(tmp_path: Path, paid: list[tuple[int, int]]) -> ToolServer:
    server = ToolServer(dedupe=str(tmp_path / "calls.sqlite3"))

    @server.tool
    def pay(context: Context) -> str:
        """Pay."""
        paid.append((context.epoch, context.attempt))
        return "paid"

    return server


async def test_a_call_lost_on_its_way_is_sent_again_in_the_same_epoch_and_paid_once(
    bank: ToolServer, paid: list[tuple[int, int]]
) -> None:
    async with linked(bank, losses=1) as (link, port), daemons.serve(operator=OPEN) as served:
        await register(served, port, pay=QUERYABLE)
        run = await served.client.run("/tool pay {} /next /say done")
        events = await events_of(run)
        late = await link.deliver(link.lost[0])

    first, again = only(events, "tool_started")
    assert (first.key, first.attempt, again.attempt) == (again.key, 1, 2)
    (resolved,) = only(events, "tool_resolved")
    assert (resolved.by, resolved.executed) == ("status_query", Executed.EXECUTED_NO)
    assert [(each.epoch, each.attempt) for each in link.asked] == [(1, 1)]
    assert [event.epoch for event in events if event.WhichOneof("payload") == "tool_started"] == [1, 1]
    assert paid == [(1, 2)]
    assert late is None, "the call is done: whoever comes late is told its result"
    assert only(events, "run_completed")[0].output.text == "done"


async def test_a_lost_call_that_arrives_late_after_the_promise_is_refused(
    bank: ToolServer, paid: list[tuple[int, int]]
) -> None:
    async with linked(bank, losses=2) as (link, port), daemons.serve(operator=OPEN) as served:
        await register(served, port, pay=QUERYABLE)
        run = await served.client.run("/tool pay {}")
        await until_kind(run, "tool_resolved")
        late = await link.deliver(link.lost[0])
        await finished(served.client, run.run_id)

    if late is not None:  # else the call was done by then, and what came late was told its result
        assert late.code() is grpc.StatusCode.FAILED_PRECONDITION
        assert dict(late.trailing_metadata() or ()).get("behest-not-executed") == "1"
    assert paid == [(1, 3)]


async def test_a_call_that_never_arrives_is_told_to_the_model_as_not_executed(
    bank: ToolServer, paid: list[tuple[int, int]]
) -> None:
    async with linked(bank, losses=100) as (link, port), daemons.serve(operator=OPEN) as served:
        await register(served, port, pay=QUERYABLE)
        events = await events_of(await served.client.run("/tool pay {} /next /say not paid"), seconds=40)
        late = [await link.deliver(request) for request in link.lost]

    failed = only(events, "tool_failed")[-1]
    assert (failed.executed, failed.is_final) == (Executed.EXECUTED_NO, True)
    assert kinds(events)[-1] == "run_completed"
    assert paid == []
    assert [error.code() for error in late if error is not None] == [grpc.StatusCode.FAILED_PRECONDITION] * 3


async def test_a_server_that_cannot_be_asked_is_left_in_time_and_the_call_is_in_doubt(
    bank: ToolServer, paid: list[tuple[int, int]]
) -> None:
    impatient = ToolPolicy(
        side_effect=SideEffect.SIDE_EFFECT_NON_IDEMPOTENT_QUERYABLE,
        timeouts=ToolTimeouts(start_to_close=duration(1), schedule_to_close=duration(1)),
    )
    async with linked(bank, losses=1) as (link, port), daemons.serve(operator=OPEN) as served:
        link.is_cut = True
        await register(served, port, pay=impatient)
        run = await served.client.run("/tool pay {}")
        events = await until_kind(run, "run_waiting")
        state = await run.get()
        await run.cancel()
    (unknown,) = only(events, "tool_outcome_unknown")
    assert unknown.reason == "TOOL_OUTCOME_UNKNOWN"
    assert state.wait.reason == WaitReason.WAIT_REASON_OUTCOME_UNKNOWN
    assert len(link.asked) >= 2
    assert paid == []


async def test_a_daemon_as_a_server_refuses_what_it_promised_and_takes_a_later_attempt() -> None:
    def look_up(key: str) -> str:
        """Look a thing up."""
        return f"{key} is 42"

    def request(attempt: int) -> CallToolRequest:
        asked = '{"key": "it"}'
        return CallToolRequest(tool_name="look_up", arguments_json=asked, idempotency_key="k", epoch=2, attempt=attempt)

    async with daemons.serve(tools=tools((look_up, PURE))) as served:
        stub = served.client.stubs.tools
        ask = GetCallStatusRequest(idempotency_key="k", epoch=2, attempt=1)
        unknown = await daemons.rejection(stub.GetCallStatus(ask))
        refused = await daemons.rejection(stub.CallTool(request(1)).read())
        frames = [frame async for frame in stub.CallTool(request(2))]

    assert unknown.reason == "REQUEST_UNSUPPORTED", "what is in memory alone proves nothing"
    assert refused.reason == "TOOL_START_EXPIRED"
    assert frames[-1].result.parts[0].text.text == "it is 42"

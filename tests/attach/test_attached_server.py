"""The calls of one attached server without a wire: what its silence proves, who gets room, whose end is a receipt."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from behest.v1.registry_service_pb2 import AttachEnd, AttachHello, AttachReply, AttachServerResponse
from behest.v1.tool_pb2 import Executed
from behest.v1.tool_service_pb2 import CallToolRequest, CallToolResponse, GetCallStatusRequest
from behestd.tools.attached import AttachedServer, Line
from behestd.tools.attached_call import Terms
from behestd.tools.schema import Validators
from behestd.tools.tool import ToolFailure
from tests.attach.peer import WAIT_SECONDS, result
from tests.service.edges import until
from tests.tools.calls import call, limits, nowhere, tool


def server(longest_away_seconds: float = 30.0) -> AttachedServer:
    return AttachedServer(Validators(), longest_away_seconds)


class Wire:
    """A stream whose frames are kept."""

    def __init__(self, *, calls: int = 8) -> None:
        self.sent: list[AttachServerResponse] = []
        self.line = Line(self.sent.append, Terms(calls, 4 * 1024 * 1024), AttachHello(), "lease", "one")

    @property
    def keys(self) -> list[str]:
        """The keys of the calls that were sent."""
        return [frame.call.call_tool.idempotency_key for frame in self.sent if frame.HasField("call")]


def finish(of: AttachedServer, wire: Wire, number: int, text: str = "done") -> None:
    of.receive(wire.line, AttachReply(call_number=number, call_tool=CallToolResponse(result=result(text))))
    of.receive(wire.line, AttachReply(call_number=number, end=AttachEnd()))


async def failure_of(work: Any) -> ToolFailure:
    async with asyncio.timeout(WAIT_SECONDS):
        with pytest.raises(ToolFailure) as failed:
            await work
    return failed.value


@pytest.mark.parametrize(
    ("sent_on", "executed"),
    [
        ("lease:before", Executed.EXECUTED_NO),
        ("lease:one", Executed.EXECUTED_UNKNOWN),
        ("other:before", Executed.EXECUTED_UNKNOWN),
        ("", Executed.EXECUTED_UNKNOWN),
        (":before", Executed.EXECUTED_UNKNOWN),
    ],
)
async def test_silence_proves_something_only_of_the_process_and_of_what_it_got_before_its_hello(
    sent_on: str, executed: int
) -> None:
    attached, wire = server(), Wire()
    attached.attach(wire.line)
    failed = await failure_of(attached.bind(tool()).call(call(resumed_lease=sent_on), nowhere))
    assert failed.executed == executed
    assert wire.sent == []


async def test_a_call_of_a_run_that_is_taken_over_here_is_joined_on_its_stream() -> None:
    attached, wire = server(), Wire()
    attached.attach(wire.line)
    attached.stream(CallToolRequest(idempotency_key="key-1"), "", 1.0).cancel()
    joining = asyncio.ensure_future(attached.bind(tool()).call(call(resumed_lease="lease:one"), nowhere))
    await until(lambda: len(wire.sent) == 2)
    assert wire.keys == ["key-1", "key-1"]
    finish(attached, wire, 1, "to nobody")
    finish(attached, wire, 2, "to the one who joined")
    assert (await joining).parts[0].text.text == "to the one who joined"


async def test_a_resumed_call_waits_for_its_server_and_is_in_doubt_when_that_is_given_up() -> None:
    attached = server()
    waiting = asyncio.ensure_future(attached.bind(tool()).call(call(resumed_lease="lease:before"), nowhere))
    await until(lambda: attached.counters.in_flight == 1)
    attached.give_up()
    assert (await failure_of(waiting)).executed == Executed.EXECUTED_UNKNOWN
    failed = await failure_of(attached.bind(tool()).call(call(resumed_lease="lease:before"), nowhere))
    assert failed.executed == Executed.EXECUTED_UNKNOWN


async def test_a_call_that_finds_no_server_was_not_sent() -> None:
    attached = server()
    short = limits(connect_seconds=0.05)
    failed = await failure_of(attached.bind(tool()).call(call(timeouts=short), nowhere))
    assert (failed.reason, failed.executed) == ("TOOL_UNAVAILABLE", Executed.EXECUTED_NO)
    failed = await failure_of(attached.ask_status(GetCallStatusRequest(idempotency_key="key-1"), 1.0))
    assert failed.executed == Executed.EXECUTED_NO


async def test_room_goes_to_those_who_wait_in_their_order_and_past_those_who_left() -> None:
    attached, wire = server(), Wire(calls=1)
    attached.attach(wire.line)
    patient = limits(start_to_close_seconds=WAIT_SECONDS)
    calling = [
        asyncio.ensure_future(attached.bind(tool()).call(call(key=f"key-{n}", timeouts=patient), nowhere))
        for n in range(5)
    ]
    await until(lambda: len(wire.sent) == 1 and attached.counters.in_flight == 5)
    calling[1].cancel()
    finish(attached, wire, 1)
    # Woken, and gone before it could use its room.
    calling[2].cancel()
    await until(lambda: len(wire.sent) == 2)
    finish(attached, wire, 2)
    await until(lambda: len(wire.sent) == 3)
    finish(attached, wire, 3)
    done = await asyncio.gather(*calling, return_exceptions=True)
    assert wire.keys == ["key-0", "key-3", "key-4"]
    assert [isinstance(outcome, BaseException) for outcome in done] == [False, True, True, False, False]


async def test_a_call_that_gets_no_room_in_its_time_was_not_sent() -> None:
    attached, wire = server(), Wire(calls=1)
    attached.attach(wire.line)
    attached.stream(CallToolRequest(idempotency_key="other"), "", 1.0)
    failed = await failure_of(attached.bind(tool()).call(call(timeouts=limits(start_to_close_seconds=0.05)), nowhere))
    assert failed.executed == Executed.EXECUTED_NO
    assert wire.keys == ["other"]


async def test_arguments_that_fit_no_frame_of_a_server_are_refused_and_take_no_room() -> None:
    attached, wire = server(), Wire(calls=1)
    wire.line.terms = Terms(1, 300 * 1024)
    attached.attach(wire.line)
    large = call(arguments_json='{"text": "' + "x" * 400_000 + '"}')
    failed = await failure_of(attached.bind(tool()).call(large, nowhere))
    assert (failed.reason, failed.executed) == ("TOOL_ARGUMENTS_INVALID", Executed.EXECUTED_NO)
    assert not attached.is_full


async def test_only_the_end_of_a_call_is_the_receipt_of_its_cancellation() -> None:  # N04
    attached, wire = server(), Wire()
    attached.attach(wire.line)
    attached.stream(CallToolRequest(idempotency_key="key-1", epoch=2), "", 1.0)
    assert not await attached.ask_cancel("key-1", 1, WAIT_SECONDS)
    assert not await attached.ask_cancel("key-2", 2, WAIT_SECONDS)
    assert not await attached.ask_cancel("key-1", 2, 0.01)
    asking = asyncio.ensure_future(attached.ask_cancel("key-1", 2, WAIT_SECONDS))
    await until(lambda: len(wire.sent) == 3)
    attached.receive(wire.line, AttachReply(call_number=1, end=AttachEnd()))
    assert await asking
    assert [frame.WhichOneof("frame") for frame in wire.sent] == ["call", "cancel", "cancel"]


async def test_a_state_that_is_asked_for_breaks_with_its_stream() -> None:
    attached, wire = server(), Wire()
    attached.attach(wire.line)
    asking = asyncio.ensure_future(attached.ask_status(GetCallStatusRequest(idempotency_key="key-1"), WAIT_SECONDS))
    await until(lambda: len(wire.sent) == 1)
    attached.detach(wire.line)
    assert (await failure_of(asking)).executed == Executed.EXECUTED_UNKNOWN


async def test_what_nobody_waits_for_is_dropped_and_counted() -> None:
    attached, wire = server(), Wire()
    attached.attach(wire.line)
    for number in range(3):
        finish(attached, wire, number)
    assert attached.strays == 3
    abandoned = attached.stream(CallToolRequest(idempotency_key="key-1"), "", 1.0)
    abandoned.cancel()
    for _ in range(1_000):
        attached.receive(wire.line, AttachReply(call_number=1, call_tool=CallToolResponse(chunk=bytes(1_000))))
    finish(attached, wire, 1)
    assert await abandoned.next() is None

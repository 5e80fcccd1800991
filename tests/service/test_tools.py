"""Tools and direct calls over a real channel: lists, permission, keys, progress, large results, cancelling."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc
import pytest

from behest.v1.definition_pb2 import PermissionAction, PermissionRule
from behest.v1.tool_pb2 import Progress, SideEffect
from behest.v1.tool_service_pb2 import (
    CallState,
    CallToolRequest,
    CallToolResponse,
    CancelCallRequest,
    GetCallStatusRequest,
    GetToolRequest,
    ListToolsRequest,
)
from behestd.core.definition import Operator
from behestd.core.times import duration, timestamp
from behestd.runtime.house import Limits
from behestd.tools.function import Context
from tests.daemons import Served, refused, serve
from tests.runs.scenes import IDEMPOTENT, NON_IDEMPOTENT, OPEN, PURE, Ledger, tools
from tests.service.edges import failure, metadata, reason, until


def add(a: int, b: int) -> int:
    """Add two numbers."""
    return a + b


def send(to: str) -> str:
    """Send something."""
    return f"sent to {to}"


ADD_AND_SEND = tools((add, PURE), (send, NON_IDEMPOTENT))


def not_executed(error: grpc.aio.AioRpcError) -> bool:
    """Whether the trailers prove that nothing was executed."""
    return dict(error.trailing_metadata() or ()).get("behest-not-executed") == "1"


async def frames(served: Served, request: CallToolRequest) -> list[CallToolResponse]:
    async with asyncio.timeout(30):
        return [frame async for frame in served.client.stubs.tools.CallTool(request)]


async def fails(served: Served, request: CallToolRequest) -> grpc.aio.AioRpcError:
    return await failure(served.client.stubs.tools.CallTool(request).read())


async def test_tools_are_listed_with_the_policy_in_force_and_a_hash() -> None:
    async with serve(tools=ADD_AND_SEND) as served:
        listed = [tool async for tool in served.client.tools.list()]
        assert [tool.name for tool in listed] == ["add", "send"]
        assert listed[0].policy.side_effect == SideEffect.SIDE_EFFECT_PURE
        assert listed[1].policy.side_effect == SideEffect.SIDE_EFFECT_NON_IDEMPOTENT
        assert len(listed[0].hash) == 32
        assert await served.client.tools.get("add") == listed[0]
        page = await served.client.stubs.tools.ListTools(ListToolsRequest(page_size=1))
        assert ([tool.name for tool in page.tools], bool(page.next_page_token)) == (["add"], True)
        assert [tool.name async for tool in served.client.tools.list(ListToolsRequest(page_size=1))] == ["add", "send"]
        assert [tool.name async for tool in served.client.tools.list(ListToolsRequest(name_glob="s*"))] == ["send"]
        assert [tool async for tool in served.client.tools.list(ListToolsRequest(server_id="srv_none"))] == []


async def test_an_unknown_tool_is_not_found(served: Served) -> None:
    assert (await refused(served.client.tools.get("none"))).reason == "TOOL_NOT_FOUND"
    error = await fails(served, CallToolRequest(tool_name="none"))
    assert (reason(error), not_executed(error)) == ("TOOL_NOT_FOUND", True)


async def test_a_direct_call_gives_the_result_of_the_tool() -> None:
    async with serve(tools=ADD_AND_SEND) as served:
        result = await served.client.tools.call("add", '{"a": 12345678901234567890, "b": 1}')
    assert result.parts[0].json.json == "12345678901234567891"
    assert not result.is_error


async def test_a_tool_that_ran_and_failed_is_a_result() -> None:
    def fall() -> str:
        raise ValueError("it fell")

    async with serve(tools=tools((fall, PURE))) as served:
        result = await served.client.tools.call("fall")
    assert result.is_error


@pytest.mark.parametrize(("action", "rule"), [("ASK", "operator:0:send"), ("DENY", "operator:0:send")])
async def test_a_call_that_a_rule_asks_about_or_denies_is_refused(action: str, rule: str) -> None:
    rules = [PermissionRule(tool="send", action=PermissionAction.Value(f"PERMISSION_ACTION_{action}"))]
    operator = Operator(rules, PermissionAction.PERMISSION_ACTION_ALLOW)
    async with serve(tools=ADD_AND_SEND, operator=operator) as served:
        error = await fails(served, CallToolRequest(tool_name="send", arguments_json='{"to": "x"}'))
        assert (reason(error), metadata(error)["rule"]) == ("TOOL_DENIED", rule)
        assert error.code() is grpc.StatusCode.PERMISSION_DENIED
        assert not_executed(error)


async def test_rules_see_the_arguments_of_a_direct_call() -> None:
    rules = [
        PermissionRule(tool="send", action=PermissionAction.PERMISSION_ACTION_ALLOW),
        PermissionRule(tool="send", arguments={"to": "boss*"}, action=PermissionAction.PERMISSION_ACTION_DENY),
    ]
    async with serve(tools=ADD_AND_SEND, operator=Operator(rules)) as served:
        assert (await served.client.tools.call("send", '{"to": "me"}')).parts[0].text.text == "sent to me"
        assert (await refused(served.client.tools.call("send", '{"to": "boss@work"}'))).reason == "TOOL_DENIED"


async def test_arguments_that_break_the_schema_are_refused_by_their_path() -> None:  # C027
    async with serve(tools=ADD_AND_SEND, operator=OPEN) as served:
        error = await fails(served, CallToolRequest(tool_name="add", arguments_json='{"a": 1, "b": "x"}'))
        assert (reason(error), metadata(error)["path"]) == ("TOOL_ARGUMENTS_INVALID", "/b")
        assert (metadata(error)["field"], not_executed(error)) == ("arguments_json", True)
        for wrong in ("[]", "{", '{"a": 1, "a": 2, "b": 3}'):
            error = await fails(served, CallToolRequest(tool_name="add", arguments_json=wrong))
            assert reason(error) == "TOOL_ARGUMENTS_INVALID"


@pytest.mark.parametrize(
    ("request_", "field"),
    [
        (CallToolRequest(), "tool_name"),
        (CallToolRequest(tool_name="a b"), "tool_name"),
        (CallToolRequest(tool_name="add", idempotency_key="ü"), "idempotency_key"),
        (CallToolRequest(tool_name="add", idempotency_key="x" * 129), "idempotency_key"),
        (CallToolRequest(tool_name="add", attempt=-1), "attempt"),
    ],
)
async def test_a_bad_call_is_refused_by_its_field(served: Served, request_: CallToolRequest, field: str) -> None:
    assert metadata(await fails(served, request_))["field"] == field


async def test_bad_questions_are_refused_by_their_field(served: Served) -> None:
    stubs = served.client.stubs.tools
    for call, field in (
        (stubs.GetTool(GetToolRequest()), "tool_name"),
        (stubs.GetCallStatus(GetCallStatusRequest()), "idempotency_key"),
        (stubs.GetCallStatus(GetCallStatusRequest(idempotency_key="k", wait=duration(-1))), "wait"),
        (stubs.CancelCall(CancelCallRequest()), "idempotency_key"),
        (stubs.ListTools(ListToolsRequest(page_size=-1)), "page_size"),
    ):
        error = await failure(call)
        assert (reason(error), metadata(error)["field"]) == ("REQUEST_INVALID", field)


async def test_a_pinned_definition_and_the_times_of_a_call_are_kept() -> None:
    async with serve(tools=ADD_AND_SEND) as served:
        ask = {"tool_name": "add", "arguments_json": '{"a": 1, "b": 2}'}
        error = await fails(served, CallToolRequest(tool_hash=b"x" * 32, **ask))
        assert (reason(error), not_executed(error)) == ("TOOL_CHANGED", True)
        past = timestamp(served.daemon.house.clock.now_ns() - 1_000_000_000)
        for late in (CallToolRequest(start_by=past, **ask), CallToolRequest(deadline=past, **ask)):
            error = await fails(served, late)
            assert (reason(error), not_executed(error)) == ("TOOL_START_EXPIRED", True)


async def test_progress_comes_before_the_result() -> None:  # C032
    async def work(context: Context) -> str:
        context.progress("half", current=1, total=2)
        await asyncio.sleep(0)
        context.progress("done", current=2, total=2)
        await asyncio.sleep(0)
        return "result"

    shown: list[Progress] = []
    async with serve(tools=tools((work, PURE))) as served:
        result = await served.client.tools.call("work", on_progress=shown.append)
    assert result.parts[0].text.text == "result"
    assert [progress.text for progress in shown] == ["half", "done"]


async def test_a_large_result_comes_in_chunks() -> None:
    def large(size: int) -> str:
        return "é" * size

    async with serve(tools=tools((large, PURE))) as served:
        request = CallToolRequest(tool_name="large", arguments_json='{"size": 3000000}')
        *chunks, last = await frames(served, request)
        assert [len(frame.chunk) for frame in chunks] == [1_048_576] * 5 + [757_120]
        assert (last.result.parts[0].WhichOneof("kind"), last.result.parts[0].text.text) == ("text", "")
        result = await served.client.tools.call("large", '{"size": 3000000}')
        assert result.parts[0].text.text == "é" * 3_000_000


async def test_the_same_key_is_executed_once_and_another_request_with_it_is_refused() -> None:
    ledger = Ledger()

    async def pay(amount: int) -> str:
        return await ledger.work(f"pay {amount}")

    async with serve(tools=tools((pay, NON_IDEMPOTENT)), operator=OPEN) as served:
        request = CallToolRequest(tool_name="pay", arguments_json='{"amount": 5}', idempotency_key="k1")
        async with asyncio.TaskGroup() as tasks:
            first = tasks.create_task(frames(served, request))
            await ledger.reached.wait()
            second = tasks.create_task(frames(served, request))
            other = CallToolRequest(tool_name="pay", arguments_json='{"amount": 6}', idempotency_key="k1")
            error = await fails(served, other)
            assert (reason(error), not_executed(error)) == ("REQUEST_ID_REUSED", False)
            ledger.opened.set()
        again = await frames(served, request)
    assert first.result() == second.result() == again
    assert ledger.calls == ["pay 5"]


async def test_a_call_with_a_key_outlives_its_stream_and_can_be_asked_about() -> None:
    ledger = Ledger()

    async def pay(amount: int) -> str:
        return await ledger.work(f"pay {amount}")

    async with serve(tools=tools((pay, NON_IDEMPOTENT)), operator=OPEN) as served:
        stubs = served.client.stubs.tools
        order = {"tool_name": "pay", "arguments_json": '{"amount": 5}', "call_id": "c1"}
        stream = stubs.CallTool(CallToolRequest(idempotency_key="k1", **order))
        reading = asyncio.ensure_future(stream.read())
        async with asyncio.timeout(30):
            await ledger.reached.wait()
        stream.cancel()
        with pytest.raises(asyncio.CancelledError):
            await reading
        ask = GetCallStatusRequest(idempotency_key="k1")
        assert (await stubs.GetCallStatus(ask)).state == CallState.CALL_STATE_RUNNING
        assert not ledger.stopped
        waiting = asyncio.ensure_future(
            stubs.GetCallStatus(GetCallStatusRequest(idempotency_key="k1", wait=duration(5)))
        )
        ledger.opened.set()
        told = await waiting
        assert (told.state, told.result.parts[0].text.text) == (CallState.CALL_STATE_DONE, "done pay 5")
        assert (told.result.call_id, told.result.name) == ("c1", "pay")
        assert served.daemon.rooms.calls.statistics().in_flight == 0


async def test_a_call_without_a_key_is_stopped_when_its_client_leaves() -> None:
    ledger = Ledger()

    async def pay() -> str:
        return await ledger.work("pay")

    async with serve(tools=tools((pay, NON_IDEMPOTENT)), operator=OPEN) as served:
        stream = served.client.stubs.tools.CallTool(CallToolRequest(tool_name="pay"))
        reading = asyncio.ensure_future(stream.read())
        async with asyncio.timeout(30):
            await ledger.reached.wait()
        stream.cancel()
        with pytest.raises(asyncio.CancelledError):
            await reading
        await until(lambda: ledger.stopped == ["pay"])
        await until(lambda: served.daemon.rooms.calls.statistics().in_flight == 0)
        assert served.daemon.rooms.calls.statistics().remembered == 0


async def test_a_running_call_is_cancelled_by_its_key() -> None:
    ledger = Ledger()

    async def pay() -> str:
        return await ledger.work("pay")

    async with serve(tools=tools((pay, NON_IDEMPOTENT)), operator=OPEN) as served:
        stubs = served.client.stubs.tools
        call = asyncio.ensure_future(fails(served, CallToolRequest(tool_name="pay", idempotency_key="k", epoch=3)))
        async with asyncio.timeout(30):
            await ledger.reached.wait()
        assert not (await stubs.CancelCall(CancelCallRequest(idempotency_key="k", epoch=2))).acknowledged
        assert not (await stubs.CancelCall(CancelCallRequest(idempotency_key="other", epoch=3))).acknowledged
        assert (await stubs.CancelCall(CancelCallRequest(idempotency_key="k", epoch=3))).acknowledged
        assert reason(await call) == "TOOL_CANCELLED"
        assert ledger.stopped == ["pay"]
        assert not (await stubs.CancelCall(CancelCallRequest(idempotency_key="k", epoch=3))).acknowledged


async def test_a_key_that_is_not_known_is_never_said_to_be_unexecuted_and_is_buried() -> None:
    async with serve(tools=ADD_AND_SEND) as served:
        stubs = served.client.stubs.tools
        error = await failure(stubs.GetCallStatus(GetCallStatusRequest(idempotency_key="k", epoch=2)))
        assert (reason(error), error.code()) == ("REQUEST_UNSUPPORTED", grpc.StatusCode.UNIMPLEMENTED)
        ask: dict[str, Any] = {"tool_name": "add", "arguments_json": '{"a": 1, "b": 2}', "idempotency_key": "k"}
        error = await fails(served, CallToolRequest(epoch=2, **ask))
        assert (error.code(), not_executed(error)) == (grpc.StatusCode.FAILED_PRECONDITION, True)
        (answer,) = await frames(served, CallToolRequest(epoch=3, **ask))
        assert answer.result.parts[0].json.json == "3"


async def test_a_call_in_doubt_is_repeated_only_where_its_class_allows_it() -> None:
    ledger = Ledger()
    limit = 0.05

    async def pure() -> str:
        return await ledger.work("pure", wait=len(ledger.calls) == 0)

    async def pay() -> str:
        return await ledger.work("pay")

    quick = type(PURE)()
    quick.CopyFrom(IDEMPOTENT)
    quick.timeouts.start_to_close.CopyFrom(duration(limit))
    slow = type(PURE)()
    slow.CopyFrom(NON_IDEMPOTENT)
    slow.timeouts.start_to_close.CopyFrom(duration(limit))
    async with serve(tools=tools((pure, quick), (pay, slow)), operator=OPEN) as served:
        ask = CallToolRequest(tool_name="pure", idempotency_key="k1")
        error = await fails(served, ask)
        assert (reason(error), not_executed(error)) == ("TOOL_TIMEOUT", False)
        (answer,) = await frames(served, ask)
        assert answer.result.parts[0].text.text == "done pure"
        ask = CallToolRequest(tool_name="pay", idempotency_key="k2")
        assert reason(await fails(served, ask)) == "TOOL_TIMEOUT"
        assert reason(await fails(served, ask)) == "TOOL_TIMEOUT"
        asked = served.client.stubs.tools.GetCallStatus(GetCallStatusRequest(idempotency_key="k2"))
        assert reason(await failure(asked)) == "TOOL_OUTCOME_UNKNOWN"
    assert ledger.calls == ["pure", "pure", "pay"]


async def test_more_calls_than_the_limit_are_refused_and_not_executed() -> None:  # C030
    ledger = Ledger()

    async def work() -> str:
        return await ledger.work("work")

    async with serve(tools=tools((work, PURE)), limits=Limits(tool_calls=1)) as served:
        first = asyncio.ensure_future(served.client.tools.call("work"))
        async with asyncio.timeout(30):
            await ledger.reached.wait()
        error = await fails(served, CallToolRequest(tool_name="work"))
        assert (reason(error), not_executed(error)) == ("RUNTIME_OVERLOADED", True)
        ledger.opened.set()
        assert (await first).parts[0].text.text == "done work"


async def test_calls_in_flight_are_let_go_when_the_daemon_stops() -> None:
    ledger = Ledger()

    async def work() -> str:
        return await ledger.work("work")

    async with serve(tools=tools((work, PURE)), drain_seconds=0.05) as served:
        call = asyncio.ensure_future(fails(served, CallToolRequest(tool_name="work", idempotency_key="k")))
        async with asyncio.timeout(30):
            await ledger.reached.wait()
        await served.daemon.rooms.calls.drain(0.0)
        assert reason(await call) == "TOOL_UNAVAILABLE"
        assert reason(await fails(served, CallToolRequest(tool_name="work"))) == "RUNTIME_DRAINING"

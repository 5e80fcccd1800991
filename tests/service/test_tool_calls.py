"""Records of tool calls over a real channel, and the words that settle calls in doubt."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from behest.runs import RunHandle
from behest.v1.message_pb2 import Part, TextPart, ToolResult
from behest.v1.run_state_pb2 import RunState
from behest.v1.tool_call_pb2 import ToolCallRecord, ToolCallState
from behest.v1.tool_call_service_pb2 import GetToolCallRequest, ListToolCallsRequest, ResolveToolCallRequest
from behest.v1.tool_pb2 import Executed, ToolPolicy
from behestd.core.times import duration
from tests.daemons import Served, refused, serve
from tests.runs.scenes import NON_IDEMPOTENT, OPEN, PURE, Ledger, finished, only, tools, until_kind
from tests.service.edges import failure, metadata, reason


def add(a: int, b: int) -> int:
    """Add."""
    return a + b


def fall() -> str:
    """Fail."""
    raise ValueError("it fell")


ADD_AND_FALL = tools((add, PURE), (fall, PURE))
TWO_TURNS = '/tool add {"a": 1, "b": 2}\n/tool add {"a": 3, "b": 4}\n/tool fall\n/next\n/tool add {"a": 5, "b": 6}'
COMPLETED = ToolCallState.TOOL_CALL_STATE_COMPLETED
UNKNOWN = ToolCallState.TOOL_CALL_STATE_OUTCOME_UNKNOWN


async def ended(served: Served, text: str, **order: Any) -> RunHandle:
    handle = await served.client.run(text, **order)
    async with asyncio.timeout(30):
        await handle.result()
    return handle


async def listed(served: Served, **filters: Any) -> list[ToolCallRecord]:
    return [record async for record in served.client.tool_calls.list(ListToolCallsRequest(**filters))]


def arguments(records: list[ToolCallRecord]) -> list[str]:
    return [record.arguments_json for record in records]


@pytest.mark.parametrize("store", ["memory", "sqlite"])
async def test_calls_are_listed_by_run_session_and_message_with_what_came_of_them(store: str) -> None:  # C033
    async with serve(store, tools=ADD_AND_FALL) as served:
        first = await ended(served, TWO_TURNS)
        session_id = (await served.client.runs.get(first.run_id)).session_id
        second = await ended(served, '/tool add {"a": 7, "b": 8}', session_id=session_id)
        elsewhere = await ended(served, '/tool add {"a": 9, "b": 9}')
        of_first = ['{"a": 5, "b": 6}', '{"a": 1, "b": 2}', '{"a": 3, "b": 4}', "{}"]
        assert arguments(await listed(served, run_id=first.run_id)) == of_first
        assert arguments(await listed(served, session_id=session_id)) == ['{"a": 7, "b": 8}', *of_first]
        every = ['{"a": 9, "b": 9}', '{"a": 7, "b": 8}', *of_first]
        assert arguments(await listed(served)) == every
        for page_size in (1, 2, 3):
            assert arguments(await listed(served, page_size=page_size)) == every
        records = await listed(served, run_id=first.run_id)
        message_id = records[1].message_id
        assert arguments(await listed(served, message_id=message_id)) == of_first[1:]
        assert await listed(served, message_id=message_id, run_id=second.run_id) == []
        assert arguments(await listed(served, tool_name="fall")) == ["{}"]
        assert len(await listed(served, states=[COMPLETED])) == 6
        assert await listed(served, states=[UNKNOWN], run_id=elsewhere.run_id) == []
        assert await listed(served, run_id="run_none") == []
        done = records[0]
        assert (done.state, done.tool_name, done.step, done.index) == (COMPLETED, "add", 2, 0)
        assert done.result.parts[0].json.json == "11"
        assert done.elapsed.ToNanoseconds() > 0
        assert [attempt.attempt for attempt in done.attempts] == [1]
        assert next(record for record in records if record.tool_name == "fall").result.is_error
        assert await served.client.tool_calls.get(done.id) == done


async def test_the_calls_of_a_deleted_run_are_gone() -> None:
    async with serve("sqlite", tools=ADD_AND_FALL) as served:
        handle = await ended(served, '/tool add {"a": 1, "b": 2}')
        (record,) = await listed(served)
        await served.client.runs.delete(handle.run_id)
        assert await listed(served) == []
        error = await refused(served.client.tool_calls.get(record.id))
        assert (error.reason, error.metadata["callId"]) == ("TOOL_CALL_NOT_FOUND", record.id)


SLOW = ToolPolicy()
SLOW.CopyFrom(NON_IDEMPOTENT)
SLOW.timeouts.start_to_close.CopyFrom(duration(0.05))


async def in_doubt(served: Served) -> tuple[RunHandle, str]:
    """Order a run whose call ends in doubt; gives it and the call's id."""
    handle = await served.client.run("/tool pay")
    (unknown,) = only(await until_kind(handle, "run_waiting"), "tool_outcome_unknown")
    record = await served.client.tool_calls.get(unknown.call_id)
    assert (record.state, record.executed) == (UNKNOWN, Executed.EXECUTED_UNKNOWN)
    return handle, unknown.call_id


async def pay_once(ledger: Ledger) -> str:
    return await ledger.work("pay", wait=len(ledger.calls) == 0)


@pytest.mark.parametrize("executed", [Executed.EXECUTED_YES, Executed.EXECUTED_NO])
async def test_a_result_settles_a_call_in_doubt_and_the_same_word_again_is_no_error(
    executed: Executed.ValueType,
) -> None:
    ledger = Ledger()

    async def pay() -> str:
        return await pay_once(ledger)

    async with serve(tools=tools((pay, SLOW)), operator=OPEN) as served:
        handle, call_id = await in_doubt(served)
        result = ToolResult(parts=[Part(text=TextPart(text="paid by hand"))])
        record = await served.client.tool_calls.resolve(call_id, executed, result=result, reason="looked it up")
        assert (record.state, record.resolved_by, record.executed) == (COMPLETED, "local", executed)
        assert record.result.parts[0].text.text == "paid by hand"
        run = await finished(served.client, handle.run_id)
        assert run.state == RunState.RUN_STATE_COMPLETED
        assert "paid by hand" in run.output.text
        again = await served.client.tool_calls.resolve(call_id, executed, result=result)
        assert again == await served.client.tool_calls.get(call_id)
        other = ToolResult(parts=[Part(text=TextPart(text="other"))])
        error = await refused(served.client.tool_calls.resolve(call_id, executed, result=other))
        assert (error.reason, error.metadata["callId"]) == ("TOOL_CALL_RESOLVED", call_id)
        error = await refused(served.client.tool_calls.resolve(call_id, Executed.EXECUTED_UNKNOWN))
        assert error.reason == "TOOL_CALL_RESOLVED"
    assert ledger.calls == ["pay"]


async def test_a_call_that_is_said_to_be_unexecuted_is_sent_again_with_the_same_key() -> None:
    ledger = Ledger()
    keys: list[str] = []

    async def pay() -> str:
        return await pay_once(ledger)

    async with serve(tools=tools((pay, SLOW)), operator=OPEN) as served:
        handle, call_id = await in_doubt(served)
        keys.append((await served.client.tool_calls.get(call_id)).idempotency_key)
        async with asyncio.TaskGroup() as tasks:
            words = [
                tasks.create_task(served.client.tool_calls.resolve(call_id, Executed.EXECUTED_NO)) for _ in range(3)
            ]
        assert {word.result().id for word in words} == {call_id}
        run = await finished(served.client, handle.run_id)
        assert "done pay" in run.output.text
        keys.append((await served.client.tool_calls.get(call_id)).idempotency_key)
        # Said again after the end of the run, it is still the same word.
        await served.client.tool_calls.resolve(call_id, Executed.EXECUTED_NO)
    assert ledger.calls == ["pay", "pay"]
    assert keys[0] == keys[1]


async def test_a_call_that_has_its_outcome_cannot_be_settled() -> None:
    async with serve(tools=ADD_AND_FALL) as served:
        handle = await ended(served, '/tool add {"a": 1, "b": 2}')
        (record,) = await listed(served, run_id=handle.run_id)
        error = await refused(served.client.tool_calls.resolve(record.id, Executed.EXECUTED_YES))
        assert error.reason == "TOOL_CALL_RESOLVED"


async def test_bad_questions_are_refused_by_their_field(served: Served) -> None:
    stubs = served.client.stubs.tool_calls
    odd = ToolResult(parts=[Part(tool_result=ToolResult())])
    for call, field in (
        (stubs.GetToolCall(GetToolCallRequest()), "call_id"),
        (stubs.ListToolCalls(ListToolCallsRequest(page_size=-1)), "page_size"),
        (stubs.ListToolCalls(ListToolCallsRequest(run_id="a b")), "run_id"),
        (stubs.ListToolCalls(ListToolCallsRequest(states=[99])), "states[0]"),  # type: ignore[list-item]
        (stubs.ListToolCalls(ListToolCallsRequest(page_token="x")), "page_token"),
        (stubs.ResolveToolCall(ResolveToolCallRequest()), "call_id"),
        (stubs.ResolveToolCall(ResolveToolCallRequest(call_id="c")), "executed"),
        (stubs.ResolveToolCall(ResolveToolCallRequest(call_id="c", executed=9)), "executed"),  # type: ignore[arg-type]
        (stubs.ResolveToolCall(ResolveToolCallRequest(call_id="c", executed=2, result=odd)), "result.parts[0]"),  # type: ignore[arg-type]
    ):
        error = await failure(call)
        assert metadata(error)["field"] == field
        assert reason(error) in ("REQUEST_INVALID", "REQUEST_PAGE_TOKEN_INVALID")
    error = await failure(stubs.ResolveToolCall(ResolveToolCallRequest(call_id="c", executed=2, reason="x" * 1025)))  # type: ignore[arg-type]
    assert reason(error) == "REQUEST_TOO_LARGE"
    error = await failure(stubs.ResolveToolCall(ResolveToolCallRequest(call_id="none", executed=2)))  # type: ignore[arg-type]
    assert reason(error) == "TOOL_CALL_NOT_FOUND"

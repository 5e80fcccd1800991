"""What a daemon knows of direct calls after a restart: answers, doubt, and keys that are buried."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import grpc
import pytest

from behest.v1.tool_pb2 import SideEffect, ToolPolicy
from behest.v1.tool_service_pb2 import (
    CallState,
    CallToolRequest,
    CancelCallRequest,
    GetCallStatusRequest,
    GetCallStatusResponse,
)
from behestd.runtime import direct_journal
from behestd.runtime.direct_journal import Entry, Journal, Stage, cut
from tests.daemons import Served, serve
from tests.runs.scenes import IDEMPOTENT, NON_IDEMPOTENT, OPEN, PURE, Ledger, tools
from tests.service.edges import failure, reason

QUERYABLE = ToolPolicy(side_effect=SideEffect.SIDE_EFFECT_NON_IDEMPOTENT_QUERYABLE)


def not_executed(error: grpc.aio.AioRpcError) -> bool:
    """Whether the trailers prove that nothing was executed."""
    return dict(error.trailing_metadata() or ()).get("behest-not-executed") == "1"


async def result_of(served: Served, request: CallToolRequest) -> str:
    async with asyncio.timeout(20):
        frames = [frame async for frame in served.client.stubs.tools.CallTool(request)]
    return frames[-1].result.parts[0].text.text


async def fails(served: Served, request: CallToolRequest) -> grpc.aio.AioRpcError:
    return await failure(served.client.stubs.tools.CallTool(request).read())


async def status(served: Served, key: str, **fields: Any) -> GetCallStatusResponse:
    return await served.client.stubs.tools.GetCallStatus(GetCallStatusRequest(idempotency_key=key, **fields))


@pytest.fixture
def plan(tmp_path: Path) -> dict[str, Any]:
    """A daemon on one directory, whose tools note their calls in `ledger`."""
    ledger = Ledger()
    ledger.opened.set()

    async def pay(amount: int) -> str:
        return await ledger.work(f"pay {amount}")

    async def put(amount: int) -> str:
        return await ledger.work(f"put {amount}")

    async def order(amount: int) -> str:
        return await ledger.work(f"order {amount}")

    async def look(amount: int) -> str:
        return await ledger.work(f"look {amount}")

    made = tools((pay, NON_IDEMPOTENT), (put, IDEMPOTENT), (order, QUERYABLE), (look, PURE))
    return {"store": "sqlite", "data_dir": tmp_path / "data", "tools": made, "operator": OPEN, "ledger": ledger}


def taken(plan: dict[str, Any]) -> tuple[Ledger, dict[str, Any]]:
    return plan["ledger"], {name: value for name, value in plan.items() if name != "ledger"}


def call(tool: str, amount: int = 5, **fields: Any) -> CallToolRequest:
    return CallToolRequest(
        tool_name=tool, arguments_json=f'{{"amount": {amount}}}', **({"idempotency_key": "k"} | fields)
    )


async def test_a_key_that_was_never_seen_is_buried_also_for_the_next_daemon(plan: dict[str, Any]) -> None:
    ledger, daemon = taken(plan)
    async with serve(**daemon) as served:
        assert (await status(served, "k", epoch=2, attempt=1)).state == CallState.CALL_STATE_NEVER_SEEN
    for _ in range(2):
        async with serve(**daemon) as served:
            error = await fails(served, call("pay", epoch=2, attempt=1))
            assert (reason(error), not_executed(error)) == ("TOOL_START_EXPIRED", True)
    async with serve(**daemon) as served:
        assert await result_of(served, call("pay", epoch=2, attempt=2)) == "done pay 5"
    assert ledger.calls == ["pay 5"]


async def test_an_answer_outlives_the_daemon_that_had_it(plan: dict[str, Any]) -> None:
    ledger, daemon = taken(plan)
    async with serve(**daemon) as served:
        assert await result_of(served, call("pay", epoch=3, call_id="c1")) == "done pay 5"
    async with serve(**daemon) as served:
        told = await status(served, "k", epoch=3)
        assert (told.state, told.result.parts[0].text.text) == (CallState.CALL_STATE_DONE, "done pay 5")
        assert (told.result.call_id, told.result.name) == ("c1", "pay")
        assert await result_of(served, call("pay", epoch=4)) == "done pay 5"
        assert reason(await fails(served, call("pay", 6, epoch=4))) == "REQUEST_ID_REUSED"
        assert reason(await fails(served, call("pay", epoch=3))) == "TOOL_OUTCOME_UNKNOWN"
    assert ledger.calls == ["pay 5"]


@pytest.mark.parametrize("tool", ["pay", "order", "put"])
async def test_a_call_that_a_stop_cut_is_in_doubt_and_repeated_only_where_its_class_allows_it(
    plan: dict[str, Any], tool: str
) -> None:
    ledger, daemon = taken(plan)
    ledger.opened.clear()
    async with serve(**(daemon | {"drain_seconds": 0.0})) as served:
        cut_off = asyncio.ensure_future(fails(served, call(tool, epoch=1)))
        async with asyncio.timeout(20):
            await ledger.reached.wait()
    # Whatever its client was told, if anything.
    await asyncio.wait({cut_off})
    ledger.opened.set()
    async with serve(**daemon) as served:
        error = await failure(
            served.client.stubs.tools.GetCallStatus(GetCallStatusRequest(idempotency_key="k", epoch=1))
        )
        assert reason(error) == "TOOL_OUTCOME_UNKNOWN"
        if tool == "put":
            assert await result_of(served, call(tool, epoch=1, attempt=2)) == "done put 5"
        else:
            error = await fails(served, call(tool, epoch=1, attempt=2))
            assert (reason(error), not_executed(error)) == ("TOOL_OUTCOME_UNKNOWN", False)
    assert ledger.calls == [f"{tool} 5"] * (2 if tool == "put" else 1)


async def test_pure_tools_and_calls_without_a_key_leave_no_record(plan: dict[str, Any]) -> None:
    _, daemon = taken(plan)
    async with serve(**daemon) as served:
        await result_of(served, call("look", idempotency_key="other"))
        await result_of(served, call("pay", idempotency_key=""))
        assert await served.daemon.log.store.records("", direct_journal.KIND, limit=10) == []
        await result_of(served, call("pay"))
        (record,) = await served.daemon.log.store.records("", direct_journal.KIND, limit=10)
    assert record.id == "k"
    assert record.expire_time_ns > record.create_time_ns + 48 * 3600 * 10**9


async def test_a_large_answer_is_kept_cut(plan: dict[str, Any]) -> None:
    _, daemon = taken(plan)
    async with serve(**daemon) as served:
        journal = Journal(served.daemon.log, served.daemon.house.clock)
        result = GetCallStatusResponse().result
        result.parts.add().text.text = "é" * direct_journal.RESULT_BYTES
        await journal.put(("default", "k"), Entry(Stage.DONE, 1, 1, "pay", result=result))
        entry = await journal.find(("default", "k"))
    assert entry is not None
    assert entry.result == cut(result)
    assert entry.result is not None
    assert entry.result.truncated
    assert entry.result.ByteSize() <= direct_journal.RESULT_BYTES + 64


async def test_a_call_that_is_told_to_stop_while_it_is_written_down_is_not_sent(
    plan: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger, daemon = taken(plan)
    writing, written = asyncio.Event(), asyncio.Event()
    put = Journal.put

    async def slowly(self: Journal, key: direct_journal.Key, entry: Entry) -> None:
        writing.set()
        await written.wait()
        await put(self, key, entry)

    monkeypatch.setattr(Journal, "put", slowly)
    async with serve(**daemon) as served:
        called = asyncio.ensure_future(fails(served, call("pay", epoch=1, attempt=1)))
        async with asyncio.timeout(20):
            await writing.wait()
        stopped = await served.client.stubs.tools.CancelCall(CancelCallRequest(idempotency_key="k", epoch=1))
        assert stopped.acknowledged
        written.set()
        error = await called
        assert (reason(error), not_executed(error)) == ("TOOL_CANCELLED", True)
        assert await result_of(served, call("pay", epoch=1, attempt=2)) == "done pay 5"
    assert ledger.calls == ["pay 5"]

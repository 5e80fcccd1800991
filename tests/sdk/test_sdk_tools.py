"""Tools as functions and as objects: what is registered, what lives how long, what the context tells."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import grpc
import pytest

from behest.client import Client
from behest.errors import BehestError
from behest.tools import Context, ToolError, ToolServer, tool
from behest.v1.message_pb2 import ToolResult
from behest.v1.tool_pb2 import SideEffect
from behest.v1.tool_service_pb2 import CallToolRequest, CancelCallRequest
from behest.v1.tool_service_pb2_grpc import ToolServiceStub

SECONDS = 20


@asynccontextmanager
async def dialled(server: ToolServer) -> AsyncIterator[Client]:
    """Serve, and give a client: a tool server and a daemon have ToolService in common."""
    async with asyncio.timeout(SECONDS), server:
        port = await server.serve("127.0.0.1:0")
        async with Client(f"127.0.0.1:{port}") as client:
            yield client


def text(result: ToolResult) -> str:
    return "".join(part.text.text + part.json.json for part in result.parts)


class Accounts:
    """Accounts of a bank."""

    def __init__(self) -> None:
        self.log: list[str] = []
        self.balances = {"a": 5}

    async def __aenter__(self) -> Accounts:
        self.log.append("open")
        return self

    async def __aexit__(self, *_: object) -> None:
        self.log.append("close")

    @tool(side_effect="pure")
    def balance(self, account: str) -> int:
        """Tell the balance.

        Args:
            account: its name
        """
        self.log.append("balance")
        return self.balances[account]

    @tool(name="pay_in", description="Pay in.", side_effect="idempotent")
    async def pay(self, context: Context, account: str, amount: int) -> int:
        self.balances[account] += amount
        return self.balances[account]

    def secret(self) -> str:
        return "not a tool"


class WordCount:
    """Count the words of a text."""

    async def call(self, text: str) -> int:
        return len(text.split())


async def test_an_object_with_marked_methods_is_several_tools_over_one_life() -> None:
    accounts, server = Accounts(), ToolServer()
    server.add(accounts)
    assert accounts.log == []
    async with dialled(server) as client:
        assert accounts.log == ["open"]
        tools = [each async for each in client.tools.list()]
        paid = await client.tools.call("pay_in", '{"account": "a", "amount": 3}')
        told = await client.tools.call("balance", '{"account": "a"}')
    assert accounts.log == ["open", "balance", "close"]
    assert [(each.name, each.description, each.hints.side_effect) for each in tools] == [
        ("balance", "Tell the balance.", SideEffect.SIDE_EFFECT_PURE),
        ("pay_in", "Pay in.", SideEffect.SIDE_EFFECT_IDEMPOTENT),
    ]
    assert (text(paid), text(told)) == ("8", "8")


async def test_an_object_with_a_method_call_is_a_tool_by_the_name_of_its_class() -> None:
    server = ToolServer()
    server.add(WordCount())
    async with dialled(server) as client:
        [only] = [each async for each in client.tools.list()]
        counted = await client.tools.call("word_count", '{"text": "one two three"}')
    assert (only.name, only.description, text(counted)) == ("word_count", "Count the words of a text.", "3")


async def test_objects_are_left_in_reverse_and_also_when_the_next_one_cannot_be_set_up() -> None:
    log: list[str] = []

    class Plain(WordCount):
        def __init__(self, name: str) -> None:
            self.name = name

        def __enter__(self) -> None:
            log.append(f"open {self.name}")

        def __exit__(self, *_: object) -> None:
            log.append(f"close {self.name}")

        @tool
        def other(self) -> None: ...

    class Broken:
        async def __aenter__(self) -> None:
            raise LookupError("no database")

        async def __aexit__(self, *_: object) -> None: ...

        async def call(self) -> None: ...

    server = ToolServer()
    server.add(Plain("first"))
    server.add(Broken())
    with pytest.raises(LookupError):
        async with server:
            pass
    assert log == ["open first", "close first"]


def test_what_is_no_tool_is_refused_when_it_is_added() -> None:
    server = ToolServer()
    server.add(WordCount())
    for thing, error in ((WordCount(), ValueError), (WordCount, TypeError), (object(), TypeError)):
        with pytest.raises(error):
            server.add(thing)
    with pytest.raises(ValueError):
        server.tool(side_effect="harmless")(lambda: None)


async def test_the_context_tells_of_the_call(caplog: pytest.LogCaptureFixture) -> None:
    server, seen = ToolServer(), []

    @server.tool(name="t")
    def work(context: Context) -> str:
        seen.append((context.idempotency_key, context.attempt, context.epoch, context.call_id, context.run_id))
        seen.append((context.session_id, context.traceparent, context.deadline, context.is_cancelled))
        context.progress("x" * 100_000)
        context.log("took %d rows", 3)
        context.log("50% done", level=logging.WARNING)
        context.log("unseen", level=logging.DEBUG)
        context.write("written, ")
        return "returned"

    with caplog.at_level(logging.INFO, logger="behest.tools"):
        async with dialled(server) as client:
            request = CallToolRequest(
                tool_name="t", idempotency_key="k", attempt=2, epoch=3, call_id="c", run_id="r", session_id="s"
            )
            request.deadline.FromSeconds(4_000_000_000)
            frames = client.stubs.tools.CallTool(request, metadata=(("traceparent", "00-trace"),))
            shown = [frame async for frame in frames]
    assert seen[0] == ("k", 2, 3, "c", "r")
    assert seen[1][:2] == ("s", "00-trace")
    assert seen[1][2].year == 2096
    assert not seen[1][3]
    assert [frame.WhichOneof("frame") for frame in shown] == ["progress", "result"]
    assert len(shown[0].progress.text) == 64 * 1024
    assert text(shown[1].result) == "written, returned"
    ours = [record for record in caplog.records if record.name.startswith("behest")]
    assert [record.getMessage() for record in ours] == ["c: took 3 rows", "c: 50% done"]
    assert {record.run_id for record in ours} == {"r"}  # type: ignore[attr-defined]


async def test_a_dialled_server_has_nowhere_to_put_artifacts() -> None:
    server = ToolServer()

    @server.tool(name="t")
    async def work(context: Context) -> str:
        await context.artifact(b"data")
        return "stored"

    async with dialled(server) as client:
        failed = await client.tools.call("t")
    assert failed.is_error
    assert "attached" in text(failed)


async def test_a_tool_error_is_told_to_the_model() -> None:
    server = ToolServer()

    @server.tool(name="t")
    async def work() -> None:
        raise ToolError("there is no account 17")

    async with dialled(server) as client:
        failed = await client.tools.call("t")
    assert failed.is_error
    assert text(failed) == "there is no account 17"


async def test_a_dialled_server_that_drains_finishes_what_runs_and_begins_nothing() -> None:
    server, begun, opened = ToolServer(), asyncio.Event(), asyncio.Event()

    @server.tool(name="t")
    async def work() -> str:
        begun.set()
        await opened.wait()
        return "done"

    async with dialled(server) as client:
        running = asyncio.ensure_future(client.tools.call("t", idempotency_key="k"))
        await begun.wait()
        draining = asyncio.ensure_future(server.drain())
        await asyncio.sleep(0)
        with pytest.raises(BehestError):
            await client.tools.call("t")
        opened.set()
        assert text(await running) == "done"
        await draining
        await server.wait()


async def test_a_call_without_a_key_ends_with_its_stream_and_one_with_a_key_does_not() -> None:
    server, log = ToolServer(), []
    begun, opened = asyncio.Event(), asyncio.Event()

    @server.tool(name="t")
    async def work(context: Context) -> str:
        begun.set()
        try:
            await opened.wait()
        except asyncio.CancelledError:
            log.append(f"stopped {context.idempotency_key}")
            begun.set()
            raise
        return "done"

    async with dialled(server) as client:
        for key in ("", "k"):
            begun.clear()
            call = client.stubs.tools.CallTool(CallToolRequest(tool_name="t", idempotency_key=key))
            reading = asyncio.ensure_future(call.read())
            await begun.wait()
            begun.clear()
            call.cancel()
            with pytest.raises(asyncio.CancelledError):
                await reading
            if not key:
                await begun.wait()
        opened.set()
        assert text(await client.tools.call("t", "", idempotency_key="k")) == "done"
    assert log == ["stopped "]


async def test_cancelling_by_key_stops_a_call_and_tells_whether_it_ran() -> None:
    server, begun = ToolServer(), asyncio.Event()

    @server.tool(name="t")
    async def work() -> None:
        begun.set()
        await asyncio.Event().wait()

    async with dialled(server) as client:
        running = asyncio.ensure_future(client.tools.call("t", idempotency_key="k"))
        await begun.wait()
        stub = client.stubs.tools
        assert (await stub.CancelCall(CancelCallRequest(idempotency_key="k"))).acknowledged
        assert (await running).is_error
        assert not (await stub.CancelCall(CancelCallRequest(idempotency_key="k"))).acknowledged


@pytest.mark.parametrize(("side_effect", "times"), [("pure", 2), ("idempotent", 2), ("non_idempotent", 1)])
async def test_a_call_that_was_cut_short_is_executed_again_where_it_may_be(side_effect: str, times: int) -> None:
    server, begun, opened = ToolServer(), asyncio.Event(), asyncio.Event()
    executed: list[int] = []

    @server.tool(name="t", side_effect=side_effect)
    async def work(context: Context) -> str:
        executed.append(context.attempt)
        begun.set()
        await opened.wait()
        return "done"

    async with dialled(server) as client:
        running = asyncio.ensure_future(client.tools.call("t", idempotency_key="k"))
        await begun.wait()
        await client.stubs.tools.CancelCall(CancelCallRequest(idempotency_key="k"))
        assert (await running).is_error
        opened.set()
        again = await client.tools.call("t", idempotency_key="k")
    assert again.is_error == (times == 1)
    assert len(executed) == times


async def test_a_plain_function_that_is_cancelled_while_it_waits_for_a_thread_does_not_begin() -> None:
    server, log, opened = ToolServer(threads=1), [], threading.Event()

    @server.tool(name="t")
    def work(context: Context) -> str:
        log.append(context.idempotency_key)
        opened.wait(SECONDS)
        return "done"

    async with dialled(server) as client:
        first = asyncio.ensure_future(client.tools.call("t", idempotency_key="k1"))
        while not log:
            await asyncio.sleep(0.01)
        second = asyncio.ensure_future(client.tools.call("t", idempotency_key="k2"))
        cancel = CancelCallRequest(idempotency_key="k2")
        while not (await client.stubs.tools.CancelCall(cancel)).acknowledged:
            await asyncio.sleep(0.01)
        opened.set()
        assert text(await first) == "done"
        assert (await second).is_error
    assert log == ["k1"]


async def test_a_server_is_reached_by_a_unix_socket(tmp_path: Path) -> None:
    server = ToolServer()
    server.tool(name="t")(lambda: "in")
    address = f"unix:{tmp_path / 'tools.sock'}"
    async with asyncio.timeout(SECONDS), server:
        await server.serve(address)
        async with grpc.aio.insecure_channel(address) as channel:
            frames = [frame async for frame in ToolServiceStub(channel).CallTool(CallToolRequest(tool_name="t"))]
    assert text(frames[-1].result) == "in"

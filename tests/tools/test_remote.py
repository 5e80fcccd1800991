"""The daemon's side and the client's side of the tool contract, over a real channel."""

from __future__ import annotations

import asyncio
import json
import subprocess
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import grpc
import pytest

from behest.tools import Context, ToolError, ToolServer
from behest.v1.message_pb2 import ImagePart, Part, TextPart, ToolResult
from behest.v1.model_event_pb2 import FailureClass
from behest.v1.tool_pb2 import Executed, Progress, Tool
from behest.v1.tool_service_pb2 import GetToolRequest, GetToolResponse, ListToolsRequest, ListToolsResponse
from behestd.tools.remote import RemoteServer
from behestd.tools.tool import Answer, CannotTell, Done, NeverSeen, Running, ToolFailure
from behestd.wire.remote_channel import Tls
from tests.tools.calls import call, dialled, limits, nowhere


@asynccontextmanager
async def served(server: ToolServer, **link: Any) -> AsyncIterator[RemoteServer]:
    async with asyncio.timeout(20), server:
        port = await server.serve("127.0.0.1:0")
        async with dialled(f"127.0.0.1:{port}", **link) as remote:
            yield remote


def text(answer: Answer) -> str:
    return "".join(part.text.text for part in answer.parts)


async def failure(remote: RemoteServer, tool: Tool, **changes: Any) -> ToolFailure:
    with pytest.raises(ToolFailure) as failed:
        await remote.bind(tool).call(call(**changes), nowhere)
    return failed.value


async def test_a_tool_is_listed_called_and_answers(tmp_path: Path) -> None:  # C024
    server = ToolServer(dedupe=str(tmp_path / "calls.sqlite3"))
    seen: list[tuple[Any, ...]] = []
    shown: list[Progress] = []

    @server.tool(side_effect="pure")
    async def add(context: Context, a: int, b: int = 1) -> dict[str, int]:
        """Add numbers.

        Args:
            a: the first
        """
        ids = (context.call_id, context.run_id, context.session_id)
        seen.append((context.idempotency_key, context.attempt, context.epoch, *ids))
        context.progress("adding", current=1, total=2)
        return {"sum": a + b}

    async with served(server) as remote:
        [tool] = await remote.list_tools()
        assert tool.description == "Add numbers."
        assert json.loads(tool.input_schema_json)["properties"]["a"] == {"type": "integer", "description": "the first"}
        made = call(arguments_json='{"a": 12345678901234567890}', attempt=2, epoch=3)
        ended = await remote.bind(tool).call(made, shown.append)
    assert ended.structured_json == '{"sum": 12345678901234567891}'
    assert not ended.is_error
    assert seen == [("key-1", 2, 3, "call-1", "run-1", "session-1")]
    assert [progress.text for progress in shown] == ["adding"]
    assert remote.statistics().calls == 1


async def test_many_tools_are_listed_page_by_page() -> None:
    server = ToolServer()
    for number in range(1_203):
        server.tool(name=f"t{number}")(lambda: None)
    async with served(server) as remote:
        names = [tool.name for tool in await remote.list_tools()]
    assert names == sorted(f"t{number}" for number in range(1_203))


@pytest.mark.parametrize(
    ("function", "said"),
    [
        (lambda: (_ for _ in ()).throw(ToolError("disk is full")), "disk is full"),
        (lambda: 1 // 0, "ZeroDivisionError: integer division or modulo by zero"),
        (lambda: object(), "TypeError: object has no form in JSON"),
    ],
)
async def test_a_tool_that_fails_is_an_answer_and_no_failure(function: Callable[[], Any], said: str) -> None:  # C024
    server = ToolServer()
    server.tool(name="t")(function)
    async with served(server) as remote:
        ended = await remote.bind(Tool(name="t")).call(call(), nowhere)
    assert ended.is_error
    assert text(ended) == said


async def test_wrong_arguments_are_an_answer_that_lists_what_is_wrong_as_json() -> None:  # C027
    server = ToolServer()
    server.tool(name="t")(_typed)
    async with served(server) as remote:
        ended = await remote.bind(Tool(name="t")).call(call(arguments_json='{"a": "x", "c": 1}'), nowhere)
    assert ended.is_error
    assert [error["path"] for error in json.loads(ended.structured_json)["errors"]] == ["/c"]


def _typed(a: int) -> int:
    return a


async def test_a_bearer_token_is_resolved_at_each_call_and_refusal_is_proof() -> None:  # C024
    server = ToolServer(token="s3cret-token")
    server.tool(name="t")(lambda: "in")
    tokens = iter(["wrong-token", "wrong-token", "s3cret-token", "s3cret-token"])
    async with served(server, token=lambda: next(tokens)) as remote:
        refused = await failure(remote, Tool(name="t"))
        ended = await remote.bind(Tool(name="t")).call(call(), nowhere)
    assert refused.reason == "AUTH_REQUIRED"
    assert refused.failure_class == FailureClass.FAILURE_CLASS_PERMANENT
    assert refused.executed == Executed.EXECUTED_NO
    assert "s3cret" not in repr(remote.link) + refused.message
    assert text(ended) == "in"


async def test_a_secret_that_cannot_be_had_leaves_the_call_unsent() -> None:  # C024
    def missing() -> str:
        raise LookupError("TOKEN")

    server = ToolServer()
    server.tool(name="t")(lambda: "in")
    async with served(server, token=missing) as remote:
        unsent = await failure(remote, Tool(name="t"))
    assert unsent.failure_class == FailureClass.FAILURE_CLASS_NOT_SENT
    assert unsent.executed == Executed.EXECUTED_NO


def certificates(folder: Path) -> dict[str, bytes]:
    """Make an authority, and a server's and a client's certificate signed by it."""
    made: dict[str, bytes] = {}
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2",
         "-subj", "/CN=ca", "-keyout", "ca.key", "-out", "ca.crt"], cwd=folder, check=True, capture_output=True,
    )  # fmt: skip
    (folder / "san").write_text("subjectAltName=DNS:tools.test")
    for name in ("server", "client"):
        for arguments in (
            ["req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-subj", f"/CN={name}",
             "-keyout", f"{name}.key", "-out", f"{name}.csr"],
            ["x509", "-req", "-in", f"{name}.csr", "-CA", "ca.crt", "-CAkey", "ca.key", "-CAcreateserial", "-days",
             "2", "-extfile", "san", "-out", f"{name}.crt"],
        ):  # fmt: skip
            subprocess.run(["openssl", *arguments], cwd=folder, check=True, capture_output=True)
    for name in ("ca.crt", "server.crt", "server.key", "client.crt", "client.key"):
        made[name] = (folder / name).read_bytes()
    return made


async def test_mutual_tls_lets_in_who_shows_a_certificate_and_nobody_else(tmp_path: Path) -> None:  # C024
    pem = certificates(tmp_path)
    credentials = grpc.ssl_server_credentials(
        [(pem["server.key"], pem["server.crt"])], root_certificates=pem["ca.crt"], require_client_auth=True
    )
    server = ToolServer(credentials=credentials)
    server.tool(name="t")(lambda: "in")
    good = Tls(pem["ca.crt"], pem["client.crt"], pem["client.key"], "tools.test")
    async with served(server, tls=good) as remote:
        assert text(await remote.bind(Tool(name="t")).call(call(), nowhere)) == "in"
        for wrong in (Tls(pem["ca.crt"], b"", b"", "other.test"), Tls(b"", b"", b"", "tools.test")):
            async with dialled(remote.link.endpoint.target.removeprefix("ipv4:"), tls=wrong) as stranger:
                unsent = await failure(stranger, Tool(name="t"))
            assert unsent.failure_class == FailureClass.FAILURE_CLASS_NOT_SENT
            assert unsent.executed == Executed.EXECUTED_NO


async def test_long_results_travel_in_pieces_and_arrive_whole() -> None:
    server = ToolServer()
    long = "漢字🙂" * 700_000

    @server.tool
    def words(context: Context) -> str:
        context.write(long)
        return "the end"

    @server.tool
    def document() -> list[str]:
        return [long]

    async with served(server) as remote:
        assert text(await remote.bind(Tool(name="words")).call(call(key="a"), nowhere)) == long + "the end"
        assert json.loads((await remote.bind(Tool(name="document")).call(call(key="b"), nowhere)).structured_json) == [
            long
        ]
        told = await remote.bind(Tool(name="words")).status("a", 1)
        assert isinstance(told, Done)
        assert told.answer.is_truncated
        assert long.startswith(text(told.answer)[:1_000_000])


async def test_a_result_over_the_limit_was_executed_and_is_not_read_to_its_end() -> None:  # C024, matrix row 32
    server = ToolServer()
    server.tool(name="t")(lambda: "x" * 5_000_000)
    async with served(server, result_limit_bytes=2_000_000) as remote:
        failed = await failure(remote, Tool(name="t"))
    assert failed.reason == "TOOL_RESULT_TOO_LARGE"
    assert failed.failure_class == FailureClass.FAILURE_CLASS_LIMIT
    assert failed.executed == Executed.EXECUTED_YES


@pytest.mark.parametrize(
    ("changes", "tool", "reason"),
    [
        ({}, Tool(name="missing"), "TOOL_NOT_FOUND"),
        ({}, Tool(name="t", hash=b"another"), "TOOL_CHANGED"),
        ({"start_by_ns": 1_000_000_000}, Tool(name="t"), "TOOL_START_EXPIRED"),
    ],
)
async def test_a_call_that_may_not_begin_is_refused_with_proof(
    changes: dict[str, Any], tool: Tool, reason: str
) -> None:  # matrix row 34
    ran: list[bool] = []
    server = ToolServer()
    server.tool(name="t")(lambda: ran.append(True))
    async with served(server) as remote:
        failed = await failure(remote, tool, **changes)
    assert failed.reason == reason
    assert failed.failure_class == FailureClass.FAILURE_CLASS_PERMANENT
    assert failed.executed == Executed.EXECUTED_NO
    assert ran == []


async def test_a_key_is_executed_once_however_often_it_is_called() -> None:  # matrix row 30
    server = ToolServer()
    started, go_on = asyncio.Event(), asyncio.Event()
    ran: list[int] = []

    @server.tool
    async def act(context: Context) -> int:
        ran.append(context.attempt)
        started.set()
        await go_on.wait()
        return len(ran)

    async with served(server) as remote, asyncio.TaskGroup() as group:
        tool = remote.bind(Tool(name="act"))
        together = [group.create_task(tool.call(call(attempt=n), nowhere)) for n in (1, 2)]
        await started.wait()
        assert isinstance(await tool.status("key-1", 1), Running)
        go_on.set()
        answers = [await task for task in together]
        answers.append(await tool.call(call(attempt=3), nowhere))
        assert [answer.structured_json for answer in answers] == ["1", "1", "1"]
        assert (await tool.call(call(key="key-2"), nowhere)).structured_json == "2"
        for changes, reason in (
            ({"arguments_json": '{"a": 1}'}, "REQUEST_ID_REUSED"),
            ({"epoch": 0}, "TOOL_OUTCOME_UNKNOWN"),
        ):
            refused = await failure(remote, Tool(name="act"), **changes)
            assert (refused.reason, refused.executed) == (reason, Executed.EXECUTED_UNKNOWN)


async def test_a_caller_that_goes_away_cancels_nothing_and_may_come_back() -> None:
    server = ToolServer()
    started, go_on = asyncio.Event(), asyncio.Event()

    @server.tool
    async def act() -> str:
        started.set()
        await go_on.wait()
        return "done"

    async with served(server) as remote, asyncio.TaskGroup() as group:
        tool = remote.bind(Tool(name="act"))
        leaving = group.create_task(tool.call(call(), nowhere))
        await started.wait()
        leaving.cancel()
        assert isinstance(await tool.status("key-1", 1), Running)
        go_on.set()
        ended = await tool.status("key-1", 1, wait_seconds=5)
        assert isinstance(ended, Done)
        assert text(ended.answer) == text(await tool.call(call(attempt=2), nowhere)) == "done"


async def test_a_call_without_a_key_belongs_to_its_stream() -> None:
    server = ToolServer()
    started, cancelled = asyncio.Event(), asyncio.Event()

    @server.tool
    async def act() -> None:
        started.set()
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()

    async with served(server) as remote, asyncio.TaskGroup() as group:
        leaving = group.create_task(remote.bind(Tool(name="act")).call(call(key=""), nowhere))
        await started.wait()
        leaving.cancel()
        await cancelled.wait()


async def test_a_cancelled_call_is_acknowledged_and_ends_by_its_own_stream() -> None:
    server = ToolServer()
    started = asyncio.Event()

    @server.tool
    async def act() -> None:
        started.set()
        await asyncio.Event().wait()

    async with served(server) as remote, asyncio.TaskGroup() as group:
        tool = remote.bind(Tool(name="act"))
        task = group.create_task(tool.call(call(epoch=2), nowhere))
        await started.wait()
        assert not await tool.cancel("key-1", 1)
        assert await tool.cancel("key-1", 2)
        ended = await task
        assert ended.is_error
        assert text(ended).startswith("the call was cancelled")
        assert not await tool.cancel("key-1", 2)
        assert not await tool.cancel("never", 2)


async def test_a_plain_function_that_is_cancelled_is_told_and_answers_for_itself() -> None:
    server = ToolServer()
    started = threading.Event()

    @server.tool
    def act(context: Context) -> str:
        started.set()
        while not context.is_cancelled:
            pass
        return "stopped halfway"

    async with served(server) as remote, asyncio.TaskGroup() as group:
        tool = remote.bind(Tool(name="act"))
        task = group.create_task(tool.call(call(), nowhere))
        assert await asyncio.to_thread(started.wait, 5)
        assert await tool.cancel("key-1", 1)
        assert text(await task) == "stopped halfway"


async def test_a_call_that_outlasts_its_limit_is_cancelled_at_the_server_too() -> None:  # C028, matrix row 28
    server = ToolServer()
    cancelled = asyncio.Event()

    @server.tool
    async def sleep() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()

    async with served(server) as remote:
        began = asyncio.get_running_loop().time()
        failed = await failure(remote, Tool(name="sleep"), timeouts=limits(start_to_close_seconds=0.3))
        assert asyncio.get_running_loop().time() - began >= 0.3
        await cancelled.wait()
    assert failed.reason == "TOOL_TIMEOUT"
    assert failed.failure_class == FailureClass.FAILURE_CLASS_AMBIGUOUS
    assert failed.executed == Executed.EXECUTED_UNKNOWN
    assert remote.statistics().timeouts == 1


async def test_progress_is_a_heartbeat_and_does_not_extend_the_limit() -> None:  # matrix row 35
    server = ToolServer()

    @server.tool
    async def drip(context: Context, times: int = 1_000_000) -> str:
        for _ in range(times):
            context.progress(".")
            await asyncio.sleep(0.02)
        return "done"

    @server.tool
    async def silent() -> None:
        await asyncio.Event().wait()

    async with served(server) as remote:
        alive = limits(heartbeat_seconds=1.0, start_to_close_seconds=5.0)
        tool = remote.bind(Tool(name="drip"))
        assert text(await tool.call(call(key="a", arguments_json='{"times": 5}', timeouts=alive), nowhere)) == "done"
        endless = limits(heartbeat_seconds=1.0, start_to_close_seconds=0.4)
        over = await failure(remote, Tool(name="drip"), key="b", timeouts=endless)
        dead = await failure(remote, Tool(name="silent"), key="c", timeouts=limits(heartbeat_seconds=0.2))
    for failed in (over, dead):
        assert failed.reason == "TOOL_TIMEOUT"
        assert failed.executed == Executed.EXECUTED_UNKNOWN


async def test_a_key_that_was_never_seen_is_buried_for_its_epoch_and_lower_ones(tmp_path: Path) -> None:
    ran: list[int] = []
    server = ToolServer(dedupe=str(tmp_path / "calls.sqlite3"))

    @server.tool
    def act(context: Context) -> None:
        ran.append(context.epoch)

    async with served(server) as remote:
        tool = remote.bind(Tool(name="act"))
        assert isinstance(await tool.status("key-1", 5), NeverSeen)
        for epoch in (4, 5):
            refused = await failure(remote, Tool(name="act"), epoch=epoch)
            assert refused.executed == Executed.EXECUTED_NO
        assert isinstance(await tool.status("key-1", 3), NeverSeen)
        await tool.call(call(epoch=6), nowhere)
        assert isinstance(await tool.status("key-1", 6), Done)
    assert ran == [6]


async def test_a_server_that_forgets_does_not_promise_what_it_cannot_know() -> None:
    server = ToolServer()
    server.tool(name="t")(lambda: 1)
    async with served(server) as remote:
        assert isinstance(await remote.bind(Tool(name="t")).status("unknown", 1), CannotTell)


@pytest.mark.parametrize("effect", ["idempotent", "non_idempotent"])
async def test_a_call_that_a_stop_interrupted_is_repeated_only_where_that_is_safe(effect: str, tmp_path: Path) -> None:
    path = str(tmp_path / "calls.sqlite3")
    started = asyncio.Event()
    ran: list[int] = []

    def made() -> ToolServer:
        server = ToolServer(dedupe=path)

        @server.tool(side_effect=effect)
        async def act(context: Context) -> str:
            ran.append(context.attempt)
            started.set()
            if len(ran) == 1:
                await asyncio.Event().wait()
            return "done"

        return server

    async with asyncio.TaskGroup() as group:
        async with served(made()) as remote:
            lost = group.create_task(failure(remote, Tool(name="act")))
            await started.wait()
    assert lost.result().executed == Executed.EXECUTED_UNKNOWN
    async with served(made()) as remote:
        if effect == "idempotent":
            assert text(await remote.bind(Tool(name="act")).call(call(attempt=2), nowhere)) == "done"
        else:
            again = await failure(remote, Tool(name="act"), attempt=2)
            assert (again.reason, again.executed) == ("TOOL_OUTCOME_UNKNOWN", Executed.EXECUTED_UNKNOWN)
    assert ran == ([1, 2] if effect == "idempotent" else [1])


async def test_a_tool_may_answer_with_parts_and_knows_its_call() -> None:
    server = ToolServer()
    seen: list[Any] = []

    @server.tool
    def picture(context: Context) -> Part:
        seen.extend([context.deadline, context.is_cancelled])
        return Part(image=ImagePart(data=b"png", media_type="image/png"))

    @server.tool
    def whole() -> ToolResult:
        return ToolResult(parts=[Part(text=TextPart(text="all"))], is_error=True)

    @server.tool
    def nothing(context: Context) -> None:
        context.write("written")

    @server.tool
    def flood() -> str:
        return "x" * 17_000_000

    async with served(server) as remote:
        image = await remote.bind(Tool(name="picture")).call(call(deadline_ns=1_500_000_000), nowhere)
        assert image.parts[0].image.data == b"png"
        assert (await remote.bind(Tool(name="whole")).call(call(key="b"), nowhere)).is_error
        assert text(await remote.bind(Tool(name="nothing")).call(call(key="c"), nowhere)) == "written"
        over = await remote.bind(Tool(name="flood")).call(call(key="d"), nowhere)
        assert over.is_error
        assert "exceeds the limit" in text(over)
    assert seen == [datetime(1970, 1, 1, 0, 0, 1, 500_000, UTC), False]


async def test_one_tool_is_told_by_name_and_lists_are_filtered() -> None:
    server = ToolServer()
    for name in ("read_file", "read_url", "write"):
        server.tool(name=name)(lambda: None)
    async with served(server) as remote:
        listed = await remote.unary("ListTools", ListToolsRequest(name_glob="read_*"), ListToolsResponse)
        assert [tool.name for tool in listed.tools] == ["read_file", "read_url"]
        told = await remote.unary("GetTool", GetToolRequest(tool_name="write"), GetToolResponse)
        assert told.tool.hash == server.tools[2].hash
        with pytest.raises(ToolFailure) as failed:
            await remote.unary("GetTool", GetToolRequest(tool_name="nothing"), GetToolResponse)
        assert failed.value.reason == "TOOL_NOT_FOUND"

"""Function tools: code of extensions inside the daemon."""

from __future__ import annotations

import asyncio
import json
import sys
import threading
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
from pydantic import BaseModel, Field

from behest.v1.model_event_pb2 import FailureClass
from behest.v1.tool_pb2 import Executed, Progress, SideEffect, ToolPolicy
from behestd.tools.catalog import Catalog
from behestd.tools.function import Context, Functions, load
from behestd.tools.schema import Validators
from behestd.tools.tool import Answer, CannotTell, Executor, Running, ToolFailure
from tests.tools.calls import call, limits, nowhere


class Point(BaseModel):
    x: int
    y: Annotated[int, Field(ge=0)] = 0


@dataclass
class Sum:
    total: int


class Kit:
    """Functions with the catalog that they are in."""

    def __init__(self) -> None:
        self.catalog = Catalog(Validators())
        self.functions = Functions(self.catalog, threads=2)
        self.tool = self.functions.tool

    def executor(self, name: str) -> Executor:
        snapshot = self.catalog.snapshot("default")
        return snapshot.route(name, snapshot.tools[name].hash, "key").executor


@pytest.fixture
async def kit() -> AsyncIterator[Kit]:
    made = Kit()
    yield made
    made.functions.close()


def text(answer: Answer) -> str:
    return answer.parts[0].text.text


async def test_a_function_runs_with_checked_arguments_and_gives_json(kit: Kit) -> None:  # C023
    async def add(points: list[Point], mode: Literal["x", "y"] = "x") -> Sum:
        """Add points."""
        return Sum(sum(getattr(point, mode) for point in points))

    kit.tool(add)
    tool = kit.catalog.snapshot("default").tools["add"]
    assert tool.description == "Add points."
    assert json.loads(tool.input_schema_json)["required"] == ["points"]
    ended = await kit.executor("add").call(
        call(arguments_json='{"points": [{"x": 2}, {"x": 12345678901234567890}]}'), nowhere
    )
    assert ended.structured_json == '{"total":12345678901234567892}'
    assert not ended.is_error


@pytest.mark.parametrize("arguments", ['{"points": [{"x": "2"}]}', '{"points": []', '{"points": [], "z": 1}', "{}"])
async def test_wrong_arguments_are_told_as_json_and_nothing_runs(kit: Kit, arguments: str) -> None:  # C027
    ran = []

    def add(points: list[Point]) -> int:
        ran.append(points)
        return 0

    kit.tool(add)
    with pytest.raises(ToolFailure) as failed:
        await kit.executor("add").call(call(arguments_json=arguments), nowhere)
    assert failed.value.reason == "TOOL_ARGUMENTS_INVALID"
    assert failed.value.failure_class == FailureClass.FAILURE_CLASS_MALFORMED
    assert failed.value.executed == Executed.EXECUTED_NO
    assert json.loads(failed.value.message)["errors"]
    assert ran == []


async def test_what_a_model_of_pydantic_refuses_is_told_the_same_way(kit: Kit) -> None:  # C027
    def put(point: Point) -> int:
        return point.y

    kit.tool(put, input_schema=None)
    with pytest.raises(ToolFailure) as failed:
        await kit.executor("put").call(call(arguments_json='{"point": {"x": 1, "y": -1}}'), nowhere)
    assert json.loads(failed.value.message)["errors"][0]["path"] == "/point/y"


async def test_a_schema_of_ones_own_gives_plain_values(kit: Kit) -> None:
    async def echo(**_: Any) -> None:
        """Never registered without a schema."""

    with pytest.raises(TypeError):
        kit.tool(echo)

    def shout(word: Any) -> str:
        return str(word).upper()

    kit.tool(shout, name="loud", input_schema={"type": "object", "properties": {"word": {"type": "string"}}})
    assert text(await kit.executor("loud").call(call(arguments_json='{"word": "ja"}'), nowhere)) == "JA"


async def test_a_plain_function_runs_in_a_thread_and_shows_progress(kit: Kit) -> None:  # C023
    here = threading.get_ident()
    shown: list[Progress] = []

    def work(context: Context, json: str = "x") -> bool:
        context.progress("half", current=1, total=2)
        return threading.get_ident() != here and context.call.run_id == "run-1" and json == "x"

    kit.tool(work)
    ended = await kit.executor("work").call(call(), shown.append)
    assert ended.structured_json == "true"
    assert [(progress.text, progress.total) for progress in shown] == [("half", 2.0)]


async def test_what_a_function_raises_is_an_error_result_without_a_traceback(kit: Kit) -> None:  # C028
    async def broken() -> None:
        raise LookupError("no such file")

    async def gives_up() -> None:
        raise asyncio.CancelledError

    kit.tool(broken)
    kit.tool(gives_up)
    for name, said in (("broken", "LookupError: no such file"), ("gives_up", "the function was cancelled from within")):
        ended = await kit.executor(name).call(call(), nowhere)
        assert ended.is_error
        assert text(ended) == said


async def test_an_async_function_is_cancelled_at_its_own_limit(kit: Kit) -> None:  # C028
    cancelled = asyncio.Event()

    async def sleep() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()

    kit.tool(sleep)
    began = asyncio.get_running_loop().time()
    with pytest.raises(ToolFailure) as failed:
        await kit.executor("sleep").call(call(timeouts=limits(start_to_close_seconds=0.2)), nowhere)
    assert 0.2 <= asyncio.get_running_loop().time() - began < 5
    assert failed.value.reason == "TOOL_TIMEOUT"
    assert failed.value.failure_class == FailureClass.FAILURE_CLASS_AMBIGUOUS
    assert failed.value.executed == Executed.EXECUTED_UNKNOWN
    assert cancelled.is_set()


async def test_a_plain_function_is_told_at_its_limit_and_its_answer_dropped(kit: Kit) -> None:  # C028
    told = threading.Event()
    shown: list[Progress] = []

    def slow(context: Context) -> str:
        while not context.is_cancelled:
            pass
        context.progress("too late")
        told.set()
        return "too late"

    kit.tool(slow)
    with pytest.raises(ToolFailure) as failed:
        await kit.executor("slow").call(call(timeouts=limits(start_to_close_seconds=0.1)), shown.append)
    assert failed.value.executed == Executed.EXECUTED_UNKNOWN
    assert await asyncio.to_thread(told.wait, 5)
    assert shown == []


async def test_a_call_that_never_got_a_thread_is_proved_not_executed(kit: Kit) -> None:
    go_on, started = threading.Event(), threading.Semaphore(0)
    ran: list[str] = []

    def slow(name: str) -> None:
        ran.append(name)
        started.release()
        go_on.wait(5)

    kit.tool(slow)
    tool = kit.executor("slow")
    async with asyncio.TaskGroup() as group:
        held = [group.create_task(tool.call(call(key=n, arguments_json=f'{{"name": "{n}"}}'), nowhere)) for n in "ab"]
        for _ in held:
            assert await asyncio.to_thread(started.acquire, timeout=5)
        with pytest.raises(ToolFailure) as failed:
            late = call(key="c", arguments_json='{"name": "c"}', timeouts=limits(start_to_close_seconds=0.2))
            await tool.call(late, nowhere)
        go_on.set()
    assert all(task.result().structured_json == "null" for task in held)
    assert failed.value.failure_class == FailureClass.FAILURE_CLASS_NOT_SENT
    assert failed.value.executed == Executed.EXECUTED_NO
    assert sorted(ran) == ["a", "b"]


async def test_a_cancelled_call_ends_at_once_and_says_so(kit: Kit) -> None:
    started = asyncio.Event()

    async def sleep() -> None:
        started.set()
        await asyncio.Event().wait()

    kit.tool(sleep)
    tool = kit.executor("sleep")
    async with asyncio.timeout(30), asyncio.TaskGroup() as group:
        task = group.create_task(_failure(tool))
        await started.wait()
        assert isinstance(await tool.status("key-1", 1), Running)
        assert await tool.cancel("key-1", 1)
        failure = await task
    assert failure.reason == "TOOL_CANCELLED"
    assert failure.executed == Executed.EXECUTED_UNKNOWN
    assert not await tool.cancel("key-1", 1)
    assert isinstance(await tool.status("key-1", 1), CannotTell)


async def _failure(tool: Executor) -> ToolFailure:
    with pytest.raises(ToolFailure) as failed:
        await tool.call(call(), nowhere)
    return failed.value


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (float("nan"), "TOOL_RESULT_INVALID"),
        (object(), "TOOL_RESULT_INVALID"),
        ("x" * (16 * 1024 * 1024 + 1), "TOOL_RESULT_TOO_LARGE"),
        ({"wrong": 1}, "TOOL_RESULT_INVALID"),
    ],
    ids=["not a number", "no JSON", "too large", "another form"],
)
async def test_a_result_that_cannot_be_used_was_executed(kit: Kit, value: object, reason: str) -> None:
    kit.tool(lambda: value, name="t", output_schema={"type": "object", "required": ["right"]})
    with pytest.raises(ToolFailure) as failed:
        await kit.executor("t").call(call(), nowhere)
    assert failed.value.reason == reason
    assert failed.value.executed == Executed.EXECUTED_YES


async def test_extensions_register_what_they_hold(
    kit: Kit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:  # C023
    (tmp_path / "some_extension.py").write_text("def now() -> int:\n    return 7\ndef register(r):\n    r.tool(now)\n")
    (tmp_path / "no_extension.py").write_text("")
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    load(["some_extension"], kit.functions)
    assert (await kit.executor("now").call(call(), nowhere)).structured_json == "7"
    with pytest.raises(ValueError, match="no_extension"):
        load(["no_extension"], kit.functions)


async def test_the_policy_of_an_extension_is_trusted(kit: Kit) -> None:
    kit.tool(lambda: 1, name="t", policy=ToolPolicy(side_effect=SideEffect.SIDE_EFFECT_IDEMPOTENT))
    [offer] = kit.catalog.snapshot("any").offers["t"]
    assert offer.policy_source == "extension"
    assert offer.tool.policy.side_effect == SideEffect.SIDE_EFFECT_IDEMPOTENT

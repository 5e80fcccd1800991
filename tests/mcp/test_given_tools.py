"""Tools whose definitions come from elsewhere: they can be replaced while serving, and say when they did not begin."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest

from behest.errors import from_rpc
from behest.tool_calls import Refused
from behest.tool_context import Context
from behest.tool_functions import function_given
from behest.tools import ToolServer
from behest.v1.tool_pb2 import SideEffect, Tool
from behest.v1.tool_service_pb2 import CallToolRequest, ListToolsRequest
from behest.v1.tool_service_pb2_grpc import ToolServiceStub

SCHEMA = '{"type": "object", "properties": {"self": {}}}'


def given(name: str, function: Any) -> Any:
    return function_given(Tool(name=name, input_schema_json=SCHEMA), function)


async def echo(context: Context, arguments: dict[str, Any]) -> dict[str, Any]:
    """Return the arguments."""
    return arguments


@asynccontextmanager
async def dialled(server: ToolServer) -> AsyncIterator[ToolServiceStub]:
    """Serve, and dial."""
    async with server:
        port = await server.serve("127.0.0.1:0")
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            yield ToolServiceStub(channel)


async def called(stub: ToolServiceStub, **request: Any) -> str:
    """Call the tool `t`: its JSON, or the reason of the refusal, with a plus where it proves that nothing was done."""
    try:
        frames = [frame async for frame in stub.CallTool(CallToolRequest(tool_name="t", **request))]
    except grpc.aio.AioRpcError as error:
        proof = dict(error.trailing_metadata() or ()).get("behest-not-executed")
        return from_rpc(error).reason + ("+" if proof == "1" else "")
    result = frames[-1].result
    return result.parts[0].json.json or result.parts[0].text.text


async def test_a_given_tool_takes_any_object_under_any_names() -> None:
    server = ToolServer()
    server.replace([given("t", echo)])
    async with dialled(server) as stub:
        odd = {"self": 1, "context": "mine", "arguments": [None]}
        assert json.loads(await called(stub, arguments_json=json.dumps(odd))) == odd
        assert "TOOL_ARGUMENTS_INVALID" in await called(stub, arguments_json="[1]")


async def test_tools_can_be_replaced_while_they_are_served() -> None:
    server = ToolServer()
    server.replace([given("t", echo)])
    async with dialled(server) as stub:
        [before] = (await stub.ListTools(ListToolsRequest())).tools
        with pytest.raises(ValueError, match="twice"):
            server.replace([given("other", echo), given("other", echo)])
        assert await called(stub, tool_hash=before.hash) == "{}"
        server.replace([given("other", echo)])
        names = [tool.name for tool in (await stub.ListTools(ListToolsRequest())).tools]
        assert names == ["other"]
        assert await called(stub) == "TOOL_NOT_FOUND+"


@pytest.mark.parametrize("is_durable", [False, True])
async def test_a_call_that_did_not_begin_may_be_sent_again_with_its_key(is_durable: bool, tmp_path: Path) -> None:
    refusals = [Refused("UNAVAILABLE", "TOOL_UNAVAILABLE", "not there")]
    executed = []

    async def act(context: Context, arguments: dict[str, Any]) -> dict[str, Any]:
        if refusals:
            raise refusals.pop()
        executed.append(context.attempt)
        return arguments

    server = ToolServer(dedupe=str(tmp_path / "calls") if is_durable else "")
    server.replace([given("t", act)])
    async with dialled(server) as stub:
        assert await called(stub, idempotency_key="k", attempt=1) == "TOOL_UNAVAILABLE+"
        assert await called(stub, idempotency_key="k", attempt=2) == "{}"
        assert await called(stub, idempotency_key="k", attempt=3) == "{}"
    assert executed == [2]


@pytest.mark.parametrize(
    ("effect", "second"),
    [
        (SideEffect.SIDE_EFFECT_NON_IDEMPOTENT, "TOOL_OUTCOME_UNKNOWN"),
        (SideEffect.SIDE_EFFECT_UNSPECIFIED, "TOOL_OUTCOME_UNKNOWN"),
        (SideEffect.SIDE_EFFECT_PURE, "{}"),
        (SideEffect.SIDE_EFFECT_IDEMPOTENT, "{}"),
    ],
)
async def test_a_call_whose_outcome_is_unknown_is_repeated_by_the_operators_word_alone(
    effect: SideEffect.ValueType, second: str
) -> None:
    refusals = [Refused("UNAVAILABLE", "TOOL_UNAVAILABLE", "it died", is_proof=False)]

    async def act(context: Context, arguments: dict[str, Any]) -> dict[str, Any]:
        if refusals:
            raise refusals.pop()
        return arguments

    server = ToolServer()
    server.replace([given("t", act)])
    async with dialled(server) as stub:
        assert await called(stub, idempotency_key="k", attempt=1, side_effect=effect) == "TOOL_UNAVAILABLE"
        assert await called(stub, idempotency_key="k", attempt=2, side_effect=effect) == second

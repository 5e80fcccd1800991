"""The room of context sources: names, functions that misbehave, servers that stall, garble or are gone."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import grpc
import pytest

from behest.v1.context_pb2 import ContextSource, ContextSourceKind
from behest.v1.context_service_pb2 import ProvideContextRequest, ProvideContextResponse
from behest.v1.definition_pb2 import RunDefinition
from behest.v1.message_pb2 import Message, Part, Role, TextPart
from behestd.context.catalog import Sources
from behestd.context.function import FunctionSource
from behestd.context.remote import RemoteSource
from behestd.context.source import SourceFailure, SourceNotFound, checked
from behestd.core.estimate import EXACT, SMALLEST_PAIR
from behestd.core.signals import AskContext
from behestd.core.times import SECOND
from behestd.runtime.calibration import Calibration
from behestd.runtime.clock import SystemClock
from behestd.runtime.context import MESSAGES_BYTES, Contexts
from behestd.wire.endpoint import Rules, check
from behestd.wire.remote_channel import Line, Link
from tests.core.stage import Stage, definition, said

FUNCTION = ContextSourceKind.CONTEXT_SOURCE_KIND_FUNCTION
STATIC = ContextSourceKind.CONTEXT_SOURCE_KIND_STATIC
REMOTE = ContextSourceKind.CONTEXT_SOURCE_KIND_REMOTE
ASKED = ProvideContextRequest(source="s")


async def quiet(request: ProvideContextRequest) -> None:
    return None


# --- names ---


@pytest.mark.parametrize("name", ["", "a b", "a/b", "history", "run", "tools", "instructions", "x" * 65])
def test_a_function_needs_a_name_that_agents_can_use(name: str) -> None:
    with pytest.raises(ValueError, match="no name"):
        Sources().add(name, quiet)


def test_a_name_is_given_once() -> None:
    sources = Sources([ContextSource(name="rules", kind=STATIC, text="x")])
    sources.add("news", quiet)
    for name in ("rules", "news"):
        with pytest.raises(ValueError, match="already"):
            sources.add(name, quiet)
    sources.forget_functions()
    sources.add("news", quiet)
    assert sources.names() == ["history", "news", "rules"]


def test_what_has_no_function_is_not_there() -> None:
    sources = Sources([ContextSource(name="planned", kind=FUNCTION)])
    for name in ("planned", "never-made", "a/b/c", "/", "a/"):
        with pytest.raises(SourceNotFound):
            sources.find(name)
    with pytest.raises(SourceNotFound):
        sources.function("planned")
    found = sources.find("home/weather")
    assert (found.kind, found.server, found.remote_name) == (REMOTE, "home", "weather")


# --- functions ---


async def failure_of(function: Any, seconds: float = 5) -> str:
    with pytest.raises(SourceFailure) as caught:
        checked(await FunctionSource("s", function).provide(ASKED, seconds))
    return caught.value.message


async def test_what_a_function_does_wrong_is_a_failure() -> None:  # C102
    async def raises(request: ProvideContextRequest) -> None:
        raise KeyError("secret")

    async def cancels(request: ProvideContextRequest) -> None:
        raise asyncio.CancelledError

    async def stalls(request: ProvideContextRequest) -> None:
        await asyncio.Event().wait()

    async def fails(request: ProvideContextRequest) -> None:
        raise SourceFailure("nothing known of it")

    async def numbers(request: ProvideContextRequest) -> list[int]:
        return [1, 2]

    assert await failure_of(raises) == "the function raised KeyError"
    assert await failure_of(cancels) == "the function was cancelled from within"
    assert await failure_of(stalls, 0.01) == "no answer within 0.01 s"
    assert await failure_of(fails) == "nothing known of it"
    assert "neither text nor message" in await failure_of(numbers)


async def test_a_question_that_is_given_up_stops_its_function() -> None:
    begun, stopped = asyncio.Event(), asyncio.Event()

    async def waits(request: ProvideContextRequest) -> None:
        begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            stopped.set()

    async with asyncio.timeout(20), asyncio.TaskGroup() as group:
        task = group.create_task(FunctionSource("s", waits).provide(ASKED, 600))
        await begun.wait()
        task.cancel()
        await stopped.wait()
    assert task.cancelled()


# --- servers ---


@asynccontextmanager
async def answering(answer: Callable[[bytes, Any], Any]) -> AsyncIterator[str]:
    """A server whose answers are bytes, whatever is asked."""
    handler = grpc.unary_unary_rpc_method_handler(answer)
    server = grpc.aio.server()
    handlers = {"ProvideContext": handler}
    server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler("behest.v1.ContextService", handlers)])
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        await server.stop(None)


def line(address: str, token: Callable[[], str] = str) -> Line:
    return Line(Link("srv_1", check(address, Rules(allow_loopback=True), has_tls=False), token=token))


async def remote_failure(address: str, seconds: float = 10, token: Callable[[], str] = str) -> SourceFailure:
    connection = line(address, token)
    try:
        with pytest.raises(SourceFailure) as caught:
            await RemoteSource(connection).provide(ASKED, seconds)
        return caught.value
    finally:
        await connection.close(0)


async def test_what_a_server_does_wrong_is_a_failure() -> None:  # C102
    async def garbles(request: bytes, context: Any) -> bytes:
        return b"\xff\xff\xff"

    async def stalls(request: bytes, context: Any) -> bytes:
        await asyncio.Event().wait()
        return b""

    async def refuses(request: bytes, context: Any) -> bytes:
        await context.abort(grpc.StatusCode.INTERNAL, "token right is wrong")
        return b""

    async with answering(garbles) as address:
        assert "cannot be read" in (await remote_failure(address)).message
    async with answering(stalls) as address:
        assert "within" in (await remote_failure(address, 0.3)).message
    async with answering(refuses) as address:
        failure = await remote_failure(address, token=lambda: "right")
        assert failure.message == "the server answered INTERNAL: token *** is wrong"
        assert failure.reason == "CONTEXT_SOURCE_FAILED"


async def test_a_server_that_is_not_reached_is_a_failure() -> None:  # C102
    assert "not reached" in (await remote_failure("127.0.0.1:1")).message

    def nothing() -> str:
        raise LookupError("no secret")

    async def gives(request: bytes, context: Any) -> bytes:
        return ProvideContextResponse(messages=[said("x")]).SerializeToString()

    async with answering(gives) as address:
        assert "not reached" in (await remote_failure(address, token=nothing)).message
        connection = line(address)
        [given] = await RemoteSource(connection).provide(ASKED, 10)
        assert given == said("x")
        await connection.close(0)


# --- asking ---


async def test_a_source_is_shown_the_order_and_the_latest_messages() -> None:
    shown: list[ProvideContextRequest] = []

    async def looks(request: ProvideContextRequest) -> None:
        shown.append(request)

    sources = Sources()
    sources.add("s", looks)
    large = [Message(role=Role.ROLE_USER, parts=[Part(text=TextPart(text=str(n) * 300_000))]) for n in range(5)]
    pinned: RunDefinition = definition(sources=[sources.find("s")])
    forked = {"run_id": "run_0", "sequence": 4, "messages": [said("order"), *large]}
    run = Stage(pinned, input=None, forked_from=forked).run
    signal = await Contexts(sources, SystemClock()).gather(AskContext(1, 0), run)
    assert signal.answers["s"].reason == ""
    [request] = shown
    texts = [message.parts[0].text.text[:5] for message in request.messages]
    assert texts == ["order", "22222", "33333", "44444"]
    assert request.ByteSize() < MESSAGES_BYTES + 10_000


async def test_a_deadline_that_is_over_leaves_no_time() -> None:
    clock = SystemClock()
    sources = Sources()
    sources.add("s", quiet)
    contexts = Contexts(sources, clock)
    pinned = definition(sources=[sources.find("s"), ContextSource(name="h/x", kind=REMOTE, server="h")])
    answers = await contexts.ask("default", pinned, ASKED, clock.now_ns() - SECOND)
    assert {name: answer.reason for name, answer in answers.items()}["h/x"] == "CONTEXT_SOURCE_FAILED"


async def test_a_fault_of_the_daemon_is_a_failure_of_the_source() -> None:
    class Broken:
        def named(self, namespace: str, name: str) -> Any:
            raise RuntimeError("a bug")

    contexts = Contexts(Sources(), SystemClock())
    contexts.serve(Broken())
    pinned = definition(sources=[ContextSource(name="h/x", kind=REMOTE, server="h")])
    answers = await contexts.ask("default", pinned, ASKED, 0)
    assert answers["h/x"].reason == "RUNTIME_INTERNAL"
    assert "bug" not in answers["h/x"].message


# --- what models count ---


def test_a_model_is_learned_and_forgotten_with_its_latest_answers() -> None:  # C078
    calibration = Calibration()
    for _ in range(3):
        calibration.note("m/a", 100, 150)
        calibration.note("m/b", 100, 0)
        calibration.note("m/c", SMALLEST_PAIR - 1, 150)
    assert calibration.ratios("default") == {"m/a": 1500}
    for _ in range(15):
        calibration.note("m/a", 100, 100)
    assert calibration.ratios("default") == {}
    assert EXACT == 1000


def test_what_is_learned_is_bounded() -> None:
    calibration = Calibration()
    for number in range(5_000):
        for _ in range(3):
            calibration.note(f"m/{number}", 100, 200)
    assert len(calibration.ratios("default")) == 4096

"""Remote providers that say anything at all, and many calls at once: what comes out is an answer or a typed failure."""

from __future__ import annotations

import asyncio
import random
from typing import Any

import pytest

from behest.v1.chat_pb2 import FinishReason
from behest.v1.chat_service_pb2 import Chat, ChatDelta, StreamChatResponse, ToolCallDelta
from behest.v1.message_pb2 import Part, ReasoningPart, ToolCall
from behestd.providers.failure import CLASSES, ProviderFailure
from behestd.providers.scripted import Scripted
from tests.attach.peer import attached
from tests.daemons import serve
from tests.providers.conformance import read, user
from tests.remote_models.model_peer import Attending, Frame, Seen, end, model, piece, raw, saying, scripted

ROUNDS = 80
CALL = Part(tool_call=ToolCall(name="look", arguments_json='{"a": 1}'))
WHOLE: tuple[StreamChatResponse, ...] = (
    StreamChatResponse(deltas=[ChatDelta(part=0, reasoning="hm")]),
    piece("Grüße, ", 1),
    piece("世界 🦜", 1),
    StreamChatResponse(deltas=[ChatDelta(part=2, tool_call=ToolCallDelta(name="look", arguments_json='{"a": '))]),
    StreamChatResponse(deltas=[ChatDelta(part=2, tool_call=ToolCallDelta(arguments_json="1}"))]),
    end(
        "Grüße, 世界 🦜",
        CALL,
        finish_reason=FinishReason.FINISH_REASON_TOOL_CALLS,
    ),
)
WHOLE[-1].end.message.parts.insert(0, Part(reasoning=ReasoningPart(text="hm")))


def spoiled(rng: random.Random) -> list[Frame]:
    """Spoil an answer: frames lost, repeated, swapped, cut, with bytes changed or added."""
    frames: list[Frame] = [frame.SerializeToString() for frame in WHOLE]
    for _ in range(rng.randint(1, 3)):
        index = rng.randrange(len(frames)) if frames else 0
        data = bytearray(frames[index]) if frames else bytearray()  # type: ignore[arg-type]
        match rng.randrange(7):
            case 0 if frames:
                del frames[index]
            case 1 if frames:
                frames.insert(rng.randrange(len(frames) + 1), frames[index])
            case 2 if frames:
                rng.shuffle(frames)
            case 3 if data:
                data[rng.randrange(len(data))] = rng.randrange(256)
                frames[index] = bytes(data)
            case 4 if data:
                frames[index] = bytes(data[: rng.randrange(len(data))])
            case 5:
                del frames[index:]
            case _:
                frames.insert(index, rng.randbytes(rng.randrange(40)))
    return frames


def chat(text: str = "hello") -> Chat:
    return Chat(model="far/m", messages=[user(text)])


async def outcome(provider: Any) -> str:
    """Make an attempt: what its answer is, or the reason of its failure."""
    try:
        deltas, told = await read(provider, chat())
    except ProviderFailure as failure:
        assert failure.reason in CLASSES
        return failure.reason
    for index, part in enumerate(told.message.parts):
        shown = "".join(
            delta.text or delta.reasoning or delta.tool_call.arguments_json for delta in deltas if delta.part == index
        )
        whole = part.text.text or part.reasoning.text or part.tool_call.arguments_json
        assert shown == whole or (not shown.strip() and whole == "{}")
    return "answered"


async def test_the_whole_answer_is_taken() -> None:
    async with raw(saying(*WHOLE)) as server, serve() as served:
        await served.client.servers.register(server.registration())
        assert await outcome(served.daemon.house.models.of("default").provider("far")) == "answered"


@pytest.mark.timeout(120)
async def test_a_spoiled_answer_is_an_answer_or_a_typed_failure() -> None:
    met: dict[str, int] = {}
    async with raw() as server, serve() as served:
        await served.client.servers.register(server.registration())
        provider = served.daemon.house.models.of("default").provider("far")
        for seed in range(ROUNDS):
            server.play = saying(*spoiled(random.Random(seed)))
            reason = await outcome(provider)
            met[reason] = met.get(reason, 0) + 1
    # It was not always the same.
    assert {"PROVIDER_MALFORMED_OUTPUT", "PROVIDER_STREAM_BROKEN"} <= set(met), met


@pytest.mark.parametrize("cut", range(len(WHOLE)))
async def test_an_answer_that_is_cut_anywhere_is_broken(cut: int) -> None:
    async with raw(saying(*WHOLE[:cut])) as server, serve() as served:
        await served.client.servers.register(server.registration())
        provider = served.daemon.house.models.of("default").provider("far")
        assert await outcome(provider) == "PROVIDER_STREAM_BROKEN"


@pytest.mark.timeout(120)
@pytest.mark.parametrize("mode", ["dialled", "attached"])
async def test_many_calls_at_once_get_an_answer_each_their_own(mode: str) -> None:
    async def play(chat: Chat, seen: Seen) -> Any:
        async for frame in scripted(Scripted())(chat, seen):
            await asyncio.sleep(0)
            yield frame

    async def told(provider: Any, number: int) -> str:
        _, given = await read(provider, Chat(model="far/m", messages=[user(f"/say answer {number} /words 20")]))
        return given.message.parts[0].text.text

    async def every(provider: Any) -> None:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(told(provider, number)) for number in range(60)]
        for number, task in enumerate(tasks):
            assert task.result().startswith(f"answer {number}")

    async with serve() as served, asyncio.TaskGroup() as group:
        if mode == "attached":
            hello = {"models": [model("m")], "tools": [], "max_concurrent_calls": 64}
            async with attached(served.daemon.addresses[0], "far", **hello) as peer:
                task = group.create_task(Attending(peer, play).run())
                await every(served.daemon.house.models.of("default").provider("far"))
                task.cancel()
        else:
            async with raw(play) as server:
                await served.client.servers.register(server.registration())
                await every(served.daemon.house.models.of("default").provider("far"))

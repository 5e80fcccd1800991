"""Silence ends an attempt; how long a stream takes in all does not."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator

from behest.v1.chat_pb2 import FinishReason
from behest.v1.chat_service_pb2 import Chat, ChatDelta, ChatEnd
from behest.v1.message_pb2 import Message, Part, Role, TextPart
from behestd.core.route import RoutePolicy
from behestd.core.times import nanoseconds
from behestd.providers.catalog import snapshot
from behestd.providers.provider import Frame, ProviderTimeouts
from behestd.providers.scripted import Scripted
from tests import daemons
from tests.daemons import refused
from tests.routing.test_circuit import chat
from tests.runs.scenes import events_of, only

STALL_SECONDS = 1.5
PIECES = 7
LIMITS = ProviderTimeouts(first_byte_seconds=20.0, stall_seconds=STALL_SECONDS, total_seconds=40.0)


class Slow(Scripted):
    """Falls silent after a piece in its first attempt, and then speaks for longer than the limit of silence."""

    def __init__(self) -> None:
        super().__init__("slow")
        self.attempts = 0

    async def stream(self, chat: Chat) -> AsyncGenerator[Frame, None]:
        self.attempts += 1
        yield Frame(deltas=[ChatDelta(text="piece ")])
        if self.attempts == 1:
            await asyncio.Event().wait()
        for _ in range(PIECES - 1):
            await asyncio.sleep(STALL_SECONDS / 5)
            yield Frame(deltas=[ChatDelta(text="piece ")])
        message = Message(role=Role.ROLE_ASSISTANT, parts=[Part(text=TextPart(text="piece " * PIECES))])
        yield Frame(end=ChatEnd(message=message, finish_reason=FinishReason.FINISH_REASON_STOP))


async def test_a_stream_that_is_silent_is_given_up_and_one_that_speaks_for_longer_goes_on() -> None:  # C022
    models = snapshot([Slow()], default_model="slow/echo")
    retries = RoutePolicy((), base_seconds=0.001)
    async with daemons.serve(models=models, retries=retries, model_timeouts=LIMITS) as served:
        events = await events_of(await served.client.run("hello"), seconds=40)
    (failed,) = only(events, "model_failed")
    assert failed.reason == "PROVIDER_TIMEOUT"
    first, second = (nanoseconds(event.record_time) for event in events if event.HasField("model_requested"))
    (ended,) = (nanoseconds(event.record_time) for event in events if event.HasField("model_completed"))
    assert second - first >= STALL_SECONDS * 1e9
    assert ended - second >= STALL_SECONDS * 1e9
    assert only(events, "run_completed")[0].output.text == "piece " * PIECES


async def test_a_single_call_whose_stream_is_silent_ends_by_its_deadline() -> None:  # C022
    limits = ProviderTimeouts(first_byte_seconds=20.0, stall_seconds=0.2)
    async with daemons.serve(models=snapshot([Slow()]), model_timeouts=limits) as served:

        async def listen() -> None:
            async for _ in served.client.chat.stream(chat(model="slow/echo")):
                pass

        error = await refused(listen())
    assert (error.reason, error.code.name) == ("PROVIDER_TIMEOUT", "DEADLINE_EXCEEDED")

"""What every provider must do, whatever stands behind it: one suite, run on each adapter.

A provider's test hands in a `Subject`: the provider, and calls that make it do each thing.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass

from behest.v1.chat_pb2 import FinishReason
from behest.v1.chat_service_pb2 import Chat, ChatDelta, ChatEnd
from behest.v1.message_pb2 import Message, Part, Role, TextPart
from behest.v1.usage_pb2 import UsageSource
from behestd.providers.failure import CLASSES, ProviderFailure
from behestd.providers.provider import Provider, ProviderTimeouts, complete, guarded

TIMEOUTS = ProviderTimeouts(first_byte_seconds=4, stall_seconds=4, total_seconds=5)


@dataclass(frozen=True)
class Subject:
    """A provider and what to ask of it.

    `text` answers some text, `tools` two calls at least, one without arguments; `failing` fails with
    `failing_reason`, `cut` stops without its end, `endless` never ends after its first piece.
    """

    provider: Provider
    text: Callable[[], Chat]
    tools: Callable[[], Chat]
    failing: Callable[[], Chat]
    failing_reason: str
    cut: Callable[[], Chat]
    endless: Callable[[], Chat]


def user(text: str) -> Message:
    return Message(role=Role.ROLE_USER, parts=[Part(text=TextPart(text=text))])


async def read(provider: Provider, chat: Chat) -> tuple[list[ChatDelta], ChatEnd]:
    """Read one attempt to its end."""
    deltas: list[ChatDelta] = []
    async with aclosing(guarded(provider.stream(chat), TIMEOUTS)) as frames:
        async for frame in frames:
            deltas += frame.deltas
            if frame.HasField("end"):
                return deltas, frame.end
    raise AssertionError("no end and no failure")


async def failure(provider: Provider, chat: Chat) -> ProviderFailure:
    """Make an attempt that must fail."""
    try:
        await read(provider, chat)
    except ProviderFailure as error:
        assert error.reason in CLASSES
        assert error.failure_class
        return error
    raise AssertionError("the attempt did not fail")


def texts(deltas: Sequence[ChatDelta], part: int) -> str:
    return "".join(
        delta.text or delta.reasoning or delta.tool_call.arguments_json for delta in deltas if delta.part == part
    )


async def a_text_is_what_its_pieces_add_up_to(subject: Subject) -> None:
    deltas, end = await read(subject.provider, subject.text())
    assert end.message.role == Role.ROLE_ASSISTANT
    assert end.finish_reason == FinishReason.FINISH_REASON_STOP
    assert [texts(deltas, index) for index in range(len(end.message.parts))] == [
        part.text.text or part.reasoning.text for part in end.message.parts
    ]


async def usage_and_model_are_told(subject: Subject) -> None:
    chat = subject.text()
    _, end = await read(subject.provider, chat)
    assert end.usage.input_tokens > 0
    assert end.usage.output_tokens > 0
    assert end.usage.attempts == 1
    assert end.usage_source in (UsageSource.USAGE_SOURCE_REPORTED, UsageSource.USAGE_SOURCE_ESTIMATED)
    assert end.model == chat.model


async def calls_have_names_and_arguments(subject: Subject) -> None:
    # C011
    deltas, end = await read(subject.provider, subject.tools())
    assert end.finish_reason == FinishReason.FINISH_REASON_TOOL_CALLS
    calls = {index: part.tool_call for index, part in enumerate(end.message.parts) if part.HasField("tool_call")}
    assert len(calls) >= 2
    assert "{}" in [call.arguments_json for call in calls.values()]
    for index, call in calls.items():
        assert isinstance(json.loads(call.arguments_json), dict)
        assert call.provider_call_id
        assert not call.id
        assert next(delta.tool_call.name for delta in deltas if delta.part == index) == call.name
        assert (texts(deltas, index) or "{}") == call.arguments_json


async def completing_gives_what_streaming_gives(subject: Subject) -> None:
    _, streamed = await read(subject.provider, subject.text())
    assert (await complete(subject.provider, subject.text(), TIMEOUTS)).message == streamed.message


async def a_failure_is_typed(subject: Subject) -> None:
    assert (await failure(subject.provider, subject.failing())).reason == subject.failing_reason


async def a_stream_without_its_end_is_broken(subject: Subject) -> None:
    assert (await failure(subject.provider, subject.cut())).reason == "PROVIDER_STREAM_BROKEN"


async def attempts_do_not_disturb_each_other(subject: Subject) -> None:
    async with asyncio.timeout(30), asyncio.TaskGroup() as group:
        tasks = [group.create_task(read(subject.provider, subject.text())) for _ in range(8)]
        open_call = group.create_task(read(subject.provider, subject.endless()))
        ends = [(await task)[1].message for task in tasks]
        open_call.cancel()
    assert all(message == ends[0] for message in ends)


async def an_open_attempt_can_be_cancelled(subject: Subject) -> None:
    begun = asyncio.Event()

    async def watch() -> None:
        async with aclosing(guarded(subject.provider.stream(subject.endless()), TIMEOUTS)) as frames:
            async for _ in frames:
                begun.set()

    async with asyncio.timeout(30), asyncio.TaskGroup() as group:
        task = group.create_task(watch())
        await begun.wait()
        task.cancel()
    assert task.cancelled()


async def its_models_are_its_own(subject: Subject) -> None:
    models = subject.provider.models()
    assert models
    assert subject.provider.describe().id == subject.provider.id
    for model in models:
        assert model.provider_id == subject.provider.id
        assert model.id.startswith(f"{subject.provider.id}/")
        assert not model.HasField("health")


SUITE = (
    a_text_is_what_its_pieces_add_up_to,
    usage_and_model_are_told,
    calls_have_names_and_arguments,
    completing_gives_what_streaming_gives,
    a_failure_is_typed,
    a_stream_without_its_end_is_broken,
    attempts_do_not_disturb_each_other,
    an_open_attempt_can_be_cancelled,
    its_models_are_its_own,
)

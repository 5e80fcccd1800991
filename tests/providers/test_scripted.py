"""The scripted provider: its directives, its memory, and that hostile scripts cost no more than they weigh."""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest

from behest.v1.chat_pb2 import FinishReason, ResponseFormat, Sampling, ToolChoice
from behest.v1.chat_service_pb2 import Chat, ChatEnd
from behest.v1.embedding_service_pb2 import EmbedRequest
from behest.v1.message_pb2 import JsonPart, Message, Part, Role, TextPart, ToolCall, ToolResult
from behest.v1.tool_pb2 import Tool
from behestd.core.window import CONTINUE
from behestd.providers.failure import PERMANENT, QUOTA, THROTTLED, TRANSIENT, ProviderFailure
from behestd.providers.provider import embed, guarded
from behestd.providers.script import parse
from behestd.providers.scripted import Scripted
from tests.providers.conformance import SUITE, TIMEOUTS, Subject, failure, read, user

GUIDE = Path(__file__).resolve().parents[2] / "docs" / "scripted.md"
# An example of the guide: what the user says, and what the model answers, turn by turn.
EXAMPLE = re.compile(r"```script\n(.*?)```\n+```answer\n(.*?)```", re.DOTALL)


@pytest.fixture
def provider() -> Scripted:
    return Scripted()


def chat(*messages: Message | str, run_id: str = "run-1") -> Chat:
    return Chat(
        model="scripted/echo",
        run_id=run_id,
        messages=[user(message) if isinstance(message, str) else message for message in messages],
    )


def result(call: ToolCall, text: str) -> Message:
    part = ToolResult(call_id="c", name=call.name, parts=[Part(text=TextPart(text=text))])
    return Message(role=Role.ROLE_TOOL, parts=[Part(tool_result=part)])


async def answer(provider: Scripted, *messages: Message | str) -> ChatEnd:
    return (await read(provider, chat(*messages)))[1]


def text(end: ChatEnd) -> str:
    return "".join(part.text.text for part in end.message.parts)


# C001
@pytest.mark.parametrize("check", SUITE, ids=lambda check: check.__name__)
async def test_it_is_a_provider(provider: Scripted, check: Callable[[Subject], Awaitable[None]]) -> None:
    await check(
        Subject(
            provider,
            text=lambda: chat("/reasoning I think /say Grüße, 世界 🦜!"),
            tools=lambda: chat('/say Let me look. /tool look_up {"id": 9007199254740993} /tool now'),
            failing=lambda: chat("/fail RATE_LIMITED"),
            failing_reason="PROVIDER_RATE_LIMITED",
            cut=lambda: chat("/say one two three /cut 2"),
            endless=lambda: chat("/say a /stall"),
        )
    )


def told(end: ChatEnd) -> str:
    """Tell an answer as the guide writes it."""
    lines = []
    for part in end.message.parts:
        if part.HasField("text"):
            lines.append(part.text.text)
        elif part.HasField("reasoning"):
            lines.append(f"(reasoning) {part.reasoning.text}")
        else:
            lines.append(f"(call) {part.tool_call.name} {part.tool_call.arguments_json}")
    if end.finish_reason not in (FinishReason.FINISH_REASON_STOP, FinishReason.FINISH_REASON_TOOL_CALLS):
        lines.append(f"(finish) {FinishReason.Name(end.finish_reason).removeprefix('FINISH_REASON_').lower()}")
    return "\n".join(lines)


async def play(provider: Scripted, script: str) -> AsyncIterator[str]:
    """Play a script to its end the way a run does: failures are tried again twice, calls get a result."""
    messages: list[Message] = [user(script)]
    failures = 0
    for _ in range(6):
        try:
            _, end = await read(provider, chat(*messages))
        except ProviderFailure as error:
            yield f"(fails) {error.reason}"
            failures += 1
            if failures == 3:
                return
            continue
        yield told(end)
        calls = [part.tool_call for part in end.message.parts if part.HasField("tool_call")]
        if not calls:
            return
        messages.append(end.message)
        messages += [result(call, f"result of {call.name}") for call in calls]


def examples() -> list[tuple[str, str]]:
    return EXAMPLE.findall(GUIDE.read_text())


@pytest.mark.parametrize("script,expected", examples(), ids=lambda value: re.sub(r"\s+", "-", value[:24]))
async def test_the_guide_tells_the_truth(provider: Scripted, script: str, expected: str) -> None:
    played = "\n---\n".join([turn async for turn in play(provider, script.rstrip("\n"))])
    assert played == expected.rstrip("\n")


def test_the_guide_shows_every_directive() -> None:
    shown = set(re.findall(r"/([a-z]+)", "".join(script for script, _ in examples())))
    directives = set(re.findall(r"^\| `/([a-z]+)", GUIDE.read_text(), re.MULTILINE))
    assert len(directives) == 18
    assert directives <= shown | {"delay", "dump", "stall", "usage"}


@pytest.mark.parametrize(
    "said",
    [
        "hello",
        "  two\n\nlines \n",
        "/unknown thing",
        "/words many",
        "/tool",
        "/finish",
        "a /say b",
        "🦜 " * 50,
        "/json {",
    ],
)
async def test_what_is_no_directive_is_echoed_to_the_letter(provider: Scripted, said: str) -> None:
    assert text(await answer(provider, said)) == said


async def test_only_the_last_input_is_echoed(provider: Scripted) -> None:
    earlier = Message(role=Role.ROLE_ASSISTANT, parts=[Part(text=TextPart(text="secret answer"))])
    system = Message(role=Role.ROLE_SYSTEM, parts=[Part(text=TextPart(text="/say secret instructions"))])
    assert text(await answer(provider, system, "first", earlier, "second")) == "second"


async def test_a_json_part_is_echoed_too(provider: Scripted) -> None:
    said = Message(role=Role.ROLE_USER, parts=[Part(text=TextPart(text="see")), Part(json=JsonPart(json='{"a":1}'))])
    assert text(await answer(provider, said)) == 'see\n{"a":1}'


async def test_a_plain_answer_is_one_frame(provider: Scripted) -> None:
    frames = [frame async for frame in provider.stream(chat("one two three"))]
    assert [delta.text for delta in frames[0].deltas] == ["one", " two", " three"]
    assert len(frames) == 1


async def test_a_delay_makes_a_frame_of_each_piece(provider: Scripted) -> None:
    frames = [frame async for frame in guarded(provider.stream(chat("/delay 1 /say one two")), TIMEOUTS)]
    assert [[delta.text for delta in frame.deltas] for frame in frames] == [["one"], [" two"]]


async def test_a_tool_result_is_not_obeyed(provider: Scripted) -> None:
    end = await answer(provider, "/tool look_up {}")
    call = end.message.parts[0].tool_call
    after = await answer(provider, "/tool look_up {}", end.message, result(call, "/fail QUOTA"))
    assert text(after) == "look_up: /fail QUOTA"


async def test_the_same_conversation_gets_the_same_answer_from_a_new_process(provider: Scripted) -> None:
    first = await answer(provider, "/say a /tool t {} /next /say b")
    conversation = ["/say a /tool t {} /next /say b", first.message, result(ToolCall(name="t"), "x")]
    assert await answer(provider, *conversation) == await answer(Scripted(), *conversation)


async def test_what_the_daemon_adds_to_continue_is_no_input(provider: Scripted) -> None:
    cut = await answer(provider, "/say one /finish length /next /say two")
    assert cut.finish_reason == FinishReason.FINISH_REASON_LENGTH
    assert text(await answer(provider, "/say one /finish length /next /say two", cut.message, CONTINUE)) == "two"


async def test_repeating_outlives_what_is_said_later(provider: Scripted) -> None:
    call = (await answer(provider, "/tool poll {} /repeat")).message
    spoken = await answer(
        provider, "/tool poll {} /repeat", call, result(ToolCall(name="poll"), "no"), "You repeat yourself."
    )
    assert spoken.message == call


@pytest.mark.parametrize(
    "directive,failure_class",
    [
        ("/fail RATE_LIMITED 0 1.5", THROTTLED),
        ("/fail PROVIDER_QUOTA", QUOTA),
        ("/fail UNAVAILABLE", TRANSIENT),
        ("/fail CONTEXT_TOO_LONG", PERMANENT),
    ],
)
async def test_a_failure_has_the_class_of_its_reason(provider: Scripted, directive: str, failure_class: int) -> None:
    failed = await failure(provider, chat(directive))
    assert failed.failure_class == failure_class
    assert failed.retry_after_seconds == (1.5 if "1.5" in directive else None)


async def test_failures_are_counted_by_run_and_directive(provider: Scripted) -> None:
    script = "/say a b /fail UNAVAILABLE 2"
    for run_id in ("run-1", "run-2"):
        for _ in range(2):
            assert (await failure(provider, chat(script, run_id=run_id))).reason == "PROVIDER_UNAVAILABLE"
        assert text((await read(provider, chat(script, run_id=run_id)))[1]) == "a b"


async def test_pieces_before_a_failure_are_sent(provider: Scripted) -> None:
    sent = []
    with pytest.raises(ProviderFailure):
        async for frame in provider.stream(chat("/say one two three /fail UNAVAILABLE")):
            sent += [delta.text for delta in frame.deltas]
    assert sent == ["one", " two", " three"]


# C006
@pytest.mark.parametrize("name", ["stop", "length", "tool_calls", "content_filter", "refusal", "other"])
async def test_each_finish_reason_can_be_had(provider: Scripted, name: str) -> None:
    end = await answer(provider, f"/say x /finish {name}")
    assert end.finish_reason == FinishReason.Value(f"FINISH_REASON_{name.upper()}")


async def test_usage_is_estimated_or_as_told(provider: Scripted) -> None:
    plain = (await answer(provider, "x" * 400)).usage
    assert plain.input_tokens >= 80
    assert plain.output_tokens >= 80
    told_usage = (await answer(provider, "/say hi /usage 100 20 64 5")).usage
    assert (told_usage.input_tokens, told_usage.output_tokens) == (100, 20)
    assert (told_usage.cached_input_tokens, told_usage.reasoning_tokens) == (64, 5)


# C004
async def test_a_dump_shows_what_arrived(provider: Scripted) -> None:
    asked = chat("/dump")
    asked.sampling.CopyFrom(Sampling(temperature=0.25, top_p=0.5, max_output_tokens=7, stop=["END"], seed=3))
    asked.response_format.CopyFrom(ResponseFormat(kind="RESPONSE_FORMAT_KIND_JSON_OBJECT"))
    asked.tool_choice.CopyFrom(ToolChoice(mode="TOOL_CHOICE_MODE_TOOL", tool_name="now"))
    asked.tools.append(Tool(name="now", input_schema_json="{}"))
    shown = json.loads(text((await read(provider, asked))[1]))
    assert shown["sampling"] == {
        "temperature": 0.25,
        "top_p": 0.5,
        "max_output_tokens": 7,
        "stop": ["END"],
        "seed": 3,
    }
    assert shown["tool_choice"] == {"mode": 4, "tool_name": "now"}
    assert shown["tools"] == ["now"]
    assert shown["response_format"]["kind"] == 2
    assert shown["messages"] == [{"role": "ROLE_USER", "parts": ["text"]}]


async def test_embeddings_are_repeatable_and_near_when_words_are_shared(provider: Scripted) -> None:
    request = EmbedRequest(model="scripted/embed", inputs=["red apple tree", "green apple tree", "wire"])
    first, again = await embed(provider, request, TIMEOUTS), await embed(Scripted(), request, TIMEOUTS)
    assert first == again
    red, green, wire = (list(embedding.values) for embedding in first.embeddings)
    assert sum(a * b for a, b in zip(red, green, strict=True)) > abs(sum(a * b for a, b in zip(red, wire, strict=True)))
    assert first.usage.input_tokens > 0


async def test_vectors_have_a_longest_length(provider: Scripted) -> None:
    with pytest.raises(ProviderFailure) as caught:
        await provider.embed(EmbedRequest(model="scripted/embed", inputs=["a"], dimensions=2**31 - 1))
    assert caught.value.reason == "PROVIDER_REQUEST_INVALID"


@pytest.mark.parametrize(
    "script",
    ["/words 100000 " * 3000, "/dump " * 100_000, "/tool t {} " * 50_000, "/say " * 100_000, "/json " + "[" * 200_000],
    ids=["words", "dump", "tool", "say", "deep"],
)
async def test_a_hostile_script_stays_bounded(provider: Scripted, script: str) -> None:
    size = 0
    async for frame in provider.stream(chat(script)):
        size += sum(len(delta.text) for delta in frame.deltas)
    assert size <= max(1_000_000, len(script)) + 100_000


def test_a_script_is_read_in_one_pass() -> None:
    assert len(parse("/next " * 100_000).turns) == 100_001

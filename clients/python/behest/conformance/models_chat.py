"""Checks of chats that go well: their frames, their end, calls of tools, many at once.

Above: `models`, the table. Below: `models_survey`.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from behest.conformance.models_survey import MARK, TOOLS
from behest.conformance.verdict import expect, shown, skip
from behest.v1.chat_pb2 import FinishReason, ToolChoice, ToolChoiceMode
from behest.v1.chat_service_pb2 import CompleteChatRequest, CompleteChatResponse
from behest.v1.message_pb2 import Message, Part, Role, TextPart, ToolCall, ToolResult
from behest.v1.usage_pb2 import UsageSource

if TYPE_CHECKING:
    from collections.abc import Iterator

    from behest.conformance.models_probe import ChatReply
    from behest.conformance.models_survey import Subject

FRAME_BYTES = 4 * 1024 * 1024
AT_ONCE = 8
UNICODE = "Ünïcödé – ☃ 𝄞 日本語 \u202eABC e\u0301"
_KINDS = ("text", "reasoning", "tool_call")
_SOURCES = (UsageSource.USAGE_SOURCE_REPORTED, UsageSource.USAGE_SOURCE_ESTIMATED)
_CUT = (FinishReason.FINISH_REASON_LENGTH, FinishReason.FINISH_REASON_CONTENT_FILTER)


def replies(subject: Subject) -> Iterator[ChatReply]:
    """Yield the answers that were given. Raises Skipped when there is none, Failed for one that did not go well."""
    yield subject.good
    if subject.calling is not None:
        expect(subject.calling.is_good, f"{subject.chat_model}, asked for calls, gave {subject.calling}")
        yield subject.calling


async def answers(subject: Subject) -> str:
    """A chat ends well, with an end, and every frame can be read."""
    count = len(list(replies(subject)))
    return f"{count} answers of {subject.chat_model}"


async def ends(subject: Subject) -> str:
    """Exactly one end comes, in the last frame."""
    for reply in replies(subject):
        expect(len(reply.ends) == 1, f"{len(reply.ends)} ends came")
        expect(reply.frames[-1].HasField("end"), "a frame follows the end")
    return "one, in the last frame"


async def adds_up(subject: Subject) -> str:
    """The end is what the pieces add up to."""
    for reply in replies(subject):
        said = _joined(reply)
        parts = reply.end.message.parts
        for index, part in enumerate(parts):
            kind = part.WhichOneof("kind") or ""
            shown_kind, text = said.get(index, (kind, ""))
            expect(shown_kind == kind, f"part {index} was shown as {shown_kind}, and ends as {kind or 'nothing'}")
            whole = part.tool_call.arguments_json if kind == "tool_call" else getattr(part, kind).text
            is_empty = kind == "tool_call" and not text.strip() and whole == "{}"
            expect(is_empty or text == whole, f"the pieces of part {index} add up to {shown(repr(text), 40)}")
        more = [index for index, (kind, text) in said.items() if index >= len(parts) and text]
        is_half = reply.end.finish_reason in _CUT and all(said[index][0] == "tool_call" for index in more)
        expect(not more or is_half, f"pieces of part {more[:1]} came, which the end has not")
    return "every part"


async def pieces(subject: Subject) -> str:
    """Pieces have a kind and a part, counted from 0; a call is named by its first."""
    for reply in replies(subject):
        known: list[int] = []
        for delta in reply.deltas:
            kind = delta.WhichOneof("kind")
            expect(kind is not None, "a piece is of no kind")
            if delta.part not in known:
                expect(0 <= delta.part < 10_000, f"a piece is of part {delta.part}")
                is_next = not known or delta.part > known[-1]
                expect(is_next, f"part {delta.part} begins after part {known[-1] if known else 0}")
                known.append(delta.part)
                expect(kind != "tool_call" or bool(delta.tool_call.name), "the first piece of a call has no name")
    return f"{sum(len(reply.deltas) for reply in replies(subject))} pieces"


async def message(subject: Subject) -> str:
    """The answer is the assistant's, of parts that a model says."""
    for reply in replies(subject):
        role = reply.end.message.role
        expect(role == Role.ROLE_ASSISTANT, f"the role of the answer is {role}")
        for index, part in enumerate(reply.end.message.parts):
            kind = part.WhichOneof("kind")
            expect(kind in _KINDS, f"part {index} of the answer is of kind {kind or 'none'}")
    return "the assistant's"


async def finish(subject: Subject) -> str:
    """The finish reason is known, and that of calls comes with calls alone."""
    for reply in replies(subject):
        reason = reply.end.finish_reason
        is_known = reason in FinishReason.values() and reason != FinishReason.FINISH_REASON_UNSPECIFIED
        expect(is_known, f"the finish reason is {reason}")
        has_calls = any(part.HasField("tool_call") for part in reply.end.message.parts)
        is_calls = reason == FinishReason.FINISH_REASON_TOOL_CALLS
        expect(has_calls or not is_calls, "the finish reason is TOOL_CALLS, and there are none")
        expect(is_calls or not has_calls or reason in _CUT, "there are calls, and the finish reason is another")
    return FinishReason.Name(subject.good.end.finish_reason).removeprefix("FINISH_REASON_")


async def usage(subject: Subject) -> str:
    """What was consumed is told, with its source."""
    for reply in replies(subject):
        end = reply.end
        expect(end.HasField("usage"), "no usage is told")
        expect(end.usage.input_tokens > 0, f"{end.usage.input_tokens} tokens of input are told")
        counts = [end.usage.output_tokens, end.usage.cached_input_tokens, end.usage.reasoning_tokens]
        expect(min(counts) >= 0, f"{min(counts)} tokens are told")
        expect(bool(end.usage.output_tokens) or not end.message.parts, "no tokens of output are told of an answer")
        expect(end.usage_source in _SOURCES, "the source of the usage is not told")
    good = subject.good.end
    return f"{good.usage.input_tokens} in, {good.usage.output_tokens} out"


async def frames(subject: Subject) -> str:
    """No frame is larger than 4 MiB."""
    size = max(max(reply.sizes, default=0) for reply in replies(subject))
    expect(size <= FRAME_BYTES, f"a frame has {size} bytes, over {FRAME_BYTES}")
    return f"largest {size} bytes"


async def complete(subject: Subject) -> str:
    """CompleteChat gives what StreamChat gives, or is not there."""
    one, other = await subject.probe.chats([subject.good.chat, subject.good.chat])
    request = CompleteChatRequest(chat=subject.good.chat)
    got = await subject.probe.unary("ChatService/CompleteChat", request, CompleteChatResponse)
    expect(got.ending.is_ok, f"CompleteChat ended with {got.ending}")
    end = got.value.end
    expect(end.message.role == Role.ROLE_ASSISTANT, "CompleteChat gave no answer of the assistant")
    expect(bool(end.finish_reason), "CompleteChat tells no finish reason")
    expect(end.usage.input_tokens > 0, "CompleteChat tells no usage")
    if one.text == other.text:
        text = "".join(part.text.text for part in end.message.parts)
        expect(text == one.text, f"CompleteChat gave {shown(repr(text), 40)}, StreamChat {shown(repr(one.text), 40)}")
    return "the same"


async def unicode(subject: Subject) -> str:
    """Text of any script is taken, and comes back as it went where the model repeats it."""
    mark = f"{subject.probe.mark()} {UNICODE}"
    reply = await subject.probe.chat(subject.chat(subject.prompts.text.replace(MARK, mark)))
    expect(reply.is_good, f"a prompt of many scripts gave {reply}")
    is_echo = mark.split()[0] in reply.text
    expect(not is_echo or UNICODE in reply.text, f"the text was changed: {shown(reply.text, 60)}")
    return "repeated unchanged" if is_echo else "taken"


async def history(subject: Subject) -> str:
    """A conversation with calls and their results is taken."""
    if subject.calling is None:
        skip("no chat model calls tools")
    call = ToolCall(id="call_1", name="now", arguments_json="{}", provider_call_id="1")
    result = ToolResult(call_id="call_1", name="now", parts=[Part(text=TextPart(text="noon"))])
    asked = subject.chat(tools=TOOLS)
    question = list(asked.messages)
    del asked.messages[:]
    asked.messages.extend(
        [
            Message(role=Role.ROLE_SYSTEM, parts=[Part(text=TextPart(text="Be brief."))]),
            Message(role=Role.ROLE_USER, parts=[Part(text=TextPart(text="What time is it?"))]),
            Message(role=Role.ROLE_ASSISTANT, parts=[Part(tool_call=call)]),
            Message(role=Role.ROLE_TOOL, parts=[Part(tool_result=result)]),
            *question,
        ]
    )
    reply = await subject.probe.chat(asked)
    expect(reply.is_good, f"a conversation with a call and its result gave {reply}")
    return "taken"


async def at_once(subject: Subject) -> str:
    """Chats made at once get an answer each, their own."""
    marks = [subject.probe.mark() for _ in range(AT_ONCE)]
    asked = [subject.chat(subject.prompts.text.replace(MARK, mark)) for mark in marks]
    given = await subject.probe.chats(asked)
    for reply in given:
        expect(reply.is_good, f"one of {AT_ONCE} chats gave {reply}")
    is_echo = any(mark in reply.text for mark in marks for reply in given)
    for mark, reply in zip(marks, given, strict=True):
        others = [other for other in marks if other != mark and other in reply.text]
        expect(not others, "one chat was answered with another's answer")
        expect(not is_echo or mark in reply.text, "one chat was answered without its own word")
        expect(_adds_up(reply), "the pieces of one of several chats do not add up to its end")
    return f"{AT_ONCE} answers, {'each its own' if is_echo else 'none mixed'}"


async def beside(subject: Subject) -> str:
    """A chat that takes its time keeps no other from being answered."""
    ongoing = subject.probe.start(subject.long())
    try:
        await ongoing.begun(1.0)
        reply = await subject.probe.chat(subject.chat())
        still = await ongoing.begun(0.0)
    finally:
        await ongoing.finish(0.0)
    expect(reply.is_good, f"a chat gave {reply} while another one went on")
    if not still:
        skip("the long answer ended too soon: say what makes a longer one with --long")
    return "answered while another one went on"


async def calls(subject: Subject) -> str:
    """Calls name tools that were given, their ids differ."""
    made = _calls(subject.called)
    offered = {tool.name for tool in TOOLS}
    for call in made:
        expect(call.name in offered, f"a call names {shown(repr(call.name), 40)}, which was not given")
    ids = [call.provider_call_id or call.id for call in made]
    told = [each for each in ids if each]
    expect(len(set(told)) == len(told), f"two calls have the id {shown(told[0], 40) if told else ''}")
    return ", ".join(call.name for call in made)


async def arguments(subject: Subject) -> str:
    """Arguments are JSON objects, `{}` where there are none."""
    for call in _calls(subject.called):
        expect(bool(call.arguments_json), f"the arguments of {call.name} are empty, not {{}}")
        try:
            is_object = isinstance(json.loads(call.arguments_json), dict)
        except (ValueError, RecursionError):
            is_object = False
        expect(is_object, f"the arguments of {call.name} are no JSON object: {shown(call.arguments_json, 40)}")
    return ", ".join(shown(call.arguments_json, 20) for call in _calls(subject.called))


async def choice(subject: Subject) -> str:
    """A model that may call no tool calls none."""
    if subject.calling is None:
        skip("no chat model calls tools")
    never = ToolChoice(mode=ToolChoiceMode.TOOL_CHOICE_MODE_NONE)
    reply = await subject.probe.chat(subject.chat(subject.prompts.calls, tools=TOOLS, tool_choice=never))
    expect(reply.is_good, f"a chat that may call no tool gave {reply}")
    expect(not _calls(reply), "a chat that may call no tool called one")
    return "none"


async def alive(subject: Subject) -> str:
    """After everything, the server still answers."""
    reply = await subject.probe.chat(subject.good.chat)
    expect(reply.is_good, f"a chat gave {reply}")
    return "answered again"


def _calls(reply: ChatReply) -> list[ToolCall]:
    return [part.tool_call for part in reply.end.message.parts if part.HasField("tool_call")]


def _joined(reply: ChatReply) -> dict[int, tuple[str, str]]:
    """The kind and the text of each part, as its pieces have it. Raises Failed for a part of two kinds."""
    said: dict[int, tuple[str, str]] = {}
    for delta in reply.deltas:
        kind = delta.WhichOneof("kind") or ""
        known, text = said.get(delta.part, (kind, ""))
        expect(known == kind, f"part {delta.part} is of two kinds")
        said[delta.part] = (kind, text + (delta.text or delta.reasoning or delta.tool_call.arguments_json))
    return said


def _adds_up(reply: ChatReply) -> bool:
    shown_texts = "".join(text for kind, text in _joined(reply).values() if kind == "text")
    return shown_texts == reply.text

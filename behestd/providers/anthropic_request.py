"""A call as the request body of an Anthropic-compatible server. Pure. Above: `anthropic`. Below: the table of models.

Source: the public reference of POST /v1/messages. The same conversation gives the same bytes, and a longer one begins
with those of the shorter, markers and spent thinking aside: that is what lets the vendor's prompt cache answer.
"""

from __future__ import annotations

import json
import math
import re
from base64 import b64encode
from collections.abc import Iterable, Iterator, Sequence
from hashlib import sha256
from typing import Any

from behest.v1.chat_pb2 import ReasoningEffort, ResponseFormat, ResponseFormatKind, ToolChoiceMode
from behest.v1.chat_service_pb2 import Chat
from behest.v1.message_pb2 import FilePart, ImagePart, Message, Part, ReasoningPart, Role, ToolCall, ToolResult
from behest.v1.model_pb2 import Model
from behestd.providers.anthropic_models import MAX_CACHE_MARKERS, Thinking, known
from behestd.providers.failure import ProviderFailure

Json = dict[str, Any]

SIGNED = b"anthropic-thinking:"
"""What stands before the signature of a thinking block: who signed it, so that no other vendor's is sent here."""
REDACTED = b"anthropic-redacted:"
"""What stands before the content of a block whose thinking the vendor keeps to itself."""
DEFAULT_MAX_TOKENS = 8192
"""The limit of an answer, which a request must have, where neither the caller nor the model has one."""
_MIN_BUDGET_TOKENS = 1024
_CALL_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")
_EFFORTS = {
    ReasoningEffort.REASONING_EFFORT_LOW: ("low", 2048),
    ReasoningEffort.REASONING_EFFORT_MEDIUM: ("medium", 8192),
    ReasoningEffort.REASONING_EFFORT_HIGH: ("high", 24_576),
}
"""The vendor's word for an effort, and the tokens for models that are given tokens."""
_CHOICES = {
    ToolChoiceMode.TOOL_CHOICE_MODE_AUTO: "auto",
    ToolChoiceMode.TOOL_CHOICE_MODE_NONE: "none",
    ToolChoiceMode.TOOL_CHOICE_MODE_REQUIRED: "any",
}


def request_body(chat: Chat, name: str, model: Model, *, streams: bool) -> Json:
    """Build the body; `name` is the server's name of the model. Raises: ProviderFailure PROVIDER_REQUEST_INVALID."""
    options = _options(chat.provider_options_json)
    body: Json = {"model": name, "max_tokens": _max_tokens(chat, model)}
    if chat.tools:
        body["tools"] = [
            {
                "name": tool.name,
                "description": tool.description,
                "input_schema": _parsed(tool.input_schema_json, f"schema of {tool.name}"),
            }
            for tool in chat.tools
        ]
        body.update(_tool_choice(chat))
    system = [message for message in chat.messages if message.role == Role.ROLE_SYSTEM]
    blocks = [block for message in system for block in _content(message.parts)]
    if blocks:
        body["system"] = blocks
    body["messages"] = _messages(message for message in chat.messages if message.role != Role.ROLE_SYSTEM)
    body.update(_output(chat, name, body["max_tokens"]))
    body.update(_sampling(chat, 0 if "thinking" in body else known(name).samplers))
    if model.capabilities.prompt_cache_markers:
        limit = min(model.limits.max_prompt_cache_markers, MAX_CACHE_MARKERS)
        # A marker of the caller's own takes one of the vendor's four.
        _mark(body, limit - ("cache_control" in options))
    body.update(options)
    body["stream"] = streams
    return body


def _options(text: str) -> Json:
    if not text:
        return {}
    options = _parsed(text, "provider options")
    if not isinstance(options, dict):
        raise _invalid("provider options are no JSON object")
    return options


def _max_tokens(chat: Chat, model: Model) -> int:
    if chat.sampling.HasField("max_output_tokens"):
        return chat.sampling.max_output_tokens
    return model.limits.max_output_tokens or DEFAULT_MAX_TOKENS


def _tool_choice(chat: Chat) -> Json:
    choice = chat.tool_choice
    if choice.mode == ToolChoiceMode.TOOL_CHOICE_MODE_TOOL:
        return {"tool_choice": {"type": "tool", "name": choice.tool_name}}
    return {"tool_choice": {"type": _CHOICES[choice.mode]}} if choice.mode in _CHOICES else {}


def _sampling(chat: Chat, samplers: int) -> Json:
    """Build what chooses tokens. The vendor knows no seed, and its models take one sampler at most, the newer none."""
    sampling = chat.sampling
    asked = [name for name in ("temperature", "top_p") if sampling.HasField(name)]
    fields: Json = {name: getattr(sampling, name) for name in asked[:samplers]}
    if sampling.stop:
        fields["stop_sequences"] = list(sampling.stop)
    return fields


def _output(chat: Chat, name: str, max_tokens: int) -> Json:
    """Build the form of the answer and how hard the model thinks, which share a field."""
    config: Json = {}
    thinking: Json = {}
    effort = chat.sampling.reasoning_effort
    mode = known(name).thinking
    if effort == ReasoningEffort.REASONING_EFFORT_NONE:
        if mode is Thinking.ALWAYS:
            config["effort"] = "low"
        elif mode is not Thinking.BUDGET:
            thinking = {"type": "disabled" if mode is Thinking.ADAPTIVE else "between_tools"}
    elif effort in _EFFORTS:
        word, tokens = _EFFORTS[effort]
        budget_tokens = min(tokens, max_tokens // 2)
        if mode is not Thinking.BUDGET:
            config["effort"] = word
            thinking = {"type": "adaptive"}
        elif budget_tokens >= _MIN_BUDGET_TOKENS:
            thinking = {"type": "enabled", "budget_tokens": budget_tokens}
    config.update(_format(chat.response_format))
    fields = {"thinking": thinking, "output_config": config}
    return {name: value for name, value in fields.items() if value}


def _format(wanted: ResponseFormat) -> Json:
    if wanted.kind == ResponseFormatKind.RESPONSE_FORMAT_KIND_JSON_OBJECT:
        raise _invalid("this provider needs a schema for JSON")
    if wanted.kind != ResponseFormatKind.RESPONSE_FORMAT_KIND_JSON_SCHEMA:
        return {}
    return {"format": {"type": "json_schema", "schema": _parsed(wanted.schema_json, "schema of the answer")}}


def _mark(body: Json, limit: int) -> None:
    """Mark the prefixes that the vendor is to cache, the stable one first.

    Tools come before the system text there, so one marker at the end of what is stable covers both. The second is at
    the end of the conversation, the third where it ended a turn ago, which is where the cache was written then; the
    fourth keeps the tools when only the system text changes.
    """
    system, tools, messages = body.get("system", []), body.get("tools", []), body["messages"]
    turns = [message["content"] for message in messages if message["role"] == "user"]
    ends = [system or tools, *turns[:-3:-1], tools if system else []]
    for blocks in [blocks for blocks in ends if blocks][: max(limit, 0)]:
        blocks[-1]["cache_control"] = {"type": "ephemeral"}


def _messages(messages: Iterable[Message]) -> list[Json]:
    """Build the conversation: what one side says in a row is one message, results before the rest.

    Thinking goes back in the turn that is being answered, where the vendor demands it, and nowhere else: it is bound
    to all that stands before it, so it would be refused once older messages are trimmed or summed up.
    """
    sides: list[tuple[str, list[Message]]] = []
    for message in messages:
        role = "assistant" if message.role == Role.ROLE_ASSISTANT else "user"
        if not sides or sides[-1][0] != role:
            sides.append((role, []))
        sides[-1][1].append(message)
    last_word = max((at for at, side in enumerate(sides) if _is_word(side)), default=0)
    built: list[Json] = []
    for at, (role, said) in enumerate(sides):
        parts = [part for message in said for part in message.parts]
        content = _content(parts, thinks=at > last_word)
        if content and built and built[-1]["role"] == role:
            built[-1]["content"] += content
        elif content:
            built.append({"role": role, "content": content})
    return built


def _is_word(side: tuple[str, list[Message]]) -> bool:
    """Whether a side of the conversation is somebody's word, and no mere result."""
    role, said = side
    return role == "user" and all(message.role != Role.ROLE_TOOL for message in said)


def _content(parts: Sequence[Part], *, thinks: bool = False) -> list[Json]:
    """Build blocks, results first. Text without a word in it is left out, since it is refused there."""
    blocks = [block for part in parts for block in _blocks(part, thinks)]
    return sorted(blocks, key=lambda block: block["type"] != "tool_result")


def _blocks(part: Part, thinks: bool) -> Iterator[Json]:
    match part.WhichOneof("kind"):
        case "text":
            yield from _text(part.text.text)
        case "json":
            yield from _text(part.json.json)
        case "image":
            yield {"type": "image", "source": _picture(part.image)}
        case "file":
            yield _document(part.file)
        case "reasoning":
            if thinks:
                yield from _thinking(part.reasoning)
        case "tool_call":
            yield _call(part.tool_call)
        case "tool_result":
            yield _result(part.tool_result)
        case kind:
            raise _invalid(f"this provider takes no {kind} part")


def _text(text: str) -> Iterator[Json]:
    if text.strip():
        yield {"type": "text", "text": text}


def _picture(image: ImagePart) -> Json:
    source = image.WhichOneof("source")
    if source == "data":
        return {"type": "base64", "media_type": image.media_type, "data": b64encode(image.data).decode()}
    if source == "uri":
        return {"type": "url", "url": image.uri}
    raise _invalid("the picture is an artifact that was not inlined")


def _document(file: FilePart) -> Json:
    if file.WhichOneof("source") != "uri" or file.media_type not in ("", "application/pdf"):
        raise _invalid("this provider takes files as addresses of PDF only")
    named = {"title": file.name} if file.name else {}
    return {"type": "document", "source": {"type": "url", "url": file.uri}, **named}


def _thinking(part: ReasoningPart) -> Iterator[Json]:
    """Build a block that the vendor signed; what others thought stays out, it would be refused."""
    if part.signature.startswith(REDACTED):
        yield {"type": "redacted_thinking", "data": part.signature.removeprefix(REDACTED).decode()}
    elif part.signature.startswith(SIGNED):
        yield {"type": "thinking", "thinking": part.text, "signature": part.signature.removeprefix(SIGNED).decode()}


def _call(call: ToolCall) -> Json:
    return {
        "type": "tool_use",
        "id": call_id(call.id or call.provider_call_id),
        "name": call.name,
        "input": _arguments(call.arguments_json),
    }


def _arguments(text: str) -> Json:
    """Return arguments as the JSON value that goes out there; what is none, as the text it was."""
    try:
        value = json.loads(text or "{}", parse_float=_finite, parse_constant=_finite)
        if isinstance(value, dict):
            json.dumps(value, ensure_ascii=False).encode()
            return value
    except (ValueError, RecursionError):
        pass
    return {"malformed": text}


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(text)
    return number


def _result(result: ToolResult) -> Json:
    block: Json = {"type": "tool_result", "tool_use_id": call_id(result.call_id)}
    content = _content(result.parts)
    if content:
        block["content"] = content
    if result.is_error:
        block["is_error"] = True
    return block


def call_id(ours: str) -> str:
    """Make an id that these servers take, the same each time for the same id of ours."""
    return ours if _CALL_ID.fullmatch(ours) else sha256(ours.encode()).hexdigest()


def _parsed(text: str, what: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise _invalid(f"{what} is no JSON") from error


def _invalid(problem: str) -> ProviderFailure:
    return ProviderFailure("PROVIDER_REQUEST_INVALID", problem)

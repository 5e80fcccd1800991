"""A call as the request body of an OpenAI-compatible server. Pure. Above: `openai`.

Source: the public reference of POST /chat/completions. Arguments and results go out byte for byte; schemas are JSON
values there, so they are parsed and written again.
"""

from __future__ import annotations

import json
from base64 import b64encode
from collections.abc import Iterable, Iterator
from hashlib import sha256
from typing import Any

from behest.v1.chat_pb2 import ReasoningEffort, ResponseFormat, ResponseFormatKind, Sampling, ToolChoiceMode
from behest.v1.chat_service_pb2 import Chat
from behest.v1.message_pb2 import ImagePart, Message, Part, Role, ToolResult
from behestd.providers.failure import ProviderFailure

Json = dict[str, Any]

_MAX_CALL_ID = 40
_ROLES = {Role.ROLE_SYSTEM: "system", Role.ROLE_USER: "user", Role.ROLE_ASSISTANT: "assistant"}
_EFFORTS = {
    ReasoningEffort.REASONING_EFFORT_NONE: "none",
    ReasoningEffort.REASONING_EFFORT_LOW: "low",
    ReasoningEffort.REASONING_EFFORT_MEDIUM: "medium",
    ReasoningEffort.REASONING_EFFORT_HIGH: "high",
}
_CHOICES = {
    ToolChoiceMode.TOOL_CHOICE_MODE_AUTO: "auto",
    ToolChoiceMode.TOOL_CHOICE_MODE_NONE: "none",
    ToolChoiceMode.TOOL_CHOICE_MODE_REQUIRED: "required",
}


def request_body(chat: Chat, name: str, *, streams: bool, max_tokens_field: str) -> Json:
    """Build the body; `name` is the server's name of the model. Raises: ProviderFailure PROVIDER_REQUEST_INVALID."""
    body: Json = {"model": name, "messages": list(_messages(chat.messages))}
    if chat.tools:
        body["tools"] = [
            {
                "type": "function",
                "function": {
                    "name": tool.name,
                    "description": tool.description,
                    "parameters": _parsed(tool.input_schema_json, f"schema of {tool.name}"),
                },
            }
            for tool in chat.tools
        ]
        body.update(_tool_choice(chat))
    body.update(_sampling(chat.sampling, max_tokens_field))
    body.update(_response_format(chat.response_format))
    if streams:
        body["stream_options"] = {"include_usage": True}
    if chat.provider_options_json:
        options = _parsed(chat.provider_options_json, "provider options")
        if not isinstance(options, dict):
            raise _invalid("provider options are no JSON object")
        body.update(options)
    body["stream"] = streams
    return body


def _tool_choice(chat: Chat) -> Json:
    choice = chat.tool_choice
    if choice.mode == ToolChoiceMode.TOOL_CHOICE_MODE_TOOL:
        return {"tool_choice": {"type": "function", "function": {"name": choice.tool_name}}}
    return {"tool_choice": _CHOICES[choice.mode]} if choice.mode in _CHOICES else {}


def _sampling(sampling: Sampling, max_tokens_field: str) -> Json:
    fields: Json = {
        name: getattr(sampling, name) for name in ("temperature", "top_p", "seed") if sampling.HasField(name)
    }
    if sampling.HasField("max_output_tokens"):
        fields[max_tokens_field] = sampling.max_output_tokens
    if sampling.stop:
        fields["stop"] = list(sampling.stop)
    if sampling.reasoning_effort in _EFFORTS:
        fields["reasoning_effort"] = _EFFORTS[sampling.reasoning_effort]
    return fields


def _response_format(wanted: ResponseFormat) -> Json:
    if wanted.kind == ResponseFormatKind.RESPONSE_FORMAT_KIND_JSON_OBJECT:
        return {"response_format": {"type": "json_object"}}
    if wanted.kind != ResponseFormatKind.RESPONSE_FORMAT_KIND_JSON_SCHEMA:
        return {}
    schema = {
        "name": wanted.schema_name or "answer",
        "schema": _parsed(wanted.schema_json, "schema of the answer"),
        "strict": wanted.strict,
    }
    return {"response_format": {"type": "json_schema", "json_schema": schema}}


def _messages(messages: Iterable[Message]) -> Iterator[Json]:
    for message in messages:
        if message.role == Role.ROLE_TOOL:
            yield from _tool_messages(message)
        elif message.role == Role.ROLE_ASSISTANT:
            yield _assistant_message(message)
        else:
            yield {"role": _ROLES.get(message.role, "user"), "content": _content(message.parts)}


def _assistant_message(message: Message) -> Json:
    """Build an earlier answer. Reasoning is not taken back by these servers."""
    texts = [part for part in message.parts if part.WhichOneof("kind") in ("text", "json")]
    calls = [
        {
            "id": call_id(part.tool_call.id or part.tool_call.provider_call_id),
            "type": "function",
            "function": {"name": part.tool_call.name, "arguments": part.tool_call.arguments_json or "{}"},
        }
        for part in message.parts
        if part.WhichOneof("kind") == "tool_call"
    ]
    built: Json = {"role": "assistant", "content": _content(texts) if texts else ("" if not calls else None)}
    if calls:
        built["tool_calls"] = calls
    return built


def _tool_messages(message: Message) -> Iterator[Json]:
    """Build one message a result; pictures follow in one of the user's, since results hold text alone."""
    results = [part.tool_result for part in message.parts if part.WhichOneof("kind") == "tool_result"]
    pictures: list[Part] = []
    for result in results:
        pictures += [part for part in result.parts if part.WhichOneof("kind") == "image"]
        yield {"role": "tool", "tool_call_id": call_id(result.call_id), "content": _result_text(result)}
    if pictures:
        yield {"role": "user", "content": _content(pictures)}


def _result_text(result: ToolResult) -> str:
    texts = [_text(part) for part in result.parts if part.WhichOneof("kind") != "image"]
    return "\n".join(texts)


def _content(parts: Iterable[Part]) -> str | list[Json]:
    """Build content: one string when all is one text, else a list, in order."""
    pieces = [
        _image(part.image) if part.WhichOneof("kind") == "image" else {"type": "text", "text": _text(part)}
        for part in parts
        if part.WhichOneof("kind") != "reasoning"
    ]
    if len(pieces) == 1 and pieces[0]["type"] == "text":
        return str(pieces[0]["text"])
    return pieces or ""


def _text(part: Part) -> str:
    kind = part.WhichOneof("kind")
    if kind == "text":
        return part.text.text
    if kind == "json":
        return part.json.json
    raise _invalid(f"this provider takes no {kind} part here")


def _image(image: ImagePart) -> Json:
    source = image.WhichOneof("source")
    if source == "data":
        url = f"data:{image.media_type};base64,{b64encode(image.data).decode()}"
    elif source == "uri":
        url = image.uri
    else:
        raise _invalid("the picture is an artifact that was not inlined")
    return {"type": "image_url", "image_url": {"url": url}}


def call_id(ours: str) -> str:
    """Make an id that these servers take, at most 40 characters, the same each time for the same id of ours."""
    return ours if len(ours) <= _MAX_CALL_ID else sha256(ours.encode()).hexdigest()[:_MAX_CALL_ID]


def _parsed(text: str, what: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise _invalid(f"{what} is no JSON") from error


def _invalid(problem: str) -> ProviderFailure:
    return ProviderFailure("PROVIDER_REQUEST_INVALID", problem)

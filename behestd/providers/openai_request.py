"""A call as the request body of an OpenAI-compatible server. Pure. Above: `openai`. Below: `openai_parts`, the models.

Source: the public reference of POST /chat/completions. Arguments and results go out byte for byte; schemas are JSON
values there, so they are parsed and written again.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from behest.v1.chat_pb2 import ResponseFormat, ResponseFormatKind, ToolChoiceMode
from behest.v1.chat_service_pb2 import Chat
from behest.v1.message_pb2 import Message, Part, Role, ToolResult
from behestd.providers.openai_models import Reasons, known
from behestd.providers.openai_parts import (
    CHOICES,
    ROLES,
    Json,
    call_id,
    effort_of,
    options_of,
    parsed_json,
    picture_address,
    text_of,
)


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
                    "parameters": parsed_json(tool.input_schema_json, f"schema of {tool.name}"),
                },
            }
            for tool in chat.tools
        ]
        body.update(_tool_choice(chat))
    body.update(_sampling(chat, name, max_tokens_field))
    body.update(_response_format(chat.response_format))
    if streams:
        body["stream_options"] = {"include_usage": True}
    body.update(options_of(chat))
    body["stream"] = streams
    return body


def _tool_choice(chat: Chat) -> Json:
    choice = chat.tool_choice
    if choice.mode == ToolChoiceMode.TOOL_CHOICE_MODE_TOOL:
        return {"tool_choice": {"type": "function", "function": {"name": choice.tool_name}}}
    return {"tool_choice": CHOICES[choice.mode]} if choice.mode in CHOICES else {}


def _sampling(chat: Chat, name: str, max_tokens_field: str) -> Json:
    """Build what chooses tokens; a model that reasons takes no samplers, and some do not call tools while they do."""
    sampling = chat.sampling
    facts = known(name)
    reasons = Reasons.NEVER if facts is None else facts.reasons
    effort = effort_of(chat, reasons)
    fields: Json = {
        field: getattr(sampling, field) for field in ("temperature", "top_p", "seed") if sampling.HasField(field)
    }
    if reasons.by(effort):
        fields = {field: value for field, value in fields.items() if field == "seed"}
    if sampling.HasField("max_output_tokens"):
        fields[max_tokens_field] = sampling.max_output_tokens
    if sampling.stop:
        fields["stop"] = list(sampling.stop)
    if effort is not None:
        fields["reasoning_effort"] = effort
    return fields


def _response_format(wanted: ResponseFormat) -> Json:
    if wanted.kind == ResponseFormatKind.RESPONSE_FORMAT_KIND_JSON_OBJECT:
        return {"response_format": {"type": "json_object"}}
    if wanted.kind != ResponseFormatKind.RESPONSE_FORMAT_KIND_JSON_SCHEMA:
        return {}
    schema = {
        "name": wanted.schema_name or "answer",
        "schema": parsed_json(wanted.schema_json, "schema of the answer"),
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
            yield {"role": ROLES.get(message.role, "user"), "content": _content(message.parts)}


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
    texts = [text_of(part) for part in result.parts if part.WhichOneof("kind") != "image"]
    return "\n".join(texts)


def _content(parts: Iterable[Part]) -> str | list[Json]:
    """Build content: one string when all is one text, else a list, in order."""
    pieces = [
        {"type": "image_url", "image_url": {"url": picture_address(part.image)}}
        if part.WhichOneof("kind") == "image"
        else {"type": "text", "text": text_of(part)}
        for part in parts
        if part.WhichOneof("kind") != "reasoning"
    ]
    if len(pieces) == 1 and pieces[0]["type"] == "text":
        return str(pieces[0]["text"])
    return pieces or ""

"""A call as the request body of the vendor's newer interface. Pure. Above: `openai`. Below: `openai_parts`.

Source: the public reference of POST /responses. Nothing is kept on the server: the whole conversation goes out each
time, and reasoning that the model sealed goes back while its turn lasts.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from behest.v1.chat_pb2 import ResponseFormat, ResponseFormatKind, ToolChoiceMode
from behest.v1.chat_service_pb2 import Chat
from behest.v1.message_pb2 import Message, Part, ReasoningPart, Role, ToolResult
from behestd.providers.openai_models import Reasons, known
from behestd.providers.openai_parts import (
    CHOICES,
    ROLES,
    Json,
    call_id,
    effort_of,
    invalid,
    options_of,
    parsed_json,
    picture_address,
    text_of,
)

SEALED = b"openai-reasoning:"
"""What stands before a sealed item of reasoning: who sealed it, so that no other vendor's is sent here."""


def request_body(chat: Chat, name: str, *, streams: bool) -> Json:
    """Build the body; `name` is the server's name of the model. Raises: ProviderFailure PROVIDER_REQUEST_INVALID."""
    options = options_of(chat)
    body: Json = {
        "model": name,
        "input": list(_items(chat.messages, chat.model)),
        "store": False,
        "include": ["reasoning.encrypted_content"],
    }
    if chat.tools:
        body["tools"] = [
            {
                "type": "function",
                "name": tool.name,
                "description": tool.description,
                "parameters": parsed_json(tool.input_schema_json, f"schema of {tool.name}"),
                # The other interface's default; here it is the other way round.
                "strict": False,
            }
            for tool in chat.tools
        ]
        body.update(_tool_choice(chat))
    body.update(_sampling(chat, name))
    body.update(_format(chat.response_format))
    body.update(options)
    body["stream"] = streams
    return body


def _tool_choice(chat: Chat) -> Json:
    choice = chat.tool_choice
    if choice.mode == ToolChoiceMode.TOOL_CHOICE_MODE_TOOL:
        return {"tool_choice": {"type": "function", "name": choice.tool_name}}
    return {"tool_choice": CHOICES[choice.mode]} if choice.mode in CHOICES else {}


def _sampling(chat: Chat, name: str) -> Json:
    """Build what chooses tokens. There is no seed here, and nothing to end an answer by."""
    sampling = chat.sampling
    if sampling.stop:
        raise invalid("this interface takes no texts that end the answer")
    facts = known(name)
    reasons = Reasons.NEVER if facts is None else facts.reasons
    # Tools and reasoning go together here.
    effort = effort_of(chat, Reasons.UNLESS_TOLD if reasons is Reasons.UNLESS_CALLING else reasons)
    fields: Json = {}
    if not reasons.by(effort):
        fields = {key: getattr(sampling, key) for key in ("temperature", "top_p") if sampling.HasField(key)}
    if sampling.HasField("max_output_tokens"):
        fields["max_output_tokens"] = sampling.max_output_tokens
    if effort is not None:
        fields["reasoning"] = {"effort": effort}
    return fields


def _format(wanted: ResponseFormat) -> Json:
    if wanted.kind == ResponseFormatKind.RESPONSE_FORMAT_KIND_JSON_OBJECT:
        return {"text": {"format": {"type": "json_object"}}}
    if wanted.kind != ResponseFormatKind.RESPONSE_FORMAT_KIND_JSON_SCHEMA:
        return {}
    schema = {
        "type": "json_schema",
        "name": wanted.schema_name or "answer",
        "schema": parsed_json(wanted.schema_json, "schema of the answer"),
        "strict": wanted.strict,
    }
    return {"text": {"format": schema}}


def _items(messages: Sequence[Message], model: str) -> Iterator[Json]:
    """Build the conversation as the items that it is there: messages, calls, results, reasoning."""
    last_word = max((at for at, message in enumerate(messages) if message.role == Role.ROLE_USER), default=0)
    for at, message in enumerate(messages):
        if message.role == Role.ROLE_TOOL:
            results = [part.tool_result for part in message.parts if part.WhichOneof("kind") == "tool_result"]
            yield from map(_result, results)
        elif message.role == Role.ROLE_ASSISTANT:
            yield from _answer(message.parts, model if at > last_word else "")
        else:
            yield {"role": ROLES.get(message.role, "user"), "content": _content(message.parts)}


def _answer(parts: Iterable[Part], model: str) -> list[Json]:
    """Build an earlier answer; what `model` reasoned stands before what it led to, and is refused on its own."""
    items: list[Json] = []
    for part in parts:
        match part.WhichOneof("kind"):
            case "tool_call":
                call = {
                    "type": "function_call",
                    "call_id": call_id(part.tool_call.id or part.tool_call.provider_call_id),
                    "name": part.tool_call.name,
                    "arguments": part.tool_call.arguments_json or "{}",
                }
                items.append(call)
            case "reasoning":
                items += _reasoning(part.reasoning, model)
            case _:
                items.append({"role": "assistant", "content": text_of(part)})
    while items and items[-1].get("type") == "reasoning":
        items.pop()
    return items


def _reasoning(part: ReasoningPart, model: str) -> Iterator[Json]:
    """Build an item that this model sealed; nobody else can open it."""
    if part.signature.startswith(SEALED):
        sealed = parsed_json(part.signature.removeprefix(SEALED).decode(errors="replace"), "sealed reasoning")
        if isinstance(sealed, dict) and sealed.pop("model", "") == model:
            summary = [{"type": "summary_text", "text": part.text}] if part.text else []
            yield {"type": "reasoning", "summary": summary, **sealed}


def seal(model: str, item_id: str, content: str) -> bytes:
    """Write down what lets an item of reasoning go back to the model that it came from."""
    return SEALED + json.dumps({"model": model, "id": item_id, "encrypted_content": content}).encode()


def _result(result: ToolResult) -> Json:
    content = _content(result.parts)
    is_text = all(piece["type"] == "input_text" for piece in content)
    output = "\n".join(piece["text"] for piece in content) if is_text else content
    return {"type": "function_call_output", "call_id": call_id(result.call_id), "output": output}


def _content(parts: Iterable[Part]) -> list[dict[str, Any]]:
    return [
        {"type": "input_image", "image_url": picture_address(part.image)}
        if part.WhichOneof("kind") == "image"
        else {"type": "input_text", "text": text_of(part)}
        for part in parts
        if part.WhichOneof("kind") != "reasoning"
    ]

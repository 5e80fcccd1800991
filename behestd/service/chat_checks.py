"""Checks of what a model is asked: sampling, tool choice, form of the answer, and whole conversations.

Above: the handlers of ChatService, and the checks of runs and agents. Below: `validate`. Each refusal names its field
by the path that the caller knows.
"""

from __future__ import annotations

from collections.abc import Sequence

from behest.v1.chat_pb2 import ReasoningEffort, ResponseFormat, ResponseFormatKind, Sampling, ToolChoice, ToolChoiceMode
from behest.v1.chat_service_pb2 import Chat
from behest.v1.message_pb2 import Message, Part, Role
from behest.v1.tool_pb2 import Tool
from behestd.errors import InvalidRequest
from behestd.service.validate import (
    duration,
    identifier,
    json_object,
    json_value,
    known,
    max_bytes,
    max_items,
    one_of,
    required,
)

MAX_MESSAGES = 10_000
MAX_PARTS = 256
MAX_TOOLS = 256
MAX_NAME_BYTES = 256
MAX_SCHEMA_BYTES = 64 * 1024
_MAX_STOPS = 16
_TEMPERATURE_LIMIT = 2.0
_SPOKEN_BY = {"tool_call": Role.ROLE_ASSISTANT, "reasoning": Role.ROLE_ASSISTANT, "tool_result": Role.ROLE_TOOL}


def check_chat(chat: Chat) -> None:
    """Check one model call."""
    required("chat.model", chat.model)
    max_bytes("chat.model", chat.model, MAX_NAME_BYTES)
    required("chat.messages", chat.messages)
    max_items("chat.messages", chat.messages, MAX_MESSAGES)
    for index, message in enumerate(chat.messages):
        _check_message(f"chat.messages[{index}]", message)
    _check_pairs(chat.messages)
    max_items("chat.tools", chat.tools, MAX_TOOLS)
    for index, tool in enumerate(chat.tools):
        _check_tool(f"chat.tools[{index}]", tool)
    check_sampling("chat.sampling", chat.sampling)
    check_tool_choice("chat.tool_choice", chat.tool_choice)
    check_response_format("chat.response_format", chat.response_format)
    if chat.provider_options_json:
        json_object("chat.provider_options_json", chat.provider_options_json, MAX_SCHEMA_BYTES)
    if chat.HasField("timeout") and duration("chat.timeout", chat.timeout) <= 0:
        raise InvalidRequest("chat.timeout", "must be longer than 0 s")
    max_bytes("chat.run_id", chat.run_id, MAX_NAME_BYTES)


def check_sampling(path: str, sampling: Sampling) -> None:
    """Check the choice of tokens."""
    max_items(f"{path}.stop", sampling.stop, _MAX_STOPS)
    if sampling.HasField("temperature") and not 0 <= sampling.temperature <= _TEMPERATURE_LIMIT:
        raise InvalidRequest(f"{path}.temperature", "must be 0 to 2")
    if sampling.HasField("top_p") and not 0 < sampling.top_p <= 1:
        raise InvalidRequest(f"{path}.top_p", "must be above 0, at most 1")
    if sampling.HasField("max_output_tokens") and sampling.max_output_tokens < 1:
        raise InvalidRequest(f"{path}.max_output_tokens", "must be at least 1")
    known(f"{path}.reasoning_effort", sampling.reasoning_effort, ReasoningEffort.DESCRIPTOR, may_be_unset=True)


def check_tool_choice(path: str, choice: ToolChoice) -> None:
    """Check the rule of tool choice."""
    known(f"{path}.mode", choice.mode, ToolChoiceMode.DESCRIPTOR, may_be_unset=True)
    if choice.mode == ToolChoiceMode.TOOL_CHOICE_MODE_TOOL:
        required(f"{path}.tool_name", choice.tool_name)


def check_response_format(path: str, answer: ResponseFormat) -> None:
    """Check the form of the answer."""
    known(f"{path}.kind", answer.kind, ResponseFormatKind.DESCRIPTOR, may_be_unset=True)
    if answer.kind == ResponseFormatKind.RESPONSE_FORMAT_KIND_JSON_SCHEMA:
        required(f"{path}.schema_json", answer.schema_json)
        json_object(f"{path}.schema_json", answer.schema_json, MAX_SCHEMA_BYTES)
    if answer.schema_name:
        identifier(f"{path}.schema_name", answer.schema_name)


def _check_tool(path: str, tool: Tool) -> None:
    identifier(f"{path}.name", tool.name)
    required(f"{path}.input_schema_json", tool.input_schema_json)
    json_object(f"{path}.input_schema_json", tool.input_schema_json, MAX_SCHEMA_BYTES)


def _check_message(path: str, message: Message) -> None:
    known(f"{path}.role", message.role, Role.DESCRIPTOR)
    required(f"{path}.parts", message.parts)
    max_items(f"{path}.parts", message.parts, MAX_PARTS)
    for index, part in enumerate(message.parts):
        where = f"{path}.parts[{index}]"
        kind = one_of(part, "kind", where)
        if message.role != _SPOKEN_BY.get(kind, message.role):
            raise InvalidRequest(f"{where}.{kind}", "is not said by this role")
        if message.role == Role.ROLE_TOOL and kind != "tool_result":
            raise InvalidRequest(f"{where}.{kind}", "a tool message holds results only")
        check_part(where, part)


def check_part(path: str, part: Part) -> None:
    """Check what a part holds. Artifacts are not looked up for single calls, so none may be named."""
    kind = one_of(part, "kind", path)
    if kind == "json":
        check_json(path, part)
    elif kind in ("image", "audio", "file"):
        if one_of(getattr(part, kind), "source", f"{path}.{kind}") == "artifact_id":
            raise InvalidRequest(f"{path}.{kind}.artifact_id", "artifacts are taken in runs only")
    elif kind == "tool_call":
        required(f"{path}.tool_call.id", part.tool_call.id)
        required(f"{path}.tool_call.name", part.tool_call.name)
    elif kind == "tool_result":
        required(f"{path}.tool_result.call_id", part.tool_result.call_id)
        max_items(f"{path}.tool_result.parts", part.tool_result.parts, MAX_PARTS)
        for index, inner in enumerate(part.tool_result.parts):
            where = f"{path}.tool_result.parts[{index}]"
            if one_of(inner, "kind", where) in _SPOKEN_BY:
                raise InvalidRequest(where, "is no part of a result")
            check_part(where, inner)


def check_json(path: str, part: Part) -> None:
    """Check the text of a JSON part."""
    required(f"{path}.json.json", part.json.json)
    json_value(f"{path}.json.json", part.json.json)


def _check_pairs(messages: Sequence[Message]) -> None:
    """Refuse a conversation in which a call has not exactly one result after it."""
    is_answered: dict[str, bool] = {}
    for index, message in enumerate(messages):
        for place, part in enumerate(message.parts):
            path = f"chat.messages[{index}].parts[{place}]"
            if part.WhichOneof("kind") == "tool_call":
                if part.tool_call.id in is_answered:
                    raise InvalidRequest(f"{path}.tool_call.id", "is the id of an earlier call")
                is_answered[part.tool_call.id] = False
            elif part.WhichOneof("kind") == "tool_result":
                if is_answered.get(part.tool_result.call_id, True):
                    raise InvalidRequest(f"{path}.tool_result.call_id", "answers no call that is open")
                is_answered[part.tool_result.call_id] = True
    if not all(is_answered.values()):
        raise InvalidRequest("chat.messages", "hold a tool call without a result")

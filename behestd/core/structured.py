"""The form of a run's answers: asking models for it, mending what is mechanical, and telling what is wrong.

A model that can be made to keep the form is asked by `Chat.response_format`; one that cannot, and may be told instead,
finds it in its instructions. The answer is checked all the same, by the validator of tools. Mended is what models wrap
around JSON, and nothing inside it: one fence of code, and text around the only object or list. An answer that was
withheld by its model or provider has no form. Above: `window`, `turn`, `step`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable

from behest.v1.chat_pb2 import FinishReason, ResponseFormat, ResponseFormatKind
from behest.v1.definition_pb2 import RunDefinition
from behest.v1.message_pb2 import Message, Part, Role, TextPart
from behest.v1.tool_pb2 import Tool

Validate = Callable[[Tool, str], str]

_OBJECT = ResponseFormatKind.RESPONSE_FORMAT_KIND_JSON_OBJECT
_SCHEMA = ResponseFormatKind.RESPONSE_FORMAT_KIND_JSON_SCHEMA
_WITHHELD = (FinishReason.FINISH_REASON_CONTENT_FILTER, FinishReason.FINISH_REASON_REFUSAL)
_ANY_OBJECT = '{"type": "object"}'
_FENCED = re.compile(r"\A\s*```[A-Za-z0-9_+-]*[ \t]*\r?\n(.*?)\r?\n?[ \t]*```\s*\Z", re.DOTALL)
_BRACKET = re.compile(r"[\[{]")
_DECODER = json.JSONDecoder()


def has_form(answer: ResponseFormat) -> bool:
    """Whether answers are to be JSON."""
    return answer.kind in (_OBJECT, _SCHEMA)


def instructions(definition: RunDefinition, endpoint: str) -> str:
    """The system text of a call: the definition's, and the form of the answer where the model is told it so."""
    answer = definition.response_format if definition.HasField("response_format") else None
    if answer is None or endpoint not in definition.emulating_models or not has_form(answer):
        return definition.instructions
    form = _told(answer)
    return f"{definition.instructions}\n\n{form}" if definition.instructions else form


def form_of(definition: RunDefinition, endpoint: str) -> ResponseFormat | None:
    """The form that a model is made to answer in; None for one that is told it in its instructions, or not at all."""
    is_asked = definition.HasField("response_format") and endpoint not in definition.emulating_models
    return definition.response_format if is_asked else None


def _told(answer: ResponseFormat) -> str:
    if answer.kind == _OBJECT:
        return "Answer with one JSON object and nothing else: no other text, no code fences."
    text = "Answer with JSON and nothing else: no other text, no code fences. It must keep this JSON Schema:"
    return f"{text}\n{answer.schema_json}"


def mended(text: str) -> str:
    """The JSON in an answer, as it is written there: without a fence of code, and without text around it.

    What holds no JSON that can be told apart comes back as it is, save for white space at its ends.
    """
    fenced = _FENCED.match(text)
    bare = (fenced[1] if fenced is not None else text).strip().removeprefix("\ufeff")
    if _ends(bare, 0) == len(bare):
        return bare
    starts = [start for start in (bare.find("{"), bare.find("[")) if start >= 0]
    start, end = max(((start, _ends(bare, start)) for start in starts), key=_length, default=(0, 0))
    is_only = end > start and not _BRACKET.search(bare, end)
    return bare[start:end] if is_only else bare


def _length(stretch: tuple[int, int]) -> int:
    return stretch[1] - stretch[0]


def _ends(text: str, start: int) -> int:
    """Where the JSON value ends that begins at a place; 0 when there is none."""
    try:
        return _DECODER.raw_decode(text, start)[1]
    except (ValueError, RecursionError):
        return 0


def problem(answer: ResponseFormat, text: str, finish_reason: int, validate: Validate) -> str:
    """What is wrong with the form of an answer, for the model; empty when nothing is, or no form was asked for."""
    if not has_form(answer) or finish_reason in _WITHHELD:
        return ""
    found = mended(text)
    if not found:
        return "the answer is empty"
    schema = answer.schema_json if answer.kind == _SCHEMA else _ANY_OBJECT
    return validate(Tool(name=answer.schema_name or "answer", input_schema_json=schema), found)


def result(answer: ResponseFormat, text: str, finish_reason: int) -> str:
    """The answer as JSON; empty when it has no form."""
    return mended(text) if has_form(answer) and finish_reason not in _WITHHELD else ""


def unusable(found: str) -> Message:
    """What the model of a node is told of a reply that its node cannot take, whatever its form."""
    text = f"Your reply cannot be taken: {found}\nReply again."
    return Message(role=Role.ROLE_USER, parts=[Part(text=TextPart(text=text))])


def rejection(found: str) -> Message:
    """What the model is told of an answer that has not the form that was asked for."""
    text = f"Your answer has not the form that was asked for: {found}\nAnswer again, with the JSON and nothing else."
    return Message(role=Role.ROLE_USER, parts=[Part(text=TextPart(text=text))])

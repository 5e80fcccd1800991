"""Replies that are not in their form: prose of models that keep none, and JSON that is nearly right. Pure.

Above: `reply`, which checks what comes out of here as strictly as what was in its form. Below: `prose`. Taken is what
can mean one thing alone; of all else comes None, and the model is asked again. JSON that is broken is not read as text:
whoever wrote it meant JSON.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from behest.v1.operator_pb2 import ReplyTarget
from behestd.core.structured import mended
from behestd.reasoning import prose

_STEP_WORDS = ("description", "step", "title", "task", "text", "problem")
_VERDICT_WORDS = ("passed", "pass", "verdict", "result")
_EMPTY: dict[str, Any] = {"string": "", "array": []}


def read(target: ReplyTarget.ValueType, text: str, schema_json: str) -> dict[str, Any] | None:
    """The JSON object that a reply stands for, as a target takes it; None when that cannot be said.

    What the schema (empty: none) requires beside is empty, where it is a text or a list.
    """
    found = mended(text)
    schema = json.loads(schema_json) if schema_json else {}
    try:
        value = _of_json(target, json.loads(found, object_pairs_hook=_object, parse_constant=_refused), schema)
    except (ValueError, RecursionError):
        value = None if found.startswith(("{", "[")) else _of_text(target, text.strip(), schema)
    return _filled(value, schema) if value is not None else None


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object that says nothing twice."""
    made = dict(pairs)
    if len(made) < len(pairs):
        raise ValueError("a key stands there twice")
    return made


def _refused(constant: str) -> Any:
    raise ValueError(f"{constant} is no JSON")


def _filled(value: dict[str, Any], schema: Mapping[str, Any]) -> dict[str, Any]:
    """The value without what the schema does not know, and with empty texts and lists where it requires some."""
    properties = _as_object(schema.get("properties"))
    known = {name: held for name, held in value.items() if name in properties or not properties}
    kinds = {name: _kind(properties.get(name)) for name in schema.get("required", ())}
    return {name: _EMPTY[kind] for name, kind in kinds.items() if kind in _EMPTY} | known


def _as_object(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _kind(schema: Any) -> str:
    """The one type that a schema allows; empty when it is not one."""
    kind = _as_object(schema).get("type")
    return kind if isinstance(kind, str) else ""


# --- JSON that is nearly right ---


def _of_json(target: ReplyTarget.ValueType, given: Any, schema: Mapping[str, Any]) -> dict[str, Any] | None:
    value = given if isinstance(given, dict) else {}
    found: Any
    match target:
        case ReplyTarget.REPLY_TARGET_PLAN | ReplyTarget.REPLY_TARGET_REVISED_PLAN:
            name, found = "steps", _steps(value.get("steps", given))
        case ReplyTarget.REPLY_TARGET_PLAN_ORDER:
            name, found = "order", _numbers(value.get("order", given))
        case ReplyTarget.REPLY_TARGET_SELECTION:
            name, found = "choice", _number(value.get("choice", given))
        case ReplyTarget.REPLY_TARGET_SCORE:
            name, found = "score", _score(value.get("score", given))
        case ReplyTarget.REPLY_TARGET_VERDICT:
            words = [word for word in _VERDICT_WORDS if word in value]
            name, found = "passed", _verdict(value[words[0]] if len(words) == 1 else given)
            value = {key: held for key, held in value.items() if key not in words}
        case ReplyTarget.REPLY_TARGET_FACTS | ReplyTarget.REPLY_TARGET_ARTIFACT:
            name, found = _list_name(target, schema), given if isinstance(given, list) else None
            found = found if name else None
        case _:
            return None
    return {**value, name: found} if found is not None else None


def _steps(given: Any) -> list[str] | None:
    """The words of steps, which may be objects that hold them."""
    if not isinstance(given, list):
        return None
    steps = [_step(item) for item in given]
    return [step for step in steps if step is not None] if None not in steps else None


def _step(given: Any) -> str | None:
    if isinstance(given, dict):
        words = [given[word] for word in _STEP_WORDS if isinstance(given.get(word), str)]
        return words[0] if words else None
    return given if isinstance(given, str) else None


def _numbers(given: Any) -> list[int] | None:
    if isinstance(given, str):
        return prose.order(given)
    numbers = [_step_number(item) for item in given] if isinstance(given, list) else [None]
    return [number for number in numbers if number is not None] if None not in numbers else None


def _step_number(given: Any) -> int | None:
    order = prose.order(given) if isinstance(given, str) else None
    return order[0] if order is not None and len(order) == 1 else _number(given)


def _number(given: Any) -> int | None:
    if isinstance(given, str):
        return prose.choice(given)
    if isinstance(given, float) and given.is_integer():
        return int(given)
    return given if isinstance(given, int) and not isinstance(given, bool) else None


def _score(given: Any) -> float | None:
    if isinstance(given, str):
        return prose.score(given)
    return prose.scaled(given) if isinstance(given, int | float) and not isinstance(given, bool) else None


def _verdict(given: Any) -> bool | None:
    if isinstance(given, str):
        return prose.verdict(given)
    return given if isinstance(given, bool) else None


# --- prose ---


def _of_text(target: ReplyTarget.ValueType, text: str, schema: Mapping[str, Any]) -> dict[str, Any] | None:
    match target:
        case ReplyTarget.REPLY_TARGET_PLAN | ReplyTarget.REPLY_TARGET_REVISED_PLAN:
            listed = prose.listing(text)
            return {"rationale": listed[0], "steps": listed[1]} if listed is not None else None
        case ReplyTarget.REPLY_TARGET_PLAN_ORDER:
            return _judged("order", prose.order(text), text)
        case ReplyTarget.REPLY_TARGET_SELECTION:
            return _judged("choice", prose.choice(text), text)
        case ReplyTarget.REPLY_TARGET_SCORE:
            return _judged("score", prose.score(text), text)
        case ReplyTarget.REPLY_TARGET_VERDICT:
            passed = prose.verdict(text)
            return {"problems": [] if passed else _problems(text), "passed": passed} if passed is not None else None
        case ReplyTarget.REPLY_TARGET_FACTS:
            listed = prose.listing(text)
            return {"facts": listed[1] if listed is not None else [text]}
        case ReplyTarget.REPLY_TARGET_REFLECTION:
            return {"content": text}
        case ReplyTarget.REPLY_TARGET_ARTIFACT:
            name, listed = _list_name(target, schema), prose.listing(text)
            return {name: listed[1]} if name and listed is not None else None
        case _:
            return None


def _judged(name: str, value: object, text: str) -> dict[str, Any] | None:
    return {"reason": text, name: value} if value is not None else None


def _problems(text: str) -> list[str]:
    """What a text that says no names as problems."""
    listed = prose.listing(text)
    rest = "\n".join(line for line in text.splitlines() if not prose.is_verdict(line)).strip()
    return listed[1] if listed is not None else [rest] if rest else []


def _list_name(target: ReplyTarget.ValueType, schema: Mapping[str, Any]) -> str:
    """The name of the list of texts that is all that a target or a schema asks for; empty when there is none."""
    if target == ReplyTarget.REPLY_TARGET_FACTS:
        return "facts"
    properties = _as_object(schema.get("properties"))
    lists = [
        name
        for name, of in properties.items()
        if _kind(of) == "array" and _kind(_as_object(of).get("items")) == "string"
    ]
    return lists[0] if len(lists) == 1 and set(schema.get("required", ())) <= set(lists) else ""

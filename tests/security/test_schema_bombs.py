"""Schemas and texts that are small to send and endless to read: each is refused, and the work for it is counted.

Counted are the calls of functions, ours and the interpreter's, which are the same on every machine. What is native, the
compiling of patterns and the parsing of JSON, is linear in bytes that are limited before. Nothing is ever fetched.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Callable
from typing import Any

import pytest

from behest.v1.tool_pb2 import Tool
from behestd.errors import InvalidRequest
from behestd.tools.json_text import MAX_BYTES, JsonRefused, read
from behestd.tools.schema import SchemaLimits, Validators
from tests.daemons import refused, serve, writes
from tests.security.test_hostile_targets import listening
from tests.security.test_limits import attach, refusal

MOST_CALLS = 150_000
"""For any schema or text, however large it says it is: some dozens for each of 2,000 subschemas."""


def work(task: Callable[[], object]) -> int:
    """Count the calls of functions that a task makes, and expect it to refuse."""
    count = 0

    def tell(frame: Any, event: str, argument: Any) -> None:
        nonlocal count
        if event in ("call", "c_call"):
            count += 1

    sys.setprofile(tell)
    try:
        with pytest.raises((InvalidRequest, JsonRefused)):
            task()
    finally:
        sys.setprofile(None)
    return count


def nested(count: int, inner: Any, key: str = "allOf") -> Any:
    for _ in range(count):
        inner = {key: [inner]}
    return inner


def doubled(count: int) -> dict[str, Any]:
    """Definitions each of which refers to the next one twice."""
    made: dict[str, Any] = {
        f"d{n}": {"allOf": [{"$ref": f"#/$defs/d{n + 1}"}, {"$ref": f"#/$defs/d{n + 1}"}]} for n in range(count)
    }
    return {"type": "object", "$defs": made | {f"d{count}": {}}, "$ref": "#/$defs/d0"}


def wide(count: int) -> dict[str, Any]:
    return {"type": "object", "properties": {f"p{n}": {} for n in range(count)}}


def one(**properties: Any) -> dict[str, Any]:
    return {"type": "object", "properties": properties}


SCHEMAS: dict[str, Callable[[int], Any]] = {
    "brackets": lambda n: "[" * n,
    "objects": lambda n: '{"type":"object","properties":{"a":' * n,
    "levels": lambda n: {"type": "object", **nested(n, {})} if n < 900 else '{"not":' * n + "{}" + "}" * n,
    "references that double": doubled,
    "a reference to itself": lambda n: {"type": "object", "$ref": "#", "x": "y" * n},
    "a ring of references": lambda n: {
        "type": "object",
        "$ref": "#/$defs/d0",
        "$defs": {f"d{k}": {"$ref": f"#/$defs/d{(k + 1) % n}"} for k in range(n)},
    },
    "properties": lambda n: wide(n),
    "alternatives": lambda n: {"type": "object", "anyOf": [{}] * n},
    "bytes": lambda n: {"type": "object", "description": "x" * (64 * n)},
    "names": lambda n: {"type": "object", "properties": {"x" * (64 * n): {}}},
    "keys that come twice": lambda n: '{"type":"object",' + '"a":1,' * n + '"b":2}',
    "numbers without end": lambda n: '{"type":"object","minProperties":' + "9" * (64 * n) + "}",
    "a pattern that grows": lambda n: one(a={"pattern": "(" * 3 + f"a{{{min(n, 900)}}}" + "){900}" * 3}),
    "patterns that look around": lambda n: one(a={"pattern": "(?=a)" * n}),
    "a pattern that refers back": lambda n: one(a={"pattern": "(a+)" + "\\1" * n}),
    "a pattern that is none": lambda n: one(a={"pattern": "(" * n}),
    "a remote reference": lambda n: one(a={"$ref": "http://127.0.0.1:1/" + "x" * n}),
    "a file": lambda n: one(a={"$ref": "file:///etc/passwd#" + "x" * n}),
    "another dialect": lambda n: {"$schema": "http://127.0.0.1:1/" + "x" * n, "type": "object"},
    "another base": lambda n: one(a={"$id": "http://127.0.0.1:1/", "$ref": "x" * n}),
    "dynamic references": lambda n: {"type": "object", "$dynamicRef": "#" + "x" * n},
    "what is not looked at yet": lambda n: {"type": "object", **doubled(20), "unevaluatedProperties": nested(20, {})},
}
"""Schemas by how large their bomb is."""


@pytest.mark.parametrize("name", SCHEMAS)
def test_a_schema_is_refused_with_work_that_does_not_grow_with_it(name: str) -> None:  # S12 C026
    validators = Validators()
    counts = []
    for size in (3_000, 30_000):
        made = SCHEMAS[name](size)
        text = made if isinstance(made, str) else json.dumps(made)
        tool = Tool(name="t", input_schema_json=text)
        counts.append(work(lambda tool=tool: validators.check_tool(tool)))  # type: ignore[misc]
    assert max(counts) < MOST_CALLS
    assert len(validators._compiled) == 0


TEXTS: dict[str, Callable[[int], str]] = {
    "brackets": lambda n: "[" * n,
    "brackets that close": lambda n: "[" * n + "]" * n,
    "objects": lambda n: '{"a":' * n + "1" + "}" * n,
    "many lists": lambda n: "[" + "[]," * n + "[]]",
    "many commas": lambda n: "[" + "," * n,
    "a string without an end": lambda n: '"' + "x" * n,
    "escapes without an end": lambda n: '"' + "\\" * n,
    "quotes": lambda n: '"' * n,
    "digits": lambda n: "9" * n,
    "half of a pair": lambda n: '"' + "\\ud800" * n + '"',
    "keys that come twice": lambda n: "{" + '"a":1,' * n + '"a":2}',
    "no number": lambda n: "[NaN" + ",NaN" * n + "]",
}


@pytest.mark.parametrize("name", TEXTS)
def test_a_text_is_refused_with_work_that_is_bounded(name: str) -> None:  # S11 S12 S13
    for size in (300_000, 3_000_000):
        text = TEXTS[name](size)
        count = work(lambda text=text: read(text))  # type: ignore[misc]
        # Of a text that is too long nothing is read; of others each object is looked at once, at the most.
        assert count < (200 if len(text) > MAX_BYTES else 900_000)


async def test_nothing_is_fetched_for_a_schema() -> None:  # S12
    async with listening() as (port, met):
        for place in (f"http://127.0.0.1:{port}/s", f"https://127.0.0.1:{port}/s", f"//127.0.0.1:{port}/s"):
            for schema in (
                one(a={"$ref": place}),
                {"$schema": place, "type": "object"},
                {"$id": place, **one(a={"$ref": "t"})},
            ):
                tool = Tool(name="t", input_schema_json=json.dumps(schema))
                with pytest.raises(InvalidRequest):
                    await asyncio.to_thread(Validators().check_tool, tool)
    assert met == []


async def test_a_bomb_over_the_wire_is_a_clean_refusal_and_leaves_nothing() -> None:  # S12
    async with serve("sqlite") as served:
        before = writes(served)
        for name, make in SCHEMAS.items():
            made = make(3_000)
            found = await refusal(attach(served, made if isinstance(made, str) else json.dumps(made)))
            assert found is not None, name
            assert found.reason == "TOOL_SCHEMA_INVALID", name
        assert writes(served) == before
        assert [server async for server in served.client.servers.list()] == []


async def test_arguments_are_refused_by_their_depth_before_anybody_is_called() -> None:  # S11 S13
    async with serve("sqlite") as served:
        before = writes(served)
        for name, make in TEXTS.items():
            error = await refused(served.client.tools.call("ask_user", make(100_000)))
            assert error.reason in ("TOOL_ARGUMENTS_INVALID", "REQUEST_TOO_LARGE", "TOOL_NOT_FOUND"), name
        assert writes(served) == before


def test_limits_of_schemas_are_the_operators() -> None:
    text = json.dumps(wide(50))
    Validators(SchemaLimits(nodes=51)).check_tool(Tool(name="t", input_schema_json=text))
    with pytest.raises(InvalidRequest):
        Validators(SchemaLimits(nodes=50)).check_tool(Tool(name="t", input_schema_json=text))

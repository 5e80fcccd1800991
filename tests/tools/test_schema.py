"""Schemas and arguments of strangers: what is told, what is refused, and how much work it takes."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest

from behest.v1.tool_pb2 import Tool
from behestd.errors import InvalidRequest
from behestd.tools.json_text import JsonRefused, read
from behestd.tools.schema import Validators

CPU_SECONDS = 0.5
"""Ten times what is asked, so that a busy machine does not fail the test; a bomb that works takes minutes."""


def tool(schema: object, output: object = None) -> Tool:
    text = schema if isinstance(schema, str) else json.dumps(schema)
    return Tool(name="t", input_schema_json=text, output_schema_json="" if output is None else json.dumps(output))


def nested(levels: int) -> str:
    return '{"c":' * levels + "1" + "}" * levels


TWICE: dict[str, Any] = {"type": "object", "properties": {"c": {"allOf": [{"$ref": "#"}, {"$ref": "#"}]}}}
DOUBLING = {f"a{n}": {"allOf": [{"$ref": f"#/$defs/a{n + 1}"}] * 2} for n in range(40)} | {"a40": {"type": "string"}}
CHAIN = {f"d{n}": {"$ref": f"#/$defs/d{n + 1}"} for n in range(1_800)} | {"d1800": {}}

REFUSED: dict[str, object] = {
    "no JSON": "{",
    "no object": "[]",
    "not of an object": {"type": "string"},
    "unknown type": {"type": "object", "properties": {"a": {"type": "text"}}},
    "over 64 KiB": {"type": "object", "description": "x" * 65_536},
    "too deep": '{"type":"object","a":' + "[" * 40 + "]" * 40 + "}",
    "unclosed brackets": "[" * 60_000,
    "too many subschemas": {"type": "object", "anyOf": [{}] * 2_500},
    "doubling references": {"type": "object", "$defs": DOUBLING, "properties": {"x": {"$ref": "#/$defs/a0"}}},
    "endless reference": {"type": "object", "$ref": "#"},
    "remote reference": {"type": "object", "properties": {"a": {"$ref": "http://127.0.0.1:9/schema"}}},
    "file reference": {"type": "object", "properties": {"a": {"$ref": "file:///etc/passwd"}}},
    "missing reference": {"type": "object", "properties": {"a": {"$ref": "#/$defs/nothing"}}},
    "remote dialect": {"$schema": "http://127.0.0.1:9/dialect", "type": "object"},
    "moved root": {"type": "object", "properties": {"a": {"$id": "http://127.0.0.1:9/", "$ref": "#"}}},
    "lookahead": {"type": "object", "properties": {"a": {"pattern": "(?=a)b"}}},
    "huge pattern": {"type": "object", "properties": {"a": {"pattern": "((a{1000}){1000}){1000}"}}},
    "duplicate keys": '{"type":"object","type":"object"}',
}


@pytest.mark.parametrize("schema", REFUSED.values(), ids=REFUSED)
def test_a_schema_that_is_no_good_is_refused_with_little_work(schema: object) -> None:  # C026 S12
    began = time.process_time()
    with pytest.raises(InvalidRequest) as refused:
        Validators().check_tool(tool(schema))
    assert time.process_time() - began < CPU_SECONDS
    assert refused.value.reason == "TOOL_SCHEMA_INVALID"
    assert refused.value.metadata["tool"] == "t"


def test_every_way_in_which_arguments_are_wrong_is_told_with_its_path_as_json() -> None:  # C027
    schema = {
        "type": "object",
        "properties": {"a": {"type": "integer"}, "b": {"type": "array", "items": {"type": "string"}}},
        "required": ["a"],
    }
    told = json.loads(Validators().arguments(tool(schema), '{"a": "x", "b": ["ok", 2]}'))
    assert told["error"] == "TOOL_ARGUMENTS_INVALID"
    assert told["tool"] == "t"
    assert [error["path"] for error in told["errors"]] == ["/a", "/b/1"]
    assert all(error["message"] for error in told["errors"])


def test_right_arguments_are_told_by_nothing() -> None:
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}}
    validators = Validators()
    assert validators.arguments(tool(schema), '{"a": 123456789012345678901234}') == ""
    assert validators.arguments(tool(schema), "") == ""


BOMBS: dict[str, tuple[object, str]] = {
    "deep brackets": ({"type": "object"}, "[" * 1_000_000),
    "deep objects": ({"type": "object"}, nested(33)),
    "a pattern that backtracks": (
        {"type": "object", "properties": {"a": {"pattern": "^(a+)+$"}}},
        json.dumps({"a": "a" * 50_000 + "!"}),
    ),
    "references that multiply by depth": (TWICE, nested(32)),
    "duplicate keys": ({"type": "object"}, '{"a": 1, "a": 2}'),
    "not a number": ({"type": "object"}, '{"a": NaN}'),
    "endless digits": ({"type": "object"}, '{"a": ' + "9" * 100_000 + "}"),
    "half a surrogate pair": ({"type": "object", "properties": {"a": {"type": "string"}}}, '{"a": "\\ud800"}'),
    "too many values": ({"type": "object"}, "[" + "1," * 300_000 + "1]"),
    "too many bytes": ({"type": "object"}, '"' + "x" * 2_000_000 + '"'),
    "not an object": ({"type": "object"}, "3"),
    "no JSON": ({"type": "object"}, '{"a": tru}'),
}


@pytest.mark.parametrize(("schema", "arguments"), BOMBS.values(), ids=BOMBS)
def test_arguments_that_are_no_good_are_told_with_little_work(schema: object, arguments: str) -> None:  # S12
    validators = Validators()
    validators.check_tool(tool(schema))
    began = time.process_time()
    told = json.loads(validators.arguments(tool(schema), arguments))
    assert time.process_time() - began < CPU_SECONDS
    assert told["errors"][0]["message"]


def test_recursive_schemas_are_taken_as_deep_as_arguments_go() -> None:
    tree = {"type": "object", "properties": {"c": {"anyOf": [{"$ref": "#"}, {"type": "integer"}]}}}
    validators = Validators()
    validators.check_tool(tool(tree))
    assert validators.arguments(tool(tree), nested(31)) == ""


def test_a_long_chain_of_references_is_followed_without_recursion() -> None:  # S12
    chain = {"type": "object", "$defs": CHAIN, "properties": {"x": {"$ref": "#/$defs/d0"}}}
    Validators().check_tool(tool(chain))


def test_a_structured_result_is_held_to_the_form_that_the_tool_promised() -> None:
    validators = Validators()
    promised = tool({"type": "object"}, {"type": "object", "required": ["count"]})
    assert validators.structured(promised, '{"count": 1}') == ""
    assert json.loads(validators.structured(promised, "{}"))["error"] == "TOOL_RESULT_INVALID"
    assert validators.structured(tool({"type": "object"}), "[1, 2]") == ""


def test_depth_is_counted_outside_of_strings() -> None:
    assert read('["[[[[", "\\"[["]').depth == 1
    with pytest.raises(JsonRefused):
        read("[[1]]", max_depth=1)

"""Validate arguments and structured results against JSON Schemas that strangers wrote, with bounded work.

Above it the catalog (refuses schemas), `core` (by the `Validate` that the shell hands in) and the executors. Below it
`jsonschema-rs`, whose patterns match in linear time; references to elsewhere are off. A schema is compiled once and
kept in a bounded cache; a schema and a document that cannot be checked with bounded work are refused.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

import jsonschema_rs

from behest.v1.tool_pb2 import Tool
from behestd.errors import InvalidRequest
from behestd.tools.json_text import MAX_DEPTH, Document, JsonRefused, read
from behestd.tools.schema_cost import MAX_NODES, Cost, SchemaRefused, measure

MAX_CHECKS = 5_000_000
"""Most checks that one validation may make, as the bound of `schema_cost` times the values of the document."""
_PATTERNS = jsonschema_rs.RegexOptions(size_limit=1 << 20, dfa_size_limit=1 << 20)
_MASK = "the value"
"""What stands in messages for what was given: an error goes further than arguments may."""
_MAX_ERRORS = 20
_MAX_TEXT = 300
_CACHED = 1_024


@dataclass(frozen=True, slots=True)
class SchemaLimits:
    """How much of a schema is taken."""

    schema_bytes: int = 64 * 1024
    depth: int = MAX_DEPTH
    """Levels of brackets."""
    nodes: int = MAX_NODES
    """Subschemas."""


@dataclass(frozen=True, slots=True)
class _Compiled:
    validator: jsonschema_rs.Validator
    cost: Cost
    is_object: bool


class Validators:
    """Compiled schemas, the least recently used of 1,024 forgotten first. One owner, the loop; nothing here waits."""

    def __init__(self, limits: SchemaLimits = SchemaLimits()) -> None:
        self.limits = limits
        self._compiled: OrderedDict[bytes, _Compiled] = OrderedDict()

    def check_tool(self, tool: Tool) -> None:
        """Refuse a tool whose schemas are not taken. Raises InvalidRequest with TOOL_SCHEMA_INVALID."""
        try:
            if not self._compile(tool.input_schema_json).is_object:
                raise SchemaRefused('the type of arguments must be "object"')
        except SchemaRefused as exc:
            raise _refused(tool.name, "input_schema_json", exc) from exc
        try:
            if tool.output_schema_json:
                self._compile(tool.output_schema_json)
        except SchemaRefused as exc:
            raise _refused(tool.name, "output_schema_json", exc) from exc

    def check_answer(self, field: str, schema_json: str) -> None:
        """Refuse the schema of an answer that is not taken. Raises InvalidRequest, naming the field."""
        try:
            self._compile(schema_json)
        except SchemaRefused as exc:
            raise InvalidRequest(field, f"is not taken: {exc}") from exc

    def arguments(self, tool: Tool, arguments_json: str) -> str:
        """Check arguments, of which none are `{}`. "" when they are right, else a JSON document for the model.

        The document is `{"error": …, "tool": …, "errors": [{"path": "/a/0", "message": …}, …]}`, at most 20 errors.
        """
        try:
            document = read(arguments_json or "{}")
        except JsonRefused as exc:
            return _told(tool, "TOOL_ARGUMENTS_INVALID", [("", str(exc))])
        return self._problems(tool, tool.input_schema_json, document, "TOOL_ARGUMENTS_INVALID")

    def structured(self, tool: Tool, structured_json: str) -> str:
        """Check a structured result, likewise. Nothing is wrong when the tool promises no form, or gave none."""
        if not tool.output_schema_json or not structured_json:
            return ""
        try:
            document = read(structured_json, max_bytes=16 * 1024 * 1024)
        except JsonRefused as exc:
            return _told(tool, "TOOL_RESULT_INVALID", [("", str(exc))])
        return self._problems(tool, tool.output_schema_json, document, "TOOL_RESULT_INVALID")

    def _problems(self, tool: Tool, schema_json: str, document: Document, reason: str) -> str:
        try:
            compiled = self._compile(schema_json)
        except SchemaRefused as exc:
            return _told(tool, reason, [("", f"the schema of the tool is not taken: {exc}")])
        if compiled.cost.paths(document.depth) * document.values > MAX_CHECKS:
            return _told(tool, reason, [("", "too large or too deep to be checked against the schema of the tool")])
        try:
            if compiled.validator.is_valid(document.value):
                return ""
            found = itertools.islice(compiled.validator.iter_errors(document.value), _MAX_ERRORS)
            return _told(tool, reason, [(_pointer(error.instance_path), error.message) for error in found])
        except ValueError:
            return _told(tool, reason, [("", "cannot be checked against the schema of the tool")])

    def _compile(self, schema_json: str) -> _Compiled:
        """Compile a schema, or find it compiled. Raises SchemaRefused."""
        digest = hashlib.sha256(schema_json.encode(errors="replace")).digest()
        compiled = self._compiled.get(digest)
        if compiled is None:
            compiled = self._compiled[digest] = _compile(schema_json, self.limits)
            if len(self._compiled) > _CACHED:
                self._compiled.popitem(last=False)
        self._compiled.move_to_end(digest)
        return compiled


def _compile(schema_json: str, limits: SchemaLimits) -> _Compiled:
    try:
        schema = read(schema_json, max_bytes=limits.schema_bytes, max_depth=limits.depth).value
    except JsonRefused as exc:
        raise SchemaRefused(str(exc)) from exc
    if not isinstance(schema, dict):
        raise SchemaRefused("it is no JSON object")
    cost = measure(schema, MAX_DEPTH, limits.nodes)
    if cost.paths(1) > MAX_CHECKS // 100:
        raise SchemaRefused("its references and combinations multiply beyond what can be checked")
    try:
        validator = jsonschema_rs.validator_for(schema, offline=True, mask=_MASK, pattern_options=_PATTERNS)
    except (ValueError, jsonschema_rs.ReferencingError) as exc:
        raise SchemaRefused(_first_line(str(exc))) from exc
    return _Compiled(validator, cost, schema.get("type") == "object")


def _refused(tool: str, field: str, problem: Exception) -> InvalidRequest:
    refusal = InvalidRequest(field, f"schema of tool {tool[:64]}: {problem}", reason="TOOL_SCHEMA_INVALID")
    refusal.metadata["tool"] = tool[:64]
    return refusal


def _told(tool: Tool, reason: str, problems: list[tuple[str, str]]) -> str:
    errors: list[dict[str, Any]] = [{"path": path, "message": _first_line(text)} for path, text in problems]
    return json.dumps({"error": reason, "tool": tool.name, "errors": errors}, ensure_ascii=False)


def _pointer(path: list[str | int]) -> str:
    return "".join("/" + str(word).replace("~", "~0").replace("/", "~1") for word in path)


def _first_line(text: str) -> str:
    line = text.partition("\n")[0]
    return line if len(line) <= _MAX_TEXT else line[: _MAX_TEXT - 1] + "…"

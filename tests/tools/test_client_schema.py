"""The client's JSON Schemas from signatures, and the values that arguments become."""

from __future__ import annotations

import enum
import json
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, Optional

import pytest

from behest.schema import Mismatch, description, dump, form, load, parameters
from behest.tools import Context, ToolServer
from behest.v1.tool_pb2 import Tool
from behestd.tools.schema import Validators


class Colour(enum.Enum):
    RED = "red"
    BLUE = "blue"


@dataclass
class Point:
    x: int
    y: float = 0.0
    tags: list[str] = field(default_factory=list)


@dataclass
class Node:
    children: list[Node]


def everything(
    context: Context,
    name: str,
    point: Point,
    colour: Colour = Colour.RED,
    mode: Literal["a", 1] = "a",
    maybe: Optional[int] = None,  # noqa: UP045  both spellings are taken
    either: int | str | None = None,
    points: dict[str, Point] | None = None,
    anything: Any = None,
    flag: Annotated[bool, "a switch"] = False,
) -> None:
    """Do everything.

    In two paragraphs.

    Args:
        name (str): the name: of it
        flag: not used, the annotation says more
    """


FOUND = parameters(everything, Context)


def test_a_signature_becomes_a_schema_that_the_daemon_takes() -> None:
    schema = FOUND.form.schema
    Validators().check_tool(Tool(name="t", input_schema_json=json.dumps(schema)))
    assert schema["required"] == ["name", "point"]
    assert schema["additionalProperties"] is False
    assert schema["properties"]["name"] == {"type": "string", "description": "the name: of it"}
    assert schema["properties"]["flag"] == {"type": "boolean", "description": "a switch", "default": False}
    assert schema["properties"]["colour"] == {"enum": ["red", "blue"]}
    assert schema["properties"]["maybe"] == {"anyOf": [{"type": "integer"}, {"type": "null"}]}
    assert FOUND.context == "context"
    assert description(everything) == "Do everything.\n\nIn two paragraphs."


def test_arguments_become_what_the_signature_names() -> None:
    read = FOUND.read(
        '{"name": "n", "point": {"x": 1, "y": 2}, "colour": "blue", "mode": 1, "either": "x",'
        ' "points": {"p": {"x": 3}}}'
    )
    assert read["point"] == Point(1, 2.0)
    assert isinstance(read["point"].y, float)
    assert read["colour"] is Colour.BLUE
    assert read["points"] == {"p": Point(3)}
    assert read["either"] == "x"
    assert "maybe" not in read


@pytest.mark.parametrize(
    ("arguments", "path"),
    [
        ('{"point": {"x": 1}}', ""),
        ('{"name": "n", "point": {}}', "/point"),
        ('{"name": "n", "point": {"x": true}}', "/point/x"),
        ('{"name": "n", "point": {"x": 1.0}}', "/point/x"),
        ('{"name": "n", "point": {"x": 1, "tags": ["a", 2]}}', "/point/tags/1"),
        ('{"name": "n", "point": {"x": 1}, "points": {"a/b": {"x": "1"}}}', "/points"),
        ('{"name": "n", "point": {"x": 1}, "mode": true}', "/mode"),
        ('{"name": "n", "point": {"x": 1}, "colour": "green"}', "/colour"),
        ('{"name": "n", "point": {"x": 1}, "other": 1}', "/other"),
        ('{"name": "n", "point": {"x": 1}, "flag": 1}', "/flag"),
        ('{"name": "n", "name": "m"}', ""),
        ('{"name": NaN}', ""),
        ("[" * 100_000, ""),
        ("3", ""),
    ],
)
def test_what_does_not_fit_is_told_with_its_path(arguments: str, path: str) -> None:
    with pytest.raises(Mismatch) as wrong:
        FOUND.read(arguments)
    assert path in [found for found, _ in wrong.value.errors]


def test_the_schema_and_the_reader_agree_on_what_fits() -> None:
    validators = Validators()
    tool = Tool(name="t", input_schema_json=json.dumps(FOUND.form.schema))
    for arguments in (
        '{"name": "n", "point": {"x": 1}}',
        '{"name": 1, "point": {"x": 1}}',
        '{"name": "n", "point": {"x": 1, "z": 1}}',
        '{"name": "n", "point": {"x": 1}, "mode": "b"}',
        '{"name": "n", "point": {"x": 1}, "either": []}',
        '{"name": "n", "point": {"x": 1}, "points": null}',
    ):
        try:
            FOUND.read(arguments)
            fits = True
        except Mismatch:
            fits = False
        assert (validators.arguments(tool, arguments) == "") is fits, arguments


def test_types_without_a_form_are_refused_when_they_are_registered() -> None:
    server = ToolServer()

    def of_bytes(data: bytes) -> None: ...

    def of_any_number(*data: int) -> None: ...

    def of_itself(node: Node) -> None: ...

    for function in (of_bytes, of_any_number, of_itself):
        with pytest.raises(TypeError):
            server.tool(function)
    with pytest.raises(TypeError):
        form(dict[int, str])


def test_names_are_checked_when_they_are_registered() -> None:
    server = ToolServer()
    server.tool(name="taken")(lambda: None)
    for name in ("taken", "has space", "x" * 65):
        with pytest.raises(ValueError):
            server.tool(name=name)(lambda: None)


def test_results_are_written_as_they_would_be_read() -> None:
    assert json.loads(dump([Point(1), Colour.RED])) == [{"x": 1, "y": 0.0, "tags": []}, "red"]
    assert load(dump({"big": 12345678901234567890})) == {"big": 12345678901234567890}
    with pytest.raises(ValueError):
        dump(float("inf"))
    with pytest.raises(TypeError):
        dump(object())

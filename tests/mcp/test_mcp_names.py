"""MCP names and definitions as those of the contract: reversible, never two as one, nothing missing silently."""

from __future__ import annotations

import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from mcp import types

from behest.mcp.names import decoded, encoded
from behest.mcp.offer import Choice, OfferRefused, offered

AWKWARD = st.text(alphabet="_xX05f-.a/é\x00😀", max_size=12)


def tool(name: str, **fields: object) -> types.Tool:
    return types.Tool(name=name, input_schema={"type": "object"}, **fields)  # type: ignore[arg-type]


@given(st.text(max_size=30) | AWKWARD, st.sampled_from(["", "git_", "_x"]))
def test_every_name_is_read_back_from_what_it_is_written_as(name: str, prefix: str) -> None:  # N18
    written = encoded(name, prefix)
    assert decoded(written, prefix) == name
    assert re.fullmatch(r"[A-Za-z0-9_-]*", written)


@given(AWKWARD, AWKWARD)
def test_different_names_are_written_differently(one: str, other: str) -> None:
    assert (encoded(one) == encoded(other)) == (one == other)


def test_a_name_that_fits_stays_as_it_is() -> None:
    assert encoded("read_file-2") == "read_file-2"
    assert encoded("files.read") == "files_x2e_read"
    assert encoded("a_x") == "a_x5f_x"


def test_a_schema_is_passed_on_as_it_is() -> None:
    schema = {"type": "object", "properties": {"ü": {"type": "string", "x-own": [1, None]}}, "required": ["ü"]}
    result = {"type": "object", "properties": {"n": {"type": "integer"}}}
    [made] = offered([types.Tool(name="t", input_schema=schema, output_schema=result)], Choice()).values()
    assert json.loads(made.input_schema_json) == schema
    assert json.loads(made.output_schema_json) == result


def test_hints_of_an_mcp_server_are_words_and_never_a_class() -> None:  # N18
    annotations = types.ToolAnnotations(read_only_hint=True, destructive_hint=False, title="Show")
    [made] = offered([tool("t", description="Shows.", annotations=annotations)], Choice()).values()
    assert made.description == "Shows.\n\n(Its author says, unchecked: reads only, only adds.)"
    assert made.hints.title == "Show"
    assert not made.hints.side_effect
    assert not made.HasField("policy")


def test_a_long_description_is_cut_before_its_hints() -> None:
    annotations = types.ToolAnnotations(idempotent_hint=False)
    [made] = offered([tool("t", description="ü" * 5_000, annotations=annotations)], Choice()).values()
    assert len(made.description.encode()) <= 4096
    assert made.description.endswith("(Its author says, unchecked: not idempotent.)")


@pytest.mark.parametrize(
    "tools",
    [
        [tool("twice"), tool("twice")],
        [tool("n" * 65)],
        [tool("")],
        [tool("large", description="d", output_schema={"type": "object", "description": "x" * 70_000})],
    ],
    ids=["twice", "too long", "empty", "large schema"],
)
def test_what_cannot_be_offered_refuses_the_offer_until_it_is_left_out(tools: list[types.Tool]) -> None:  # N18
    with pytest.raises(OfferRefused):
        offered([*tools, tool("good")], Choice())
    assert list(offered([*tools, tool("good")], Choice(without=(tools[0].name,)))) == ["good"]


def test_globs_choose_by_the_name_that_the_server_gives() -> None:
    tools = [tool("files.read"), tool("files.write"), tool("net.get")]
    made = offered(tools, Choice(only=("files.*",), without=("*.write",), prefix="mcp_"))
    assert [each.name for each in made.values()] == ["mcp_files_x2e_read"]

"""Answers in a form, through the whole daemon with a real HTTP server: asked for, checked, asked for again, told."""

from __future__ import annotations

import json
from typing import Any

import pytest

from behest.v1.chat_pb2 import FinishReason, ResponseFormat, ResponseFormatKind, Sampling, ToolChoice, ToolChoiceMode
from behest.v1.model_pb2 import ModelCapabilities
from behestd.providers.catalog import snapshot
from tests import daemons
from tests.daemons import refused
from tests.routing.vendor import Answer, Vendor, vendor
from tests.runs.scenes import PURE, events_of, kinds, only, tools

SCHEMA = '{"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}'
FORM = ResponseFormat(kind=ResponseFormatKind.RESPONSE_FORMAT_KIND_JSON_SCHEMA, schema_json=SCHEMA)
TALKS = ModelCapabilities(chat=True, streaming=True)


def house(at: Vendor, **fields: Any) -> Any:
    return daemons.serve(models=snapshot([at.provider(**fields)], default_model="v/m"))


async def test_the_output_is_valid_json_whatever_is_wrapped_around_it() -> None:
    async with vendor() as at:
        at.says(Answer(words=("```json\n", '{"n":', " 1}", "\n```")))
        async with house(at) as served:
            output = await (await served.client.run("a number", output_schema_json=SCHEMA)).result()
    assert json.loads(output.json) == {"n": 1}
    sent = at.asked[0]["response_format"]
    assert (sent["type"], sent["json_schema"]["schema"]) == ("json_schema", json.loads(SCHEMA))


async def test_an_answer_that_breaks_its_form_is_told_to_the_model_which_is_asked_again() -> None:
    async with vendor() as at:
        at.says(Answer(words=('{"n": "one"}',)), Answer(words=('{"n": 1}',)))
        async with house(at) as served:
            events = await events_of(await served.client.run("a number", response_format=FORM))
    (rejected,) = only(events, "answer_rejected")
    assert only(events, "run_completed")[0].output.json == '{"n": 1}'
    assert [message["role"] for message in at.asked[1]["messages"]] == ["user", "assistant", "user"]
    assert rejected.problem in str(at.asked[1]["messages"][-1]["content"])


async def test_a_schema_that_nothing_can_be_checked_against_is_refused_before_anything_leaves() -> None:
    async with vendor() as at, house(at) as served:
        error = await refused(served.client.run("a number", output_schema_json='{"type": 7}'))
        assert (error.reason, error.violations[0][0]) == ("REQUEST_INVALID", "spec.output_schema_json")
        assert at.requests == 0


@pytest.mark.parametrize("kind", ["JSON_OBJECT", "JSON_SCHEMA"])
async def test_a_model_that_never_keeps_the_form_fails_the_run_after_the_third_answer(kind: str) -> None:
    form = ResponseFormat(kind=ResponseFormatKind.Value(f"RESPONSE_FORMAT_KIND_{kind}"), schema_json=SCHEMA)
    if kind == "JSON_OBJECT":
        form.schema_json = ""
    async with vendor() as at:
        at.says(Answer(words=("[1]",)))
        async with house(at) as served:
            events = await events_of(await served.client.run("a number", response_format=form))
    assert at.requests == len(only(events, "answer_rejected")) == 3
    assert "PROVIDER_MALFORMED_OUTPUT" in str(only(events, "run_failed")[0].error)


async def test_a_model_that_can_only_talk_is_refused_or_told_the_form_where_that_is_allowed() -> None:  # C003
    told = ResponseFormat(kind=FORM.kind, schema_json=SCHEMA, emulate=True)
    async with vendor() as at:
        at.says(Answer(words=("no",)), Answer(words=('Here: {"n": 1}',)))
        async with house(at, capabilities=TALKS) as served:
            error = await refused(served.client.run("a number", response_format=FORM))
            assert (error.reason, error.metadata["capability"]) == ("PROVIDER_CAPABILITY_MISSING", "json_schema")
            assert at.requests == 0
            events = await events_of(await served.client.run("a number", response_format=told))
    assert only(events, "run_completed")[0].output.json == '{"n": 1}'
    assert len(only(events, "answer_rejected")) == 1
    assert "response_format" not in at.asked[0]
    assert SCHEMA in str(at.asked[0]["messages"][0]["content"])


async def test_what_is_asked_of_the_model_arrives_at_the_server() -> None:  # C004
    def look_up(key: str) -> str:
        """Look a thing up."""
        return key

    async with vendor() as at:
        at.says(Answer(words=('{"n": 1}',)))
        models = snapshot([at.provider()], default_model="v/m")
        async with daemons.serve(models=models, tools=tools((look_up, PURE))) as served:
            run = await served.client.run(
                "a number",
                sampling=Sampling(temperature=0.25, top_p=0.5, max_output_tokens=77, stop=["END"]),
                tool_choice=ToolChoice(mode=ToolChoiceMode.TOOL_CHOICE_MODE_NONE),
                response_format=FORM,
            )
            await run.result()
    (sent,) = at.asked
    assert (sent["temperature"], sent["top_p"], sent["stop"]) == (0.25, 0.5, ["END"])
    assert sent["max_completion_tokens"] == 77
    assert sent["tool_choice"] == "none"
    assert [tool["function"]["name"] for tool in sent["tools"]] == ["look_up"]
    assert sent["response_format"]["type"] == "json_schema"


FINISHES = {"stop": "STOP", "length": "LENGTH", "content_filter": "CONTENT_FILTER", "novel": "OTHER"}


@pytest.mark.parametrize("told", FINISHES)
async def test_why_a_server_stopped_is_told_by_the_run(told: str) -> None:  # C006
    async with vendor() as at:
        at.says(Answer(finish=told))
        async with house(at) as served:
            run = await served.client.run("hello")
            events = await events_of(run)
            got = await run.get()
    expected = FinishReason.Value(f"FINISH_REASON_{FINISHES[told]}")
    assert only(events, "run_completed")[0].output.finish_reason == expected
    assert got.output.finish_reason == expected
    assert kinds(events)[-1] == "run_completed"

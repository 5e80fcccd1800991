"""The form of answers: what is mended, what is told, and how often a model is asked again."""

from __future__ import annotations

from typing import Any

import pytest

from behest.v1.chat_pb2 import FinishReason, ResponseFormat, ResponseFormatKind
from behest.v1.message_pb2 import Role
from behestd.core.structured import mended, problem, result
from behestd.core.window import compose
from behestd.tools.schema import Validators
from tests.core.stage import Stage, definition, kinds, text_of

SCHEMA = '{"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}'
FORM = ResponseFormat(kind=ResponseFormatKind.RESPONSE_FORMAT_KIND_JSON_SCHEMA, schema_json=SCHEMA)
OBJECT = ResponseFormat(kind=ResponseFormatKind.RESPONSE_FORMAT_KIND_JSON_OBJECT)
STOP = FinishReason.FINISH_REASON_STOP


def asked(form: ResponseFormat = FORM, **fields: Any) -> Stage:
    """A run whose answer has a form, checked as the daemon does."""
    return Stage(definition(response_format=form, **fields), given={"validate": Validators().arguments})


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ('{"n": 1}', '{"n": 1}'),
        (' \n{"n": 1}\n', '{"n": 1}'),
        ('```json\n{"n": 1}\n```', '{"n": 1}'),
        ('```\n{"n": 1}\n```\n', '{"n": 1}'),
        ('Here you are:\n{"n": 1}\nAnything else?', '{"n": 1}'),
        ('Of [these]: {"n": [1, 2]}', '{"n": [1, 2]}'),
        ('A list: [{"n": 1}, {"n": 2}]', '[{"n": 1}, {"n": 2}]'),
        ("[1, 2]", "[1, 2]"),
        ("7", "7"),
        # Which of two is meant nobody can say, and what is broken is not guessed at.
        ('{"n": 1} or {"n": 2}', '{"n": 1} or {"n": 2}'),
        ('{"n": 1,}', '{"n": 1,}'),
        ('{"n": 1', '{"n": 1'),
        ("no JSON", "no JSON"),
        ("  ", ""),
        ("[" * 100_000, "[" * 100_000),
    ],
)
def test_what_models_wrap_around_json_is_taken_away_and_nothing_else(text: str, found: str) -> None:
    assert mended(text) == found


@pytest.mark.parametrize("form", [FORM, OBJECT])
@pytest.mark.parametrize("text", ["", "no", "[1]", '{"n": NaN}', '{"n": 1, "n": 2}', '{"n": 1'])
def test_what_is_no_strict_json_of_its_form_is_told(form: ResponseFormat, text: str) -> None:
    assert problem(form, text, STOP, Validators().arguments)


def test_what_breaks_the_schema_is_told_by_its_place() -> None:
    assert "/n" in problem(FORM, '{"n": "one"}', STOP, Validators().arguments)
    assert problem(OBJECT, '{"n": "one"}', STOP, Validators().arguments) == ""


@pytest.mark.parametrize("finish", [FinishReason.FINISH_REASON_REFUSAL, FinishReason.FINISH_REASON_CONTENT_FILTER])
def test_an_answer_that_was_withheld_has_no_form(finish: int) -> None:  # C006
    assert problem(FORM, "I cannot", finish, Validators().arguments) == ""
    assert result(FORM, "I cannot", finish) == ""
    stage = asked()
    stage.model("I cannot", finish=finish)
    output = stage.last("run_completed").output
    assert (output.text, output.json, output.finish_reason) == ("I cannot", "", finish)


def test_an_answer_in_a_fence_is_mended_and_the_text_stays() -> None:
    stage = asked()
    stage.model('```json\n{"n": 1}\n```')
    output = stage.last("run_completed").output
    assert (output.json, output.text) == ('{"n": 1}', '```json\n{"n": 1}\n```')


def test_a_model_that_breaks_the_form_is_told_and_asked_again() -> None:
    stage = asked()
    assert kinds(stage.model('{"n": "one"}')) == [
        "model_completed",
        "answer_rejected",
        "context_built",
        "model_requested",
    ]
    told = compose(stage.run, (), "scripted/a").chat.messages[-1]
    assert told.role == Role.ROLE_USER
    assert "/n" in text_of(told)
    stage.model('{"n": 1}')
    assert stage.last("run_completed").output.json == '{"n": 1}'


def test_the_third_answer_in_a_row_without_its_form_ends_the_run() -> None:
    stage = asked()
    for _ in range(2):
        assert kinds(stage.model("no"))[-1] == "model_requested"
    assert kinds(stage.model("no"))[-2:] == ["answer_rejected", "run_failed"]
    assert (stage.state, stage.reason) == ("FAILED", "PROVIDER_MALFORMED_OUTPUT")
    assert stage.kinds.count("model_requested") == 3


def test_a_rejected_answer_is_told_of_again_after_a_crash() -> None:
    stage = asked()
    stage.model("no")
    before = compose(stage.run, (), "scripted/a").chat
    stage.crash()
    assert compose(stage.run, (), "scripted/a").chat == before
    stage.model('{"n": 1}')
    assert stage.state == "COMPLETED"


def test_a_daemon_that_stops_rejects_an_answer_and_begins_nothing() -> None:
    stage = asked()
    stage.givens["is_draining"] = True
    assert kinds(stage.model("no")) == ["model_completed", "answer_rejected"]
    stage.givens["is_draining"] = False
    stage.release()
    stage.model('{"n": 1}')
    assert stage.state == "COMPLETED"


def test_a_model_that_cannot_keep_the_form_finds_it_in_its_instructions() -> None:
    stage = asked(instructions="Be kind.", models=["m/a", "m/b"], emulating_models=["m/b"])
    able, told = (compose(stage.run, (), endpoint).chat for endpoint in ("m/a", "m/b"))
    assert (able.response_format, text_of(able.messages[0])) == (FORM, "Be kind.")
    assert not told.HasField("response_format")
    assert text_of(told.messages[0]).startswith("Be kind.\n\n")
    assert SCHEMA in text_of(told.messages[0])
    assert [text_of(each) for each in told.messages[1:]] == [text_of(each) for each in able.messages[1:]]

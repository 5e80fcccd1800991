"""The model's turn: the order of events, answers, limits, budgets, loops, malformed output, answers cut by length."""

from __future__ import annotations

from hashlib import sha256

import pytest

from behest.v1.chat_pb2 import FinishReason, ResponseFormat, ResponseFormatKind
from behest.v1.definition_pb2 import Limits
from behest.v1.message_pb2 import Message, Role
from behest.v1.model_pb2 import Price
from behest.v1.usage_pb2 import Usage, UsageSource
from behestd.core.window import CONTINUE, compose
from tests.core.stage import (
    MALFORMED,
    NOT_SENT,
    PERMANENT,
    Stage,
    budgets,
    definition,
    kinds,
    said,
    text_of,
    tool,
)

LOOK = ("look", '{"at":"sky"}')


def seen(stage: Stage, endpoint: str = "scripted/a") -> list[Message]:
    """What the open model call shows the model."""
    assert stage.run.step.open is not None
    return list(compose(stage.run, stage.givens.get("history", ()), endpoint).chat.messages)


def test_a_text_run_takes_six_events_after_its_creation() -> None:  # C042
    stage = Stage()
    stage.model("hi")
    assert stage.kinds == [
        "run_created",
        "run_claimed",
        "run_started",
        "context_built",
        "model_requested",
        "model_completed",
        "run_completed",
    ]
    assert stage.state == "COMPLETED"
    assert stage.last("model_completed").usage.output_tokens == 5


def test_a_text_run_is_decided_in_three_commits() -> None:
    stage = Stage(begun=False)
    assert len(stage.begin()) == 4
    assert kinds(stage.model("hi")) == ["model_completed", "run_completed"]


def test_the_input_is_in_the_first_call_exactly_once() -> None:  # C044
    history = (said("before"), said("yes", Role.ROLE_ASSISTANT))
    stage = Stage(definition(instructions="be kind"), given={"history": history})
    assert [text_of(message) for message in seen(stage)] == ["be kind", "before", "yes", "hello"]


def test_a_call_and_its_answer_take_two_steps_with_matching_ids() -> None:  # C045
    stage = Stage()
    assert kinds(stage.model("", LOOK)) == ["model_completed", "tool_started"]
    assert kinds(stage.tool()) == ["tool_completed", "context_built", "model_requested"]
    stage.model("blue")
    asked, answered = stage.run.transcript[1], stage.run.transcript[2]
    assert asked.parts[0].tool_call.id == answered.parts[0].tool_result.call_id
    assert stage.run.step.number == 2
    assert stage.run.spend.tool_calls == 1
    assert [message.role for message in stage.run.transcript] == [
        Role.ROLE_USER,
        Role.ROLE_ASSISTANT,
        Role.ROLE_TOOL,
        Role.ROLE_ASSISTANT,
    ]


def test_what_is_composed_again_after_the_intent_is_what_was_hashed() -> None:
    stage = Stage()
    stage.say("wait")
    attempt = stage.run.step.open
    assert attempt is not None
    data = compose(stage.run, (), attempt.endpoint).chat.SerializeToString(deterministic=True)
    assert sha256(data).digest() == stage.last("model_requested").request_hash


@pytest.mark.parametrize(
    "finish",
    [
        FinishReason.FINISH_REASON_STOP,
        FinishReason.FINISH_REASON_CONTENT_FILTER,
        FinishReason.FINISH_REASON_REFUSAL,
        FinishReason.FINISH_REASON_OTHER,
    ],
)
def test_a_finish_reason_goes_from_the_answer_to_the_outcome(finish: int) -> None:  # C006
    stage = Stage()
    stage.model("hi", finish=finish)
    assert stage.last("model_completed").finish_reason == finish
    assert stage.last("run_completed").output.finish_reason == finish


def test_calls_are_executed_though_the_model_says_stop() -> None:  # C052
    stage = Stage()
    stage.model("", LOOK, finish=FinishReason.FINISH_REASON_STOP)
    assert stage.run.step.calls[0].attempt == 1


def test_an_answer_cut_by_length_is_continued_and_then_completes_with_length() -> None:  # C051 C006
    stage = Stage(definition(limits=Limits(max_length_recoveries=2)))
    for piece in ("one ", "two "):
        stage.model(piece, finish=FinishReason.FINISH_REASON_LENGTH)
        assert text_of(seen(stage)[-1]) == CONTINUE
    stage.model("three", finish=FinishReason.FINISH_REASON_LENGTH)
    assert stage.state == "COMPLETED"
    output = stage.last("run_completed").output
    assert output.text == "one two three"
    assert output.finish_reason == FinishReason.FINISH_REASON_LENGTH


def test_each_answer_has_its_own_length_recoveries() -> None:  # C051
    stage = Stage(definition(tool(), limits=Limits(max_length_recoveries=1)))
    stage.model("one", finish=FinishReason.FINISH_REASON_LENGTH)
    stage.model("", LOOK)
    stage.tool()
    stage.model("a", finish=FinishReason.FINISH_REASON_LENGTH)
    stage.model("b", finish=FinishReason.FINISH_REASON_LENGTH)
    assert stage.last("run_completed").output.text == "ab"


def test_an_outcome_holds_nothing_of_a_transcript_that_the_run_was_forked_from() -> None:
    source = {"run_id": "run_0", "sequence": 9, "messages": [said("q"), said("old", Role.ROLE_ASSISTANT)]}
    stage = Stage(input=None, forked_from=source)
    assert [text_of(message) for message in seen(stage)] == ["q", "old"]
    stage.model("new")
    assert stage.last("run_completed").output.text == "new"


def test_a_json_answer_is_repeated_as_json() -> None:
    kind = ResponseFormatKind.RESPONSE_FORMAT_KIND_JSON_OBJECT
    stage = Stage(definition(response_format=ResponseFormat(kind=kind)))
    stage.model('{"a":1}')
    assert stage.last("run_completed").output.json == '{"a":1}'


# --- limits ---


def test_endless_calls_stop_at_the_step_limit() -> None:  # C046
    stage = Stage(definition(tool(doom_loop_exempt=True), limits=Limits(max_steps=3)))
    for _ in range(3):
        stage.model("", LOOK)
        stage.tool()
    assert (stage.state, stage.reason) == ("FAILED", "RUN_STEP_LIMIT")


def test_a_request_lowers_a_limit_and_never_raises_it() -> None:  # C046
    stage = Stage(definition(tool(), limits=Limits(max_steps=2)), budgets=budgets(max_steps=1))
    stage.model("", LOOK)
    stage.tool()
    assert stage.reason == "RUN_STEP_LIMIT"
    stage = Stage(definition(tool(), limits=Limits(max_steps=1)), budgets=budgets(max_steps=5))
    stage.model("", LOOK)
    stage.tool()
    assert stage.reason == "RUN_STEP_LIMIT"


def test_a_token_budget_is_checked_with_the_estimated_input_before_the_call() -> None:  # C047
    stage = Stage(input=said("word " * 1000), budgets=budgets(max_total_tokens=200))
    assert "model_requested" not in stage.kinds
    assert (stage.state, stage.reason) == ("FAILED", "RUN_BUDGET")


def test_a_run_stops_when_its_token_budget_is_passed() -> None:  # C047
    stage = Stage(budgets=budgets(max_total_tokens=500))
    stage.model("", LOOK, usage=Usage(input_tokens=400, output_tokens=200))
    stage.tool()
    assert stage.reason == "RUN_BUDGET"


def priced(**fields: int) -> Price:
    """A price of so many micro-dollars for a million tokens."""
    return Price(**{f"{name}_micro_usd": value for name, value in fields.items()})  # type: ignore[arg-type]


def test_a_run_stops_when_its_money_is_spent() -> None:  # C047
    price = priced(input=1_000_000, output=10_000_000)
    stage = Stage(definition(tool(), prices=[price]), budgets=budgets(max_cost_micro_usd=1000))
    stage.model("", LOOK, usage=Usage(input_tokens=100, output_tokens=100))
    assert stage.run.spend.cost_micro_usd == 1100
    stage.tool()
    assert stage.reason == "RUN_BUDGET"


def test_the_cost_of_the_estimated_input_counts_before_the_call() -> None:  # C047
    price = priced(input=1_000_000_000, output=0)
    stage = Stage(definition(prices=[price]), budgets=budgets(max_cost_micro_usd=100))
    assert "model_requested" not in stage.kinds
    assert stage.reason == "RUN_BUDGET"


def test_a_model_without_a_price_is_refused_when_money_is_limited() -> None:  # C047
    for prices in ([], [priced(input=5)]):
        stage = Stage(definition(prices=prices), budgets=budgets(max_cost_micro_usd=100))
        assert "model_requested" not in stage.kinds
        assert stage.reason == "PROVIDER_PRICE_UNKNOWN"


def test_an_attempt_of_unknown_cost_ends_a_run_whose_money_is_limited() -> None:  # C047
    pinned = definition(models=["scripted/b", "scripted/a"], prices=[Price(), priced(input=1, output=1)])
    stage = Stage(pinned)
    stage.model_breaks(PERMANENT)
    assert stage.run.spend.unpriced_attempts == 1
    pinned.limits.max_cost_micro_usd = 10**9
    stage = Stage(pinned)
    assert stage.reason == "PROVIDER_PRICE_UNKNOWN"


def test_a_limit_of_tool_calls_counts_calls_and_not_attempts() -> None:  # C047
    stage = Stage(budgets=budgets(max_tool_calls=2))
    stage.model("", LOOK)
    stage.tool_breaks()
    stage.wait(1)
    assert stage.call().attempt == 2
    stage.tool()
    stage.model("", LOOK, ("look", "{}"))
    assert (stage.state, stage.reason) == ("FAILED", "RUN_BUDGET")


def test_a_log_over_its_events_ends_the_run_before_the_next_model_call() -> None:
    stage = Stage(definition(tool(), limits=Limits(max_events=8)))
    stage.model("", LOOK)
    stage.tool()
    assert (stage.state, stage.reason) == ("FAILED", "RUN_HISTORY_LIMIT")


def test_a_log_over_its_bytes_ends_the_run_before_the_next_model_call() -> None:
    stage = Stage(definition(tool(), limits=Limits(max_log_bytes=100)))
    assert stage.reason == "RUN_HISTORY_LIMIT"


# --- usage ---


def test_missing_usage_is_estimated_and_marked() -> None:
    stage = Stage()
    reserve = stage.last("model_requested").reserve
    stage.model("four", usage=Usage(attempts=0, cost_micro_usd=0), source=UsageSource.USAGE_SOURCE_REPORTED)
    completed = stage.last("model_completed")
    assert completed.usage.input_tokens == reserve.input_tokens > 0
    assert completed.usage.output_tokens > 0
    assert completed.usage_source == UsageSource.USAGE_SOURCE_ESTIMATED


def test_a_failed_attempt_is_accounted_for_and_one_that_was_not_sent_is_free() -> None:
    stage = Stage()
    stage.model_breaks(MALFORMED)
    spent = stage.run.spend.input_tokens
    assert spent == stage.last("model_requested").reserve.input_tokens
    stage.model_breaks(PERMANENT, usage=Usage(input_tokens=7))
    assert stage.run.spend.input_tokens == spent + 7
    stage = Stage()
    stage.model_breaks(NOT_SENT)
    assert stage.run.spend.input_tokens == 0
    assert stage.run.spend.attempts == 1

"""The model's turn: the order of events, answers, limits, budgets, loops, malformed output, answers cut by length."""

from __future__ import annotations

from hashlib import sha256

import pytest

from behest.v1.chat_pb2 import FinishReason, ResponseFormat, ResponseFormatKind
from behest.v1.definition_pb2 import DoomLoop, DoomLoopAction, Limits
from behest.v1.message_pb2 import Message, Role
from behest.v1.model_pb2 import Price
from behest.v1.usage_pb2 import Usage, UsageSource
from behestd.core.window import CONTINUE, compose, is_valid
from tests.core.stage import (
    MALFORMED,
    NOT_SENT,
    PERMANENT,
    PURE,
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


# --- malformed turns ---


def test_the_third_malformed_answer_in_a_row_ends_the_run() -> None:
    stage = Stage()
    stage.model_breaks(MALFORMED)
    stage.model_breaks(MALFORMED)
    assert stage.state == "RUNNING"
    stage.model_breaks(MALFORMED)
    assert (stage.state, stage.reason) == ("FAILED", "PROVIDER_MALFORMED_OUTPUT")


def test_calls_that_make_no_sense_are_answered_twice_and_end_the_run_the_third_time() -> None:
    stage = Stage()
    for _ in range(2):
        assert "tool_failed" in kinds(stage.model("", ("nonsense", "{}"), LOOK))
        assert "nonsense" in str(stage.run.step.calls[0].result)
        stage.tool(1)
    stage.model("", ("nonsense", "{}"))
    assert (stage.state, stage.reason) == ("FAILED", "PROVIDER_MALFORMED_OUTPUT")
    assert is_valid(stage.run.transcript)


def test_a_well_formed_turn_resets_the_count_of_malformed_ones() -> None:
    stage = Stage()
    for _ in range(2):
        stage.model("", ("nonsense", "{}"))
        stage.model("", ("nonsense", "{}"))
        stage.model("", LOOK)
        stage.tool()
    assert stage.state == "RUNNING"


def test_several_bad_calls_of_one_turn_count_once() -> None:
    stage = Stage()
    stage.model("", *[("nonsense", "{}")] * 4)
    assert stage.run.turns.malformed == 1


@pytest.mark.parametrize("arguments", ["[]", "nonsense", '"text"', "1" * 5000, "[" * 100_000])
def test_arguments_that_are_no_object_are_an_error_result(arguments: str) -> None:
    stage = Stage()
    stage.model("", ("look", arguments))
    assert stage.last("tool_failed").reason == "TOOL_ARGUMENTS_INVALID"
    assert stage.run.step.number == 2


def test_arguments_that_break_the_schema_tell_the_model_what_is_wrong() -> None:
    stage = Stage()
    stage.givens["validate"] = lambda _tool, arguments: '{"path":"/at"}' if "bad" in arguments else ""
    stage.model("", ("look", '{"at":"bad"}'), LOOK)
    stage.tool(1)
    assert stage.result_text(0) == '{"path":"/at"}'
    assert stage.result_text(1) == "done"


def test_empty_arguments_become_an_empty_object() -> None:
    stage = Stage()
    stage.model("", ("look", "  "))
    assert stage.last("tool_started").arguments_json == "{}"


# --- doom loops ---


def doomed(repeats: int = 3, tools: int = 1, **fields: int) -> Stage:
    """A run whose model may repeat itself so often."""
    names = [tool(name) for name in "ABCDE"[:tools]]
    return Stage(definition(*names, limits=Limits(max_steps=50, doom_loop=DoomLoop(repeats=repeats, **fields))))  # type: ignore[arg-type]


def turn(stage: Stage, *calls: tuple[str, str]) -> None:
    stage.model("", *calls)
    for index in range(len(calls)):
        if stage.state == "RUNNING" and index < len(stage.run.step.calls) and stage.run.step.answered:
            stage.tool(index)


def test_three_identical_calls_end_the_run() -> None:  # C067
    stage = doomed()
    for _ in range(3):
        turn(stage, ("A", "{}"))
    assert (stage.state, stage.reason) == ("FAILED", "RUN_DOOM_LOOP")
    assert stage.last("doom_loop_detected").stopped
    assert list(stage.last("doom_loop_detected").cycle) == ["A"]
    assert is_valid(stage.run.transcript)  # C050


def test_a_doom_loop_warns_first_and_then_stops() -> None:  # C067
    stage = doomed(warnings=1)
    for _ in range(3):
        turn(stage, ("A", "{}"))
    assert not stage.last("doom_loop_detected").stopped
    assert "Do not repeat" in text_of(seen(stage)[-1])
    for _ in range(3):
        turn(stage, ("A", "{}"))
    assert stage.reason == "RUN_DOOM_LOOP"


def test_a_doom_loop_may_only_warn_or_go_unseen() -> None:  # C067
    stage = doomed(action=DoomLoopAction.DOOM_LOOP_ACTION_WARN)
    for _ in range(6):
        turn(stage, ("A", "{}"))
    assert stage.state == "RUNNING"
    assert stage.kinds.count("doom_loop_detected") == 2
    stage = doomed(action=DoomLoopAction.DOOM_LOOP_ACTION_OFF)
    for _ in range(6):
        turn(stage, ("A", "{}"))
    assert "doom_loop_detected" not in stage.kinds


def test_a_polling_tool_is_exempt() -> None:  # C067
    stage = Stage(definition(tool("poll", doom_loop_exempt=True), tool("A"), limits=Limits(max_steps=50)))
    for _ in range(6):
        turn(stage, ("poll", "{}"))
    assert stage.state == "RUNNING"
    for _ in range(3):
        turn(stage, ("A", "{}"), ("poll", "{}"))
    assert list(stage.last("doom_loop_detected").cycle) == ["A"]


def test_a_cycle_of_two_is_named() -> None:  # C068
    stage = doomed(tools=2)
    for _ in range(3):
        turn(stage, ("A", "{}"))
        turn(stage, ("B", "{}"))
    assert stage.reason == "RUN_DOOM_LOOP"
    assert list(stage.last("doom_loop_detected").cycle) == ["A", "B"]


def test_different_arguments_are_no_loop() -> None:  # C068
    stage = doomed()
    for number in range(6):
        turn(stage, ("A", f'{{"n":{number}}}'))
    assert "doom_loop_detected" not in stage.kinds


def test_equal_calls_of_one_turn_count_once() -> None:  # C067
    stage = doomed()
    turn(stage, *[("A", "{}")] * 4)
    assert stage.state == "RUNNING"


def test_the_count_of_repeated_calls_survives_a_takeover() -> None:  # C069
    stage = doomed()
    turn(stage, ("A", "{}"))
    stage.crash()
    turn(stage, ("A", "{}"))
    stage.crash()
    turn(stage, ("A", "{}"))
    assert stage.reason == "RUN_DOOM_LOOP"


def test_a_run_may_call_nothing_and_say_nothing() -> None:
    stage = Stage()
    stage.model()
    assert stage.state == "COMPLETED"
    assert stage.last("run_completed").output.text == ""


def test_five_parallel_calls_keep_the_order_of_the_model() -> None:  # C053
    for round_ in range(100):
        stage = Stage(definition(tool(), limits=Limits(max_parallel_tool_calls=5)))
        stage.model("", *[("look", f'{{"n":{number}}}') for number in range(5)])
        order = sorted(range(5), key=lambda index: (index * 7 + round_ * 3) % 5)
        for index in order:
            stage.tool(index, f"result {index}")
        assert [text_of(part.tool_result) for part in stage.run.transcript[-1].parts] == [
            f"result {index}" for index in range(5)
        ]


def test_the_provider_reuses_call_ids_and_ours_stay_unique() -> None:
    stage = Stage(definition(tool("look", PURE)))
    stage.model("", LOOK, LOOK)
    first, second = stage.run.step.calls
    assert first.call.provider_call_id == second.call.provider_call_id == "x"
    assert first.call.id != second.call.id

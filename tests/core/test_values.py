"""What decisions are made of: prices, estimates, limits, windows, definitions, reports, times and fingerprints."""

from __future__ import annotations

import pytest

from behest.v1.agent_pb2 import Agent
from behest.v1.chat_pb2 import ResponseFormat, ResponseFormatKind, Sampling, ToolChoice, ToolChoiceMode
from behest.v1.definition_pb2 import Budgets, DoomLoop, Limits, PermissionRule, RunDefinition
from behest.v1.message_pb2 import Message, Part, Role, TextPart, ToolCall, ToolResult
from behest.v1.model_pb2 import Price
from behest.v1.run_event_pb2 import ParentRun
from behest.v1.run_spec_pb2 import RunSpec
from behest.v1.run_state_pb2 import RunState, WaitReason
from behest.v1.usage_pb2 import Usage
from behestd.core.definition import Operator, Resolved, define, name
from behestd.core.doom_loop import find_cycle, fingerprint
from behestd.core.limits import DEFAULTS, bound, in_force
from behestd.core.report import report, report_whole
from behestd.core.spend import priced, settle, total
from behestd.core.state import Spend
from behestd.core.times import SECOND, duration, duration_ns, nanoseconds, timestamp
from behestd.core.wanted import alarm_ns, wanted
from behestd.core.window import compose, is_valid, mended, missing, trim
from tests.core.stage import ALLOW, ASK, DENY, T0, Stage, definition, said, text_of, tool

# --- money ---

# Worked out by hand: (usage, price in micro-dollars for a million tokens, cost in micro-dollars).
COSTS: list[tuple[dict[str, int], dict[str, int], int | None]] = [
    ({"input_tokens": 1_000_000, "output_tokens": 1_000_000}, {"input": 3_000_000, "output": 15_000_000}, 18_000_000),
    ({"input_tokens": 1, "output_tokens": 0}, {"input": 500_000, "output": 1}, 1),
    ({"input_tokens": 1, "output_tokens": 0}, {"input": 499_999, "output": 1}, 0),
    (
        {"input_tokens": 1000, "cached_input_tokens": 600},
        {"input": 3_000_000, "output": 1, "cached_input": 300_000},
        1380,
    ),
    ({"input_tokens": 1000, "cached_input_tokens": 600}, {"input": 3_000_000, "output": 1}, 3000),
    (
        {"input_tokens": 1000, "cache_write_tokens": 400},
        {"input": 3_000_000, "output": 1, "cache_write": 3_750_000},
        3300,
    ),
    ({"input_tokens": 1000, "cache_write_tokens": 400}, {"input": 3_000_000, "output": 1}, 3000),
    ({"input_tokens": 10, "cached_input_tokens": 20}, {"input": 3_000_000, "output": 1, "cached_input": 300_000}, 6),
    ({"input_tokens": 7, "output_tokens": 9, "reasoning_tokens": 5}, {"input": 250_000, "output": 2_000_000}, 20),
    ({"input_tokens": 9, "output_tokens": 9}, {"input": 0, "output": 0}, 0),
    ({"input_tokens": 9, "output_tokens": 9}, {"input": 5}, None),
    ({"input_tokens": 9, "output_tokens": 9}, {"output": 5}, None),
    ({"input_tokens": 9, "output_tokens": 9}, {}, None),
]


@pytest.mark.parametrize(("tokens", "prices", "cost"), COSTS)  # C116
def test_costs_are_exact_to_the_micro_unit(
    tokens: dict[str, int], prices: dict[str, int], cost: int | None
) -> None:  # C116
    price = Price(**{f"{part}_micro_usd": value for part, value in prices.items()})  # type: ignore[arg-type]
    usage = priced(Usage(**tokens), price)  # type: ignore[arg-type]
    assert usage.HasField("cost_micro_usd") is (cost is not None)
    assert usage.cost_micro_usd == (cost or 0)
    assert usage.attempts == 1
    assert usage.input_tokens == tokens["input_tokens"]


def test_a_model_that_is_not_priced_costs_nobody_knows_what() -> None:
    assert not priced(Usage(input_tokens=1), None).HasField("cost_micro_usd")


def test_the_total_has_a_cost_only_when_every_attempt_has_one() -> None:  # C116
    price = Price(input_micro_usd=1_000_000, output_micro_usd=1_000_000)
    known = settle(Spend(), priced(Usage(input_tokens=2, output_tokens=3), price))
    assert total(known).cost_micro_usd == 5
    both = settle(known, priced(Usage(input_tokens=1), None))
    assert not total(both).HasField("cost_micro_usd")
    assert (both.attempts, both.input_tokens, both.unpriced_attempts) == (2, 3, 1)
    assert not total(Spend()).HasField("cost_micro_usd")
    assert settle(known, Usage(input_tokens=99)) == known


def test_limits_of_an_agent_stand_over_the_defaults() -> None:
    merged = in_force(Limits(max_steps=3, doom_loop=DoomLoop(repeats=5)))
    assert (merged.max_steps, merged.max_parallel_tool_calls) == (3, 4)
    assert (merged.doom_loop.repeats, merged.doom_loop.action) == (5, DEFAULTS.doom_loop.action)
    assert duration_ns(merged.timeout) == 3600 * SECOND


def test_a_timeout_of_an_agent_replaces_the_default_whole() -> None:
    assert duration_ns(in_force(Limits(timeout=duration(0.5))).timeout) == SECOND // 2
    assert duration_ns(in_force(Limits(timeout=duration(60))).timeout) == 60 * SECOND


def test_a_limit_that_nobody_set_is_none() -> None:
    run = Stage(definition(limits=Limits(max_total_tokens=9)), budgets=Budgets(max_tool_calls=4)).run
    assert bound(run, "max_cost_micro_usd") is None
    assert bound(run, "max_total_tokens") == 9
    assert bound(run, "max_tool_calls") == 4


# --- windows ---


def asks(*call_ids: str) -> Message:
    return Message(role=Role.ROLE_ASSISTANT, parts=[Part(tool_call=ToolCall(id=call_id)) for call_id in call_ids])


def answers(*call_ids: str, message_id: str = "") -> Message:
    parts = [
        Part(tool_result=ToolResult(call_id=call_id, parts=[Part(text=TextPart(text="ok"))])) for call_id in call_ids
    ]
    return Message(id=message_id, role=Role.ROLE_TOOL, parts=parts)


VALID = [
    [],
    [said("hi")],
    [asks("a"), answers("a")],
    [asks("a", "b"), answers("b", "a")],
    [asks("a", "b"), answers("a"), answers("b"), said("x")],
]
BROKEN = [
    ([asks("a")], [asks("a"), missing(["a"])]),
    ([asks("a"), said("x")], [asks("a"), missing(["a"]), said("x")]),
    ([asks("a", "b"), answers("a"), said("x")], [asks("a", "b"), answers("a"), missing(["b"]), said("x")]),
    ([answers("a"), said("x")], [said("x")]),
    ([asks("a"), answers("a", "z", message_id="m")], [asks("a"), answers("a", message_id="m")]),
    ([asks("a"), answers("a"), answers("a")], [asks("a"), answers("a")]),
    ([asks("a"), answers("a", "a")], [asks("a"), answers("a")]),
]


@pytest.mark.parametrize("history", VALID)
def test_a_valid_history_is_left_as_it_is(history: list[Message]) -> None:  # C050
    assert is_valid(history)
    assert mended(history) is history


@pytest.mark.parametrize(("history", "whole"), BROKEN)
def test_a_broken_history_is_mended(history: list[Message], whole: list[Message]) -> None:  # C050
    assert not is_valid(history)
    assert list(mended(history)) == whole
    assert is_valid(whole)


def test_a_history_is_trimmed_where_somebody_speaks() -> None:
    history = [said("1"), asks("a"), answers("a"), said("2"), said("3", Role.ROLE_ASSISTANT)]
    assert trim(history, 9) == tuple(history)
    assert [text_of(message) for message in trim(history, 3)] == ["2", "3"]
    assert trim(history, 1) == ()
    assert trim(history, 0) == ()


def test_a_window_holds_everything_that_the_definition_says() -> None:
    pinned = definition(
        tool(),
        instructions="be kind",
        limits=Limits(max_history_messages=1),
        tool_choice=ToolChoice(mode=ToolChoiceMode.TOOL_CHOICE_MODE_NONE),
        sampling=Sampling(temperature=0.0),
        response_format=ResponseFormat(kind=ResponseFormatKind.RESPONSE_FORMAT_KIND_TEXT),
        provider_options_json='{"a":1}',
    )
    stage = Stage(pinned, given={"history": (said("1"), said("2"))})
    window = compose(stage.run, (said("1"), said("2")), "m/a")
    chat = window.chat
    assert [text_of(message) for message in chat.messages] == ["be kind", "2", "hello"]
    assert (chat.model, chat.run_id, chat.provider_options_json) == ("m/a", "run_1", '{"a":1}')
    assert chat.sampling.HasField("temperature")
    assert chat.tool_choice.mode == ToolChoiceMode.TOOL_CHOICE_MODE_NONE
    assert chat.response_format.kind == ResponseFormatKind.RESPONSE_FORMAT_KIND_TEXT
    assert [one.name for one in chat.tools] == ["look"]
    assert window.trimmed_messages == 1
    assert set(window.tokens_by_source) == {"instructions", "history", "run", "tools"}
    assert window.input_tokens == sum(window.tokens_by_source.values())
    assert stage.last("context_built").trimmed_messages == 1


def test_a_run_without_an_order_of_its_own_goes_on_where_it_was_forked() -> None:
    stage = Stage(input=None, forked_from={"run_id": "run_0", "sequence": 4, "messages": [said("before")]})
    assert [text_of(message) for message in compose(stage.run, (), "m").chat.messages] == ["before"]


# --- doom loops ---


@pytest.mark.parametrize(
    ("calls", "repeats", "length"),
    [
        ("", 3, 0),
        ("AA", 3, 0),
        ("AAA", 3, 1),
        ("BAAA", 3, 1),
        ("AAAB", 3, 0),
        ("ABABAB", 3, 2),
        ("BABAB", 3, 0),
        ("ABCABC", 2, 3),
        ("ABCDABCDABCD", 3, 4),
        ("ABCDEABCDE", 2, 0),
    ],
)
def test_a_cycle_is_what_the_calls_end_with(calls: str, repeats: int, length: int) -> None:  # C068
    assert find_cycle([call.encode() for call in calls], repeats) == length


def test_a_call_is_the_same_by_name_and_exact_arguments() -> None:
    assert fingerprint("a", "{}") == fingerprint("a", "{}")
    assert len({fingerprint("a", "{}"), fingerprint("a", "{ }"), fingerprint("b", "{}")}) == 3


# --- definitions ---

RESOLVED = Resolved(("m/a",), (Price(),), (tool(),))


def test_a_definition_pins_agent_request_and_operator() -> None:
    agent = Agent(
        id="agent_1",
        version=3,
        instructions="be kind",
        sampling=Sampling(temperature=0.5, stop=["x"]),
        permissions=[PermissionRule(tool="*", action=ASK)],
        provider_options_json="{}",
    )
    operator = Operator([PermissionRule(tool="*", action=DENY)], ALLOW)
    pinned = define(agent, RunSpec(sampling=Sampling(top_p=0.1)), RESOLVED, operator)
    assert (pinned.agent_id, pinned.agent_version, pinned.instructions) == ("agent_1", 3, "be kind")
    assert (pinned.sampling.temperature, pinned.sampling.top_p, list(pinned.sampling.stop)) == (0.5, 0.1, ["x"])
    assert [rule.action for rule in (*pinned.operator_permissions, *pinned.agent_permissions)] == [DENY, ASK]
    assert pinned.default_permission == ALLOW
    assert pinned.limits == DEFAULTS
    assert not pinned.HasField("tool_choice")
    assert not pinned.HasField("response_format")


def test_a_request_stands_over_the_agent() -> None:
    kind = ResponseFormatKind.RESPONSE_FORMAT_KIND_JSON_OBJECT
    agent = Agent(
        sampling=Sampling(stop=["x"]),
        tool_choice=ToolChoice(mode=ToolChoiceMode.TOOL_CHOICE_MODE_AUTO),
        response_format=ResponseFormat(kind=ResponseFormatKind.RESPONSE_FORMAT_KIND_TEXT),
        provider_options_json="{}",
    )
    spec = RunSpec(
        sampling=Sampling(stop=["y"]),
        tool_choice=ToolChoice(mode=ToolChoiceMode.TOOL_CHOICE_MODE_NONE),
        response_format=ResponseFormat(kind=kind),
        provider_options_json='{"b":2}',
    )
    pinned = define(agent, spec, RESOLVED, Operator())
    assert list(pinned.sampling.stop) == ["y"]
    assert pinned.tool_choice.mode == ToolChoiceMode.TOOL_CHOICE_MODE_NONE
    assert pinned.response_format.kind == kind
    assert pinned.provider_options_json == '{"b":2}'
    assert define(agent, RunSpec(), RESOLVED, Operator()).tool_choice.mode == ToolChoiceMode.TOOL_CHOICE_MODE_AUTO


def test_a_schema_of_the_answer_asks_for_strict_json() -> None:
    pinned = define(Agent(), RunSpec(output_schema_json='{"type":"object"}'), RESOLVED, Operator())
    assert pinned.response_format.kind == ResponseFormatKind.RESPONSE_FORMAT_KIND_JSON_SCHEMA
    assert pinned.response_format.strict


def test_a_definition_is_named_by_its_bytes() -> None:
    pinned = definition(tool())
    digest, data = name(pinned)
    assert len(digest) == 32
    assert RunDefinition.FromString(data) == pinned
    assert name(definition(tool())) == (digest, data)
    assert name(definition(tool("other")))[0] != digest


# --- reports ---


def test_a_report_shows_an_ended_run() -> None:  # C043
    stage = Stage(labels={"a": "b"}, request_id="req", principal="ann", parent=ParentRun(run_id="run_0", depth=1))
    stage.now_ns += SECOND
    stage.model("hi")
    shown = report(stage.run)
    assert (shown.id, shown.session_id, shown.state) == ("run_1", "ses_1", RunState.RUN_STATE_COMPLETED)
    assert (shown.output.text, shown.usage.output_tokens, shown.usage.attempts) == ("hi", 5, 1)
    assert (shown.steps, shown.head_sequence, shown.epoch, shown.session_index) == (1, 7, 1, 1)
    assert nanoseconds(shown.create_time) == nanoseconds(shown.start_time) == T0
    assert nanoseconds(shown.end_time) == T0 + SECOND
    assert not shown.HasField("deadline")
    assert not shown.HasField("wait")
    assert not shown.HasField("error")
    assert (dict(shown.labels), shown.request_id, shown.principal) == ({"a": "b"}, "req", "ann")
    assert shown.parent.depth == 1
    assert len(shown.messages) == 0
    assert [text_of(message) for message in report_whole(stage.run).messages] == ["hello", "hi"]


def test_a_report_shows_what_a_run_waits_for() -> None:
    forked = {"run_id": "run_0", "sequence": 4, "messages": [said("before")]}
    rules = [PermissionRule(tool="act", action=ASK)]
    stage = Stage(definition(tool("act"), tool("x"), operator_permissions=rules), forked_from=forked)
    stage.model("", ("act", "{}"), ("x", "{}"))
    stage.tool(1)
    shown = report_whole(stage.run)
    assert shown.wait.reason == WaitReason.WAIT_REASON_APPROVAL
    assert nanoseconds(shown.wait.until) == T0 + 86_400 * SECOND
    assert [pending.call.name for pending in shown.pending_approvals] == ["act"]
    assert shown.pending_approvals[0].request.args_hash == stage.last("approval_requested").args_hash
    assert (shown.forked_from.run_id, shown.forked_from.sequence, len(shown.forked_from.messages)) == ("run_0", 4, 0)


def test_a_report_of_a_queued_run_has_no_times_but_its_creation() -> None:
    stage = Stage(begun=False)
    shown = report(stage.run)
    assert not any(shown.HasField(field) for field in ("start_time", "end_time", "deadline"))
    assert wanted(stage.run) == ()
    assert alarm_ns(stage.run, 0) == T0 + 900 * SECOND


# --- times ---


@pytest.mark.parametrize("ns", [0, 1, SECOND, T0 + 123_456_789])
def test_times_come_back_to_the_nanosecond(ns: int) -> None:
    assert nanoseconds(timestamp(ns)) == ns
    assert duration_ns(duration(1.000000001)) == SECOND + 1

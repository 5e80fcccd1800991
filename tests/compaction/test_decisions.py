"""Decisions about summaries on a stage: when one is asked for, what comes of it, and what a crash leaves."""

from __future__ import annotations

from typing import Any

import pytest

from behest.v1.definition_pb2 import Budgets, Compaction, Limits, PinnedCompaction
from behest.v1.message_pb2 import Message, Role
from behest.v1.model_event_pb2 import SupersedeReason
from behest.v1.model_pb2 import ModelLimits, Price
from behest.v1.usage_pb2 import Usage, UsageSource
from behestd.core import compaction, compaction_call
from behestd.core.compaction import Circuit
from behestd.core.compaction_turn import asked_for
from behestd.core.decide import decide
from behestd.core.route import Health
from behestd.core.signals import CallModel, Start, Summarise, SummaryBroke, SummaryEnded
from behestd.core.times import SECOND
from behestd.core.wanted import alarm_ns, wanted
from behestd.core.window import compose
from tests.core.stage import (
    AMBIGUOUS,
    GRACE_NS,
    PERMANENT,
    T0,
    TRANSIENT,
    Stage,
    answer,
    definition,
    kinds,
    said,
    text_of,
    tool,
)

WINDOW = 1000
TOO_LONG = "PROVIDER_CONTEXT_TOO_LONG"
HISTORY = tuple(
    Message(id=f"msg_{index}", role=role, parts=said(f"{name} {index} " + "word " * 40).parts)
    for index in range(20)
    for role, name in [(Role.ROLE_ASSISTANT, "answer") if index % 2 else (Role.ROLE_USER, "question")]
)
"""About 55 tokens each: 20 of them are more than the window."""


def stage(
    *, history: tuple[Message, ...] = HISTORY, window: int = WINDOW, given: dict[str, Any] | None = None, **policy: Any
) -> Stage:
    """A run on a session that has a history, with a policy."""
    budgets = policy.pop("budgets", None)
    pinned = definition(
        tool(),
        limits=Limits(max_steps=100),
        prices=[Price(input_micro_usd=1_000_000, output_micro_usd=2_000_000)],
        model_limits=[ModelLimits(context_window_tokens=window)],
        compaction=PinnedCompaction(
            policy=compaction.in_force(Compaction(**policy)),
            window=4000,
            price=Price(input_micro_usd=3_000_000, output_micro_usd=3_000_000),
        ),
    )
    return Stage(pinned, given={"history": history} | (given or {}), budgets=budgets)


def summarised(scene: Stage, text: str = "all that matters", **fields: Any) -> list[Any]:
    """The open call for a summary answers."""
    wish = scene.run.compaction.open
    assert wish is not None
    return scene.do(SummaryEnded(wish.number, answer(text, **fields)))


def breaks(scene: Stage, failure_class: int = TRANSIENT, reason: str = "PROVIDER_UNAVAILABLE", **fields: Any) -> Any:
    """The open call for a summary fails."""
    wish = scene.run.compaction.open
    assert wish is not None
    return scene.do(SummaryBroke(wish.number, failure_class, reason, "it broke", **fields))


def sent(scene: Stage) -> list[str]:
    """The texts of the open model call, without the system's."""
    assert scene.run.step.open is not None
    chat = compose(scene.run, scene.givens["history"], scene.run.step.open.endpoint).chat
    return [text_of(message) for message in chat.messages if message.role != Role.ROLE_SYSTEM]


def test_a_call_that_is_too_long_waits_for_a_summary_and_then_leaves_with_it() -> None:  # C070
    scene = stage()

    assert scene.kinds[-1] == "context_compaction_requested"
    assert [type(effect) for effect in wanted(scene.run)] == [Summarise]
    asked = scene.last("context_compaction_requested")
    assert (asked.step, asked.attempt, asked.endpoint, asked.is_reactive) == (1, 1, "scripted/a", False)
    assert asked.tokens_before > WINDOW * 0.8
    assert asked.reserve.cost_micro_usd == asked.reserve.input_tokens + 2 * asked.reserve.output_tokens

    after = summarised(scene, usage=Usage(input_tokens=700, output_tokens=20))

    assert kinds(after) == ["context_compacted", "context_built", "model_requested"]
    assert [type(effect) for effect in wanted(scene.run)] == [CallModel]
    made = after[0]
    assert made.upto_message_id == made.summary.summary_upto_message_id == asked.upto_message_id
    assert made.tokens_after < made.tokens_before
    assert (made.usage.input_tokens, made.usage.cost_micro_usd, made.usage.attempts) == (700, 740, 1)
    upto = int(made.upto_message_id.removeprefix("msg_"))
    texts = [text_of(message) for message in HISTORY[upto + 1 :]]
    assert sent(scene) == [compaction_call.HEADING + "all that matters", *texts, "hello"]
    assert scene.run.spend.input_tokens == 700


def test_the_next_step_and_the_next_turn_are_not_summarised_again() -> None:  # C070
    scene = stage()
    summary = summarised(scene)[0].summary
    scene.model("", ("look", "{}"))
    assert kinds(scene.tool()) == ["tool_completed", "context_built", "model_requested"]
    scene.model("done")
    assert scene.state == "COMPLETED"
    assert scene.kinds.count("context_compaction_requested") == 1

    stood = (*HISTORY, *scene.run.transcript, summary)
    assert "context_compaction_requested" not in stage(history=stood).kinds


def test_the_second_summary_is_made_of_the_first_and_of_what_came_since_alone() -> None:  # C072
    scene = stage()
    first = summarised(scene)[0]
    upto = int(first.upto_message_id.removeprefix("msg_"))
    more = [Message(id=f"msg_x{message.id}", role=message.role, parts=message.parts) for message in HISTORY[:12]]
    scene = stage(history=(*HISTORY, first.summary, *more))

    told = asked_for(scene.run, scene.givens["history"]).messages[1].parts[0].text.text

    assert told.startswith("Earlier notes:\nall that matters\n\n")
    assert f"question {upto - 1} " not in told
    assert f"{text_of(HISTORY[upto + 1])[:9]}" in told
    summarised(scene, "even more")
    texts = sent(scene)
    assert texts[0] == compaction_call.HEADING + "even more"
    assert texts[-1] == "hello"


def test_a_model_whose_window_is_not_known_is_never_summarised_for() -> None:
    assert stage(window=0).kinds[-2:] == ["context_built", "model_requested"]


def test_nothing_is_summarised_where_that_is_off() -> None:
    scene = Stage(definition(model_limits=[ModelLimits(context_window_tokens=WINDOW)]), given={"history": HISTORY[:10]})
    assert scene.kinds[-2:] == ["context_built", "model_requested"]


def test_where_summaries_are_off_a_refusal_for_length_is_the_runs_end() -> None:
    scene = Stage(definition(), given={"history": HISTORY[:10]})
    scene.model_breaks(PERMANENT, TOO_LONG)
    assert (scene.state, scene.reason) == ("FAILED", TOO_LONG)


def test_a_long_run_summarises_its_own_steps_too_and_keeps_calls_with_their_results() -> None:  # C074
    scene = stage(history=())
    for number in range(12):
        if scene.run.compaction.open is not None:
            break
        scene.model("", ("look", f'{{"n": {number}}}'))
        scene.tool(text="r" * 400)
    wish = scene.run.compaction.open
    assert wish is not None
    assert wish.run_messages > 0

    summarised(scene)

    texts = sent(scene)
    assert texts[0] == compaction_call.HEADING + "all that matters"
    first = compose(scene.run, (), "scripted/a").chat.messages[1]
    assert first.role == Role.ROLE_ASSISTANT
    assert len(texts) == 1 + len(scene.run.transcript) - wish.run_messages
    scene.model("done")
    assert scene.run.life.output is not None
    assert scene.run.life.output.text == "done"
    assert len(scene.run.transcript) > len(texts)


def test_a_long_run_summarises_its_steps_again_and_again_and_says_each_of_them_once() -> None:  # C072 C074
    scene = stage(history=HISTORY[:2])
    told = list[str]()
    for number in range(40):
        if scene.run.compaction.open is not None:
            told.append(asked_for(scene.run, scene.givens["history"]).messages[1].parts[0].text.text)
            summarised(scene, f"notes up to {number}")
        scene.model(f"step {number}.", ("look", f'{{"n": {number}}}'))
        scene.tool(text="r" * 400)
    assert len(told) > 3
    seen = "\n".join(told)
    last = scene.run.compaction.run_messages
    for index, message in enumerate(scene.run.transcript):
        if message.role == Role.ROLE_ASSISTANT:
            assert seen.count(f"{text_of(message)}\n") == (index < last)
    assert all(later.startswith("Earlier notes:\nnotes up to ") for later in told[1:])


# --- after a refusal ---


def test_a_call_refused_for_its_length_is_summarised_and_made_once_more() -> None:  # C071
    scene = stage(window=0)
    refused = scene.model_breaks(PERMANENT, TOO_LONG)

    assert kinds(refused) == ["model_failed", "context_compaction_requested"]
    assert refused[1].is_reactive
    again = summarised(scene)
    assert kinds(again) == ["context_compacted", "model_requested"]
    assert (again[1].step, again[1].attempt) == (1, 2)
    assert sent(scene)[0] == compaction_call.HEADING + "all that matters"
    scene.model("done")
    assert scene.state == "COMPLETED"


def test_a_call_refused_twice_for_its_length_is_not_made_a_third_time() -> None:  # C071
    scene = stage(window=0)
    scene.model_breaks(PERMANENT, TOO_LONG)
    summarised(scene)
    scene.model_breaks(PERMANENT, TOO_LONG)

    assert (scene.state, scene.reason) == ("FAILED", TOO_LONG)
    assert scene.kinds.count("model_requested") == 2
    assert scene.kinds.count("context_compaction_requested") == 1


def test_where_nothing_can_be_summarised_a_refusal_for_length_is_the_runs_end() -> None:  # C071
    scene = stage(window=0, history=())
    scene.model_breaks(PERMANENT, TOO_LONG)

    assert (scene.state, scene.reason) == ("FAILED", TOO_LONG)
    assert "context_compaction_requested" not in scene.kinds


def test_a_summary_that_fails_after_a_refusal_leaves_the_refusal() -> None:
    scene = stage(window=0)
    scene.model_breaks(PERMANENT, TOO_LONG)
    breaks(scene)

    assert (scene.state, scene.reason) == ("FAILED", TOO_LONG)


# --- failures ---


@pytest.mark.parametrize(
    ("failure_class", "usage", "tokens", "source"),
    [
        (AMBIGUOUS, None, None, UsageSource.USAGE_SOURCE_ESTIMATED),
        (PERMANENT, Usage(input_tokens=9), 9, UsageSource.USAGE_SOURCE_REPORTED),
    ],
)
def test_a_run_goes_on_without_a_summary_that_failed(
    failure_class: int, usage: Usage | None, tokens: int | None, source: int
) -> None:
    scene = stage()
    reserve = scene.run.compaction.open.reserve.input_tokens  # type: ignore[union-attr]
    failed, *rest = breaks(scene, failure_class, usage=usage)

    assert kinds(rest) == ["context_built", "model_requested"]
    assert failed.is_final
    assert (failed.usage.input_tokens, failed.usage_source) == (tokens or reserve, source)
    assert scene.run.spend.input_tokens == (tokens or reserve)
    assert scene.run.compaction.open is None
    scene.model("done")
    assert scene.state == "COMPLETED"


def test_a_summary_that_is_none_or_no_shorter_is_a_failure() -> None:
    for end in ("", "word " * 4000):
        scene = stage()
        failed = summarised(scene, end)[0]
        assert failed.reason == "PROVIDER_MALFORMED_OUTPUT"
        assert scene.run.compaction.summary is None


def test_a_model_of_its_own_is_asked_first_and_the_runs_own_one_then() -> None:  # C073
    scene = stage(model="scripted/other")
    asked = scene.last("context_compaction_requested")
    assert asked.endpoint == "scripted/other"
    assert asked.reserve.cost_micro_usd == 3 * (asked.reserve.input_tokens + asked.reserve.output_tokens)

    failed, again = breaks(scene)
    assert not failed.is_final
    assert (again.endpoint, again.attempt) == ("scripted/a", 2)
    assert kinds(breaks(scene)) == ["context_compaction_failed", "context_built", "model_requested"]


def test_a_model_that_is_left_alone_is_not_asked_for_a_summary() -> None:
    health = Health(open_until_ns={"scripted/other": T0 + SECOND})
    scene = stage(model="scripted/other", given={"health": health})

    assert scene.last("context_compaction_requested").endpoint == "scripted/a"


def test_a_failure_is_final_when_every_model_of_the_run_is_left_alone() -> None:
    scene = stage(model="scripted/other")
    scene.givens["health"] = Health(open_until_ns={"scripted/a": T0 + SECOND})

    assert breaks(scene)[0].is_final


def test_a_summary_has_a_time_limit_within_that_of_the_run() -> None:  # C073
    scene = stage(timeout={"seconds": 7})  # type: ignore[arg-type]
    wish = scene.run.compaction.open
    assert wish is not None
    assert wish.deadline_ns == T0 + 7 * SECOND
    assert alarm_ns(scene.run, GRACE_NS) == scene.run.life.deadline_ns


def test_a_summary_that_no_budget_has_room_for_is_not_asked_for() -> None:
    scene = stage(budgets=Budgets(max_total_tokens=500))

    assert "context_compaction_requested" not in scene.kinds
    assert scene.reason == "RUN_BUDGET"


# --- the circuit ---


def test_the_third_failure_in_a_row_opens_the_circuit() -> None:  # C075
    assert kinds(breaks(stage(given={"circuit": Circuit(1, 0, "X")})))[:2] == [
        "context_compaction_failed",
        "context_built",
    ]
    scene = stage(given={"circuit": Circuit(2, 0, "X")})
    opened = breaks(scene)[1]

    assert (opened.failures, opened.until.seconds) == (3, T0 // SECOND + 300)
    assert scene.kinds[-1] == "model_requested"


def test_while_the_circuit_is_open_runs_go_on_without_summaries_and_then_one_is_tried() -> None:  # C075
    circuit = Circuit(3, T0 + SECOND, "X")

    assert stage(given={"circuit": circuit}).kinds[-1] == "model_requested"
    scene = stage(window=0, given={"circuit": circuit})
    scene.model_breaks(PERMANENT, TOO_LONG)
    assert scene.reason == TOO_LONG
    scene = stage(given={"circuit": Circuit(3, T0, "X")})
    assert scene.kinds[-1] == "context_compaction_requested"
    assert scene.kinds.count("compaction_circuit_opened") == 0
    assert kinds(breaks(scene))[1] == "compaction_circuit_opened"


# --- crashes and ends ---


def test_a_crash_during_the_call_counts_it_and_asks_again() -> None:
    scene = stage()
    reserve = scene.run.compaction.open.reserve.input_tokens  # type: ignore[union-attr]
    _, lost, again = scene.crash()

    assert (lost.superseded, lost.usage.input_tokens) == (SupersedeReason.SUPERSEDE_REASON_CRASH, reserve)
    assert (again.attempt, again.step) == (2, 1)
    assert not lost.is_final
    wish = scene.run.compaction.open
    assert wish is not None
    assert scene.do(SummaryEnded(1, answer("of the dead"))) == []
    summarised(scene)
    scene.forget()
    assert scene.run.spend.attempts == 2
    assert sent(scene)[0].endswith("all that matters")


def test_a_call_for_a_summary_is_composed_alike_before_and_after_a_crash() -> None:
    scene = stage()
    first = asked_for(scene.run, HISTORY).SerializeToString(deterministic=True)
    scene.crash()

    assert asked_for(scene.run, HISTORY).SerializeToString(deterministic=True) == first


def test_a_cancelled_run_waits_for_no_summary() -> None:
    scene = stage()
    after = scene.cancel()

    assert kinds(after) == ["run_cancel_requested", "context_compaction_failed", "run_cancelled"]
    assert after[1].superseded == SupersedeReason.SUPERSEDE_REASON_CANCEL
    assert scene.run.compaction.open is None


def test_a_released_run_gives_its_summary_up_and_asks_again() -> None:
    scene = stage()
    after = scene.release()

    assert kinds(after) == [
        "run_released",
        "run_claimed",
        "context_compaction_failed",
        "context_compaction_requested",
    ]


def test_what_is_said_meanwhile_is_not_summarised_and_not_lost() -> None:
    scene = stage()
    assert kinds(scene.say("and another thing")) == ["input_received"]
    summarised(scene)

    assert sent(scene)[-2:] == ["hello", "and another thing"]


def test_an_outcome_that_nobody_waits_for_decides_nothing() -> None:
    scene = stage(history=())
    for signal in (SummaryEnded(1, answer("late")), SummaryBroke(1, TRANSIENT, "PROVIDER_TIMEOUT", "late")):
        assert scene.do(signal) == []


def test_a_summary_is_estimated_where_its_model_reports_no_usage() -> None:
    scene = stage()
    reserve = scene.run.compaction.open.reserve.input_tokens  # type: ignore[union-attr]
    made = summarised(scene, usage=Usage(input_tokens=0, output_tokens=0, attempts=1))[0]

    assert made.usage_source == UsageSource.USAGE_SOURCE_ESTIMATED
    assert made.usage.input_tokens == reserve
    assert made.usage.output_tokens > 0


def test_nothing_is_summarised_while_the_daemon_stops() -> None:
    scene = stage(given={"is_draining": True})
    assert scene.kinds[-1] == "run_started"
    payloads, _ = decide(scene.run, scene.given(is_draining=False), Start(1))
    assert kinds(payloads) == ["context_compaction_requested"]

"""A run that is taken up again from any prefix of its log ends as it would have ended, and any cancel ends it once."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from behest.v1.definition_pb2 import Limits, RunDefinition
from behest.v1.message_pb2 import Message, Role
from behest.v1.run_event_pb2 import ClaimReason
from behestd.core.signals import AskStatus, CallModel, CallTool, Claim, ModelEnded, Start, StatusKnown, ToolEnded, Wake
from behestd.core.wanted import alarm_ns, wanted
from behestd.core.window import is_valid
from tests.core.stage import (
    GRACE_NS,
    IDEMPOTENT,
    NON_IDEMPOTENT,
    PURE,
    QUERYABLE,
    Stage,
    answer,
    definition,
    result,
    text_of,
    tool,
)

Turns = list[list[tuple[str, str]]]

NAMES = {"pure": PURE, "idem": IDEMPOTENT, "query": QUERYABLE}
CALLS = st.tuples(st.sampled_from([*NAMES, "nonsense"]), st.sampled_from(["{}", '{"n":1}', "garbage"]))
SCRIPTS = st.lists(st.lists(CALLS, min_size=1, max_size=4), max_size=4)


def pinned() -> RunDefinition:
    tools = [tool(name, side_effect, doom_loop_exempt=True) for name, side_effect in NAMES.items()]
    return definition(*tools, limits=Limits(max_parallel_tool_calls=2, max_steps=6))


def play(stage: Stage, script: Turns, *, remembers: bool = True) -> None:
    """Go on to the end; the outside answers by what it is asked, not by how often."""
    for _ in range(300):
        if stage.run.is_ended:
            return
        if stage.state == "QUEUED":
            stage.do(Start(1))
            continue
        effects = [effect for effect in wanted(stage.run) if isinstance(effect, CallModel | CallTool | AskStatus)]
        match effects[0] if effects else None:
            case CallModel(step, attempt):
                calls = script[step - 1] if step <= len(script) else []
                stage.do(ModelEnded(step, attempt, answer("" if calls else "the end", *calls)))
            case CallTool(call_id, attempt):
                call = stage.run.call(call_id)
                assert call is not None
                stage.do(ToolEnded(call_id, attempt, result(call, f"{call.call.name} of {call.call.arguments_json}")))
            case AskStatus(call_id, attempt):
                call = stage.run.call(call_id)
                assert call is not None
                found = result(call, f"{call.call.name} of {call.call.arguments_json}")
                stage.do(StatusKnown(call_id, attempt, found if remembers else None))
            case None:
                stage.now_ns = max(stage.now_ns, alarm_ns(stage.run, GRACE_NS))
                stage.do(Wake())
    raise AssertionError("the run does not end")


def told(message: Message) -> tuple[int, str, list[tuple[str, str]], list[str]]:
    """What a message says, without the ids, which hold the number of the attempt."""
    calls = [part.tool_call for part in message.parts if part.WhichOneof("kind") == "tool_call"]
    results = [text_of(part.tool_result) for part in message.parts if part.WhichOneof("kind") == "tool_result"]
    return message.role, text_of(message), [(call.name, call.arguments_json) for call in calls], results


def ending(stage: Stage) -> tuple[object, ...]:
    return stage.state, stage.reason, [told(message) for message in stage.run.transcript]


@settings(max_examples=25, deadline=None, derandomize=True, database=None)
@given(SCRIPTS, st.booleans())
def test_a_run_taken_up_from_any_prefix_ends_the_same(script: Turns, remembers: bool) -> None:  # C079 I19
    whole = Stage(pinned())
    play(whole, script)
    for length in range(1, len(whole.log)):
        stage = Stage.reopened(whole.log[:length], whole.definition, whole.now_ns)
        stage.do(Claim(ClaimReason.CLAIM_REASON_RECOVERY))
        play(stage, script, remembers=remembers)
        assert ending(stage) == ending(whole)


@settings(max_examples=12, deadline=None, derandomize=True, database=None)
@given(SCRIPTS, st.booleans(), st.booleans())
def test_a_cancel_at_any_moment_ends_the_run_once(script: Turns, force: bool, crashes: bool) -> None:  # C049 C050 C056
    whole = Stage(pinned())
    play(whole, script)
    for length in range(1, len(whole.log)):
        stage = Stage.reopened(whole.log[:length], whole.definition, whole.now_ns)
        stage.cancel(force=force)
        if crashes and not stage.run.is_ended:
            stage.crash()
        play(stage, script)
        assert stage.state == "CANCELLED"
        assert stage.kinds.count("run_cancelled") == 1
        assert is_valid(stage.run.transcript)


@pytest.mark.parametrize("name", NAMES)
def test_a_finished_call_is_not_sent_again_after_a_takeover(name: str) -> None:  # C080
    stage = Stage(pinned())
    stage.model("", (name, "{}"), ("pure", '{"n":1}'))
    stage.tool(0)
    stage.crash()
    started = [event.tool_started.call_id for event, _ in stage.log if event.WhichOneof("payload") == "tool_started"]
    assert started.count(stage.call(0).call.id) == 1
    assert started.count(stage.call(1).call.id) == 2
    assert stage.run.call(stage.call(0).call.id) == stage.call(0)
    assert Role.ROLE_TOOL not in [message.role for message in stage.run.transcript]


def test_a_call_without_proof_is_left_to_people_after_a_takeover() -> None:  # C080
    stage = Stage(definition(tool("act", NON_IDEMPOTENT)))
    stage.model("", ("act", "{}"))
    stage.crash()
    assert stage.state == "WAITING"
    assert stage.kinds.count("tool_started") == 1

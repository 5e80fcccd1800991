"""Write a log into the golden corpus: `python -m tests.core.write_golden [NAME ...]`. What is there is never rewritten.

A golden log is a history that some version of the core wrote. Every later version must fold it to the same state; a
change that cannot is a breaking change. Beside each log stand its definition and the JSON of its state.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any

from google.protobuf.json_format import MessageToDict
from google.protobuf.message import Message as AnyMessage

from behest.v1.approval_event_pb2 import ApprovalDecision
from behest.v1.chat_pb2 import FinishReason, ResponseFormat, ResponseFormatKind
from behest.v1.context_event_pb2 import CompactionCircuitOpened, ContextCompacted
from behest.v1.definition_pb2 import (
    Budgets,
    Compaction,
    DoomLoop,
    DoomLoopAction,
    Limits,
    PermissionRule,
    PinnedCompaction,
)
from behest.v1.graph_pb2 import Graph, GraphNode, Loop, Race, Retry
from behest.v1.message_pb2 import Message, Role
from behest.v1.model_event_pb2 import ModelBound
from behest.v1.model_pb2 import ModelLimits, Price
from behest.v1.run_event_pb2 import ChildRunEnded, ChildRunStarted, RunResumed, RunWaiting
from behest.v1.run_state_pb2 import RunState, WaitReason
from behest.v1.tool_pb2 import ToolUnknownPolicy
from behest.v1.usage_pb2 import Usage
from behestd.core.compaction import in_force
from behestd.core.nodes import Visit
from behestd.core.questions import ASK_USER
from behestd.core.run import apply
from behestd.core.signals import ChildEnded, SummaryBroke, SummaryEnded
from behestd.core.times import SECOND, timestamp
from behestd.log import frames
from tests.core.stage import (
    ASK,
    DENY,
    IDEMPOTENT,
    MALFORMED,
    NO,
    NON_IDEMPOTENT,
    PERMANENT,
    PURE,
    QUERYABLE,
    THROTTLED,
    TRANSIENT,
    YES,
    Stage,
    answer,
    definition,
    result,
    said,
    tool,
)
from tests.reasoning.graph_stage import GraphStage, Reply, pinned
from tests.reasoning.test_conduct import edge

PLACE = Path(__file__).parent / "golden"


def text() -> Stage:
    """An answer cut by length, continued, with history, prices and a fork behind it."""
    forked = {"run_id": "run_0", "sequence": 3, "messages": [said("old"), said("reply", Role.ROLE_ASSISTANT)]}
    price = Price(input_micro_usd=3_000_000, output_micro_usd=15_000_000, cached_input_micro_usd=300_000)
    stage = Stage(definition(prices=[price]), forked_from=forked, labels={"team": "a"}, principal="ann")
    stage.model("one ", finish=FinishReason.FINISH_REASON_LENGTH)
    stage.model("two", usage=Usage(input_tokens=100, output_tokens=20, cached_input_tokens=40, reasoning_tokens=7))
    return stage


def tools() -> Stage:
    """Calls of every class, with every outcome."""
    report = ToolUnknownPolicy.TOOL_UNKNOWN_POLICY_REPORT_TO_MODEL
    pinned = definition(
        tool("pure"),
        tool("idem", IDEMPOTENT),
        tool("query", QUERYABLE),
        tool("act", NON_IDEMPOTENT),
        tool("report", NON_IDEMPOTENT, on_unknown=report),
        operator_permissions=[PermissionRule(tool="idem", arguments={"n": "1"}, action=DENY, reason="not one")],
        agent_permissions=[PermissionRule(tool="act", action=ASK)],
        limits=Limits(max_parallel_tool_calls=8),
    )
    stage = Stage(pinned)
    stage.say("quickly", "in_1")
    stage.model(
        "let me see",
        ("pure", "{}"),
        ("idem", '{"n":1}'),
        ("query", "{}"),
        ("act", "{}"),
        ("report", "{}"),
        ("nonsense", ""),
        ("act", '{"n":2}'),
    )
    stage.tool_breaks(0, executed=NO)
    stage.tool_breaks(2)
    stage.tool_breaks(4)
    stage.status(2, found=False)
    stage.wait(1)
    stage.tool(0)
    stage.tool(2, is_error=True)
    stage.decision(ApprovalDecision.APPROVAL_DECISION_APPROVED, 3, arguments_json='{"sure":true}')
    stage.decision(ApprovalDecision.APPROVAL_DECISION_DENIED, 6, reason="once is enough")
    stage.tool_breaks(3)
    stage.resolution(YES, None, 3)
    stage.model("done")
    return stage


def cancelled() -> Stage:
    """A graceful cancel with a call in doubt, after a takeover and a release."""
    stage = Stage(definition(tool("idem", IDEMPOTENT), tool("pure", PURE)))
    stage.crash()
    stage.model("", ("idem", "{}"), ("pure", "{}"))
    stage.release()
    stage.cancel()
    stage.wait(10)
    return stage


def timed_out() -> Stage:
    """A deadline that passes after a wait."""
    stage = Stage(timeout={"seconds": 100})
    stage.model_breaks(THROTTLED, "PROVIDER_RATE_LIMITED", retry_after_ns=60 * SECOND)
    stage.wait(60)
    stage.model_breaks(MALFORMED, "PROVIDER_MALFORMED_OUTPUT")
    stage.wait(100)
    return stage


def failed() -> Stage:
    """A doom loop, warned of and then stopped."""
    loop = DoomLoop(action=DoomLoopAction.DOOM_LOOP_ACTION_STOP, repeats=2, warnings=1)
    stage = Stage(definition(tool(), limits=Limits(doom_loop=loop)))
    for _ in range(3):
        stage.model("", ("look", "{}"))
        stage.tool()
    stage.model("", ("look", "{}"))
    return stage


def rare() -> Stage:
    """The kinds that the core folds and does not make yet, and a run that has not ended."""
    stage = Stage()
    until = timestamp(stage.now_ns + SECOND)
    rest: list[AnyMessage] = [
        ModelBound(step=1, attempt=1, provider_request_id="req_1"),
        ChildRunStarted(child_run_id="run_2", call_id="call_x"),
        ChildRunEnded(child_run_id="run_2", call_id="call_x", usage=Usage(input_tokens=4, attempts=2)),
        ContextCompacted(summary=said("short"), tokens_before=9, tokens_after=2),
        CompactionCircuitOpened(failures=3, until=until),
    ]
    for payload in rest:
        stage.commit([payload], apply(stage.run, payload, stage.now_ns))
    stage.model("", ("look", "{}"))
    stage.tool()
    stage.model_breaks(MALFORMED)
    return stage


def resumed() -> Stage:
    """A wait for an input and its end."""
    stage = Stage()
    stage.model_breaks(THROTTLED)
    for payload in (
        RunWaiting(reason=WaitReason.WAIT_REASON_INPUT, until=timestamp(stage.now_ns + 9 * SECOND)),
        RunResumed(reason=WaitReason.WAIT_REASON_INPUT, deadline=timestamp(stage.now_ns + 99 * SECOND)),
    ):
        stage.commit([payload], apply(stage.run, payload, stage.now_ns))
    return stage


def structured() -> Stage:
    """An answer that has not the form that was asked for, and one that has it inside a fence."""
    form = ResponseFormat(kind=ResponseFormatKind.RESPONSE_FORMAT_KIND_JSON_SCHEMA, schema_json='{"type": "object"}')
    pinned = definition(response_format=form, emulating_models=["scripted/a"])
    stage = Stage(pinned, given={"validate": lambda _tool, text: "" if text.startswith("{") else "no object"})
    stage.model("I would rather not")
    stage.model('```json\n{"a": 1}\n```')
    return stage


def summarised() -> Stage:
    """Summaries: lost in a crash, failed, made beforehand, and made of the run's own steps after a refusal."""
    policy = in_force(Compaction(model="scripted/writer"))
    pinned = definition(
        tool(),
        model_limits=[ModelLimits(context_window_tokens=1000)],
        compaction=PinnedCompaction(policy=policy, window=4000, price=Price(input_micro_usd=1, output_micro_usd=2)),
    )
    history = tuple(
        Message(id=f"msg_{index}", role=role, parts=said("word " * 50).parts)
        for index in range(16)
        for role in [Role.ROLE_ASSISTANT if index % 2 else Role.ROLE_USER]
    )
    stage = Stage(pinned, given={"history": history})
    stage.crash()
    stage.do(SummaryBroke(2, TRANSIENT, "PROVIDER_UNAVAILABLE", "it broke"))
    stage.do(SummaryEnded(3, answer("what was before")))
    for number in range(3):
        stage.model("", ("look", f'{{"n": {number}}}'))
        stage.tool(text="line " * 40)
    stage.model_breaks(PERMANENT, "PROVIDER_CONTEXT_TOO_LONG")
    stage.do(SummaryEnded(4, answer("what was before, and what was looked at")))
    return stage


def asked() -> Stage:
    """Questions to the user beside a call: answered after a release and a crash, and one that is open."""
    stage = Stage(definition(tool(ASK_USER), tool("redo", IDEMPOTENT)))
    stage.model("", (ASK_USER, '{"question":"who?"}'), ("redo", "{}"), (ASK_USER, '{"question":"when?"}'))
    stage.tool(1)
    stage.release()
    stage.say("me", "in_1")
    stage.crash()
    stage.say("now", "in_2")
    stage.say("and quickly", "in_3")
    stage.model("", (ASK_USER, '{"question":"why?"}'))
    return stage


def children() -> Stage:
    """Child runs that complete, fail and could not be created, and one that goes on over a crash."""
    helper = tool("agent_helper", IDEMPOTENT)
    helper.agent_id = "helper"
    order = ("agent_helper", '{"order":"help"}')
    limits = Limits(max_parallel_children=2, max_children=9)
    stage = Stage(definition(helper, limits=limits), budgets=Budgets(max_total_tokens=10_000))
    stage.model("", order, order, order)
    spent = Usage(input_tokens=100, output_tokens=50, cost_micro_usd=7, attempts=3)
    call = stage.call(0)
    stage.do(ChildEnded(call.call.id, call.attempt, RunState.RUN_STATE_COMPLETED, spent, result(call)))
    for index, state, reason in ((1, RunState.RUN_STATE_FAILED, "RUN_BUDGET"), (2, 0, "AGENT_NOT_FOUND")):
        call = stage.call(index)
        stage.do(ChildEnded(call.call.id, call.attempt, state, spent if state else None, reason=reason))
    stage.model("", order)
    stage.crash()
    return stage


def graph() -> Stage:
    """A graph: a failed node, a way back, nodes side by side of which one is stopped, a subgraph, a call of a tool."""
    inner = Graph(
        nodes=[GraphNode(id="think", operator="reason"), GraphNode(id="tell", operator="answer")],
        edges=[edge("think", "tell")],
    )
    nodes = [GraphNode(id=name, operator=operator) for name, operator in GOLDEN_NODES.items()]
    whole = Graph(
        nodes=[*nodes, GraphNode(id="inner", subgraph=inner)],
        edges=[
            edge("plan", "look"),
            edge("plan", "plan", retry=Retry(max_attempts=2)),
            edge("look", "plan", loop=Loop(max_iterations=1)),
            edge("look", "slow", race=Race()),
            edge("look", "fast", race=Race()),
            edge("slow", "inner"),
            edge("fast", "inner"),
            edge("inner", "answer"),
        ],
    )
    replies = {"plan": json.dumps({"rationale": "so", "steps": ["one", "two"]})}
    fails = iter([True])

    def says(visit: Visit, turn: int) -> Reply:
        name = visit.started.node
        if name == "plan" and next(fails, False):
            return None
        return (("see", '{"at": "it"}'),) if name == "look" and turn == 1 else replies.get(name, f"{name} says {turn}")

    stage = GraphStage(pinned(whole, tool("see")), says)
    stage.say("mind the gap")
    return stage.play(lambda effects: effects[-1])


GOLDEN_NODES = {"plan": "plan", "look": "act", "slow": "reason", "fast": "generate", "answer": "answer"}


_PLAIN = (text, tools, cancelled, timed_out, failed, rare, resumed, structured, summarised, asked, children)
SCENES: dict[str, Callable[[], Stage]] = {scene.__name__: scene for scene in (*_PLAIN, graph)}


def plain(value: Any) -> Any:
    """A state as JSON knows it; what the definition and the creation hold stands in their own bytes."""
    if isinstance(value, AnyMessage):
        return MessageToDict(value, preserving_proto_field_name=True)
    if is_dataclass(value) and not isinstance(value, type):
        skipped = ("created", "definition", "tool", "tools", "shape")
        return {field.name: plain(getattr(value, field.name)) for field in fields(value) if field.name not in skipped}
    if isinstance(value, tuple | list):
        return [plain(item) for item in value]
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, frozenset):
        return sorted(plain(item) for item in value)
    return value.hex() if isinstance(value, bytes) else value


def as_json(run: Any) -> str:
    """The text that stands beside a log."""
    return json.dumps(plain(run), indent=1, ensure_ascii=False) + "\n"


def write(name: str) -> None:
    """Play a scene and keep its log. Raises FileExistsError when it is there."""
    stage = SCENES[name]()
    with (PLACE / f"{name}.log.binpb").open("xb") as file:
        file.write(frames.frame(data for _, data in stage.log))
    (PLACE / f"{name}.definition.binpb").write_bytes(stage.definition.SerializeToString(deterministic=True))
    (PLACE / f"{name}.state.json").write_text(as_json(replace(stage.run)))


if __name__ == "__main__":
    for chosen in sys.argv[1:] or SCENES:
        write(chosen)

"""A part of a draft: one visit's conversation with its model or tool, decided about as if it were a run of its own.

Above: `conduct`. Below: the core's decisions about turns and calls, which work on this as on any draft. What ends a
run for the sake of its model ends the node instead; what no node may go on after, as a spent budget, ends the run; a
wait is kept for the graph to weigh against what its other nodes do.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from google.rpc.error_details_pb2 import ErrorInfo
from google.rpc.status_pb2 import Status

from behest.v1.chat_pb2 import ResponseFormat, ResponseFormatKind, Sampling, ToolChoice, ToolChoiceMode
from behest.v1.definition_pb2 import RunDefinition
from behest.v1.graph_pb2 import GraphNode
from behest.v1.message_pb2 import Message, Role
from behest.v1.node_event_pb2 import NodeCompleted, NodeFailed
from behest.v1.operator_pb2 import Operator, ToolUse
from behest.v1.run_event_pb2 import RunFailed, RunWaiting
from behest.v1.run_state_pb2 import RunState
from behest.v1.tool_pb2 import Tool
from behest.v1.usage_pb2 import Usage
from behestd.core import calls, turn
from behestd.core.draft import Draft
from behestd.core.lanes import view
from behestd.core.nodes import Lane, Visit
from behestd.core.run import Payload
from behestd.core.signals import Given
from behestd.core.spend import total
from behestd.core.state import Phase, Run, Spend, replace
from behestd.core.times import duration_ns
from behestd.core.window import said
from behestd.reasoning import prompt, reply
from behestd.reasoning.operators import operator_of
from behestd.reasoning.reply import Use

_OF_RUNS = ("RUN_", "RUNTIME_", "TOOL_", "SESSION_", "REASONING_")
"""Families of reasons that end the run and not the node, save for those of `_OF_NODES`."""
_OF_NODES = ("RUN_DOOM_LOOP",)
_UNSENT = (Phase.NEW, Phase.ASKED, Phase.ALLOWED)
_BUDGETS = ("PROVIDER_PRICE_UNKNOWN",)


class Part(Draft):
    """The draft of one visit; what it notes goes into the draft of the run."""

    def __init__(self, base: Draft, lane: Lane) -> None:
        assert base.run.nodes is not None
        self.base = base
        self.payloads = base.payloads
        self.visit: Visit = base.run.nodes.visit(lane.visit)
        self.node, self.operator = work_of(base.run, self.visit)
        self.rest: RunWaiting | None = None
        """What it waits for, when it does nothing else."""
        self.given = _given(base.given, self.node)
        self._definition = RunDefinition()
        self._asked: tuple[Message, ...] = ()
        self._look(lane)

    def note(self, payload: Payload) -> None:
        """Decide on one more event, or on what it stands for."""
        if isinstance(payload, RunWaiting):
            self.rest = payload
            self.run = replace(self.run, state=RunState.RUN_STATE_WAITING)
        elif isinstance(payload, RunFailed):
            self._end(payload)
        else:
            self.base.note(payload)
            lane = self.base.run.nodes.lanes.get(self.visit.number) if self.base.run.nodes is not None else None
            if lane is not None:
                self._look(lane)

    def _end(self, payload: RunFailed) -> None:
        """End the node, or the run, for a failure."""
        reason = reason_of(payload.error)
        is_run = reason.startswith(_OF_RUNS) and reason not in _OF_NODES
        refusal = self.base.given.refusal
        if is_run or reason in _BUDGETS or (refusal is not None and refusal.reason == reason):
            turn.supersede(self.base, is_crash=False)
            calls.abandon(self.base)
            self.base.note(payload)
        else:
            self.fail(reason, payload.error.message)
        self.run = replace(self.run, state=RunState.RUN_STATE_FAILED)

    def fail(self, reason: str, message: str, text: str = "") -> None:
        """End the node: it came to nothing. `text` is what its model or tool said."""
        delta = reply.failure(self.operator, self.visit.task, text, message)
        number, node = self.visit.number, self.visit.started.node
        self.base.note(
            NodeFailed(visit=number, node=node, delta=delta, reason=reason, message=message, usage=self._usage)
        )
        self.run = replace(self.run, state=RunState.RUN_STATE_FAILED)

    def complete(self, result: reply.Result) -> None:
        """End the node with what it came to."""
        self.base.note(
            NodeCompleted(
                visit=self.visit.number,
                node=self.visit.started.node,
                delta=result.delta,
                outcome=result.outcome,
                score=result.score,
                usage=self._usage,
            )
        )
        self.run = replace(self.run, state=RunState.RUN_STATE_COMPLETED)

    @property
    def _usage(self) -> Usage:
        assert self.base.run.nodes is not None
        return total(self.base.run.nodes.visit(self.visit.number).spend)

    @property
    def is_over(self) -> bool:
        """Whether the visit, or the run, has ended, or waits."""
        return self.run.state != RunState.RUN_STATE_RUNNING or self.base.run.state != RunState.RUN_STATE_RUNNING

    def _look(self, lane: Lane) -> None:
        seen = replace(view(self.base.run, lane), aside=_aside(self.base.run, lane))
        if self._asked:
            self.run = replace(seen, definition=self._definition, transcript=self._asked + seen.transcript)
        else:
            self.run = replace(seen, definition=_bare(seen.definition, self.node))

    def dress(self) -> None:
        """Put on what the model is asked: the prompt before the transcript, and how it may answer."""
        assert self.base.run.nodes is not None
        lane = self.base.run.nodes.lanes[self.visit.number]
        self._asked, self._definition = asked(self.base.run, lane, self.visit)
        self._look(lane)

    # --- what its conversation came to ---

    @property
    def uses(self) -> tuple[Use, ...]:
        """The calls of tools that have a result, oldest first."""
        assert self.base.run.nodes is not None
        return uses_of(self.base.run.nodes.lanes[self.visit.number])

    @property
    def turns(self) -> int:
        """The turns in which tools were called."""
        assert self.base.run.nodes is not None
        return _turns(self.base.run.nodes.lanes[self.visit.number])

    @property
    def most_turns(self) -> int:
        """The turns in which tools may be called."""
        return most_turns(self.operator, self.node)


def work_of(run: Run, visit: Visit) -> tuple[GraphNode, Operator]:
    """The node of a visit, and its operator."""
    assert run.nodes is not None
    path, slash, name = visit.started.node.rpartition("/")
    shape = run.nodes.shape.at(path + slash)
    node = shape.nodes[name]
    operator = operator_of(shape.graph, node.operator)
    assert operator is not None
    return node, operator


def _aside(run: Run, lane: Lane) -> Spend:
    """What is set aside for the open attempts of all visits but one, and for their calls that have not left."""
    others = (call for call in run.calls if call.attempt == 0 and call.phase in _UNSENT)
    reserves = [attempt.reserve for step, attempt in run.attempts if step != lane.step.number]
    return Spend(
        input_tokens=sum(reserve.input_tokens for reserve in reserves),
        output_tokens=sum(reserve.output_tokens for reserve in reserves),
        cost_micro_usd=sum(reserve.cost_micro_usd for reserve in reserves),
        tool_calls=sum(call not in lane.step.calls for call in others),
    )


def reason_of(status: Status) -> str:
    """The reason in a status, one of ErrorReason; empty when there is none."""
    info = ErrorInfo()
    return next((info.reason for detail in status.details if detail.Unpack(info)), "")


def _given(given: Given, node: GraphNode) -> Given:
    changes: dict[str, object] = {"history": ()}
    if node.HasField("timeout"):
        changes["model_timeout_ns"] = min(given.model_timeout_ns, duration_ns(node.timeout))
    if node.HasField("max_attempts"):
        changes["retries"] = dataclasses.replace(
            given.retries, attempts_per_endpoint=node.max_attempts, attempts_per_step=node.max_attempts
        )
    return dataclasses.replace(given, **changes)  # type: ignore[arg-type]  # names of its fields


# --- what a model is asked ---


def asked(run: Run, lane: Lane, visit: Visit) -> tuple[tuple[Message, ...], RunDefinition]:
    """The prompt of a visit, and the definition that its model calls are composed by. The same whenever it is asked."""
    node, operator = work_of(run, visit)
    text = prompt.ask(operator, node, visit.task)
    return (said(Role.ROLE_USER, text),), _definition(run.definition, operator, node, _turns(lane))


def dressed(run: Run, lane: Lane) -> Run:
    """The view of a lane by which its open model call is composed."""
    assert run.nodes is not None
    messages, definition = asked(run, lane, run.nodes.visit(lane.visit))
    seen = view(run, lane)
    return replace(seen, definition=definition, transcript=messages + seen.transcript)


def uses_of(lane: Lane) -> tuple[Use, ...]:
    """The calls of a lane that have a result, oldest first."""
    asked_for = {
        part.tool_call.id: part.tool_call
        for message in lane.transcript
        for part in message.parts
        if part.HasField("tool_call")
    } | {call.call.id: call.call for call in lane.step.calls}
    results = (
        part.tool_result for message in lane.transcript for part in message.parts if part.HasField("tool_result")
    )
    return tuple(
        Use(
            result.name,
            asked_for[result.call_id].arguments_json if result.call_id in asked_for else "",
            "".join(part.text.text or part.json.json for part in result.parts),
            result.is_error,
        )
        for result in results
    )


def _turns(lane: Lane) -> int:
    return sum(message.role == Role.ROLE_TOOL for message in lane.transcript)


def most_turns(operator: Operator, node: GraphNode) -> int:
    """The turns in which the model of a node may call tools."""
    if not operator.tool_use:
        return 0
    if node.HasField("max_turns"):
        return node.max_turns
    return operator.max_turns if operator.HasField("max_turns") else 1


def _route(pinned: RunDefinition, node: GraphNode) -> dict[str, Any]:
    """The models of a node, and what is known of them."""
    if not node.model:
        return {
            "models": pinned.models,
            "prices": pinned.prices,
            "model_limits": pinned.model_limits,
            "emulating_models": pinned.emulating_models,
        }
    found = [model for model in pinned.node_models if model.endpoint == node.model]
    return {
        "models": [node.model],
        "prices": [model.price for model in found],
        "model_limits": [model.limits for model in found],
        "emulating_models": [model.endpoint for model in found if model.is_emulating],
    }


def _rules(pinned: RunDefinition) -> dict[str, Any]:
    """The fields by which calls are judged."""
    return {
        "agent_id": pinned.agent_id,
        "agent_version": pinned.agent_version,
        "limits": pinned.limits,
        "operator_permissions": pinned.operator_permissions,
        "agent_permissions": pinned.agent_permissions,
        "default_permission": pinned.default_permission,
        "tool_scopes": pinned.tool_scopes,
        "inherited_permissions": pinned.inherited_permissions,
        "approval_timeout": pinned.approval_timeout if pinned.HasField("approval_timeout") else None,
    }


def _bare(pinned: RunDefinition, node: GraphNode) -> RunDefinition:
    """The definition by which answers are judged: the run's own, unless the node has a model of its own."""
    return RunDefinition(tools=pinned.tools, **_route(pinned, node), **_rules(pinned)) if node.model else pinned


def _definition(pinned: RunDefinition, operator: Operator, node: GraphNode, turns: int) -> RunDefinition:
    sampling = Sampling()
    sampling.MergeFrom(pinned.sampling)
    sampling.MergeFrom(node.sampling)
    may_call = turns < most_turns(operator, node)
    tools: list[Tool] = []
    choice = None
    if operator.tool_use:
        tools = [tool for tool in pinned.tools if not node.tools or tool.name in node.tools]
        choice = _choice(operator, turns, may_call=may_call)
    schema = prompt.schema(operator, node)
    form = None
    if schema and (choice is None or choice.mode != ToolChoiceMode.TOOL_CHOICE_MODE_REQUIRED):
        form = ResponseFormat(
            kind=ResponseFormatKind.RESPONSE_FORMAT_KIND_JSON_SCHEMA,
            schema_json=schema,
            schema_name=operator.name,
            strict=True,
            emulate=True,
        )
    return RunDefinition(
        instructions=prompt.system(operator, node, pinned.instructions),
        sampling=sampling if pinned.HasField("sampling") or node.HasField("sampling") else None,
        provider_options_json=pinned.provider_options_json,
        tools=tools,
        tool_choice=choice,
        response_format=form,
        **_route(pinned, node),
        **_rules(pinned),
    )


def _choice(operator: Operator, turns: int, *, may_call: bool) -> ToolChoice:
    if not may_call:
        return ToolChoice(mode=ToolChoiceMode.TOOL_CHOICE_MODE_NONE)
    if turns or operator.tool_use == ToolUse.TOOL_USE_OPTIONAL:
        return ToolChoice(mode=ToolChoiceMode.TOOL_CHOICE_MODE_AUTO)
    return ToolChoice(mode=ToolChoiceMode.TOOL_CHOICE_MODE_REQUIRED)

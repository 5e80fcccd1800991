"""How graphs end, and how nodes at work are stopped. Above: `conduct`. Below: the core's decisions.

A graph that is the run's own ends the run; one that is a node ends that node's visit, and what it came to goes on as a
text artifact. Nothing that is stopped is lost silently: an open model attempt is superseded, a call in flight that may
take effect is left in doubt, a call that waits is refused.
"""

from __future__ import annotations

from hashlib import sha256

from behest.v1 import model_event_pb2 as models
from behest.v1 import run_event_pb2 as events
from behest.v1.chat_pb2 import FinishReason
from behest.v1.message_pb2 import Message, Part, Role, TextPart
from behest.v1.model_event_pb2 import SupersedeReason
from behest.v1.node_event_pb2 import NodeCompleted, NodeFailed, NodeOutcome, NodeSkipped, NodeSkipReason
from behest.v1.run_state_pb2 import RunOutput
from behest.v1.task_pb2 import StepStatus, TaskArtifact, TaskArtifactKind, TaskDelta, TaskStep
from behest.v1.tool_event_pb2 import ToolDenied
from behest.v1.usage_pb2 import Usage
from behestd.core import calls
from behestd.core.draft import Draft, failure_status
from behestd.core.nodes import Nodes, Scope
from behestd.core.spend import priced, total
from behestd.core.state import Call, Phase, Run
from behestd.core.task import TaskState, merged
from behestd.core.turn import price_of
from behestd.core.wanted import is_awaited
from behestd.reasoning.operators import operator_of
from behestd.reasoning.prompt import schema
from behestd.reasoning.schedule import Answered, Completed, Ending, Failed

_OVER = NodeSkipReason.NODE_SKIP_REASON_OVER
_WAITING = (Phase.NEW, Phase.ASKED, Phase.ALLOWED)


def finish(draft: Draft, scope: Scope, end: Ending) -> None:
    """End a graph: the run, or the node that it is."""
    nodes = _nodes(draft)
    for number in reversed(_at_work(nodes, scope.visit)):
        stop(draft, number, _OVER)
    if isinstance(end, Failed):
        _fail(draft, scope, end)
        return
    task = came_to(nodes, scope, end)
    if scope.visit:
        _complete_node(draft, scope.visit, task)
    else:
        draft.note(events.RunCompleted(output=_output(draft.run, task)))


def came_to(nodes: Nodes, scope: Scope, end: Answered | Completed) -> TaskState:
    """The task that a graph came to; what it started from where all that began was in vain."""
    if isinstance(end, Answered):
        return nodes.after(end.visit)
    return merged([nodes.after(visit) for visit in end.visits] or [_start(nodes, scope)])


def _at_work(nodes: Nodes, scope: int) -> list[int]:
    """The visits at work in a graph, in the order in which they began."""
    numbers = sorted({*nodes.lanes, *(number for number in nodes.scopes if number)})
    return [number for number in numbers if nodes.visit(number).started.scope == scope]


def _start(nodes: Nodes, scope: Scope) -> TaskState:
    """What a graph started from."""
    return nodes.visit(scope.visit).task if scope.visit else nodes.task


def _nodes(draft: Draft) -> Nodes:
    assert draft.run.nodes is not None
    return draft.run.nodes


def _fail(draft: Draft, scope: Scope, end: Failed) -> None:
    if scope.visit:
        visit = _nodes(draft).visit(scope.visit)
        step = TaskStep(status=StepStatus.STEP_STATUS_FAILED, output=end.message)
        usage = total(visit.spend)
        draft.note(
            NodeFailed(
                visit=scope.visit,
                node=visit.started.node,
                delta=TaskDelta(steps=[step]),
                reason=end.reason,
                message=end.message,
                usage=usage,
            )
        )
        return
    name = "limit" if end.reason == "REASONING_ITERATION_LIMIT" else "iteration"
    facts: dict[str, object] = {name: end.iteration}
    if end.node:
        facts["node"] = end.node
    if end.visit:
        facts |= {"visit": end.visit, "cause": _nodes(draft).visit(end.visit).reason}
    draft.note(events.RunFailed(error=failure_status(end.reason, end.message, **facts)))


def _complete_node(draft: Draft, number: int, task: TaskState) -> None:
    """End the visit of a subgraph with its answer, or with the last thing that it came to."""
    visit = _nodes(draft).visit(number)
    name = visit.started.node.rpartition("/")[2]
    text = _text(task)
    step = TaskStep(output=text, status=StepStatus.STEP_STATUS_COMPLETED)
    artifact = TaskArtifact(kind=TaskArtifactKind.TASK_ARTIFACT_KIND_TEXT, title=name, content=text)
    draft.note(
        NodeCompleted(
            visit=number,
            node=visit.started.node,
            delta=TaskDelta(steps=[step], artifacts=[artifact] if text else []),
            outcome=NodeOutcome.NODE_OUTCOME_SUCCESS,
            usage=total(visit.spend),
        )
    )


def _text(task: TaskState) -> str:
    if task.answer is not None:
        return task.answer.content
    if task.artifacts:
        return task.artifacts[-1].content
    return task.steps[-1].output if task.steps else ""


def _output(run: Run, task: TaskState) -> RunOutput:
    """What comes of a run: its answer, or the last thing that it came to."""
    text = _text(task)
    seed = f"{run.created.namespace}\0{run.id}\0answer"
    message = Message(
        id="msg_" + sha256(seed.encode()).hexdigest()[:32],
        role=Role.ROLE_ASSISTANT,
        parts=[Part(text=TextPart(text=text))],
    )
    answer_json = _json(run, task)
    return RunOutput(text=text, json=answer_json, message=message, finish_reason=FinishReason.FINISH_REASON_STOP)


def _json(run: Run, task: TaskState) -> str:
    """The answer, where its node was asked for JSON."""
    if task.answer is None or run.nodes is None:
        return ""
    node = run.nodes.shape.nodes.get(task.answer.provenance.node)
    operator = operator_of(run.definition.graph, node.operator) if node is not None else None
    return task.answer.content if node is not None and operator is not None and schema(operator, node) else ""


# --- stopping ---


def stop(draft: Draft, number: int, reason: NodeSkipReason.ValueType) -> None:
    """Stop a visit at work, with all that is at work in it."""
    nodes = _nodes(draft)
    visit = nodes.visit(number)
    for inner in reversed(_at_work(nodes, number)) if number in nodes.scopes else ():
        stop(draft, inner, _OVER)
    lane = nodes.lanes.get(number)
    if lane is not None:
        _void(draft, number)
        for call in lane.step.calls:
            _drop(draft, call)
    spend = _nodes(draft).visit(number).spend
    draft.note(
        NodeSkipped(visit=number, node=visit.started.node, scope=visit.started.scope, reason=reason, usage=total(spend))
    )


def _void(draft: Draft, number: int) -> None:
    """Void the open model attempt of a visit."""
    step = _nodes(draft).lanes[number].step
    if step.open is None:
        return
    price = price_of(draft.run, step.open.endpoint)
    draft.note(
        models.ModelSuperseded(
            step=step.number,
            attempt=step.open.number,
            reason=SupersedeReason.SUPERSEDE_REASON_CANCEL,
            usage=priced(Usage(input_tokens=step.open.reserve.input_tokens), price),
        )
    )


def _drop(draft: Draft, call: Call) -> None:
    """Let go of a call of a visit that is stopped."""
    if call.phase in _WAITING:
        text = "the call was not made: its node was stopped"
        draft.note(ToolDenied(call_id=call.call.id, rule="stopped", message=text))
    elif is_awaited(call) or call.phase is Phase.UNKNOWN:
        calls.leave_in_doubt(draft, call)
    elif call.phase is not Phase.DONE:
        calls.drop(draft, call, "the node was stopped during the call")

"""How runs with a graph go on: what each node's conversation leads to, and which nodes follow. Pure.

Above: `runtime`, which chooses by what a run is pinned to. Below: `part` (one node's conversation), `schedule` (what
follows what) and the core's decisions about turns and calls. As in every run, all that follows from one signal is one
commit; what the shell is to do is read from the state (`wanted`). Nodes are looked at in the order in which they began,
graphs from the innermost outwards, so the same log leads to the same decisions.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from hashlib import sha256

from behest.v1.message_pb2 import ToolCall
from behest.v1.model_event_pb2 import AnswerRejected
from behest.v1.node_event_pb2 import NodeSkipped, NodeStarted
from behest.v1.operator_pb2 import ToolUse
from behest.v1.run_event_pb2 import RunResumed, RunWaiting
from behest.v1.run_state_pb2 import RunState
from behestd.core import calls, turn, waits
from behestd.core.draft import Draft
from behestd.core.lanes import busy_calls, lane_of_call, lane_of_step, view
from behestd.core.nodes import Lane, Scope
from behestd.core.pauses import Pauses
from behestd.core.run import Payload
from behestd.core.signals import AskStatus, CallModel, CallTool, CancelTool, Effect, Given
from behestd.core.state import Phase, Run, replace
from behestd.core.times import nanoseconds
from behestd.core.wanted import alarm_ns as alarm_of_loop
from behestd.core.wanted import wanted as wanted_of_loop
from behestd.reasoning import endings, prompt, reply
from behestd.reasoning.operators import operator_of
from behestd.reasoning.part import Part, dressed
from behestd.reasoning.schedule import Begin, Skip, ending, moves

_RUNNING = RunState.RUN_STATE_RUNNING
PARALLEL_NODES = 16
"""Most nodes of a run at work at once, where its graph says nothing."""
REJECTIONS = 2
"""How often a model is asked again for a reply that has not its form."""


class Graph:
    """Runs with a graph."""

    def part(self, draft: Draft, step: int) -> Draft:
        """The draft of the node that has a step."""
        lane = lane_of_step(draft.run, step)
        return Part(draft, lane) if lane is not None else draft

    def resume(self, draft: Draft) -> None:
        """End the wait, to see whether some node can go on."""
        wait = draft.run.life.wait
        if wait is not None and not draft.given.is_draining:
            waits.resume(draft, wait, expired=False)

    def go_on(self, draft: Draft) -> None:
        """Go on with every node at work, and begin those that follow, until nothing moves."""
        rests: dict[int, RunWaiting] = {}
        before = -1
        while draft.run.state == _RUNNING and len(draft.payloads) > before:
            before = len(draft.payloads)
            rests = _work(draft)
            _follow(draft)
        lanes = draft.run.nodes.lanes if draft.run.nodes is not None else {}
        if draft.run.state == _RUNNING and lanes and lanes.keys() == rests.keys():
            draft.note(min(rests.values(), key=lambda rest: nanoseconds(rest.until)))

    def is_unmoved(self, payloads: Sequence[Payload], before: Run) -> bool:
        """Whether a run that waited comes to the same wait."""
        wait = before.life.wait
        if wait is None or len(payloads) != 2:
            return False
        resumed, waiting = payloads
        is_same = isinstance(waiting, RunWaiting) and (waiting.reason, waiting.subject) == (wait.reason, wait.subject)
        return isinstance(resumed, RunResumed) and is_same


GRAPH = Graph()

# --- what goes on ---


def wanted(run: Run) -> tuple[Effect, ...]:
    """The effects of a run, nodes in the order in which they began."""
    lanes, busy = (run.nodes.lanes.values() if run.nodes is not None else ()), busy_calls(run)
    return tuple(effect for lane in lanes for effect in wanted_of_loop(view(run, lane, busy)))


def alarm_ns(run: Run, cancel_grace_ns: int, pauses: Pauses, given: Callable[[], Given]) -> int:
    """When the run is to be looked at again at the latest; 0 never.

    A node may rest for its model while others work, with no wait of the run to tell until when: `given` tells.
    """
    lanes, busy = (run.nodes.lanes.values() if run.nodes is not None else ()), busy_calls(run)
    times = [alarm_of_loop(run, cancel_grace_ns, pauses)]
    resting: list[Lane] = []
    for lane in lanes:
        seen = view(run, lane, busy)
        if run.state == _RUNNING and _rests_for_model(lane):
            resting.append(lane)
            seen = replace(seen, step=replace(lane.step, failures=()))
        times.append(alarm_of_loop(seen, cancel_grace_ns, pauses))
    if resting:
        draft = Draft(run, given())
        times.extend(turn.due_ns(Part(draft, lane)) for lane in resting)
    return min((time for time in times if time), default=0)


def _rests_for_model(lane: Lane) -> bool:
    step = lane.step
    return step.open is None and (not step.answered or all(call.phase is Phase.DONE for call in step.calls))


def view_of(run: Run, effect: Effect) -> Run:
    """The run as the effect of one of its nodes sees it."""
    lane: Lane | None = None
    if isinstance(effect, CallModel):
        lane = lane_of_step(run, effect.step)
        return dressed(run, lane) if lane is not None else run
    if isinstance(effect, CallTool | CancelTool | AskStatus):
        lane = lane_of_call(run, effect.call_id)
    return view(run, lane) if lane is not None else run


# --- nodes at work ---


def _work(draft: Draft) -> dict[int, RunWaiting]:
    """Go on with each node at work; what those wait for that do nothing but wait."""
    assert draft.run.nodes is not None
    rests: dict[int, RunWaiting] = {}
    for number in tuple(draft.run.nodes.lanes):
        lane = draft.run.nodes.lanes.get(number)
        if lane is None or lane.step.open is not None:
            continue
        part = Part(draft, lane)
        _go_on(part)
        if draft.run.state != _RUNNING:
            break
        if part.rest is not None:
            rests[number] = part.rest
    return rests


def _go_on(part: Part) -> None:
    while not part.is_over:
        step, before = part.run.step, len(part.payloads)
        if step.open is not None:
            return
        if step.answered and any(call.phase is not Phase.DONE for call in step.calls):
            if part.given.is_draining:
                return
            calls.progress(part)
        elif step.answered:
            _conclude(part)
        else:
            _ask(part)
        if len(part.payloads) == before:
            break
    if not part.is_over:
        waits.park(part)


def _ask(part: Part) -> None:
    """Ask the model of a node."""
    if not part.given.is_draining:
        part.dress()
        turn.request(part)


def _conclude(part: Part) -> None:
    """After an answer, or the end of all calls: the next turn, or the end of the node."""
    if part.operator.tool:
        _conclude_tool(part)
        return
    is_last = part.operator.tool_use == ToolUse.TOOL_USE_RESULTS and part.turns >= part.most_turns
    if part.run.step.calls and is_last:
        _complete(part, "")
    elif not turn.is_over(part.run):
        _ask(part)
    else:
        _complete(part, turn.output(part.run).text)


def _complete(part: Part, text: str) -> None:
    """End a node with its reply, or have the model asked again when that has not its form."""
    operator, uses = part.operator, part.uses
    must_call = operator.tool_use in (ToolUse.TOOL_USE_RESULTS, ToolUse.TOOL_USE_REPORT)
    if must_call and not uses:
        read = reply.Read(None, "call one of the tools first")
    elif operator.tool_use == ToolUse.TOOL_USE_RESULTS:
        schema = prompt.schema(operator, part.node)
        read = reply.read_uses(operator, schema, uses, part.given.validate, part.visit.task)
    else:
        read = reply.read(operator, prompt.schema(operator, part.node), text, part.given.validate, part.visit.task)
    if not read.problem:
        part.complete(reply.result(operator, part.visit.task, read, uses))
    elif part.run.turns.malformed >= REJECTIONS:
        told = f"the reply has not the form that was asked for, {REJECTIONS + 1} times: {read.problem}"
        part.fail("REASONING_REPLY_INVALID", told, text)
    else:
        part.note(AnswerRejected(step=part.run.step.number, problem=read.problem))


def _conclude_tool(part: Part) -> None:
    """End a node whose work a tool does."""
    use = part.uses[-1]
    read = reply.read(
        part.operator, prompt.schema(part.operator, part.node), use.output, part.given.validate, part.visit.task
    )
    if use.is_error:
        part.fail("TOOL_FAILED", f"tool {use.tool} failed", use.output)
    elif read.problem:
        part.fail(
            "REASONING_REPLY_INVALID", f"the result of tool {use.tool} has not its form: {read.problem}", use.output
        )
    else:
        part.complete(reply.result(part.operator, part.visit.task, read, ()))


# --- what follows ---


def _follow(draft: Draft) -> None:
    """Begin, skip and end what follows from the nodes that have ended, in every graph at work."""
    assert draft.run.nodes is not None
    for number in sorted(draft.run.nodes.scopes, reverse=True):
        while draft.run.state == _RUNNING and _follow_in(draft, number):
            pass


def _follow_in(draft: Draft, number: int) -> bool:
    """Take one step of what follows in a graph. Whether there was one."""
    nodes = draft.run.nodes
    assert nodes is not None
    scope = nodes.scopes.get(number)
    if scope is None:
        return False
    shape = nodes.shape_of(number)
    room = _parallel(draft.run) - len(nodes.lanes)
    found = moves(shape, scope, nodes.after, nodes.score, room)
    if found and not (draft.given.is_draining and any(isinstance(move, Begin) for move in found)):
        for move in found:
            _take(draft, draft.run.nodes.scopes[number] if draft.run.nodes is not None else scope, move)
            if draft.run.state != _RUNNING:
                break
        return True
    if found:
        return False
    end = ending(shape, scope, nodes.after, nodes.score)
    if end is not None:
        endings.finish(draft, scope, end)
    return end is not None


def _parallel(run: Run) -> int:
    graph = run.definition.graph
    return graph.max_parallel_nodes if graph.HasField("max_parallel_nodes") else PARALLEL_NODES


def _take(draft: Draft, scope: Scope, move: Begin | Skip) -> None:
    if isinstance(move, Begin):
        _begin(draft, scope, move)
        return
    if move.visit:
        endings.stop(draft, move.visit, move.reason)
    else:
        path = scope.path + move.node
        draft.note(NodeSkipped(node=path, scope=scope.visit, reason=move.reason))


def _begin(draft: Draft, scope: Scope, move: Begin) -> None:
    nodes = draft.run.nodes
    assert nodes is not None
    shape = nodes.shape.at(scope.path)
    node = shape.nodes[move.node]
    visit = len(nodes.visits) + 1
    started = NodeStarted(
        visit=visit,
        node=scope.path + move.node,
        scope=scope.visit,
        inputs=move.inputs,
        edge=move.edge,
        again=move.again,
        iteration=move.iteration,
        operator=node.operator,
    )
    operator = operator_of(shape.graph, node.operator) if node.operator else None
    if operator is not None and operator.tool:
        text = prompt.ask(operator, node, nodes.task_of(started))
        seed = f"{draft.run.created.namespace}\0{draft.run.id}\0visit\0{visit}"
        call = ToolCall(
            id="call_" + sha256(seed.encode()).hexdigest()[:32],
            name=operator.tool,
            arguments_json=json.dumps({"task": text}, ensure_ascii=False),
        )
        started.MergeFrom(NodeStarted(call=call, step=draft.run.steps + 1))
    draft.note(started)

"""A stage for runs with a graph: models and tools that answer by node, in any order, with crashes wherever one likes.

As on the stage of plain runs each commit is stamped, folded from its bytes and held against the laws, so whatever is
played, what is in memory and what the log says stay the same.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

from google.protobuf.message import Message as AnyMessage

from behest.v1.definition_pb2 import Limits, RunDefinition
from behest.v1.event_pb2 import Event
from behest.v1.graph_pb2 import Graph
from behest.v1.message_pb2 import ToolResult
from behest.v1.run_event_pb2 import ClaimReason
from behest.v1.task_pb2 import Goal, Task
from behest.v1.tool_pb2 import Tool
from behestd.core.lanes import lane_of_call, lane_of_step
from behestd.core.nodes import Visit
from behestd.core.pauses import NONE
from behestd.core.run import fold, start
from behestd.core.signals import CallModel, CallTool, Claim, Effect, ModelBroke, ModelEnded, Signal, Start, ToolEnded
from behestd.core.state import Run
from behestd.core.window import Window, compose
from behestd.reasoning.operators import operator_of
from behestd.runtime.kinds import alarm_ns, decide, seen_by, wanted
from behestd.tools.schema import Validators
from tests.core.stage import GRACE_NS, PERMANENT, T0, Stage, answer, created, definition
from tests.reasoning.graph_laws import GraphLaws

VALIDATORS = Validators()
Reply = str | tuple[tuple[str, str], ...] | None
"""What a model says: a text, or calls as (name, arguments). None: the call fails for good."""


def pinned(graph: Graph, *tools: Tool, **fields: Any) -> RunDefinition:
    """The definition of a run of a graph, its operators pinned with it."""
    whole = Graph()
    whole.CopyFrom(graph)
    for each in (whole, *(node.subgraph for node in whole.nodes if node.HasField("subgraph"))):
        named = dict.fromkeys(node.operator for node in each.nodes if node.operator)
        found = [operator_of(each, name) for name in named]
        del each.operators[:]
        each.operators.extend(operator for operator in found if operator is not None)
    fields = {"limits": Limits(max_steps=10_000)} | fields
    return definition(*tools, graph=whole, **fields)


def task(goal: str = "find out", text: str = "the input") -> Task:
    """A task."""
    made = Task(goal=Goal(description=goal))
    made.context.input = text
    return made


ERROR = "error: "
"""How the text begins of a tool that calls its result an error."""


class GraphStage(Stage):
    """One run of a graph. `says` tells what the model of a visit answers in its turn, counted from 1."""

    def __init__(
        self,
        graph: RunDefinition,
        says: Callable[[Visit, int], Reply] = lambda visit, turn: f"{visit.started.node} says {turn}",
        *,
        does: Callable[[str, str], str] | None = None,
        begun: bool = True,
        **fields: Any,
    ) -> None:
        self.says = says
        self.does = does or (lambda name, arguments: f"{name} did {arguments}")
        self.definition, self.now_ns = graph, T0
        self.givens = {"validate": VALIDATORS.arguments} | fields.pop("given", {})
        self.log: list[tuple[Event, bytes]] = []
        self.ends: list[int] = []
        """How many events the log had after each commit."""
        self.laws: GraphLaws = GraphLaws(graph)
        self.shadow: Run | None = None
        first = created(**{"task": task()} | fields)
        self.run = start("run_1", first, graph, self.now_ns)
        self.commit([first], self.run, is_first=True)
        if begun:
            self.begin()

    @classmethod
    def resumed(cls, other: GraphStage, events: int) -> GraphStage:
        """The stage of the same run, of whose log the first events are left, and nothing else."""
        stage = cls.__new__(cls)
        stage.says, stage.does = other.says, other.does
        stage.definition, stage.now_ns, stage.givens = other.definition, other.now_ns, other.givens
        stage.log, stage.ends, stage.laws, stage.shadow = [], [], GraphLaws(other.definition), None
        for event, data in other.log[:events]:
            stage._record(event, data)
        stage.run = fold("run_1", stage.log, stage.definition)
        if stage.run.state == 1:
            stage.begin()
        elif not stage.run.is_ended:
            stage.do(Claim(ClaimReason.CLAIM_REASON_RECOVERY))
        return stage

    def begin(self) -> list[Any]:
        """Claim and start the run."""
        return self.do(Claim(ClaimReason.CLAIM_REASON_CREATED)) + self.do(Start(1))

    def commit(self, payloads: Sequence[AnyMessage], after: Run, *, is_first: bool = False) -> None:
        """Commit, and note where in the log that ended."""
        super().commit(payloads, after, is_first=is_first)
        self.ends.append(len(self.log))

    def do(self, signal: Signal, **given: Any) -> list[Any]:
        """Let something happen, and commit what follows."""
        payloads, after = decide(self.run, self.given(**given), signal)
        self.commit(payloads, after)
        return payloads

    def alarm_ns(self) -> int:
        """When the run is to be looked at again; 0 never."""
        return alarm_ns(self.run, GRACE_NS, self.givens.get("pauses", NONE), self.given)

    # --- what goes on ---

    @property
    def effects(self) -> tuple[Effect, ...]:
        """What should be going on."""
        return wanted(self.run)

    def window(self, effect: CallModel) -> Window:
        """What the model of an effect sees."""
        return compose(seen_by(self.run, effect), (), effect.endpoint)

    def visit_of(self, effect: Effect) -> Visit:
        """The visit that an effect belongs to."""
        nodes = self.run.nodes
        assert nodes is not None
        lane = lane_of_step(self.run, effect.step) if isinstance(effect, CallModel) else None
        lane = lane or lane_of_call(self.run, getattr(effect, "call_id", ""))
        assert lane is not None
        return nodes.visit(lane.visit)

    def end(self, effect: Effect) -> list[Any]:
        """One effect comes to its outcome."""
        if isinstance(effect, CallModel):
            nodes = self.run.nodes
            visit = self.visit_of(effect)
            assert nodes is not None
            turn = 1 + sum(message.role == 3 for message in nodes.lanes[visit.number].transcript)
            said = self.says(visit, turn)
            if said is None:
                return self.do(ModelBroke(effect.step, effect.attempt, PERMANENT, "PROVIDER_REQUEST_INVALID", "no"))
            end = answer(said) if isinstance(said, str) else answer("", *said)
            return self.do(ModelEnded(effect.step, effect.attempt, end))
        assert isinstance(effect, CallTool)
        call = self.run.call(effect.call_id)
        assert call is not None
        text = self.does(call.call.name, call.call.arguments_json)
        found = ToolResult(call_id=effect.call_id, name=call.call.name, is_error=text.startswith(ERROR))
        text = text.removeprefix(ERROR)
        found.parts.add().text.text = text
        return self.do(ToolEnded(effect.call_id, effect.attempt, found))

    def play(self, choose: Callable[[Sequence[Effect]], Effect] | None = None, most: int = 10_000) -> GraphStage:
        """Let everything come to its end, one effect after the other as chosen: by default the first that there is."""
        for _ in range(most):
            effects = self.effects
            if self.run.is_ended or not effects:
                return self
            self.end(choose(effects) if choose is not None else effects[0])
        raise AssertionError("the run does not end")

    # --- what there is to see ---

    @property
    def visited(self) -> list[str]:
        """The nodes that were visited, in the order in which they began."""
        nodes = self.run.nodes
        assert nodes is not None
        return [visit.started.node for visit in nodes.visits]

    @property
    def text(self) -> str:
        """What came of the run."""
        output = self.run.life.output
        return output.text if output is not None else ""


def as_json(**fields: Any) -> str:
    """A reply in JSON."""
    return json.dumps(fields)

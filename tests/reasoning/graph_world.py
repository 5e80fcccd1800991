"""A world for simulations of graph runs: that of plain runs, with graphs drawn by chance and models that know a node.

Graphs are those that are made up for the laws of the scheduler, whose nodes here also call tools of each class, plan
and judge; and wide ones, whose nodes all wait for approvals, race, or are done by a tool itself.
"""

from __future__ import annotations

from random import Random
from typing import Any

from behest.v1.chat_service_pb2 import ChatEnd
from behest.v1.definition_pb2 import Limits, PermissionRule
from behest.v1.graph_pb2 import Graph
from behest.v1.operator_pb2 import Operator, ReplyTarget
from behestd.core.lanes import lane_of_step
from behestd.core.signals import CallModel
from tests.core.stage import ASK, answer
from tests.core.world import pinned as plain
from tests.operators.test_pauses_simulation import PausedWorld
from tests.reasoning.graph_stage import VALIDATORS, GraphStage, as_json, pinned
from tests.reasoning.made_up import edge, made_up

WORK = ("reason", "reason", "act", "act", "observe", "search", "plan", "verify", "test", "by_query", "by_idem")
"""Operators that take the place of `reason`; the last ones are tools."""
OWN = [
    Operator(name=f"by_{name}", tool=name, target=ReplyTarget.REPLY_TARGET_OBSERVATIONS) for name in ("query", "idem")
]
REPLIES = {
    "plan": as_json(rationale="it is short", steps=["begin", "end"]),
    "verify": as_json(problems=[], passed=True),
    "test": as_json(problems=["it is slow"], passed=False),
}
CALLERS = {"act": "asked", "search": "pure", "test": "idem"}
"""Operators whose models must call a tool, and which they call."""


def drawn(chance: Random) -> Graph:
    """Some graph."""
    kind = chance.random()
    if kind < 0.3:
        return _wide(chance, "fan_out", parallelism=chance.randint(1, 4))
    if kind < 0.45:
        return _wide(chance, "race")
    made = made_up(chance, is_fair=False, depth=1)
    _put_to_work(chance, made)
    return made


def _wide(chance: Random, kind: str, **says: Any) -> Graph:
    """A start, nodes beside each other that mostly act, and an answer."""
    made = Graph(operators=OWN)
    made.nodes.add(id="start", operator="analyze")
    mode = chance.choice(["first", "all", "best"])
    for place in range(chance.randint(2, 4)):
        name = f"n{place}"
        made.nodes.add(id=name, operator=chance.choice(["act", "act", *WORK]))
        made.edges.append(edge("start", name, kind, **says))
        if kind == "race":
            made.edges.append(edge(name, "answer"))
        else:
            made.edges.append(edge(name, "answer", "fan_in", mode=mode))
        if chance.random() < 0.3:
            made.edges.append(edge(name, name, "retry", max_attempts=2))
    made.nodes.add(id="answer", operator="answer")
    return made


def _put_to_work(chance: Random, made: Graph) -> None:
    """Have nodes do other things than reason."""
    made.operators.extend(OWN)
    for node in made.nodes:
        if node.operator == "reason":
            node.operator = chance.choice(WORK)
        elif node.HasField("subgraph"):
            _put_to_work(chance, node.subgraph)


class GraphWorld(PausedWorld, GraphStage):
    """The world of a run of some graph."""

    def __init__(self, chance: Random) -> None:
        base = plain()
        limits = Limits(max_parallel_tool_calls=3, max_length_recoveries=2)
        limits.max_steps = chance.choice([60, 60, chance.randint(2, 9)])
        if chance.random() < 0.1:
            limits.max_tool_calls = chance.randint(1, 4)
        super().__init__(
            pinned(
                drawn(chance),
                *base.tools,
                models=base.models,
                limits=limits,
                operator_permissions=[PermissionRule(tool="asked", action=ASK)],
            )
        )
        self.givens["validate"] = VALIDATORS.arguments
        self.patience = 5_000

    def reply(self, effect: CallModel) -> ChatEnd:
        """What the model of a node says when all is well."""
        lane = lane_of_step(self.run, effect.step)
        if lane is None or self.run.nodes is None:
            return answer("too late")
        operator = self.run.nodes.visit(lane.visit).started.operator
        has_called = any(message.role == 3 for message in lane.transcript)
        if operator in CALLERS and not has_called:
            return answer("", (CALLERS[operator], f'{{"step": {effect.step}}}'))
        return answer(REPLIES.get(operator, "so it is"))

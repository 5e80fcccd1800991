"""A model that knows which operator asks it, for daemons of tests: each operator has a script of the scripted provider.

Above: the tests of clients and commands, whose subject is not what operators make of replies. Everything beneath is
real: the daemon, its log, and the tools that a script calls.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from contextlib import aclosing, asynccontextmanager
from typing import Any

from behest.v1.chat_service_pb2 import Chat
from behest.v1.graph_pb2 import Graph, GraphEdge, GraphNode, Pipeline, Termination
from behest.v1.message_pb2 import Message, Role
from behestd.providers.catalog import snapshot
from behestd.providers.provider import Frame
from behestd.providers.scripted import Scripted
from behestd.reasoning.operators import OPERATORS
from tests.daemons import Served, serve

Says = Mapping[str, str | Callable[[str], str]]
"""The script of each operator, or how it follows from what the model is shown."""
ANSWER = "two and two are four"
PLAN = '/json {"rationale": "it is short", "steps": ["add"]}'
THREE: Says = {"plan": PLAN, "solve": "/say 2 + 2 = 4", "answer": f"/say {ANSWER}"}
REACT: Says = {
    "think": lambda shown: (
        '/json {"problems": [], "passed": true}'
        if "## Observations" in shown
        else '/json {"problems": ["count them"], "passed": false}'
    ),
    "act": '/tool count {"what": "files", "suffix": ".md"}',
    "observe": "/say there is one",
    "answer": "/say one file",
}
THINK = "You take turns between thinking and acting"
"""How the instructions of the operator begin that the strategy react brings along."""


def three(graph_id: str = "three") -> Graph:
    """Plan, solve, answer: ten rounds at most, or until the goal is achieved."""
    names = ("plan", "solve", "answer")
    edges = [("plan", "solve"), ("solve", "answer")]
    return Graph(
        id=graph_id,
        nodes=[GraphNode(id=name, operator=name) for name in names],
        edges=[GraphEdge(**{"from": start, "to": end}, pipeline=Pipeline()) for start, end in edges],
        termination=Termination(max_iterations=10, on_goal_achieved=True),
    )


class Mind(Scripted):
    """Answers by operator. An operator whose gate is shut waits until a test opens it."""

    def __init__(self, says: Says) -> None:
        super().__init__("mind")
        self._says = says
        self.gates: dict[str, asyncio.Event] = {}
        self.asked: list[str] = []

    def shut(self, operator: str) -> asyncio.Event:
        """Let an operator wait; the event opens its gate."""
        self.gates[operator] = asyncio.Event()
        return self.gates[operator]

    async def stream(self, chat: Chat) -> AsyncGenerator[Frame, None]:
        """Answer with the script of the operator that asks."""
        system = "".join(text_of(message) for message in chat.messages if message.role == Role.ROLE_SYSTEM)
        own = "think" if THINK in system else ""
        name = own or next(each.name for each in OPERATORS if each.instructions in system)
        copy = Chat()
        copy.CopyFrom(chat)
        order = next(message for message in reversed(copy.messages) if message.role == Role.ROLE_USER)
        says = self._says[name]
        script = says if isinstance(says, str) else says(text_of(order))
        del order.parts[1:]
        order.parts[0].text.text = script
        self.asked.append(name)
        if gate := self.gates.get(name):
            await gate.wait()
        async with aclosing(super().stream(copy)) as frames:
            async for frame in frames:
                yield frame


def text_of(message: Message) -> str:
    """The text of a message."""
    return "".join(part.text.text for part in message.parts)


@asynccontextmanager
async def thinking(says: Says, **overrides: Any) -> AsyncIterator[tuple[Served, Mind]]:
    """Serve a daemon whose default model is a mind."""
    mind = Mind(says)
    models = snapshot([Scripted(), mind], default_model="mind/echo")
    async with serve(models=models, **overrides) as served:
        yield served, mind

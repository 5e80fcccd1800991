"""Pauses: what operators stopped for now, and which of them stand in the way of what a run would do next.

Above: the decisions about models, tools and child runs, and the shell, which keeps the pauses in force and gives them
to each decision. Below: the state. What a pause leads to is journaled: RunWaiting names it, so that the log alone tells
why a run stood still.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import field

from behestd.core.state import Call, Phase, Run
from behestd.values import dataclass

ALL = "all"
NAMESPACE = "namespace"
AGENT = "agent"
MODEL = "model"
TOOL = "tool"

Key = tuple[str, str, str]
"""(namespace, kind, name) of what is paused; all has no namespace, and no name."""

EVERYTHING: Key = ("", ALL, "")


@dataclass(frozen=True, slots=True)
class Pause:
    """A pause in force."""

    kind: str
    name: str
    reason: str = ""
    principal: str = ""
    since_ns: int = 0

    @property
    def subject(self) -> str:
        """What is paused, as people and errors name it."""
        return f"{self.kind} {self.name}" if self.name else self.kind


@dataclass(frozen=True, slots=True)
class Pauses:
    """The pauses in force at one moment. Empty, it is false: nothing else is to be looked at."""

    in_force: Mapping[Key, Pause] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self.in_force)

    def of_namespace(self, namespace: str) -> Pause | None:
        """The pause of all, or of a namespace."""
        return self.in_force.get(EVERYTHING) or self.in_force.get((namespace, NAMESPACE, namespace))

    def of_agent(self, namespace: str, agent_id: str) -> Pause | None:
        """The pause that stops an agent."""
        return self.of_namespace(namespace) or self.in_force.get((namespace, AGENT, agent_id))

    def of_model(self, namespace: str, model: str) -> Pause | None:
        """The pause that stops a model."""
        return self.of_namespace(namespace) or self.in_force.get((namespace, MODEL, model))

    def of_tool(self, namespace: str, tool: str) -> Pause | None:
        """The pause that stops a tool."""
        return self.of_namespace(namespace) or self.in_force.get((namespace, TOOL, tool))

    def of_run(self, run: Run) -> Pause | None:
        """The pause that stops everything that a run would do."""
        return self.of_agent(run.created.namespace, run.definition.agent_id)

    def of_run_model(self, run: Run, model: str) -> Pause | None:
        """The pause that stops a run's calls of a model."""
        return self.of_run(run) or self.in_force.get((run.created.namespace, MODEL, model))

    def of_call(self, run: Run, call: Call) -> Pause | None:
        """The pause that stops a run's call of a tool, which for a child run is also that of its agent."""
        namespace = run.created.namespace
        found = self.of_run(run) or self.in_force.get((namespace, TOOL, call.call.name))
        if found is None and call.tool is not None and call.tool.agent_id:
            found = self.in_force.get((namespace, AGENT, call.tool.agent_id))
        return found

    def holds(self, run: Run, call: Call) -> Pause | None:
        """The pause that holds back a call which has not left, and waits for no word of people."""
        if not self.in_force or call.phase not in _LEFT_TO_SEND:
            return None
        return self.of_call(run, call)


NONE = Pauses()
_LEFT_TO_SEND = (Phase.NEW, Phase.ALLOWED, Phase.BACKOFF)

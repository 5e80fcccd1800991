"""Turns a request for a run into an order: names resolved, definition pinned, input checked. Nothing is recorded yet.

Above: the service. Below: the catalogs and the agents. Definitions are remembered for as long as nothing that they
depend on has changed, since most runs of an agent share one.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, replace

from behest.v1.agent_pb2 import Agent
from behest.v1.chat_service_pb2 import Chat
from behest.v1.definition_pb2 import RunDefinition
from behest.v1.message_pb2 import Message, Part, Role
from behest.v1.model_pb2 import Model, Price
from behest.v1.run_spec_pb2 import RunSpec
from behest.v1.session_pb2 import Session
from behest.v1.tool_pb2 import Tool
from behestd.core.definition import FREE, Heritage, Resolved, define, limits_of, name
from behestd.core.times import nanoseconds
from behestd.errors import SessionNotFound, ToolNotFound, WrongState
from behestd.log.store import SESSION_KIND
from behestd.providers.catalog import check
from behestd.runtime.agents import Agents
from behestd.runtime.house import House
from behestd.tools import subagent
from behestd.tools.catalog import ToolNameTaken

_REMEMBERED = 1024


class SessionArchived(WrongState):
    """Raised when a session is put away and takes no new runs."""

    def __init__(self, session_id: str) -> None:
        super().__init__("SESSION_ARCHIVED", f"session {session_id} is archived", sessionId=session_id)


@dataclass(frozen=True, slots=True)
class Pinned:
    """A definition with its hash and bytes."""

    definition: RunDefinition
    hash: bytes
    data: bytes


class Orders:
    """Resolves what runs are made of."""

    def __init__(self, house: House, agents: Agents) -> None:
        self._house = house
        self._agents = agents
        self._pinned: OrderedDict[tuple[object, ...], Pinned] = OrderedDict()

    async def in_session(self, namespace: str, spec: RunSpec) -> tuple[RunSpec, Heritage]:
        """The spec with the agent of the session that it names, unless it names one, and the session's scope of tools.

        Raises SessionNotFound, SessionArchived.
        """
        record = await self._house.log.store.record(namespace, SESSION_KIND, spec.session_id, 0)
        if record is None:
            raise SessionNotFound(spec.session_id)
        session = Session.FromString(record.body)
        if session.is_archived:
            raise SessionArchived(session.id)
        heritage = Heritage(scopes=(tuple(session.tools),)) if session.tools else FREE
        if spec.agent_id or not session.agent_id:
            return spec, heritage
        settled = RunSpec()
        settled.CopyFrom(spec)
        settled.agent_id = session.agent_id
        return settled, heritage

    async def pin(self, namespace: str, spec: RunSpec, heritage: Heritage = FREE) -> Pinned:
        """Pin the definition that a spec asks for, within what the run must keep to beside it.

        Raises AgentNotFound, ModelNotFound, ToolNotFound, ToolNameTaken, and PROVIDER_CAPABILITY_MISSING when the model
        cannot do what the definition or the input needs.
        """
        agent = await self._agents.resolve(namespace, spec.agent_id)
        house = self._house
        if spec.tools:
            heritage = replace(heritage, scopes=(*heritage.scopes, tuple(spec.tools)))
        callable_agents = await self._sub_agents(namespace, agent, heritage) if agent.sub_agents else []
        models, tools = house.models.current, house.tools.snapshot(namespace)
        versions = tuple((sub.id, sub.version) for sub in callable_agents)
        key = (namespace, agent.id, agent.version, _overrides(spec), id(models), id(tools), heritage.scopes, versions)
        pinned = self._pinned.get(key) if heritage.parent is None else None
        if pinned is None:
            pinned = self._pin(namespace, spec, (agent, callable_agents), heritage)
        if heritage.parent is None:
            self._pinned[key] = pinned
            if len(self._pinned) > _REMEMBERED:
                self._pinned.popitem(last=False)
        self._check(pinned.definition, spec)
        return pinned

    async def _sub_agents(self, namespace: str, agent: Agent, heritage: Heritage) -> list[Agent]:
        """The agents that a run may call: none where it is as deep as it may be. Raises AgentNotFound."""
        if limits_of(agent, self._house.operator, heritage).max_depth < 1:
            return []
        return [await self._agents.resolve(namespace, agent_id) for agent_id in dict.fromkeys(agent.sub_agents)]

    def _pin(self, namespace: str, spec: RunSpec, agents: tuple[Agent, Sequence[Agent]], heritage: Heritage) -> Pinned:
        agent, _ = agents
        models = self._models(spec, agent)
        now_ns = self._house.clock.now_ns()
        resolved = Resolved(
            models=tuple(model.id for model in models),
            prices=tuple(price_at(model, now_ns) for model in models),
            tools=self._tools(namespace, spec, agents, heritage.scopes),
        )
        definition = define(agent, spec, resolved, self._house.operator, heritage)
        digest, data = name(definition)
        return Pinned(definition, digest, data)

    def _models(self, spec: RunSpec, agent: Agent) -> list[Model]:
        current = self._house.models.current
        names = [spec.model or agent.model, *(() if spec.model else agent.fallback_models)]
        found = [current.resolve(name).model for name in names]
        return list({model.id: model for model in found}.values())

    def _tools(
        self,
        namespace: str,
        spec: RunSpec,
        agents: tuple[Agent, Sequence[Agent]],
        scopes: Sequence[Sequence[str]],
    ) -> tuple[Tool, ...]:
        """The tools of an agent, and the agents that it may call, as far as they are in every scope."""
        agent, callable_agents = agents
        catalog = self._house.tools
        tools = catalog.snapshot(namespace)
        offered = {tool.name: tool for tool in tools.resolve(agent.tools)}
        made = [subagent.tool_of(sub, catalog.configured(subagent.PREFIX + sub.id)) for sub in callable_agents]
        for tool in made:
            if tool.name in offered:
                raise ToolNameTaken(tool.name, offered[tool.name].server_id)
            offered[tool.name] = tool
        if spec.tools:
            named = {tool.name for tool in tools.resolve(name for name in spec.tools if name not in offered)}
            # What an agent has not may be there for the agents that it calls.
            missing = named - offered.keys() if not made else None
            if missing:
                raise ToolNotFound(min(missing))
        chosen = (name for name in sorted(offered) if all(subagent.is_in(name, scope) for scope in scopes))
        return tuple(offered[name] for name in chosen)

    def _check(self, definition: RunDefinition, spec: RunSpec) -> None:
        """Refuse what the model cannot do before anything is recorded."""
        if not definition.tools and not definition.HasField("response_format") and _is_text(spec):
            return
        model = self._house.models.current.resolve(definition.models[0]).model
        message = Message(role=Role.ROLE_USER, parts=spec.input)
        probe = Chat(messages=[message], tools=definition.tools, response_format=definition.response_format)
        check(probe, model)


def _is_text(spec: RunSpec) -> bool:
    return all(part.WhichOneof("kind") == "text" for part in spec.input)


def _overrides(spec: RunSpec) -> bytes:
    """What of a spec goes into the definition, as bytes; empty for most runs."""
    only = RunSpec(
        model=spec.model,
        tools=spec.tools,
        output_schema_json=spec.output_schema_json,
        provider_options_json=spec.provider_options_json,
    )
    for field in ("tool_choice", "sampling", "response_format"):
        if spec.HasField(field):
            getattr(only, field).CopyFrom(getattr(spec, field))
    return only.SerializeToString(deterministic=True)


def price_at(model: Model, now_ns: int) -> Price:
    """The last price of a model that is in effect; an empty one, which is unknown, when there is none."""
    valid = [price for price in model.prices if nanoseconds(price.effective_time) <= now_ns]
    return valid[-1] if valid else Price()


def order_message(parts: list[Part], message_id: str) -> Message:
    """The order as the first message of a run."""
    return Message(id=message_id, role=Role.ROLE_USER, parts=parts)

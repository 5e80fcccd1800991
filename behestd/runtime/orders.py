"""Turns a request for a run into an order: names resolved, definition pinned, input checked. Nothing is recorded yet.

Above: the service. Below: the catalogs and the agents. Definitions are remembered for as long as nothing that they
depend on has changed, since most runs of an agent share one.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import replace

from behest.v1.agent_pb2 import Agent
from behest.v1.chat_service_pb2 import Chat
from behest.v1.context_pb2 import ContextSource
from behest.v1.definition_pb2 import RunDefinition
from behest.v1.message_pb2 import Message, Part, Role
from behest.v1.model_pb2 import Model, Price
from behest.v1.run_spec_pb2 import RunSpec
from behest.v1.session_pb2 import Session
from behest.v1.tool_pb2 import Tool
from behestd.core.definition import FREE, Heritage, Resolved, answer_of, define, limits_of, name
from behestd.core.sources import ordered, pinned
from behestd.core.times import nanoseconds
from behestd.errors import InvalidRequest, SessionNotFound, ToolNotFound, WrongState
from behestd.log.store import SESSION_KIND
from behestd.providers.catalog import Snapshot, lacks, needed
from behestd.runtime import compaction_order, graph_order, task_order
from behestd.runtime.agents import Agents
from behestd.runtime.house import House
from behestd.runtime.prices import Epochs
from behestd.tools import subagent
from behestd.tools.catalog import ToolNameTaken
from behestd.values import dataclass

_REMEMBERED = 1024
_REMEMBERED_BYTES = 64 * 1024
"""Longest definition with a graph that is remembered: graphs come whole with orders, and may be large."""


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


@dataclass(frozen=True, slots=True)
class _Asked:
    """What a definition is made for beside its agent."""

    needs: tuple[str, ...]
    """Capabilities that the input needs."""
    chance: float
    """Of an alias of several models."""
    graph: graph_order.GraphOrder | None
    """What the run follows. None: the loop of model and tools."""


class Orders:
    """Resolves what runs are made of."""

    def __init__(self, house: House, agents: Agents) -> None:
        self._house = house
        self._agents = agents
        self._pinned: OrderedDict[tuple[object, ...], Pinned] = OrderedDict()
        self._prices = Epochs()

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
        await self._house.ledger.session(self._house.log.store, namespace, session)
        heritage = Heritage(scopes=(tuple(session.tools),)) if session.tools else FREE
        if spec.agent_id or not session.agent_id:
            return spec, heritage
        settled = RunSpec()
        settled.CopyFrom(spec)
        settled.agent_id = session.agent_id
        return settled, heritage

    async def pin(self, namespace: str, spec: RunSpec, heritage: Heritage = FREE) -> Pinned:
        """Pin the definition that a spec asks for, within what the run must keep to beside it.

        Raises AgentNotFound, ModelNotFound, ToolNotFound, ToolNameTaken, PROVIDER_CAPABILITY_MISSING when the model
        cannot do what the definition or the input needs, InvalidRequest for a schema or a task that is not taken, and
        GraphNotFound, StrategyNotFound and GraphInvalid for what the run is to follow.
        """
        agent = await self._agents.resolve(namespace, spec.agent_id)
        house = self._house
        graph = None
        if graph_order.is_named(spec, agent):
            task_order.check(spec, house.limits.input_bytes)
            graph = await graph_order.ordered(house, namespace, spec, agent)
        elif spec.HasField("task"):
            raise InvalidRequest("spec.task", "is of graphs only, and the run follows none")
        if spec.tools:
            heritage = replace(heritage, scopes=(*heritage.scopes, tuple(spec.tools)))
        callable_agents = await self._sub_agents(namespace, agent, heritage) if agent.sub_agents else []
        models, tools = house.models.of(namespace), house.tools.snapshot(namespace)
        versions = tuple((sub.id, sub.version) for sub in callable_agents)
        needs = () if graph is not None or _is_text(spec) else _input_needs(spec)
        chance = models.chance_of(spec.model or agent.model, house.rng.random()) if models.weighted else 0.0
        epoch = self._prices.of(namespace, models, house.clock.now_ns())
        followed = None if graph is None else (graph.digest, graph.chances)
        made_of = (epoch, id(tools), heritage.scopes, versions, needs, chance, followed)
        key = (namespace, agent.id, agent.version, _overrides(spec), *made_of)
        pinned = self._pinned.get(key) if heritage.parent is None else None
        if pinned is None:
            asked = _Asked(needs, chance, graph)
            pinned = self._pin(namespace, spec, (agent, callable_agents), heritage, asked)
            if heritage.parent is None and (graph is None or len(pinned.data) <= _REMEMBERED_BYTES):
                self._pinned[key] = pinned
                if len(self._pinned) > _REMEMBERED:
                    self._pinned.popitem(last=False)
        return pinned

    async def tools_of(self, namespace: str, agent_id: str) -> tuple[Tool, ...]:
        """The tools that runs of an agent have. Raises AgentNotFound, ToolNotFound, ToolNameTaken."""
        agent = await self._agents.resolve(namespace, agent_id)
        return self._tools(namespace, RunSpec(), (agent, await self._sub_agents(namespace, agent, FREE)), ())

    async def _sub_agents(self, namespace: str, agent: Agent, heritage: Heritage) -> list[Agent]:
        """The agents that a run may call: none where it is as deep as it may be. Raises AgentNotFound."""
        if limits_of(agent, self._house.operator, heritage).max_depth < 1:
            return []
        return [await self._agents.resolve(namespace, agent_id) for agent_id in dict.fromkeys(agent.sub_agents)]

    def _pin(
        self,
        namespace: str,
        spec: RunSpec,
        agents: tuple[Agent, Sequence[Agent]],
        heritage: Heritage,
        asked: _Asked,
    ) -> Pinned:
        """Pin a definition for an input that needs capabilities, with a chance for aliases of several models."""
        agent, _ = agents
        now_ns = self._house.clock.now_ns()
        tools = self._tools(namespace, spec, agents, heritage.scopes)
        answer = answer_of(agent, spec)
        if answer.schema_json:
            asked_by = "output_schema_json" if spec.output_schema_json else "response_format.schema_json"
            self._house.tools.validators.check_answer(f"spec.{asked_by}", answer.schema_json)
        graph = None if asked.graph is None else graph_order.settled(asked.graph, tools, self._house.tools)
        if graph is None:
            probe = Chat(tools=tools[:1], response_format=None if answer.emulate else answer)
            needs: tuple[str, ...] = (*needed(probe), *asked.needs)
        else:
            needs = graph_order.needs_of(graph, tools)
        catalog = self._house.models.of(namespace)
        found = catalog.candidates(*self._named(catalog, spec, agent), needs, asked.chance)
        models = [resolved.model for resolved in found]
        resolved = Resolved(
            models=tuple(model.id for model in models),
            prices=tuple(price_at(model, now_ns) for model in models),
            tools=tools,
            limits=tuple(model.limits for model in models),
            sources=self._sources(agent, models),
        )
        definition = define(agent, spec, resolved, self._house.operator, heritage)
        if asked.graph is None or graph is None:
            form = tuple(needed(Chat(response_format=answer)))
            definition.emulating_models.extend(model.id for model in models if lacks(model, form) is not None)
        else:
            routes = graph_order.Routes(catalog, lambda model: price_at(model, now_ns), asked.graph.chances)
            graph_order.pin(definition, graph, agent, routes)
        compaction_order.pin(definition, agent, self._house, catalog, lambda model: price_at(model, now_ns))
        digest, data = name(definition)
        return Pinned(definition, digest, data)

    def _sources(self, agent: Agent, models: Sequence[Model]) -> tuple[ContextSource, ...]:
        """The context sources of an agent, in the order in which they stand. Raises SourceNotFound."""
        if not agent.context_sources:
            return ()
        found = ordered([self._house.sources.find(name) for name in dict.fromkeys(agent.context_sources)])
        return tuple(pinned(source, models[0].limits) for source in found)

    def _named(self, models: Snapshot, spec: RunSpec, agent: Agent) -> tuple[str, Sequence[str]]:
        """The name of the model, and the names of those after it: of the agent, then of the configuration."""
        first = spec.model or agent.model
        own = () if spec.model else agent.fallback_models
        return first, (*own, *models.fallbacks_of(first, self._house.fallbacks))

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


def _is_text(spec: RunSpec) -> bool:
    return all(part.WhichOneof("kind") == "text" for part in spec.input[:])


def _input_needs(spec: RunSpec) -> tuple[str, ...]:
    """The capabilities that the input needs, in order."""
    said = Message(role=Role.ROLE_USER, parts=spec.input)
    return tuple(sorted(set(needed(Chat(messages=[said])))))


def _overrides(spec: RunSpec) -> bytes:
    """What of a spec goes into the definition, as bytes; empty for most runs."""
    has_text = spec.model or spec.tools or spec.output_schema_json or spec.provider_options_json
    has_form = spec.HasField("tool_choice") or spec.HasField("sampling") or spec.HasField("response_format")
    if not (has_text or has_form):
        return b""
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

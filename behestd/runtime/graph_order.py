"""Pins a run to its reasoning graph: found by what the order or the agent names, checked, with all that its nodes name.

Above: `orders`, which makes definitions. Below: `graphs`, the strategies of `reasoning`, the catalogs. Nothing that a
pinned graph means is looked up later: operators stand in it, globs of tools have become names, and models of nodes are
endpoints, with their prices and limits beside the graph.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from hashlib import sha256

from behest.v1.agent_pb2 import Agent
from behest.v1.chat_pb2 import ResponseFormat, ResponseFormatKind
from behest.v1.chat_service_pb2 import Chat
from behest.v1.definition_pb2 import PinnedModel, RunDefinition
from behest.v1.graph_pb2 import Graph, GraphProblem, GraphProblemKind, StrategyChoice
from behest.v1.model_pb2 import Model, Price
from behest.v1.operator_pb2 import Operator, ReplyTarget
from behest.v1.run_spec_pb2 import RunSpec
from behest.v1.tool_pb2 import Tool
from behestd.core import structured
from behestd.core.definition import limits_of_graph
from behestd.errors import InvalidRequest
from behestd.providers.catalog import CapabilityMissing, Snapshot, lacks, needed
from behestd.reasoning.operators import operator_of
from behestd.reasoning.strategies import make
from behestd.runtime.graphs import Place, check, completed, graph_of, invalid, places
from behestd.runtime.house import House
from behestd.tools.catalog import Catalog
from behestd.tools.schema import Validators
from behestd.tools.subagent import is_in
from behestd.values import dataclass

PriceAt = Callable[[Model], Price]

_SCHEMA = ResponseFormatKind.RESPONSE_FORMAT_KIND_JSON_SCHEMA
_ANY_OBJECT = '{"type": "object"}'
_FORM = tuple(needed(Chat(response_format=ResponseFormat(kind=_SCHEMA))))
_ANSWER = ReplyTarget.REPLY_TARGET_ANSWER
_NOTHING = Graph()
_TASKS = tuple(json.dumps({"task": "task" * count}) for count in (1, 1_000))
"""Arguments as the tools get that do the work of nodes."""


@dataclass(frozen=True, slots=True)
class GraphOrder:
    """A graph that a run is to follow."""

    graph: Graph
    """With the operators of extensions; not yet checked."""
    path: str
    """What the caller knows it by."""
    digest: bytes
    """What tells it from other graphs."""
    chances: tuple[float, ...] = ()
    """Of each model that its nodes name, in the order of `models_of`: which one an alias of several stands for."""


def is_named(spec: RunSpec, agent: Agent) -> bool:
    """Whether a run follows a graph."""
    named = agent.strategy or agent.graph_id or spec.graph_id
    return bool(named) or spec.HasField("strategy") or spec.HasField("graph")


async def ordered(house: House, namespace: str, spec: RunSpec, agent: Agent) -> GraphOrder:
    """Find the graph that a spec names, or else its agent, where one of them does.

    Raises GraphNotFound, StrategyNotFound, and InvalidRequest for a parameter of a strategy.
    """
    found, path = await _found(house, namespace, spec, agent)
    graph = completed(found, house.tools.operators)
    digest = sha256(graph.SerializeToString(deterministic=True)).digest()
    models = house.models.of(namespace)
    chances = (models.chance_of(name, house.rng.random()) if models.weighted else 0.0 for name in models_of(graph))
    return GraphOrder(graph, path, digest, tuple(chances))


async def _found(house: House, namespace: str, spec: RunSpec, agent: Agent) -> tuple[Graph, str]:
    store = house.log.store
    if spec.graph_id:
        return await graph_of(store, namespace, spec.graph_id, spec.graph_version), "spec.graph_id"
    if spec.HasField("graph"):
        return spec.graph, "spec.graph"
    if spec.HasField("strategy"):
        return made(spec.strategy, "spec.strategy.parameters"), "spec.strategy"
    if agent.graph_id:
        return await graph_of(store, namespace, agent.graph_id), "agent.graph_id"
    choice = StrategyChoice(name=agent.strategy, parameters=agent.strategy_parameters)
    return made(choice, "agent.strategy_parameters"), "agent.strategy"


def made(choice: StrategyChoice, path: str) -> Graph:
    """The graph of a strategy; `path` is what the caller knows its parameters by.

    Raises StrategyNotFound, InvalidRequest.
    """
    try:
        return make(choice)
    except InvalidRequest as error:
        field, problem = error.violations[0]
        raise InvalidRequest(path + field.removeprefix("strategy.parameters"), problem) from None


def models_of(graph: Graph) -> list[str]:
    """The models that nodes of a graph name, each once, in their order."""
    return list(dict.fromkeys(place.node.model for place in places(graph) if place.node.model))


# --- the graph ---


def settled(order: GraphOrder, tools: Sequence[Tool], catalog: Catalog) -> Graph:
    """The graph as a run with these tools is pinned to it, but for the models of its nodes. Raises GraphInvalid."""
    names = [tool.name for tool in tools]
    check(order.graph, catalog, names, order.path)
    graph = Graph()
    graph.CopyFrom(order.graph)
    for field in ("labels", "create_time", "update_time"):
        graph.ClearField(field)
    problems = [problem for place in places(graph) for problem in _choose_tools(place, names)]
    problems += _deaf(graph, tools, catalog.validators)
    if problems:
        raise invalid(problems, order.path)
    _keep_operators(graph)
    return graph


def _choose_tools(place: Place, names: Sequence[str]) -> Iterator[GraphProblem]:
    """Put names in the place of a node's globs, of which one at least must match."""
    node = place.node
    if not node.tools:
        return
    chosen = [name for name in names if is_in(name, node.tools)]
    if not chosen:
        kind, text = GraphProblemKind.GRAPH_PROBLEM_KIND_UNDECLARED_TOOL, "the run has none of the node's tools"
        yield GraphProblem(kind=kind, node=place.path, message=text)
    del node.tools[:]
    node.tools.extend(chosen)


def _deaf(graph: Graph, tools: Sequence[Tool], validators: Validators) -> Iterator[GraphProblem]:
    """Nodes whose work is done by a tool that does not take the task, be it short or long."""
    by_name = {tool.name: tool for tool in tools}
    for place in places(graph):
        tool = by_name.get(operator_at(place.graph, place.node.operator).tool)
        if tool is not None and all(validators.arguments(tool, text) for text in _TASKS):
            kind, text = GraphProblemKind.GRAPH_PROBLEM_KIND_BAD_OPERATOR, f"tool {tool.name} does not take a `task`"
            yield GraphProblem(kind=kind, node=place.path, message=text)


def _keep_operators(root: Graph) -> None:
    """Put the operators into each graph that its nodes name, no others, and all of them into the outermost one."""
    used: dict[str, Operator] = {}
    graphs = [root]
    for graph in graphs:  # which grows meanwhile
        kept = [operator_at(graph, name) for name in sorted(_named(graph))]
        used |= {operator.name: operator for operator in kept}
        del graph.operators[:]
        graph.operators.extend(kept)
        graphs += [node.subgraph for node in graph.nodes if node.HasField("subgraph")]
    del root.operators[:]
    root.operators.extend(used[name] for name in sorted(used))


def bare(pinned: Graph) -> Graph:
    """A pinned graph as it may be ordered again: without operators that every graph has, or that only others name."""
    graph = Graph()
    graph.CopyFrom(pinned)
    graphs = [graph]
    for each in graphs:  # which grows meanwhile
        names = _named(each)
        own = [one for one in each.operators if one.name in names and one != operator_of(_NOTHING, one.name)]
        del each.operators[:]
        each.operators.extend(own)
        graphs += [node.subgraph for node in each.nodes if node.HasField("subgraph")]
    return graph


def _named(graph: Graph) -> set[str]:
    """The operators that nodes of a graph name, those of its subgraphs left out."""
    return {node.operator for node in graph.nodes if node.HasField("operator")}


def operator_at(graph: Graph, name: str) -> Operator:
    """An operator that a node of a valid graph names."""
    found = operator_of(graph, name)
    assert found is not None
    return found


# --- the definition ---


def needs_of(graph: Graph, tools: Sequence[Tool], model: str = "") -> tuple[str, ...]:
    """What a model must be able to do for the nodes that name it; an empty name stands for the run's own models."""
    asking = (operator_at(place.graph, place.node.operator) for place in places(graph) if place.node.model == model)
    has_tools = bool(tools) and any(operator.tool_use and not operator.tool for operator in asking)
    return ("chat", "tools") if has_tools else ("chat",)


@dataclass(frozen=True, slots=True)
class Routes:
    """What the names of models stand for at present."""

    models: Snapshot
    price_at: PriceAt
    chances: Sequence[float]
    """See GraphOrder."""


def pin(definition: RunDefinition, graph: Graph, agent: Agent, routes: Routes) -> None:
    """Pin a definition to a settled graph.

    The form of the answer goes to the nodes that answer, where they have none: of the others it says nothing. Raises
    ModelNotFound, ProviderNotFound and CapabilityMissing for the models of nodes.
    """
    pinned = definition.graph
    pinned.CopyFrom(graph)
    _pin_models(definition, routes)
    form = definition.response_format
    for node in pinned.nodes if structured.has_form(form) else ():
        operator = operator_at(pinned, node.operator) if node.HasField("operator") else Operator()
        if operator.target == _ANSWER and not node.reply_schema_json and not operator.reply_schema_json:
            node.reply_schema_json = form.schema_json or _ANY_OBJECT
    definition.ClearField("response_format")
    definition.ClearField("tool_choice")
    emulating = [name for name in definition.models if _is_emulating(routes.models.models[name].model)]
    definition.emulating_models.extend(emulating)
    definition.limits.CopyFrom(limits_of_graph(agent, definition.limits, graph.termination))


def _pin_models(definition: RunDefinition, routes: Routes) -> None:
    """Put endpoints in the place of the models that nodes name, and pin each of them once."""
    graph, chosen = definition.graph, {}
    for name, chance in zip(models_of(graph), routes.chances, strict=True):
        needs = needs_of(graph, definition.tools, name)
        model = routes.models.choose(name, needs, chance).model
        missing = lacks(model, needs)
        if missing is not None:
            raise CapabilityMissing(model.id, missing)
        chosen[name] = model
    for place in places(graph):
        if place.node.model:
            place.node.model = chosen[place.node.model].id
    for model in {model.id: model for model in chosen.values()}.values():
        definition.node_models.append(
            PinnedModel(
                endpoint=model.id,
                price=routes.price_at(model),
                limits=model.limits,
                is_emulating=_is_emulating(model),
            )
        )


def _is_emulating(model: Model) -> bool:
    return lacks(model, _FORM) is not None

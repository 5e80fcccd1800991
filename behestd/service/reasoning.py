"""ReasoningService: graphs as versioned definitions, and what they can be made of. Above: the edge. Below: the log.

A graph's record holds its newest version, and the record's version is the graph's. Every version has a record of its
own beside it, written in the same transaction, so that runs and people can go back to it. What is stored is the graph
as it was given: operators that are functions of extensions are looked up when it is checked, and again when a run pins
it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

from behest.v1 import reasoning_service_pb2 as pb
from behest.v1.graph_pb2 import Graph, GraphProblem, GraphProblemKind, Strategy
from behest.v1.message_pb2 import Message, Part, Role, TextPart
from behest.v1.operator_pb2 import Operator
from behestd.core.task import of_message
from behestd.core.times import timestamp
from behestd.errors import InvalidRequest, NodeNotFound
from behestd.log.store import Change, Claim, Committed, Delete, Put, Record, RecordChanged, RequestTaken
from behestd.reasoning import prompt
from behestd.reasoning.operators import OPERATORS
from behestd.reasoning.strategies import STRATEGIES
from behestd.runtime.graph_order import made, operator_at
from behestd.runtime.graphs import (
    KIND,
    VERSION_KIND,
    check,
    completed,
    graph_in,
    graph_of,
    places,
    problems_of,
    version_name,
)
from behestd.runtime.house import House
from behestd.runtime.orders import Orders
from behestd.service import graph_checks as checks
from behestd.service import records
from behestd.service.call import Call
from behestd.service.methods import Handler
from behestd.service.pages import Position, page_of
from behestd.service.validate import identifier, labels, not_negative, request_id, required, required_message

_NAME = "/behest.v1.ReasoningService/"

Thing = TypeVar("Thing", Operator, Strategy)


class Reasoning:
    """Handlers of ReasoningService."""

    def __init__(self, house: House, orders: Orders) -> None:
        self._house = house
        self._log = house.log
        self._orders = orders

    def handlers(self) -> Mapping[str, Handler]:
        """The handlers by full name."""
        return {
            _NAME + "ListOperators": self.list_operators,
            _NAME + "ListStrategies": self.list_strategies,
            _NAME + "MakeGraph": self.make_graph,
            _NAME + "CreateGraph": self.create_graph,
            _NAME + "GetGraph": self.get_graph,
            _NAME + "ListGraphs": self.list_graphs,
            _NAME + "UpdateGraph": self.update_graph,
            _NAME + "DeleteGraph": self.delete_graph,
            _NAME + "ValidateGraph": self.validate_graph,
            _NAME + "PreviewNode": self.preview_node,
        }

    # --- what graphs are made of ---

    async def list_operators(self, request: pb.ListOperatorsRequest, call: Call) -> pb.ListOperatorsResponse:
        """List the operators that every graph has, those of extensions among them."""
        found = {operator.name: operator for operator in OPERATORS} | self._house.tools.operators
        shown, token = _page(request, call, found)
        return pb.ListOperatorsResponse(operators=shown, next_page_token=token)

    async def list_strategies(self, request: pb.ListStrategiesRequest, call: Call) -> pb.ListStrategiesResponse:
        """List the strategies."""
        shown, token = _page(request, call, {strategy.name: strategy for strategy in STRATEGIES})
        return pb.ListStrategiesResponse(strategies=shown, next_page_token=token)

    async def make_graph(self, request: pb.MakeGraphRequest, call: Call) -> pb.MakeGraphResponse:
        """Make the graph of a strategy."""
        required_message(request, "strategy")
        checks.check_choice("strategy", request.strategy)
        return pb.MakeGraphResponse(graph=made(request.strategy, "strategy.parameters"))

    # --- graphs that are kept ---

    async def create_graph(self, request: pb.CreateGraphRequest, call: Call) -> pb.CreateGraphResponse:
        """Create a graph as version 1."""
        request_id("request_id", request.request_id)
        required_message(request, "graph")
        if request.graph.id:
            identifier("graph.id", request.graph.id)
        digest = records.digest_of(request)
        known = await records.earlier(self._log, call.namespace, request.request_id, digest)
        if known:
            return pb.CreateGraphResponse(graph=await self._graph(call.namespace, known), replayed=True)
        self._check(request.graph)
        graph = Graph()
        graph.CopyFrom(request.graph)
        graph.id = request.graph.id or self._house.ids.make("gra")
        graph.ClearField("create_time")
        claim = records.claim_of(call.namespace, request.request_id, digest, graph.id)
        outcome = await self._write(call.namespace, graph, 0, claim)
        if isinstance(outcome, RequestTaken):
            target = records.same(outcome, digest, request.request_id)
            return pb.CreateGraphResponse(graph=await self._graph(call.namespace, target), replayed=True)
        if not isinstance(outcome, Committed):
            raise checks.GraphIdTaken(graph.id)
        return pb.CreateGraphResponse(graph=graph)

    async def get_graph(self, request: pb.GetGraphRequest, call: Call) -> pb.GetGraphResponse:
        """Get a graph, at its newest or at an earlier version."""
        identifier("graph_id", request.graph_id)
        not_negative("version", request.version)
        return pb.GetGraphResponse(graph=await self._graph(call.namespace, request.graph_id, request.version))

    async def list_graphs(self, request: pb.ListGraphsRequest, call: Call) -> pb.ListGraphsResponse:
        """List the newest versions of graphs, by id."""
        page = page_of(request, call.namespace, (str,))
        wanted = labels("labels", request.labels)

        async def read(after: Position | None, limit: int) -> list[Record]:
            place = str(after[0]) if after else ""
            return await self._log.store.records(call.namespace, KIND, after=place, limit=limit)

        def show(record: Record) -> Graph | None:
            graph = graph_in(record)
            return graph if records.has_labels(graph.labels, wanted) else None

        taken = await records.take(page, read, lambda record: (record.id,), show)
        token = page.token(taken.last.id) if taken.last is not None else ""
        return pb.ListGraphsResponse(graphs=taken.items, next_page_token=token)

    async def update_graph(self, request: pb.UpdateGraphRequest, call: Call) -> pb.UpdateGraphResponse:
        """Put a graph, or its named fields, in the place of the newest version's, as a new version."""
        required_message(request, "graph")
        given, paths = request.graph, request.update_mask.paths
        identifier("graph.id", given.id)
        not_negative("expected_version", request.expected_version)
        if paths:
            records.check_mask(given, paths, checks.CHANGEABLE)
        while True:
            old = await self._graph(call.namespace, given.id)
            if request.expected_version not in (0, old.version):
                raise checks.GraphVersionMismatch(old.id, old.version)
            new = records.changed(old, given, paths) if paths else _instead(old, given)
            if new == old:
                return pb.UpdateGraphResponse(graph=old)
            self._check(new)
            if isinstance(await self._write(call.namespace, new, old.version), Committed):
                return pb.UpdateGraphResponse(graph=new)

    async def delete_graph(self, request: pb.DeleteGraphRequest, call: Call) -> pb.DeleteGraphResponse:
        """Delete a graph with all its versions."""
        identifier("graph_id", request.graph_id)
        while True:
            record = await self._log.store.record(call.namespace, KIND, request.graph_id, 0)
            if record is None:
                return pb.DeleteGraphResponse()
            deletes = [Delete(call.namespace, KIND, record.id, record.version)]
            names = (version_name(record.id, version) for version in range(1, record.version + 1))
            deletes += [Delete(call.namespace, VERSION_KIND, name) for name in names]
            if isinstance(await records.commit(self._log, Change(deletes=tuple(deletes))), Committed):
                return pb.DeleteGraphResponse()

    # --- graphs that are not ---

    async def validate_graph(self, request: pb.ValidateGraphRequest, call: Call) -> pb.ValidateGraphResponse:
        """Tell everything that is wrong with a graph."""
        required_message(request, "graph")
        tools = None
        if request.agent_id:
            identifier("agent_id", request.agent_id)
            tools = [tool.name for tool in await self._orders.tools_of(call.namespace, request.agent_id)]
        found = problems_of(self._completed(request.graph), self._house.tools, tools)
        try:
            checks.check_graph("graph", request.graph)
        except InvalidRequest as error:
            out_of_range = GraphProblemKind.GRAPH_PROBLEM_KIND_OUT_OF_RANGE
            found = found or [GraphProblem(kind=out_of_range, message=error.message)]
        return pb.ValidateGraphResponse(problems=found)

    async def preview_node(self, request: pb.PreviewNodeRequest, call: Call) -> pb.PreviewNodeResponse:
        """Show what the model of a node would see of a task."""
        required_message(request, "graph")
        required("node", request.node)
        required_message(request, "task")
        self._check(request.graph)
        graph = self._completed(request.graph)
        place = next((place for place in places(graph) if place.path == request.node), None)
        if place is None:
            raise NodeNotFound(request.node)
        operator = operator_at(place.graph, place.node.operator)
        task = of_message(request.task)
        said = {Role.ROLE_SYSTEM: prompt.system(operator, place.node, "")} if not operator.tool else {}
        said[Role.ROLE_USER] = prompt.show(task) if operator.tool else prompt.ask(operator, place.node, task)
        messages = [Message(role=role, parts=[Part(text=TextPart(text=text))]) for role, text in said.items() if text]
        return pb.PreviewNodeResponse(messages=messages, reply_schema_json=prompt.schema(operator, place.node))

    # --- shared ---

    def _completed(self, graph: Graph) -> Graph:
        return completed(graph, self._house.tools.operators)

    def _check(self, graph: Graph) -> None:
        """Refuse what is not to be kept. Raises InvalidRequest, TooLarge, GraphInvalid."""
        checks.check_graph("graph", graph)
        check(self._completed(graph), self._house.tools, None, "graph")

    async def _graph(self, namespace: str, graph_id: str, version: int = 0) -> Graph:
        return await graph_of(self._log.store, namespace, graph_id, version)

    async def _write(
        self, namespace: str, graph: Graph, version: int, claim: Claim | None = None
    ) -> Committed | RequestTaken | RecordChanged:
        """Write a graph over a version, 0 being none; it becomes what is stored."""
        now_ns = self._house.clock.now_ns()
        graph.version = version + 1
        graph.update_time.CopyFrom(timestamp(now_ns))
        if not graph.HasField("create_time"):
            graph.create_time.CopyFrom(timestamp(now_ns))
        body = graph.SerializeToString(deterministic=True)
        puts = (
            Put(Record(namespace, KIND, graph.id, body, create_time_ns=now_ns), version),
            Put(Record(namespace, VERSION_KIND, version_name(graph.id, graph.version), body, create_time_ns=now_ns)),
        )
        return await records.commit(self._log, Change(puts=puts, claim=claim))


def _instead(old: Graph, given: Graph) -> Graph:
    """A graph in the place of another one, which it keeps the output-only fields of."""
    new = Graph()
    new.CopyFrom(given)
    new.version = old.version
    new.create_time.CopyFrom(old.create_time)
    new.update_time.CopyFrom(old.update_time)
    return new


def _page(
    request: pb.ListOperatorsRequest | pb.ListStrategiesRequest, call: Call, found: Mapping[str, Thing]
) -> tuple[list[Thing], str]:
    """The page that a list request asks for of things by their names, and where to go on."""
    page = page_of(request, call.namespace, (str,))
    after = str(page.after[0]) if page.after else ""
    names = [name for name in sorted(found) if name > after]
    token = page.token(names[page.size - 1]) if len(names) > page.size else ""
    return [found[name] for name in names[: page.size]], token
